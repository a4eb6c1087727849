"""From the words of the command line to checked settings.

Hydra works here and only here, where the command is typed; the ranks read the resolved ``RUN/config.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpc.cli import hydra_api
from hpc.cli.hints import explain, refuse_hydra_settings
from hpc.errors import ConfigError
from hpc.load import job_class, job_options
from hpc.options import absolute_paths, build, plain
from hpc.settings import Settings


@dataclass(frozen=True, slots=True)
class Composed:
    """A run that is ready to start.

    Attributes
    ----------
    settings
        The checked engine settings.
    mapping
        The same as plain values, complete with the defaults of the job's options: ``config.yaml``.
    overrides
        The words that made it.
    """

    settings: Settings
    mapping: dict[str, Any]
    overrides: tuple[str, ...]


def compose_config(
    overrides: Sequence[str],
    folders: Sequence[Path],
    *,
    with_hydra: bool = False,
    config_name: str = hydra_api.CONFIG_NAME,
) -> DictConfig:
    """Compose the configuration, or only the file ``config_name`` of it, without checking its values.

    Raises
    ------
    hpc.errors.ConfigError
        If a word has a wrong syntax or names something that does not exist; names the nearest that do.
    """
    refuse_hydra_settings(overrides)
    try:
        return hydra_api.composed(overrides, folders, with_hydra=with_hydra, config_name=config_name)
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # OmegaConf lets a ValueError through when a list is addressed like a section.
        raise ConfigError(explain(error, overrides, folders)) from None


def resolved(config: DictConfig, overrides: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """Return plain values with interpolations resolved; required values that are missing stay ``???``."""
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, overrides, folders)) from None
    return dict(values)


def compose_run(
    overrides: Sequence[str], folders: Sequence[Path], base: Path, directory: Path | None = None
) -> Composed:
    """Compose and check one run.

    Parameters
    ----------
    overrides
        Words of the command line, in Hydra's grammar.
    folders
        Config trees (see `hpc.cli.folders`).
    base
        Folder below which relative paths lie: where the command was typed.
    directory
        Run directory to use instead of ``run.dir`` (a member of a sweep).

    Returns
    -------
    Composed
        Settings with absolute paths, every value checked.

    Raises
    ------
    hpc.errors.ConfigError
        Naming every wrong key and value, with the nearest valid ones.
    hpc.errors.InputError
        If the job's own check finds an input unusable.
    """
    values = resolved(compose_config(overrides, folders), overrides, folders)
    section = values.pop("job")
    if not isinstance(section, Mapping):
        msg = f"job: must be the name of a job, not {section!r}; choose one with job=NAME"
        raise ConfigError(msg)
    if directory is not None:
        values["run"]["dir"] = str(directory)
    del values["run"]["sweep_dir"]
    cls = job_class(section)
    given = absolute_paths(cls.Options, job_options(section), base)
    engine = absolute_paths(Settings, values, base)
    _refuse_wrong_values((cls.Options, given, "job"), (Settings, {**engine, "job": {}}, ""))
    options: Any = build(cls.Options, given)
    cls(options).check()
    names = {key: section[key] for key in ("_target_", "name")}
    settings = build(Settings, {**engine, "job": {**names, **plain(options)}}, "")
    return Composed(settings, plain(settings), tuple(overrides))


def _refuse_wrong_values(*parts: tuple[type, Mapping[str, Any], str]) -> None:
    """Raise one error with the complaints about all parts, so that a command is fixed in one go."""
    complaints: list[str] = []
    for cls, values, where in parts:
        try:
            build(cls, values, where)
        except ConfigError as error:
            complaints.extend(line.removeprefix(".") for line in str(error).splitlines())
    if complaints:
        raise ConfigError("\n".join(complaints))


def expand(overrides: Sequence[str], folders: Sequence[Path]) -> list[tuple[str, ...]]:
    """Return the words of every member of a sweep, in Hydra's grammar (``a,b``, ``range``, ``glob``).

    Raises
    ------
    hpc.errors.ConfigError
        If a word has a wrong syntax, or sets ``run.dir``, which would be the same for all members.
    """
    refuse_hydra_settings(overrides)
    if any(word.lstrip("+").startswith("run.dir=") for word in overrides):
        msg = "run.dir would be the same for all members of the sweep; set run.sweep_dir instead"
        raise ConfigError(msg)
    try:
        return [tuple(member) for member in hydra_api.sweep_members(overrides, folders)]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides, folders)) from None


def sweep_directory(overrides: Sequence[str], folders: Sequence[Path], base: Path) -> Path:
    """Return the absolute ``run.sweep_dir`` of a sweep, from one member's words."""
    run = resolved(compose_config(overrides, folders), overrides, folders)["run"]
    return base / Path(str(run["sweep_dir"])).expanduser()
