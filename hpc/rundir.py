"""The run directory: the only state of a run, and the only thing its doors have in common."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

import hpc
from hpc.errors import ChangedConfigError, CorruptFileError, RunDirError
from hpc.store.atomic import write_bytes
from hpc.store.lock import refuse_if_held_for_long
from hpc.store.patience import unreadable
from hpc.store.plain import read_json, require_regular
from hpc.store.reading import content_of, is_refusal
from hpc.store.records import read_record
from hpc.yamlfile import parse_yaml

OWN: Final = 0o644
"""Permissions of files that decide what is run: a umask that lets the group write does not hold for them."""

FORMAT: Final = 1
"""Of the layout below; a run of another format is not touched."""

_SECTIONS: Final = {"job", "run", "cluster", "engine", "checkpoint"}
"""Of the configuration; what else there is, is a value."""

_SHOWN: Final = 120
"""Letters of a name that is too long."""

_IDENTITY: Final = ("job", "seed")
"""The sections of the configuration that decide the results; the others may change from start to start."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of a run.

    Attributes
    ----------
    path
        The directory; see ``docs/architecture.md`` for what lies in it.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved, complete configuration."""
        return self.path / "config.yaml"

    @property
    def provenance_file(self) -> Path:
        """Versions, code state and hosts of every attempt."""
        return self.path / "provenance.json"

    @property
    def inputs_file(self) -> Path:
        """Which inputs and code the run was started with."""
        return self.path / "inputs.json"

    @property
    def events_file(self) -> Path:
        """What the engine did."""
        return self.path / "events.jsonl"

    @property
    def progress_file(self) -> Path:
        """How far it is."""
        return self.path / "progress.json"

    @property
    def failure_file(self) -> Path:
        """Which rank failed, where and why, in the last attempt."""
        return self.path / "failure.json"

    @property
    def lock_file(self) -> Path:
        """Who works here."""
        return self.path / "lock"

    @property
    def logs(self) -> Path:
        """One file per rank, and the launcher's."""
        return self.path / "logs"

    @property
    def results(self) -> Path:
        """What the scientist came for."""
        return self.path / "results"

    @property
    def report(self) -> Path:
        """The page with pictures."""
        return self.path / "report" / "index.html"

    def stage(self, name: str) -> Path:
        """Segments and generations of a stage."""
        return self.path / "checkpoints" / name

    @classmethod
    def prepare(
        cls, path: Path, config: Mapping[str, Any], refuse: Callable[[RunDir], None] = lambda _: None
    ) -> RunDir:
        """Create the directory of a new run, or make sure that an old one may be continued with this configuration.

        Parameters
        ----------
        path
            The run directory, absolute.
        config
            The resolved configuration as plain values.
        refuse
            Asked before anything of an old run is written; raises if it may not be continued.

        Raises
        ------
        hpc.errors.ChangedConfigError
            If the run was started with another job or seed; the message shows the difference.
        hpc.errors.LockedError
            If a living process works there.
        hpc.errors.RunDirError
            If the directory cannot be written, is no run directory, or was made by another version.
        """
        run = cls(path)
        _require_name(path)
        if _is_there(run.config_file):
            refuse_if_held_for_long(run.lock_file)
            run.check_version(any_version=bool(config.get("run", {}).get("any_version", False)))
            _compare(run.load_config(), config, run)
            refuse(run)
        elif path.is_dir() and any(p for p in path.iterdir() if p.name != "logs"):
            msg = f"{path}: is neither empty nor a run directory; give another run.dir"
            raise RunDirError(msg)
        try:
            for directory in (run.logs, run.results, run.report.parent, path / "checkpoints"):
                directory.mkdir(parents=True, exist_ok=True)
            run.failure_file.unlink(missing_ok=True)
            content = yaml.safe_dump(dict(config), sort_keys=False).encode()
            write_bytes(run.config_file, content, mode=OWN)
        except OSError as error:
            msg = f"{path}: the run directory cannot be written ({error.strerror}); free space or give another run.dir"
            raise RunDirError(msg) from error
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Return an existing run.

        Raises
        ------
        hpc.errors.RunDirError
            If there is none.
        hpc.errors.UnreadableError
            If this cannot be told now.
        """
        run = cls(path.absolute())
        try:
            require_regular(run.config_file)
        except OSError as error:
            if is_refusal(error):
                raise unreadable(error) from error
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            cause = "is missing" if missing else f"cannot be used: {error.strerror}"
            msg = f"{path}: no run here (config.yaml {cause}); give the directory that was run.dir"
            raise RunDirError(msg) from error
        return run

    def load_config(self, look: Callable[[os.stat_result], object] = lambda _: None) -> dict[str, Any]:
        """Return the configuration, to be shown or compared; `hpc.ownership` gives out what may be acted upon.

        Parameters
        ----------
        look
            Told what the file system says of the file that is read.

        Raises
        ------
        hpc.errors.RunDirError
            If the file is damaged.
        hpc.errors.UnreadableError
            If it cannot be read now.
        """
        try:
            config = parse_yaml(content_of(self.config_file, look))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and is_refusal(error):
                raise unreadable(error) from error
            msg = f"{self.config_file}: cannot be read ({error}); restore it, or start a new run"
            raise RunDirError(msg) from error
        if not isinstance(config, dict) or "job" not in config:
            msg = f"{self.config_file}: holds no configuration of a run; restore it, or start a new run"
            raise RunDirError(msg)
        for name in _SECTIONS & config.keys():
            if not isinstance(config[name], dict):
                msg = (
                    f"{self.config_file}: config.{name} must be a section of keys, not {config[name]!r}; restore the "
                    "file, or start a new run"
                )
                raise RunDirError(msg)
        return config

    def check_version(self, *, any_version: bool = False) -> None:
        """Refuse a run that another version made.

        Raises
        ------
        hpc.errors.RunDirError
            With both versions and the remedy.
        hpc.errors.UnreadableError
            If ``provenance.json`` cannot be read now.
        """
        try:
            made = read_record(self.provenance_file)
        except CorruptFileError:  # who made it cannot be told; the ranks say so and begin a new record
            return
        except OSError as error:
            raise unreadable(error) from error
        if made is None:
            return
        layout, version = made.get("format"), made.get("version")
        if layout != FORMAT or (version != hpc.__version__ and not any_version):
            msg = (
                f"{self.path}: was made by tessera {version} (format {layout}), this is {hpc.__version__} "
                f"(format {FORMAT}); "
                f"continue it with: pip install tessera-hpc=={version}"
                + (
                    ", or accept mixed results with run.any_version=true (resume: --any-version)"
                    if layout == FORMAT
                    else ""
                )
            )
            raise RunDirError(msg)

    def read_progress(self) -> dict[str, Any] | None:
        """Return the content of ``progress.json``, None before the first heartbeat."""
        return _read_json(self.progress_file)

    def read_failure(self) -> dict[str, Any] | None:
        """Return what the failing rank wrote in the last attempt, None if no rank failed."""
        return _read_json(self.failure_file)

    def quarantined(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the quarantine records by stage and unit."""
        files = sorted((self.path / "checkpoints").glob("*/quarantine.json"))
        found = {f.parent.name: _read_json(f) or {} for f in files}
        sound = {
            stage: {unit: record for unit, record in records.items() if isinstance(record, dict)}
            for stage, records in found.items()
        }
        return {stage: records for stage, records in sound.items() if records}


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a SHA-256 of the parts of the configuration that decide the results."""
    identity = {k: config.get(k) for k in _IDENTITY}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], run: RunDir) -> None:
    lines = [
        line
        for key in _IDENTITY
        for line in difflib.unified_diff(
            _lines(key, old.get(key)),
            _lines(key, new.get(key)),
            "started with",
            "given now",
            lineterm="",
            n=0,
        )
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    if lines:
        msg = (
            f"{run.path}: this run was started with another configuration (-), "
            "so it cannot be continued with this one (+):\n"
            + "\n".join(f"  {line}" for line in lines)
            + f"\ngive another run.dir, or continue as it was with: tessera resume {run.path}"
        )
        raise ChangedConfigError(msg)


def _lines(prefix: str, value: object) -> list[str]:
    """Return one ``a.b.c: value`` line per leaf, so that a difference names its key in full."""
    if isinstance(value, Mapping) and value:
        return [line for k in sorted(value, key=str) for line in _lines(f"{prefix}.{k}", value[k])]
    return [f"{prefix}: {json.dumps(value, default=str)}"]


def _read_json(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        value = read_json(path)
        if isinstance(value, dict):
            return value
    return None


def _require_name(path: Path) -> None:
    """Raise if the file system takes no such name.

    Raises
    ------
    hpc.errors.RunDirError
        With its reason.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        shown = str(path) if len(str(path)) <= _SHOWN else f"{str(path)[:_SHOWN]}…"
        msg = f"{shown}: cannot be a run directory ({cause}); give another run.dir"
        raise RunDirError(msg) from error


def _is_there(path: Path) -> bool:
    """Say whether a file exists; a folder that may not be looked into is no answer."""
    try:
        return path.is_file()
    except OSError as error:
        raise unreadable(error) from error
