"""The life of a loop: start or restore, step, save, finish."""

from __future__ import annotations

import time
from dataclasses import asdict

from hpc.job import Arrays, Loop
from hpc.life import Life
from hpc.store.atomic import write_json
from hpc.store.generations import Restored, load_newest
from hpc.store.writer import Writer


def run_loop(stage: Loop, index: int, life: Life) -> bool:
    """Run a loop to its end, or until the ranks agree to stop. Collective.

    Returns
    -------
    bool
        False if it was stopped before its state was final; the state is then saved.
    """
    marker = life.run.stage(stage.name) / "complete.json"
    if life.ranks.bcast(marker.exists() if life.desk else None):
        if life.desk:
            life.desk.progress.skip(index, 0, 0)
        return True
    number, state = _restore(stage, life)
    if life.desk:
        done, total = stage.steps(state)
        life.desk.progress.begin(index, total, done)
        life.desk.event("stage_start", stage=stage.name, restored=number)
    writer = Writer(marker.parent, stage.name, life.attempt, life.ranks.rank, life.settings.checkpoint)
    facts = {"config_hash": life.config_hash, "world_size": life.ranks.size}
    start, first, saved = time.monotonic(), number, number
    while not stage.done(state):
        stopping = life.agree_to_stop()
        if life.desk and number > saved and (stopping or writer.due()):
            writer.save(number, state, facts)
            saved = number
        if stopping:
            life.ranks.barrier()
            return False
        state = _step(stage, state, life)
        number += 1
    if life.desk:
        if number > saved:
            writer.save(number, state, facts)
        with life.ctx.timed(f"finish {stage.name}"):
            stage.finish(state, life.ctx)
        write_json(marker, {"steps": number})
        cost = {"rank": 0, "start": start, "wall": time.monotonic() - start, "busy": life.here.busy}
        cost |= {"units": number - first, **asdict(writer.cost)}
        seconds = life.desk.progress.end()
        life.desk.event("stage_end", stage=stage.name, seconds=seconds, units=number, ranks=[cost])
    life.ranks.barrier()
    return True


def _step(stage: Loop, state: Arrays, life: Life) -> Arrays:
    start = time.perf_counter()
    state = stage.step(state, life.ctx)
    life.here.busy += time.perf_counter() - start
    life.here.done += 1
    if life.desk:
        done, total = stage.steps(state)
        life.desk.progress.reach(done, total)
    return state


def _restore(stage: Loop, life: Life) -> tuple[int, Arrays]:
    """Return the number of steps made and the state after them. Collective."""
    found: Restored | None = None
    if life.desk:
        directory = life.run.stage(stage.name)
        directory.mkdir(parents=True, exist_ok=True)
        found = load_newest(directory)
        for reason in found.fallbacks:
            life.desk.event("fallback", stage=stage.name, reason=reason)
            life.log.warning("%s; going back to the generation before", reason)
    number = life.ranks.bcast(found.number if found and found.state is not None else -1)
    if number < 0:
        return 0, stage.start(life.ctx)
    return number, life.ranks.bcast_arrays(found.state if found else None)
