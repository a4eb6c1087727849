"""Where configuration files lie, and which groups and options they offer: read without Hydra."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from hpc.errors import ConfigError


def config_folders(own: Iterable[str] = ()) -> tuple[Path, ...]:
    """Return the config trees, the engine's first.

    Parameters
    ----------
    own
        Folders given with ``--config-dir``.

    Returns
    -------
    tuple of Path
        ``conf`` of the engine, then those of installed packages that name a package with config files in the
        entry point group ``hpc.conf``, then the user's own.

    Raises
    ------
    hpc.errors.ConfigError
        If a folder does not exist.
    """
    package = Path(__file__).resolve().parents[1]
    engine = package / "conf" if (package / "conf").is_dir() else package.parent / "conf"
    folders = [engine, *_of_packages(), *(Path(f).expanduser().absolute() for f in own)]
    for folder in folders:
        if not folder.is_dir():
            msg = f"config folder {folder} does not exist; give --config-dir a folder that holds job/NAME.yaml"
            raise ConfigError(msg)
    return tuple(folders)


def _of_packages() -> Iterable[Path]:
    for entry in entry_points(group="hpc.conf"):
        spec = importlib.util.find_spec(entry.value)
        if spec is None or not spec.submodule_search_locations:
            msg = f"entry point {entry.name!r} of hpc.conf names {entry.value!r}, which is no package"
            raise ConfigError(msg)
        yield Path(spec.submodule_search_locations[0])


def groups(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Return the option files of each config group, by group and option name, both sorted."""
    found: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            group = file.parent.relative_to(folder).as_posix()
            if group != ".":
                found.setdefault(group, {}).setdefault(file.stem, file)
    return {group: dict(sorted(found[group].items())) for group in sorted(found)}


def headline(file: Path) -> str:
    """Return the first sentence of a config file's first comment: what the option is for."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        comments = (line.lstrip("# ").strip() for line in lines if line.startswith("#"))
        first = next((c for c in comments if c and not c.startswith("@")), "")
    sentence, stop, _ = first.partition(". ")
    return sentence + stop.rstrip()
