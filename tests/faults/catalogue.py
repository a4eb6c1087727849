"""All kinds of fault, how often CI lets each strike, and the crew that works through them."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import damage
import endings
import full_results
import identity
import ownership
import processors
import protocol
import refused
import scheduler
import terminals
import whole_runs
from devslurm import Cluster, can_have_slurm
from harness import Harness, Kind, Row

Job = tuple[str, Kind, tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """A kind of fault and how often it strikes in CI."""

    name: str
    kind: Kind
    times: int


CATALOGUE = (
    Entry("killed between any two steps of a write", protocol.killed_at_a_point, 60),
    *(Entry(f"killed while writing {files}", protocol.killed_writing(files), 8) for files in protocol.TARGETS),
    Entry("killed three times in a row", protocol.killed_again_and_again, 15),
    Entry("killed at a random instant", protocol.killed_at_an_instant, 30),
    Entry("unit that kills its process", protocol.deadly_unit, 5),
    Entry("killed while retrying quarantined units", protocol.retried_and_killed, 8),
    Entry("ENOSPC, EIO, EROFS or EDQUOT in a write", protocol.refused_by_the_file_system, 40),
    Entry("file truncated", damage.truncated, 40),
    Entry("bit flipped in any file", damage.flipped, 60),
    Entry("bit flipped in a segment or generation", damage.flipped_in_data, 40),
    Entry("three files damaged", damage.several_damaged, 15),
    Entry("file missing", damage.missing, 20),
    Entry("bit flipped in config.yaml", damage.damaged_config, 15),
    Entry("temporary files left over", damage.left_over, 10),
    Entry("file of another schema", damage.other_schema, 20),
    Entry("clock jumped by an hour or ten years", damage.clock_jump, 12),
    Entry("lock of a dead owner", damage.dead_lock, 15),
    Entry("lock damaged", damage.damaged_lock, 10),
    Entry("one of three MPI ranks killed", whole_runs.ranks_killed(1), 7),
    Entry("all three MPI ranks killed", whole_runs.ranks_killed(0), 6),
    Entry("mpiexec killed", whole_runs.launcher_killed, 6),
    Entry("tessera killed", whole_runs.tessera_killed, 6),
    Entry("signal during a slow save", endings.signal_during_a_slow_save, 4),
    Entry("signal after the end", endings.signal_after_the_end, 4),
    Entry("a single rank that fails", endings.rank_fails_by_itself, 6),
    Entry("resumed twice at once", whole_runs.two_at_once, 4),
    Entry("EIO, EACCES, EMFILE, ESTALE or ENOMEM at a resume", refused.unreadable_at_a_resume, 25),
    Entry("results missing, emptied or changed after the end", refused.results_harmed_after_the_end, 12),
    Entry("provenance lost and seed changed", refused.provenance_lost_and_seed_changed, 8),
    Entry("quarantine retried with a damaged progress file", refused.retried_with_damaged_progress, 6),
    Entry("input changed, resized or missing", identity.changed_input, 12),
    Entry("other code of the same version", identity.changed_code, 8),
    Entry("killed owner that nobody reaped", ownership.zombie_owner, 6),
    Entry("pid of a dead owner given away", ownership.recycled_pid, 5),
    Entry("owner in another pid namespace", ownership.other_container, 5),
    Entry("clock off while the owner lives", ownership.clock_off, 10),
    Entry("answer to the lock's link lost", ownership.lost_answer, 12),
    Entry("every unit fails in the same way", ownership.everything_fails, 8),
    Entry("whole job killed three times", ownership.whole_deaths, 3),
    Entry("stopped on one kind of CPU, resumed on another", processors.switched, 6),
    Entry("requeued on its node over stale shared memory", scheduler.requeued_on_its_node, 3),
    Entry("answer of sbatch lost", scheduler.answer_of_sbatch_lost, 3),
    Entry("SLURM silent", scheduler.silent_slurm, 3),
    Entry("run moved to another folder or disk", whole_runs.moved, 4),
    Entry("run directory removed or renamed", whole_runs.directory_gone, 4),
    Entry("file system full", whole_runs.full_disk, 5),
    Entry("results written to a full disk", full_results.results_on_a_full_disk, 6),
    Entry("file size limit reached", whole_runs.file_size_limit, 5),
    Entry("terminal closed, Ctrl-C once or twice", terminals.hung_up, 8),
    Entry("reader of the output gone, output full or closed", terminals.nobody_reads, 5),
)


@dataclass
class Crew:
    """Some harnesses at work side by side on one list of faults.

    Parameters
    ----------
    jobs
        Name, kind and seed of each fault.
    until
        Time (monotonic) after which no new fault is begun.
    """

    jobs: Iterable[Job]
    until: float = float("inf")

    def work(self, size: int = 2) -> Harness:
        """Let all faults strike; return a harness with the rows of all."""
        source = iter(self.jobs)
        guard = threading.Lock()
        harnesses = []
        errors: list[BaseException] = []

        def member(harness: Harness) -> None:
            try:
                while time.monotonic() < self.until and not errors:
                    with guard:
                        job = next(source, None)
                    if job is None:
                        return
                    harness.strike(*job)
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread that reports
                errors.append(error)
            finally:
                harness.close()

        with (
            tempfile.TemporaryDirectory(prefix="tessera-faults-", dir=fast_folder()) as folder,
            Cluster(nodes=size) as cluster,
        ):
            for number in range(1, size + 1):
                scratch = Path(folder) / str(number)
                scratch.mkdir()
                harnesses.append(Harness(scratch, partial(cluster.node, number)))
            threads = [threading.Thread(target=member, args=(h,)) for h in harnesses]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        return united(harnesses)


def united(harnesses: list[Harness]) -> Harness:
    """Return a harness with the sums of several tables, in the order of the catalogue."""
    total = Harness(harnesses[0].scratch)
    for entry in CATALOGUE:
        for row in (h.rows[entry.name] for h in harnesses if entry.name in h.rows):
            whole = total.rows.setdefault(entry.name, Row(entry.name))
            for figure in ("injected", "recovered", "lost", "doubled", "wrong", "hung", "stuck"):
                setattr(whole, figure, getattr(whole, figure) + getattr(row, figure))
    return total


def fast_folder() -> Path | None:
    """Return a folder in memory: a kill cannot lose what was not synced, so only the time of fsync is saved."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


