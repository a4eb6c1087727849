"""`tessera resume`: go on with a run as it was configured, on as many ranks as there are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hpc.cli.arguments import Parser
from hpc.errors import ConfigError, nearest
from hpc.launch.local import launch
from hpc.options import build, plain
from hpc.rundir import RunDir
from hpc.settings import Settings

_OPEN: Final = ("cluster", "engine", "checkpoint")
"""Sections that may change between attempts: they do not touch the results."""


def main(arguments: Sequence[str]) -> int:
    """Run the ranks of an existing run again; return the exit code."""
    parser = Parser("resume", "Go on with a run from what it has saved, on any number of ranks.")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("overrides", nargs="*", help="cluster.*, engine.* or checkpoint.* keys, e.g. cluster.ranks=4")
    parser.add_argument("--retry-failed", action="store_true", help="try quarantined units again")
    parser.add_argument("--any-version", action="store_true", help="go on although another version started the run")
    given = parser.read(arguments)
    run = RunDir.open(given.run)
    complete = plain(build(Settings, run.load_config(), "config"))
    settings = build(Settings, changed(complete, given.overrides), "config")
    mapping = plain(settings)
    mapping["run"] = {"dir": str(run.path), "any_version": settings.run.any_version or given.any_version}
    RunDir.prepare(run.path, mapping)
    if given.retry_failed:
        print(f"{run.forget_quarantine()} quarantined units will be tried again")
    return launch(run.path, settings.cluster)


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
            raise ConfigError(msg)
        result[section][name] = _value(word)
    return result


def _value(word: str) -> Any:
    """Return the value of a ``section.name=value`` word, read as it was when the run was started."""
    from omegaconf import OmegaConf

    parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([word]))
    section, _, name = word.partition("=")[0].partition(".")
    return parsed[section][name]
