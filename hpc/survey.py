"""What earlier attempts left of a map, read by all ranks together: a hundred thousand files are too many for one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hpc.ranks import Ranks
from hpc.store.blame import Blame, blame, read_ends
from hpc.store.journal import journal_names, left_open
from hpc.store.patience import Reading, at_once
from hpc.store.segments import Listing, Scan, list_segment, segment_names, united


@dataclass(frozen=True, slots=True)
class Survey:
    """What lies in a stage's folder.

    Attributes
    ----------
    segments
        Which segment holds which unit.
    blame
        Which units may have been the cause of how many deaths.
    """

    segments: Scan
    blame: Blame

    @property
    def deaths(self) -> Counter[str]:
        """In how many attempts a unit may have been the cause of their death."""
        return self.blame.deaths


def survey(directory: Path, ranks: Ranks, *, whole: bool, reading: Reading = at_once) -> Survey | None:
    """Look through a stage's folder, every rank at its share of the files. Collective.

    Parameters
    ----------
    directory
        The stage's folder.
    ranks
        The communicator.
    whole
        Verify every byte of the segments; see `hpc.store.segments.scan`.
    reading
        How each file is read.

    Returns
    -------
    Survey or None
        On rank 0, which alone looks at what there is; None elsewhere.
    """
    names: tuple[list[str], list[str]] = ([], [])
    if ranks.rank == 0:
        names = reading(lambda: (segment_names(directory), journal_names(directory)))
    segments, journals = (part[ranks.rank :: ranks.size] for part in ranks.bcast(names))

    def listed(name: str) -> Listing:
        return reading(lambda: list_segment(directory / name, whole=whole))

    gathered = ranks.gather(([listed(name) for name in segments], reading(lambda: left_open(directory, journals))))
    if gathered is None:
        return None
    # Another node may be behind with what it sees of the folder: rank 0 believes in damage only if it sees it, too.
    found = [listed(each.name) if each.damage else each for part, _ in gathered for each in part]
    left = [each for _, part in gathered for each in part]
    ends = reading(lambda: read_ends(directory, (each.attempt for each in left)))
    return Survey(united(found), blame(left, ends))
