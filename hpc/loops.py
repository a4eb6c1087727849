"""The life of a loop: start or restore, step, save, finish."""

from __future__ import annotations

import time
from dataclasses import asdict

from hpc.errors import RankError
from hpc.job import Arrays, Loop
from hpc.life import Life
from hpc.results import sealed_record
from hpc.store.generations import Restored, clear_away, load_newest
from hpc.store.origin import refuse_other
from hpc.store.records import write_record
from hpc.store.storable import storable
from hpc.store.writer import WriteCost


def run_loop(stage: Loop, index: int, life: Life) -> bool:
    """Run a loop to its end, or until the ranks agree to stop. Collective.

    Returns
    -------
    bool
        False if it was stopped before its state was final; the state is then saved.
    """
    marker = life.run.stage(stage.name) / "complete.json"
    if life.ranks.bcast(stage.name not in life.again and life.is_complete(stage.name) if life.desk else None):
        if life.desk:
            life.desk.progress.skip(index, 0, 0)
        return True
    number, state = _restore(stage, life)
    if life.desk:
        done, total = stage.steps(state)
        life.desk.progress.begin(index, total, done)
        life.desk.progress.reach(done, total, stage.figures(state))
        life.desk.event("stage_start", stage=stage.name, restored=number)
        life.begins(stage.name, "step", number, 0)
    saver = _Saver(life, stage.name, number, state) if life.desk else None
    first, busy = number, life.here.busy
    while not stage.done(state):
        stopping = life.agree_to_stop()
        if saver and (stopping or saver.due()):
            with life.ctx.timed(f"checkpoint {stage.name}"):
                saver.save(number, state)
        if stopping:
            if saver:
                saver.close()
            life.ranks.barrier()
            return False
        state = _step(stage, state, life)
        number += 1
    if saver:
        with life.ctx.timed(f"checkpoint {stage.name}"):
            saver.save(number, state)
            cost = saver.close()
        with life.ctx.timed(f"finish {stage.name}"):
            life.insist(lambda: stage.finish(state, life.ctx))
        sealed = sealed_record({"steps": number}, index, life)
        life.insist(lambda: write_record(marker, sealed, life.claim.verify))
        _end(life, stage.name, number, number - first, life.here.busy - busy, cost)
    life.ranks.barrier()
    return True


class _Saver:
    """Rank 0's hand on the writer: saves each state once."""

    def __init__(self, life: Life, stage: str, number: int, state: Arrays) -> None:
        self._writer = life.start_writer(stage)
        self._stage = stage
        self._writer.expect(self._checked(state))
        self._facts = {"config_hash": life.config_hash, "world_size": life.ranks.size}
        self._saved = number

    def due(self) -> bool:
        """Count a step; say whether it is time to save."""
        self._writer.cadence.step()
        return self._writer.cadence.due()

    def save(self, number: int, state: Arrays) -> None:
        """Hand the state after step ``number`` to the writer, if it has not been."""
        if number > self._saved:
            self._writer.save(number, self._checked(state), self._facts)
            self._saved = number

    def _checked(self, state: Arrays) -> Arrays:
        try:
            return storable(state)
        except (TypeError, ValueError) as error:
            msg = f"the state of stage {self._stage} cannot be stored: {error}"
            raise RankError(msg) from error

    def close(self) -> WriteCost:
        """Wait until the last state is durable."""
        self._writer.close()
        return self._writer.cost


def _end(life: Life, stage: str, number: int, made: int, busy: float, cost: WriteCost) -> None:
    assert life.desk is not None  # noqa: S101 - only rank 0 comes here
    seconds = life.desk.progress.end()
    spent = {"rank": 0, "wall": seconds, "busy": busy, "units": made, **asdict(cost)}
    life.desk.event("stage_end", stage=stage, seconds=seconds, units=number, ranks=[spent])


def _step(stage: Loop, state: Arrays, life: Life) -> Arrays:
    start = time.perf_counter()
    state = stage.step(state, life.ctx)
    life.here.busy += time.perf_counter() - start
    life.here.done += 1
    if life.desk:
        done, total = stage.steps(state)
        life.desk.progress.reach(done, total, stage.figures(state))
    return state


def _restore(stage: Loop, life: Life) -> tuple[int, Arrays]:
    """Return the number of steps made and the state after them. Collective."""
    found: Restored | None = None
    if life.desk:
        directory = life.run.stage(stage.name)
        directory.mkdir(parents=True, exist_ok=True)
        found = life.read(lambda: load_newest(directory))
        for reason in found.fallbacks:
            life.desk.event("fallback", stage=stage.name, reason=reason)
            life.log.warning("%s; going back to the generation before", reason)
        refuse_other(directory / f"gen-{found.number:08d}.json", found.config_hash, life.config_hash)
        clear_away(directory, found)
    number = life.ranks.bcast(found.number if found and found.state is not None else -1)
    if number < 0:
        return 0, stage.start(life.ctx)
    return number, life.ranks.bcast_arrays(found.state if found else None)
