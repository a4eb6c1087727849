"""The life of one rank: lock → setup → stages → report; the only orchestration."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from hpc import cpu, threads
from hpc.basis import begin_anew_if_outdated
from hpc.code import Code
from hpc.context import Context
from hpc.desk import Desk, DeskThread, RemoteDesk
from hpc.device import device_of
from hpc.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_QUARANTINED,
    LockedError,
    LockLostError,
    ResultError,
)
from hpc.fence import Fence, patience
from hpc.grace import Grace
from hpc.identity import changed_meanwhile, establish, job_code
from hpc.job import Job, Map, stages_of
from hpc.kernel_record import Found, first_of, note_attempt, refuse_lower
from hpc.kernels import Kernels, as_they_are, loaded, unlike_asked
from hpc.life import LONGEST, Heartbeat, Life, pulse_seconds
from hpc.loops import run_loop
from hpc.maps import run_map
from hpc.peers import Peers
from hpc.provenance import record_attempt
from hpc.quota import quota
from hpc.ranks import MpiRanks, Ranks
from hpc.results import harmed_stages
from hpc.rundir import RunDir, config_hash
from hpc.settings import Settings
from hpc.stop import StopFlag, listen
from hpc.store.lock import Claim, RunLock, take_patiently
from hpc.store.newfile import remove_temporaries
from hpc.store.patience import read_patiently
from hpc.store.segments import StoredResults
from hpc.terminal import complain
from hpc.watch.events import Events
from hpc.watch.progress import Progress, State
from hpc.whereabouts import Whereabouts

_LAST_SAVE: Final = 5.0
"""Seconds a failing rank tries to save what it has finished; the others wait for nothing but the end."""


def run_job(
    job: Job,
    run: RunDir,
    settings: Settings,
    ranks: Ranks,
    budget: int,
    here: Whereabouts,
    flag: StopFlag | None = None,
    kernels: Kernels | None = None,
) -> int:
    """Run a job on all ranks. Collective.

    Parameters
    ----------
    job
        Built from ``settings.job``.
    run
        Its prepared run directory.
    settings
        The engine's options.
    ranks
        The communicator.
    budget
        Threads of each rank.
    here
        Kept up to date, so that the caller can say where this rank was if it fails.
    flag
        Already listening to the stop signals; None begins to listen now.
    kernels
        What the numeric libraries were pinned to; None if nothing was.

    Returns
    -------
    int
        Exit code, the same on every rank: 0 done, 3 done but with quarantined units, 75 stopped and to come back,
        76 told to stop.
    """
    if flag is None:
        flag = StopFlag()
        listen(flag)
    lock, claim = _lock(run, settings, ranks, flag)
    life = None
    try:
        sources = job_code(job, settings, commit=ranks.rank == 0) if ranks.local_rank == 0 else None
        life = _begin(run, settings, ranks, budget, flag, here, claim, kernels or as_they_are(), sources)
        desk_thread = _desk_thread(life)
        beat = pulse_seconds(settings.engine.heartbeat, ranks.size)
        heart = Heartbeat(life, settings.engine.heartbeat if life.desk else beat, _chores(life, lock))
        fence = Fence(life, patience(settings.engine.heartbeat, beat))
        grace = Grace(life, lock.release if lock is not None else lambda: None)
        peers = Peers(life)
        finished = _stages(job, life)
        grace.close()
        peers.close()
        code = _finish(job, life) if finished else _end(life, "stopped", life.stop_code())
        ranks.barrier()
        heart.close()
        ranks.barrier()
        fence.close()
        if desk_thread is not None:
            desk_thread.close()
        if life.desk is not None:
            life.desk.progress.write()
    except Exception:
        _save_what_is_finished(life)
        raise
    finally:
        if lock is not None:
            lock.release()
    return code


def _lock(run: RunDir, settings: Settings, ranks: Ranks, flag: StopFlag) -> tuple[RunLock | None, Claim]:
    """Take the run's lock on rank 0, and tell every rank by what to know it; all raise if it is taken. Collective."""
    lock, refusal = None, None
    if ranks.rank == 0:
        try:
            beat = min(settings.engine.heartbeat, LONGEST)
            lock = take_patiently(run.lock_file, _say, lambda: bool(flag), beat)
        except LockedError as error:
            refusal = str(error)
    refusal, claim = ranks.bcast((refusal, lock.claim if lock is not None else None))
    if refusal:
        raise LockedError(refusal)
    return lock, claim


