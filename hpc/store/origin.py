"""With which configuration what lies in ``checkpoints/`` was computed: every file says it, and all must agree."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from hpc.errors import CorruptFileError, RunDirError
from hpc.store.reading import names_in
from hpc.store.records import read_record
from hpc.store.segments import list_segment


def refuse_other(path: Path, found: str, expected: str) -> None:
    """Raise if a file was computed with another configuration.

    Parameters
    ----------
    path
        The file.
    found
        The hash in it; "" in files of older versions, which are taken as they are.
    expected
        The hash of the run's configuration.

    Raises
    ------
    hpc.errors.RunDirError
        With the remedy; nothing was changed.
    """
    if found and found != expected:
        msg = (
            f"{path}: was computed with another configuration than config.yaml holds now (job or seed differ), "
            "so going on would mix the two; restore config.yaml, or start a new run with another run.dir"
        )
        raise RunDirError(msg)


def refuse_other_origin(checkpoints: Path, expected: str) -> None:
    """Look through all stages of a run whose provenance is lost; see `refuse_other`.

    Raises
    ------
    OSError
        If a file cannot be read now.
    """
    silent = 0
    for path, found in _origins(checkpoints):
        refuse_other(path, found, expected)
        silent += not found
    if silent:
        logging.getLogger("tessera").warning(
            "%d files in %s do not say with which configuration they were computed, and provenance.json is missing: "
            "they are taken for this run's",
            silent,
            checkpoints,
        )


def _origins(checkpoints: Path) -> Iterator[tuple[Path, str]]:
    for stage in names_in(checkpoints):
        folder = checkpoints / stage
        for name in names_in(folder, "seg-*.h5"):
            listing = list_segment(folder / name)
            if not listing.damage:
                yield folder / name, listing.config_hash
        for name in (*names_in(folder, "gen-*.json"), "complete.json"):
            try:
                record = read_record(folder / name)
            except CorruptFileError:
                continue  # what is damaged is not used
            if record is not None:
                yield folder / name, str(record.get("config_hash", ""))
