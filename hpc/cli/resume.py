"""`tessera resume`: go on with a run, or the unfinished runs of a sweep, on as many ranks as there are now."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hpc.cli.arguments import Parser
from hpc.cli.cluster import resettled
from hpc.cli.several import each
from hpc.errors import TRUST
from hpc.launch.already import ASSURE, nothing_to_do, refuse_if_submitted
from hpc.launch.start import start
from hpc.launch.sweep import resume_sweep
from hpc.options import absolute_paths, build, plain
from hpc.ownership import load_trusted, require_trust
from hpc.rundir import RunDir
from hpc.settings import Settings, SlurmCluster
from hpc.terminal import say
from hpc.watch.sweeps import is_sweep


def main(arguments: Sequence[str]) -> int:
    """Run the ranks of existing runs again; return the exit code, of several the worst."""
    given = _read(arguments)
    return each(given.runs, lambda run: _resume(run, given))


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("resume", "Go on with runs from what they have saved, on any number of ranks or nodes.")
    parser.add_argument("words", nargs="+", metavar="RUN", help="runs or sweeps, then key=value words")
    parser.add_argument("--retry-failed", action="store_true", help="try quarantined units again")
    parser.add_argument("--any-version", action="store_true", help="go on although other code started the run")
    parser.add_argument(ASSURE, action="store_true", help="submit although SLURM does not say so")
    parser.add_argument(TRUST, action="store_true", help="go on although somebody else can have written it")
    parser.add_argument("--any-inputs", action="store_true", help="go on although input files are others now")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], help="folder with cluster/NAME.yaml")
    given = parser.read(arguments)
    # A folder may be called a=b; a word that is none is one of cluster=NAME, cluster.*, engine.* or checkpoint.*.
    given.runs = [Path(word).absolute() for word in given.words if "=" not in word or Path(word).is_dir()]
    given.overrides = [word for word in given.words if "=" in word and not Path(word).is_dir()]
    if not given.runs:
        parser.error("name the directory of a run, or of a sweep")
    return given


def _resume(path: Path, given: argparse.Namespace) -> int:
    if is_sweep(path):
        require_trust(path, trusted=given.trust_owner)
        return resume_sweep(
            path,
            lambda run: _resettled(run, given),
            retry_failed=given.retry_failed,
            job_has_ended=given.job_has_ended,
        )
    run = RunDir.open(path)
    settings = _resettled(run, given)
    cluster = settings.cluster
    if isinstance(cluster, SlurmCluster):
        if cluster.dry_run:
            from hpc.launch.plan import dry_run

            return dry_run(settings)
        from hpc.launch.slurm import require_acceptable

        if not given.retry_failed and (code := nothing_to_do(path)) is not None:
            return code
        refuse_if_submitted(path, job_has_ended=given.job_has_ended)
        require_acceptable(cluster, 1, path)
    from hpc.identity import refuse_others

    RunDir.prepare(run.path, plain(settings), lambda old: refuse_others(old, settings))
    if given.retry_failed:
        from hpc.retry import forget_quarantine

        say(f"{forget_quarantine(run)} quarantined units will be tried again")
    return start(run.path, settings.job["name"], cluster)


def _resettled(run: RunDir, given: argparse.Namespace) -> Settings:
    """Return the settings of a run with the words of the command line applied."""
    complete = plain(build(Settings, load_trusted(run, trusted=given.trust_owner), "config"))
    mapping = absolute_paths(Settings, resettled(complete, given.overrides, given.config_dir), Path.cwd())
    # What was let pass once is what the run goes on with: another change has to be let pass anew.
    mapping["run"] = {"dir": str(run.path), "any_version": given.any_version, "any_inputs": given.any_inputs}
    settings = build(Settings, mapping, "config")
    from hpc.load import load_job

    load_job(settings.job)  # a wrong option is said here, and not by the ranks when their turn has come
    return settings