def ci_jobs(seed: int) -> Iterator[Job]:
    """Yield the faults of CI, the longest first, so that all harnesses end together."""
    for entry in reversed(CATALOGUE):
        if usable(entry):
            for n in range(entry.times):
                yield entry.name, entry.kind, (seed, n, *entry.name.encode())


def endless_jobs(seed: int) -> Iterator[Job]:
    """Yield faults in the proportions of CI, round after round with new seeds."""
    for turn in range(10**6):
        for entry in CATALOGUE:
            if usable(entry):
                for n in range(max(1, entry.times // 8)):
                    yield entry.name, entry.kind, (seed, turn, n, *entry.name.encode())


def left_out() -> list[str]:
    """Return the kinds that this machine does not allow."""
    return [entry.name for entry in CATALOGUE if not usable(entry)]


@cache
def usable(entry: Entry) -> bool:
    """Whether this machine allows the fault: mounts and namespaces take root, others SLURM's daemons or AVX2."""
    needs: dict[Kind, Callable[[], bool]] = {
        ownership.other_container: ownership.can_unshare,
        processors.switched: processors.can_switch,
        whole_runs.full_disk: whole_runs.can_mount,
        full_results.results_on_a_full_disk: whole_runs.can_mount,
        scheduler.requeued_on_its_node: can_have_slurm,
        scheduler.answer_of_sbatch_lost: can_have_slurm,
        scheduler.silent_slurm: can_have_slurm,
    }
    return entry.kind not in needs or needs[entry.kind]()
