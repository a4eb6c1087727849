"""`tessera resume`: go on with a run, or the unfinished runs of a sweep, on as many ranks as there are now."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hpc.cli.arguments import Parser
from hpc.cli.cluster import resettled
from hpc.launch.start import start
from hpc.options import absolute_paths, build, plain
from hpc.rundir import RunDir
from hpc.settings import Settings, SlurmCluster


def main(arguments: Sequence[str]) -> int:
    """Run the ranks of an existing run again; return the exit code."""
    parser = Parser("resume", "Go on with a run from what it has saved, on any number of ranks or nodes.")
    parser.add_argument("run", type=Path, help="the run directory, or that of a sweep: its unfinished runs")
    parser.add_argument(
        "overrides", nargs="*", help="cluster=NAME, or cluster.*, engine.* and checkpoint.* keys, e.g. cluster.nodes=4"
    )
    parser.add_argument("--retry-failed", action="store_true", help="try quarantined units again")
    parser.add_argument("--any-version", action="store_true", help="go on although another version started the run")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], help="folder with cluster/NAME.yaml")
    given = parser.read(arguments)
    path = given.run.absolute()
    from hpc.launch.sweep import resume_sweep
    from hpc.watch.sweeps import is_sweep

    if is_sweep(path):
        return resume_sweep(path, lambda run: _resettled(run, given), retry_failed=given.retry_failed)
    run = RunDir.open(path)
    settings = _resettled(run, given)
    cluster = settings.cluster
    if isinstance(cluster, SlurmCluster):
        if cluster.dry_run:
            from hpc.launch.plan import dry_run

            return dry_run(settings)
        from hpc.launch.slurm import require_acceptable
        from hpc.launch.start import refuse_if_submitted

        refuse_if_submitted(path)
        require_acceptable(cluster, 1, path)
    RunDir.prepare(run.path, plain(settings))
    if given.retry_failed:
        from hpc.retry import forget_quarantine

        print(f"{forget_quarantine(run)} quarantined units will be tried again")
    return start(run.path, settings.job["name"], cluster)


def _resettled(run: RunDir, given: argparse.Namespace) -> Settings:
    """Return the settings of a run with the words of the command line applied."""
    complete = plain(build(Settings, run.load_config(), "config"))
    mapping = absolute_paths(Settings, resettled(complete, given.overrides, given.config_dir), Path.cwd())
    mapping["run"] = {"dir": str(run.path), "any_version": mapping["run"]["any_version"] or given.any_version}
    return build(Settings, mapping, "config")
