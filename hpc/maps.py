"""The life of a map: listed → scheduled → run → segment → results."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpc.desk import Desk, Receipt
from hpc.doubt import Doubt
from hpc.errors import AllFailedError, LockLostError, RankError
from hpc.job import Arrays, Map, Unit
from hpc.life import Life
from hpc.quarantine import Quarantine, UnitFailure
from hpc.results import sealed_record
from hpc.schedule import Queue
from hpc.store.journal import Journal
from hpc.store.origin import refuse_other
from hpc.store.records import read_keyed, write_record
from hpc.store.segments import Finished, StoredResults, set_aside
from hpc.store.storable import storable
from hpc.survey import Survey, survey


@dataclass(frozen=True, slots=True)
class Plan:
    """What is left of a map at the start of an attempt; decided by rank 0."""

    units: tuple[Unit, ...]
    todo: tuple[Unit, ...] = ()
    suspects: Mapping[str, int] = field(default_factory=dict)
    quarantine: Mapping[str, UnitFailure] = field(default_factory=dict)
    complete: bool = False
    home: Mapping[str, str] = field(default_factory=dict)


def run_map(stage: Map, index: int, life: Life) -> bool:
    """Run a map to its end, or until the ranks agree to stop. Collective.

    Returns
    -------
    bool
        False if it was stopped before all units were done.
    """
    directory = life.run.stage(stage.name)
    if life.desk:
        directory.mkdir(parents=True, exist_ok=True)
    found = survey(directory, life.ranks, whole=life.attempt > 1, reading=life.read)
    plan = life.ranks.bcast(_plan(stage, directory, life, found) if found is not None else None)
    if plan.complete:
        life.homes[stage.name] = plan.home
        if life.desk:
            life.without[stage.name] = sorted(plan.quarantine)
            life.desk.progress.skip(index, len(plan.units), len(plan.quarantine))
        return True
    if life.desk:
        _open_desk(life.desk, plan, index, directory, life)
    life.ranks.barrier()
    try:
        cost = _work(stage, directory, life)
    except BaseException as error:
        if life.journal is not None and not _came_from_outside(error):
            life.journal.ended(None)  # it is reported: no unit's process died of it
        raise
    costs = life.ranks.gather(cost)
    _refuse_if_hopeless(stage, plan, life)
    # Every rank is told where each unit's result lies, so that none depends on its own view of the directory.
    after = survey(directory, life.ranks, whole=False, reading=life.read)
    home = life.homes[stage.name] = life.ranks.bcast(after.segments.home if after is not None else None)
    if life.agree_to_stop() and life.ranks.bcast(bool(_missing(plan, home, life.desk)) if life.desk else None):
        return False
    if life.desk:
        assert costs is not None  # noqa: S101 - rank 0 gathers
        _complete(stage, index, directory, plan, life.desk, life, costs)
    life.ranks.barrier()
    return True


def _plan(stage: Map, directory: Path, life: Life, survey: Survey) -> Plan:
    """List the units and sort out what earlier attempts did of them. Rank 0."""
    units = tuple(stage.units(life.ctx))
    keys = {u.key for u in units}
    if len(keys) != len(units):
        twice = sorted({u.key for u in units if sum(v.key == u.key for v in units) > 1})[:3]
        msg = f"stage {stage.name} lists a unit twice: {', '.join(twice)}; unit keys must be unique"
        raise RankError(msg)
    quarantine = {k: f for k, f in _read_quarantine(directory, stage.name, life).items() if k in keys}
    found = survey.segments
    for name, damage in found.damaged.items():
        life.source.event("fallback", stage=stage.name, reason=damage)
        life.log.warning("%s: its units are run again", damage)
        set_aside(directory, name)
    for origin, name in found.origins.items():
        refuse_other(directory / name, origin, life.config_hash)
    complete = stage.name not in life.again and life.is_complete(stage.name)
    if complete and keys <= found.home.keys() | quarantine.keys():
        return Plan(units, quarantine=quarantine, complete=True, home=found.home)
    limit = life.settings.engine.max_unit_deaths
    for key, count in survey.blame.guilty(limit).items():
        if key in keys and key not in found.home:
            quarantine.setdefault(key, _death(key, count, life.attempt))
    suspects = survey.blame.suspects(limit, life.ranks.size)
    todo = tuple(u for u in units if u.key not in found.home and u.key not in quarantine)
    return Plan(units, todo, {u.key: suspects[u.key] for u in todo if u.key in suspects}, quarantine)


def _death(key: str, count: int, attempt: int) -> UnitFailure:
    error = f"the process running it died in {count} attempts (killed, out of memory, or a crash in native code)"
    return UnitFailure(key, error, "", -1, attempt)


def _open_desk(desk: Desk, plan: Plan, index: int, directory: Path, life: Life) -> None:
    restored = len(plan.units) - len(plan.todo) - len(plan.quarantine)
    life.begins(directory.name, "unit", len(plan.units) - len(plan.todo), len(plan.units))
    desk.progress.begin(index, len(plan.units), restored, len(plan.quarantine))
    desk.event("stage_start", stage=life.here.stage, units=len(plan.units), restored=restored)
    quarantine = Quarantine(directory / "quarantine.json", plan.quarantine, life.claim.verify, life.warn)
    doubt = Doubt(life.ranks.size, 0 if restored else life.settings.engine.give_up_after)
    desk.open(Queue(plan.todo, life.ranks.size, plan.suspects), quarantine, doubt)
    quarantine.save()


def _refuse_if_hopeless(stage: Map, plan: Plan, life: Life) -> None:
    """Raise on all ranks if the stage was stopped because everything fails; no unit is blamed for it. Collective."""
    complaint = None
    if life.desk:
        life.desk.quarantine.close()
        failed = life.desk.hopeless
        if failed:
            life.desk.progress.advance(quarantined=-len(failed))
            life.insist(life.desk.quarantine.save)
            complaint = (
                f"stage {stage.name}: all {len(failed)} units that were tried failed with the same error, on every "
                f"rank, so {len(plan.todo) - len(failed)} others were not tried, and none is quarantined "
                f"(engine.give_up_after=0 tries all). The first was unit {failed[0].key}, on rank {failed[0].rank}, "
                f"whose log has the traceback: {failed[0].error}"
            )
    complaint = life.ranks.bcast(complaint)
    if complaint:
        raise AllFailedError(complaint)


def _came_from_outside(error: BaseException) -> bool:
    """Say whether an error may only follow from the death of another rank, or the run is not ours any more."""
    return isinstance(error, LockLostError) or type(error).__module__.partition(".")[0] == "mpi4py"


def _work(stage: Map, directory: Path, life: Life) -> dict[str, Any]:
    """Take units until there are no more; return what this rank spent."""
    start, busy0, done0 = time.monotonic(), life.here.busy, life.here.done
    writer = life.start_writer(stage.name, life.ranks.size)
    journal = life.journal = Journal(directory, life.attempt, life.ranks.rank)
    finished: list[tuple[str, float]] = []
    failed: list[UnitFailure] = []

    def receipt() -> Receipt:
        done = Receipt(tuple(finished), tuple(failed), life.stop.wish)
        finished.clear()
        failed.clear()
        return done

    life.source.ask(receipt())
    grant = life.source.answer()
    while not grant.over:
        if not grant.units:
            time.sleep(0.02)
        if grant.ahead:
            life.source.ask(receipt())
        for unit in grant.units:
            if life.stop:
                break
            outcome = _run_unit(stage, unit, journal, life)
            if isinstance(outcome, Finished):
                writer.add(outcome)
                finished.append((unit.key, outcome.seconds))
            else:
                failed.append(outcome)
        if not grant.ahead:
            life.source.ask(receipt())
        grant = life.source.answer()
    if finished or failed:
        life.source.ask(receipt())
        life.source.answer()
    writer.close()
    life.journal = None
    journal.close()
    return {
        "rank": life.ranks.rank,
        "start": start,
        "wall": time.monotonic() - start,
        "busy": life.here.busy - busy0,
        "units": life.here.done - done0,
        **asdict(writer.cost),
    }


def _run_unit(stage: Map, unit: Unit, journal: Journal, life: Life) -> Finished | UnitFailure:
    """Run one unit, again if it raises; a failure is returned, not raised, unless the job is to fail fast."""
    life.here.unit = unit.key
    journal.begin(unit.key)
    start = time.perf_counter()
    for attempt in range(1 + life.settings.engine.retries):
        try:
            arrays = _checked(stage.run(unit, life.ctx), unit)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            life.log.exception("stage %s, unit %s: try %d failed", stage.name, unit.key, attempt + 1)
            life.source.event("unit_failed", stage=stage.name, unit=unit.key, error=text, rank=life.ranks.rank)
            failure = UnitFailure(unit.key, text, traceback.format_exc(), life.ranks.rank, life.attempt)
            if life.settings.engine.fail_fast:
                raise
        else:
            break
    else:
        journal.end(unit.key)
        life.here.unit = None
        return failure
    seconds = time.perf_counter() - start
    journal.end(unit.key)
    life.here.unit = None
    life.here.done += 1
    life.here.busy += seconds
    return Finished(unit.key, arrays, seconds, life.attempt, life.ranks.rank)


def _checked(arrays: Arrays, unit: Unit) -> Arrays:
    """Refuse a result that could not be saved, while it is still clear whose it is."""
    try:
        return storable(arrays)
    except (TypeError, ValueError) as error:
        msg = f"unit {unit.key} returned what cannot be stored: {error}"
        raise (TypeError if isinstance(error, TypeError) else ValueError)(msg) from error


def _missing(plan: Plan, home: Mapping[str, str], desk: Desk) -> set[str]:
    return {u.key for u in plan.units} - home.keys() - desk.quarantine.units.keys()


def _complete(
    stage: Map, index: int, directory: Path, plan: Plan, desk: Desk, life: Life, costs: list[dict[str, Any]]
) -> None:
    home = life.homes[stage.name]
    missing = _missing(plan, home, desk)
    if missing:
        msg = (
            f"stage {stage.name}: {len(missing)} units were computed but cannot be read back, e.g. {min(missing)}; "
            f"the file system under {directory} lost them: run `tessera resume {life.run.path}`"
        )
        raise RankError(msg)
    keys = {u.key for u in plan.units}
    results = StoredResults(directory, {k: f for k, f in home.items() if k in keys}, life.read)
    with life.ctx.timed(f"merge {stage.name}"):
        life.insist(lambda: stage.merge(results, life.ctx))
    life.without[stage.name] = sorted(desk.quarantine.units)
    record = {
        "units": len(plan.units),
        "quarantined": sorted(desk.quarantine.units),
        "segments": sorted(set(home.values())),
    }
    life.insist(desk.quarantine.save)
    sealed = sealed_record(record, index, life)
    life.insist(lambda: write_record(directory / "complete.json", sealed, life.claim.verify))
    seconds = desk.progress.end()
    desk.event("stage_end", stage=stage.name, seconds=seconds, units=len(plan.units), ranks=costs)


def _read_quarantine(directory: Path, stage: str, life: Life) -> dict[str, UnitFailure]:
    """Return the units an earlier attempt gave up; a damaged record is forgotten, and its unit tried again."""
    records, problem = life.read(lambda: read_keyed(directory / "quarantine.json"))
    if problem:
        life.source.event("fallback", stage=stage, reason=problem)
        life.log.warning("%s: its units are tried again", problem)
    return {key: UnitFailure(**record) for key, record in records.items()}
