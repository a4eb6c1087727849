"""Words of the command line that change a configuration which is there already: ``cluster=NAME``, ``engine.KEY=…``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hpc.errors import ConfigError, nearest
from hpc.options import build, plain
from hpc.settings import ClusterSettings, LocalCluster, Settings

_OPEN: Final = ("cluster", "engine", "checkpoint")
"""Sections that may change between attempts: they do not touch the results."""


def cluster_settings(overrides: Sequence[str], own: Sequence[str]) -> ClusterSettings:
    """Return what ``cluster=NAME`` and ``cluster.KEY=VALUE`` words stand for, without a run."""
    mapping = resettled({"job": {}, "run": {"dir": "."}, "cluster": plain(LocalCluster())}, overrides, own)
    return build(Settings, mapping, "").cluster


def resettled(config: Mapping[str, Any], overrides: Sequence[str], own: Sequence[str]) -> dict[str, Any]:
    """Return a complete configuration with words applied, ``cluster=NAME`` first.

    Parameters
    ----------
    config
        As in ``config.yaml``.
    overrides
        Words of the command line.
    own
        Folders given with ``--config-dir``.

    Raises
    ------
    hpc.errors.ConfigError
        If a word names nothing that exists or may change.
    """
    names = [word for word in overrides if word.startswith("cluster=")]
    if names:
        config = {**config, "cluster": _cluster_section(names[-1].partition("=")[2], own)}
    return changed(config, [word for word in overrides if word not in names])


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
