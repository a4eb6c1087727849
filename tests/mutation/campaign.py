"""Run the driver, going on behind what its process did not survive: ``python -m mutation.campaign SEED NUMBER [FORMAT …]``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_MEMORY = Path("/dev/shm")  # reports are synced to disk, thousands of times


@dataclass
class Outcome:
    """How the readings of a format ended: kinds with their number, and an example of each."""

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def bad(self) -> dict[str, str]:
        """Examples of the kinds that should not be."""
        return {k: v for k, v in self.examples.items() if k not in ("read", "explained")}

    def add(self, kind: str, number: int, told: str, seconds: float = 0.0) -> None:
        """Count one reading."""
        self.counts[kind] += 1
        self.examples.setdefault(kind, f"number {number}: {told}")
        self.seconds += seconds
        self.slowest = max(self.slowest, seconds)


def campaign(names: Sequence[str], seed: int, number: int) -> dict[str, Outcome]:
    """Read so many damaged files of each format."""
    outcomes = {name: Outcome() for name in names}
    first, left = 0, list(names)
    while left:
        with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
            returned, printed, said = _drive(folder, [seed, number, first], left)
            for line in printed.splitlines():
                if line.startswith('{"format"') and line.endswith("}"):
                    record = json.loads(line)
                    outcomes[record["format"]].add(record["kind"], record["number"], record["told"], record["seconds"])
            if returned == 0:
                break
            at = Path(folder) / "at"
            if not at.exists():
                raise RuntimeError(f"the driver did not begin with {left}:\n{said[-3000:]}")
            reached, _, name = at.read_text().strip().partition(" ")
            last = outcomes[name]
            if returned == 1:  # nothing it read: making the next format failed
                raise RuntimeError(f"behind {name}:\n{said[-3000:]}")
            last.add("stuck" if returned is None else f"crash {-returned}", int(reached), said[-1500:])
            first, left = int(reached) + 1, left[left.index(name) :]
    return outcomes


def _drive(folder: str, numbers: Sequence[int], names: Sequence[str]) -> tuple[int | None, str, str]:
    paths = [CHECKOUT, CHECKOUT / "src", CHECKOUT / "tests", CHECKOUT / "tests" / "hpc"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-u", "-X", "faulthandler", "-m", "mutation.driver", folder, *map(str, numbers)]
    patience = 60 + 0.5 * numbers[1] * len(names)
    try:
        ended = subprocess.run(
            [*command, *names], capture_output=True, text=True, timeout=patience, env=environment, check=False
        )
    except subprocess.TimeoutExpired as late:
        return None, (late.stdout or b"").decode(), ""
    return ended.returncode, ended.stdout, ended.stderr


def main(names: list[str], seed: int, number: int) -> None:
    """Print what became of each format."""
    from mutation.formats import FORMATS

    for name in names or FORMATS:
        outcome = campaign([name], seed, number)[name]
        counts = ", ".join(f"{n} {kind}" for kind, n in outcome.counts.most_common())
        print(f"{name:28} {counts} ({outcome.seconds:.1f} s, slowest {outcome.slowest:.1f} s)", flush=True)
        for kind, told in outcome.bad.items():
            print(f"    {kind}: {told}".replace("\n", "\n        "), flush=True)


if __name__ == "__main__":
    main(sys.argv[3:], int(sys.argv[1]), int(sys.argv[2]))
