"""`tessera import-config`: a job of this package from a YAML file of homodyne's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from hpc.cli.arguments import Parser
from hpc.errors import EXIT_DONE, InputError
from hpc.store.atomic import write_bytes
from hpc.terminal import say
from hpc.yamlfile import read_yaml
from tessera.xpcs.errors import XpcsInputError
from tessera.xpcs.homodyne_config import Translation, translate

_FEW: Final = 4
"""Keys that are named one by one."""


def main(arguments: Sequence[str]) -> int:
    """Write ``DIR/job/NAME.yaml`` and print what has no counterpart."""
    parser = Parser("import-config", "Make a job from a YAML file of homodyne's; nothing is started.")
    parser.add_argument("file", type=Path, help="homodyne's YAML file")
    parser.add_argument("--to", type=Path, default=Path("conf"), metavar="DIR", help="config folder (default: conf)")
    parser.add_argument("--name", help="name of the job (default: that of the file)")
    given = parser.read(arguments)
    name = given.name or given.file.stem
    try:
        translation = translate(_read(given.file))
    except XpcsInputError as error:
        raise InputError(f"{given.file}: {error}") from error  # noqa: EM102
    target = given.to / "job" / f"{name}.yaml"
    if target.exists():
        msg = f"{target} is already there; give another --name, or delete it"
        raise InputError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, render(translation, name, given.file.name).encode())
    _print(translation, target, given.to, name)
    return EXIT_DONE


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror})"
        raise InputError(msg) from error
    except InputError as error:
        msg = f"{path} is no YAML: {error}"
        raise InputError(msg) from error
    if not isinstance(values, dict):
        msg = f"{path} holds no sections; is it a configuration of homodyne's?"
        raise InputError(msg)
    return values


def render(translation: Translation, name: str, origin: str) -> str:
    """Return the text of the job's file: the translated section, and as comments what was lost or changed."""
    body = yaml.safe_dump(translation.job, sort_keys=False, allow_unicode=True, default_flow_style=None)
    lines = [
        f"# XPCS fit translated from {origin}.",
        "# Laid over conf/job/xpcs.yaml, which explains every key. Relative paths start where the command is typed.",
        "defaults:",
        "  - xpcs",
        "  - _self_",
        "",
        f"name: {name}",
        "",
        body,
    ]
    lines += [f"# Changed: {text}" for text in translation.changed]
    lines += [f"# No counterpart: {key} ({reason})" for key, reason in translation.unused]
    return "\n".join(lines) + "\n"


def _print(translation: Translation, target: Path, folder: Path, name: str) -> None:
    by_reason: dict[str, list[str]] = {}
    for key, reason in translation.unused:
        by_reason.setdefault(reason, []).append(key)
    for text in translation.changed:
        say(f"changed: {text}")
    for reason, keys in by_reason.items():
        say(f"no counterpart: {_shortened(keys)}: {reason}")
    say(f"wrote {target}, with every one of these keys; start it with")
    say(f"    tessera --config-dir {folder} job={name}")


def _shortened(keys: Sequence[str]) -> str:
    """Return a few keys one by one, many by what they have in common."""
    if len(keys) <= _FEW:
        return ", ".join(keys)
    parts = [key.split(".") for key in keys]
    common = [names[0] for names in zip(*parts, strict=False) if len(set(names)) == 1]
    return f"{'.'.join([*common, '*'])} ({len(keys)} keys)" if common else ", ".join(keys)
