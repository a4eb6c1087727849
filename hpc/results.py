"""Results of complete stages at a resume: looked at by all ranks, and made again where they are not what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hpc.job import Stage
from hpc.life import Life
from hpc.store.sealing import SealedFile, Seals, harm, in_force, read_seals, seal_results, share, to_finish_again

REPLACED: Final = "results.replaced"
"""Folder of the run that keeps what lay in the place of results that were made again."""

_NAMED: Final = 5
"""Files that are named in a message."""


def harmed_stages(stages: Sequence[Stage], life: Life) -> frozenset[str]:
    """Return the complete stages that have to write their results again, after saying why. Collective."""
    seals: dict[str, Seals] = {}
    if life.desk:
        seals = {s.name: life.read(lambda s=s: read_seals(life.run.stage(s.name))) for s in stages}  # type: ignore[misc]
    seals = life.ranks.bcast(seals)
    files = in_force(seals)

    def look(file: SealedFile) -> str:
        return life.read(lambda: harm(life.run.results, file))

    mine = [file for file in share(files, life.ranks.rank, life.ranks.size) if look(file)]
    gathered = life.ranks.gather(mine)
    again: list[str] = []
    if life.desk and gathered is not None:
        # Another node may be behind with what it sees: rank 0 believes in harm only if it sees it, too.
        found = {file.name: wrong for part in gathered for file in part if (wrong := look(file))}
        again = to_finish_again(seals, found)
        if found:
            _put_away(found, life)
    return frozenset(life.ranks.bcast(again))


def sealed_record(record: Mapping[str, Any], index: int, life: Life) -> dict[str, Any]:
    """Return the record of a stage that is complete, with the seals of the results it wrote. Rank 0.

    Parameters
    ----------
    record
        What else it says.
    index
        Of the stage.
    """
    stages = life.stages
    folder = life.run.stage(stages[index])
    before = life.read(lambda: read_seals(folder))
    earlier = [life.read(lambda name=name: read_seals(life.run.stage(name))) for name in stages[:index]]  # type: ignore[misc]
    seals = life.read(lambda: seal_results(life.run.results, earlier))
    for name in sorted(before.keys() - seals.keys()):
        if not (life.run.results / name).exists():
            life.warn(f"results/{name}: was there before, but stage {stages[index]} did not write it again")
    return {**record, "config_hash": life.config_hash, "index": index, "results": seals}


def _put_away(harms: Mapping[str, str], life: Life) -> None:
    """Say what is wrong, and keep what somebody may have put in the place of results."""
    assert life.desk is not None  # noqa: S101 - only rank 0 comes here
    for name in sorted(harms):
        old, kept = life.run.results / name, life.run.path / REPLACED / name
        if old.is_file() and old.stat().st_size:
            kept.parent.mkdir(parents=True, exist_ok=True)
            old.replace(kept)
    shown = "; ".join(f"results/{name} {harms[name]}" for name in sorted(harms)[:_NAMED])
    more = f" and {len(harms) - _NAMED} more" if len(harms) > _NAMED else ""
    text = f"results are not what the run wrote and are made again: {shown}{more}"
    if any((life.run.path / REPLACED / name).exists() for name in harms):
        text += f"; what was there is kept in {REPLACED}"
    life.warn(text)
    life.desk.progress.message = text