def _say(text: str) -> None:
    logging.getLogger("tessera").warning("%s", text)
    complain(f"tessera: {text}")


def _begin(
    run: RunDir,
    settings: Settings,
    ranks: Ranks,
    budget: int,
    flag: StopFlag,
    here: Whereabouts,
    claim: Claim,
    kernels: Kernels,
    sources: Code | None,
) -> Life:
    _refuse_lower(run, settings, ranks, kernels)
    digest = config_hash({"job": settings.job, "seed": settings.seed})
    attempt = 0
    if sources is not None and ranks.rank == 0:
        for left in remove_temporaries(run.path):
            logging.getLogger("tessera").info("removed %s, left by a killed writer", left)
        attempt = read_patiently(
            lambda: record_attempt(run, digest, ranks.size, budget, sources),
            settings.checkpoint.deadline,
            logging.getLogger("tessera").warning,
        )
    attempt = ranks.bcast(attempt)
    desk = None
    if ranks.rank == 0:
        progress = Progress(run.progress_file, attempt, ranks.size, budget)
        desk = Desk(progress, Events(run.events_file))
        facts = {"device": device_of(ranks.local_rank), "pid": os.getpid()}
        desk.event("run_start", attempt=attempt, ranks=ranks.size, threads=budget, **facts)
    source = desk if desk is not None else RemoteDesk(ranks.comm)  # type: ignore[attr-defined]
    log = logging.getLogger("tessera")
    homes: dict[str, Mapping[str, str]] = {}
    ctx = Context(
        ranks=ranks,
        threads=budget,
        device=device_of(ranks.local_rank),
        seed=settings.seed,
        results_dir=run.results,
        log=log,
        results_of=lambda stage: StoredResults(run.stage(stage), homes[stage], life.read),
        stopping=lambda: bool(flag),
    )
    life = Life(run, settings, digest, ranks, ctx, source, desk, flag, attempt, log, here, claim, homes, kernels)
    life.sources = sources
    return life


def _refuse_lower(run: RunDir, settings: Settings, ranks: Ranks, kernels: Kernels) -> None:
    """Refuse nodes that lack the kernels of the first attempt, if that was asked for. Collective."""
    if settings.engine.other_kernels == "refuse":
        cpus = ranks.gather((socket.gethostname(), cpu.level()))
        if cpus is not None:
            warn = logging.getLogger("tessera").warning
            first = read_patiently(lambda: first_of(run.path), settings.checkpoint.deadline, warn)
            refuse_lower(kernels, first, cpus)


def _desk_thread(life: Life) -> DeskThread | None:
    if life.desk is None or not isinstance(life.ranks, MpiRanks):
        return None
    return DeskThread(life.desk, life.ranks.comm)


def _chores(life: Life, lock: RunLock | None) -> Any:
    def chores() -> None:
        if lock is None or life.desk is None:
            return
        try:
            life.claim.verify()
        except LockLostError as error:
            if not lock.released:
                life.end_lost(error)
        except OSError:
            return
        life.desk.progress.write()
        lock.touch()

    return chores


def _save_what_is_finished(life: Life | None) -> None:
    if life is not None and life.saving is not None:
        with suppress(Exception):  # what ends the run may be that it cannot be saved
            life.saving.drain(_LAST_SAVE)


