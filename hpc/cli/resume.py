"""`tessera resume`: go on with a run, or the unfinished runs of a sweep, on as many ranks as there are now."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hpc.cli.arguments import Parser
from hpc.errors import ConfigError, nearest
from hpc.launch.start import start
from hpc.options import absolute_paths, build, plain
from hpc.rundir import RunDir
from hpc.settings import Settings, SlurmCluster

_OPEN: Final = ("cluster", "engine", "checkpoint")
"""Sections that may change between attempts: they do not touch the results."""


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
        print(f"{run.forget_quarantine()} quarantined units will be tried again")
    return start(run.path, settings.job["name"], cluster)


def _resettled(run: RunDir, given: argparse.Namespace) -> Settings:
    """Return the settings of a run with the words of the command line applied."""
    complete = plain(build(Settings, run.load_config(), "config"))
    cluster = [word for word in given.overrides if word.startswith("cluster=")]
    if cluster:
        complete["cluster"] = _cluster_section(cluster[-1].partition("=")[2], given.config_dir)
    others = [word for word in given.overrides if word not in cluster]
    mapping = absolute_paths(Settings, changed(complete, others), Path.cwd())
    mapping["run"] = {"dir": str(run.path), "any_version": mapping["run"]["any_version"] or given.any_version}
    return build(Settings, mapping, "config")


def _cluster_section(name: str, own: Sequence[str]) -> dict[str, Any]:
    """Return the section that ``cluster=NAME`` stands for."""
    from hpc.cli.compose import compose_config, resolved
    from hpc.cli.folders import config_folders, groups

    folders = config_folders(own)
    valid = groups(folders)["cluster"]
    if name not in valid:
        msg = f"cluster={name}: no such cluster; {nearest(name, valid)}"
        raise ConfigError(msg)
    config = compose_config([], folders, config_name=f"cluster/{name}")
    section: dict[str, Any] = resolved(config, (), folders)["cluster"]
    return section


def changed(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a run's configuration with dotted ``key=value`` words applied.

    Raises
    ------
    hpc.errors.ConfigError
        If a word is no ``key=value``, names no existing key, or one that decides the results.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for word in overrides:
        key, equals, _ = word.partition("=")
        section, _, name = key.partition(".")
        if not equals:
            msg = f"{word!r} is no key=value; write for example cluster.ranks=4"
            raise ConfigError(msg)
        if section in config and section not in _OPEN:
            msg = f"{key} cannot change in a run that has begun; start a new run for that, with another run.dir"
            raise ConfigError(msg)
        if section not in _OPEN:
            msg = f"{key}: unknown section; {nearest(section, _OPEN)}"
            raise ConfigError(msg)
        if name not in result[section]:
            msg = f"{key}: unknown key; {nearest(name, result[section])}"
            if section == "cluster":
                msg += f" (of launcher {result[section]['launcher']}; cluster=NAME chooses another)"
            raise ConfigError(msg)
        result[section][name] = _value(word)
    return result


def _value(word: str) -> Any:
    """Return the value of a ``section.name=value`` word, read as it was when the run was started."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from hpc.cli import hydra_api
    from hpc.cli.hints import explain

    try:
        (parsed,) = hydra_api.parsed([word])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, [word], ())) from None
    return parsed.value()
