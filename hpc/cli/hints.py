"""Hydra's complaints in this package's words: what is wrong, and the nearest valid names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from hpc.cli import hydra_api
from hpc.cli.folders import groups
from hpc.errors import ConfigError, nearest


def refuse_hydra_settings(overrides: Sequence[str]) -> None:
    """Refuse ``hydra.*`` words: the compose API would take them and do nothing.

    Raises
    ------
    hpc.errors.ConfigError
        With the key of this package that does what was meant.
    """
    ours = {
        "hydra.run.dir": "use run.dir",
        "hydra.sweep.dir": "use run.sweep_dir",
        "hydra/launcher": "use cluster=NAME",
        "hydra.searchpath": "use --config-dir DIR",
        "hydra.mode": "use -m for a sweep",
    }
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            remedy = ours.get(key, "leave it out")
            msg = f"{key}: Hydra only composes the configuration here, so this would have no effect; {remedy}"
            raise ConfigError(msg)


def explain(error: Exception, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """Return the message of a `ConfigError` for what Hydra or OmegaConf raised.

    Parameters
    ----------
    error
        What was raised while composing.
    overrides
        The words of the command line.
    folders
        The config trees.

    Returns
    -------
    str
        One line for each wrong word, or the first line of the original message if no word is at fault.
    """
    if isinstance(error, OverrideParseException):
        reason = error.message.splitlines()[0]
        return (
            f"{error.override!r} cannot be read as key=value ({reason}); quote special characters twice: "
            "'key=\"a=b,c\"'"
        )
    wrong = _wrong_words(overrides, folders)
    if wrong:
        return "\n".join(wrong)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key")), "")
    if lines[0].startswith("Ambiguous value"):
        return f"{lines[0]}; add -m to sweep over it, write [a,b] for a list, or quote it: 'key=\"a,b\"'"
    return f"{where}: {lines[0]}; see the configuration with --cfg job" if where else lines[0]


def _wrong_words(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return a complaint for each word that names an unknown group, option or key."""
    known = groups(folders)
    choices = {}
    keys = []
    wrong = []
    words = hydra_api.parsed(overrides)
    if any(word.is_sweep_override() for word in words):
        return []
    for word in words:
        key = word.key_or_group
        if key in known and not word.is_delete():
            choices[key] = str(word.value())
            if choices[key] not in known[key]:
                wrong.append(f"{key}={choices[key]}: no such {key}; {nearest(choices[key], known[key])}")
        elif not word.is_add():
            keys.append(key)
    if "job" not in choices and not wrong:
        wrong.append(f"job is missing; choose one with job=NAME, valid: {', '.join(known.get('job', ())) or 'none'}")
    if wrong:
        return wrong
    base = hydra_api.composed([f"{group}={choice}" for group, choice in choices.items()], folders)
    config = OmegaConf.to_container(base, resolve=False, throw_on_missing=False)
    return [complaint for key in keys if (complaint := _unknown_key(key, config, list(known)))]


def _unknown_key(key: str, config: object, group_names: list[str]) -> str | None:
    """Return what is wrong with a dotted key, or None if the configuration has it."""
    here: Any = config
    path = ""
    for part in key.split("."):
        if not isinstance(here, Mapping):
            return f"{key}: {path} is a value, not a section of keys; set it as {path}=…"
        if part not in here:
            valid = [*here, *([] if path else group_names)]
            return f"{f'{path}.{part}'.strip('.')}: unknown key; {nearest(part, set(valid))}"
        here = here[part]
        path = f"{path}.{part}".strip(".")
    return None