def _stages(job: Job, life: Life) -> bool:
    """Set the job up and run its stages in order; return whether all were finished."""
    stages = stages_of(job)
    if life.desk:
        life.desk.progress.plan([(s.name, "map" if isinstance(s, Map) else "loop") for s in stages])
        life.desk.progress.write()
    life.here.stage = "inputs"
    with life.ctx.timed("inputs"):
        establish(job, life)
    life.here.stage = "setup"
    with life.ctx.timed("setup"):
        job.setup(life.ctx)
    _check_threads(life)
    _check_kernels(job, life)
    life.stages = tuple(stage.name for stage in stages)
    if life.attempt > 1:
        life.again = harmed_stages(stages, life)
    for index, stage in enumerate(stages):
        life.here.stage = stage.name
        if life.agree_to_stop():
            return False
        if life.desk:
            begin_anew_if_outdated(stage.name, life)
        with life.ctx.timed(stage.name):
            finished = run_map(stage, index, life) if isinstance(stage, Map) else run_loop(stage, index, life)
        if not finished:
            return False
    return True


def _finish(job: Job, life: Life) -> int:
    """Say how a run that has all its results ended, and draw them; return the exit code. Collective."""
    life.here.stage = "report"
    _collect_timings(life)
    _check_kernels(job, life)
    quarantined = bool(life.ranks.bcast(life.desk.progress.quarantined > 0 if life.desk else None))
    changed = changed_meanwhile(job, life)
    complaint = life.ranks.bcast(changed or job.complaint(life.ctx) if life.desk else None)
    if complaint:
        code = _end(life, "failed", EXIT_FAILED)
    else:
        code = _end(life, "quarantined" if quarantined else "done", EXIT_QUARANTINED if quarantined else EXIT_DONE)
    if life.desk:
        _report(job, life)
    life.ranks.barrier()
    if complaint:
        raise ResultError(complaint)
    return code


def _check_threads(life: Life) -> None:
    """Enforce the budget on the libraries that setup loaded, and report what does not keep to it. Collective."""
    threads.enforce(life.ctx.threads)
    masks = life.ranks.gather((life.ranks.local_rank, threads.usable_cpus()))
    if life.desk and masks is not None:
        here = [mask for _, mask in masks[: life.ranks.local_size]]
        for complaint in threads.complaints(life.ctx.threads, here, quota()):
            life.log.warning(complaint)
            life.desk.event("warning", text=complaint)
            life.desk.progress.message = complaint


def _check_kernels(job: Job, life: Life) -> None:
    """Record what the libraries that are loaded by now run, and say where bits may differ. Collective."""
    libraries = loaded(life.kernels, job.kernels())
    wrong = tuple(unlike_asked(life.kernels, libraries))
    ranks = life.ranks.gather(Found(socket.gethostname(), cpu.level(), libraries, wrong))
    if life.desk and ranks is not None:
        refuse = life.settings.engine.other_kernels == "refuse"
        told: list[str] = []
        run = life.run.path
        life.insist(
            lambda: told.extend(note_attempt(run, life.attempt, life.kernels, ranks, life.begun, refuse=refuse))
        )
        for text in told:
            complaint = f"bits may differ within this run: {text}"
            _say(complaint)
            life.desk.event("warning", text=complaint)


def _collect_timings(life: Life) -> None:
    gathered = life.ranks.gather(life.ctx.timings.seconds)
    if life.desk and gathered is not None:
        names = {n for part in gathered for n in part}
        longest = {n: max(part.get(n, 0.0) for part in gathered) for n in sorted(names)}
        life.desk.event("timing", seconds=longest)


def _end(life: Life, state: State, code: int) -> int:
    """Close the books of this attempt."""
    if life.desk:
        life.desk.close_books(state)
        life.desk.event("run_end", state=state, exit_code=code)
        life.desk.progress.write()
    return code


def _report(job: Job, life: Life) -> None:
    """Write the report page; a picture that cannot be drawn must not fail a run whose results are safe."""
    try:
        from hpc.report.write import write_report

        for text in write_report(job, life.run):
            life.log.warning(text)
            life.source.event("warning", text=text)
    except Exception as error:
        life.log.exception("the report could not be written; try again with: tessera report %s", life.run.path)
        life.source.event("warning", text=f"the report could not be written: {error!r}")
