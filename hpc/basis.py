"""Which units earlier stages lacked when a stage was computed: what was computed without them is not used with them.

`tessera resume --retry-failed` removes the stages after a quarantine. But a quarantine also ends when its record is
damaged or removed by hand: the unit is then run again, and later stages must not pass for complete.
"""

from __future__ import annotations

from typing import Final

from hpc.errors import CorruptFileError
from hpc.life import Life
from hpc.retry import remove_folder
from hpc.store.reading import names_in
from hpc.store.records import read_record, write_record

FILE: Final = "without.json"
"""In a stage's folder: the units in quarantine, by earlier stage; absent where there were none."""


def begin_anew_if_outdated(stage: str, life: Life) -> None:
    """Remove what a stage computed without units that its earlier stages now have, and say so. Rank 0."""
    folder = life.run.stage(stage)
    try:
        record = life.read(lambda: read_record(folder / FILE))
    except CorruptFileError:
        record = {}  # what it was computed without is not known
    now = {name: keys for name, keys in life.without.items() if keys}
    if record is not None and record.get("units") != now:
        life.warn(f"stage {stage} was computed while other units of earlier stages were in quarantine; it is run anew")
        life.insist(lambda: remove_folder(folder))
        record = None
    if now and record is None and not life.read(lambda: names_in(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        life.insist(lambda: write_record(folder / FILE, {"units": now}, life.claim.verify))
