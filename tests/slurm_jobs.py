"""Jobs on the development cluster: submit, wait, look, and break things."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import CHECKOUT

DEVCLUSTER = CHECKOUT / "slurm" / "devcluster"
CONF = CHECKOUT / "tests" / "hpc" / "conf"
UNITS = 120

TOY = ("job=toy", "--config-dir", str(CONF), f"job.units={UNITS}", "job.steps=4")
QUICK = ("engine.heartbeat=0.1", "engine.grace=5", "checkpoint.every=0.5")
TWO_BY_TWO = (
    "cluster=slurm",
    "cluster.nodes=2",
    "cluster.ranks_per_node=2",
    "cluster.threads_per_process=1",
    "cluster.signal_delay=10",  # SLURM adds up to 30 s; the signal must not come while the ranks still start
    "cluster.sbatch={exclusive: true}",  # what is broken here must not be another test's node
)
OVER = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"})


@dataclass(frozen=True)
class Cluster:
    """A running development cluster.

    Attributes
    ----------
    directory
        Its files.
    environment
        For commands that talk to it.
    """

    directory: Path
    environment: Mapping[str, str]

    def run(self, *words: str | Path, codes=(0,), **environment: str) -> str:
        """Run a command with this cluster's SLURM; return what it printed."""
        done = subprocess.run(
            [str(w) for w in words],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )
        if done.returncode not in codes:
            pytest.fail(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def tessera(self, *words: str | Path, codes=(0,)) -> str:
        """Run the command; return what it printed."""
        return self.run(sys.executable, "-m", "hpc", *words, codes=codes)

    def devcluster(self, *words: str) -> str:
        return self.run(sys.executable, DEVCLUSTER, words[0], "--directory", self.directory, *words[1:])

    def job(self, job: str) -> dict[str, str]:
        """Return what the controller says of a job."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def nodes(self, job: str) -> list[str]:
        """Return the nodes of a job; the first one runs the batch script and rank 0."""
        return self.run("scontrol", "show", "hostnames", self.job(job)["NodeList"]).split()

    def wait(self, job: str, seconds: float = 100.0) -> dict[str, str]:
        """Wait until a job is over; return what the controller says of it."""
        until(lambda: self.job(job)["JobState"] in OVER, seconds, lambda: f"job {job}: {self.job(job)}")
        return self.job(job)

    def daemon(self, name: str) -> int:
        """Return the process id of a daemon of the cluster."""
        return int((self.directory / f"{name}.started").read_text())

    def stepd(self, job: str, node: str) -> int:
        """Return the process id of the daemon that looks after the first step of a job on a node."""
        title = f"slurmstepd: [{job}.0]"
        return next(p.pid for p in self._on(node) if p.command.startswith(title))

    def ranks(self, job: str, node: str) -> list[int]:
        """Return the process ids of a job's ranks on a node."""
        wanted = {f"SLURM_CONF={self.directory / 'slurm.conf'}", f"SLURM_JOB_ID={job}", "SLURM_STEP_ID=0"}
        return [p.pid for p in self._on(node) if "python" in p.command and wanted <= p.variables]

    def _on(self, node: str) -> Iterator[Process]:
        """Yield the processes in the network of a node, which no other cluster shares."""
        network = Path(f"/proc/{self.daemon(node)}/ns/net").readlink()
        return (process for process in processes() if process.network == network)


@dataclass(frozen=True)
class Process:
    """A living process."""

    pid: int
    command: str
    variables: frozenset[str]
    network: Path
    place: str


def processes() -> Iterator[Process]:
    """Yield the processes of this machine that can be looked at."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            variables = frozenset((folder / "environ").read_bytes().decode(errors="replace").split("\0"))
            network, place = (folder / "ns" / "net").readlink(), str((folder / "cwd").readlink())
            yield Process(int(folder.name), command, variables, network, place)


def until(condition: Callable[[], object], seconds: float, explain: Callable[[], str] = lambda: "") -> None:
    """Wait for a condition; fail if it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:.0f} s {explain()}")
        time.sleep(0.5)


@dataclass(frozen=True)
class Run:
    """A run of the toy workload in the hands of SLURM."""

    cluster: Cluster
    path: Path
    job: str

    def progress(self) -> dict:
        try:
            return json.loads((self.path / "progress.json").read_text())
        except (OSError, ValueError):
            return {"stages": [], "ranks": [], "attempt": 0}

    def done(self) -> int:
        """Units done so far."""
        return sum(stage["done"] for stage in self.progress()["stages"])

    def status(self) -> dict:
        """What `tessera status` knows."""
        return json.loads(self.cluster.tessera("status", self.path, "--json"))

    def events(self, kind: str) -> list[dict]:
        records = [json.loads(line) for line in (self.path / "events.jsonl").read_text().splitlines()]
        return [r for r in records if r["event"] == kind]

    def said(self) -> str:
        """What the ranks and the batch script printed."""
        return "".join(log.read_text() for log in sorted(self.path.parent.glob(f"{self.path.name}/logs/slurm-*.log")))

    def results(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted((self.path / "results").iterdir())}

    def get_going(self, units: int = 20) -> None:
        """Wait until so many units are done."""
        until(lambda: self.done() >= units, 60, lambda: f"{self.cluster.job(self.job)}\n{self.said()}")


@dataclass(frozen=True)
class Stage:
    """Where a test plays: the cluster, a folder of its own, and the truth.

    Attributes
    ----------
    expected
        The results files of `TOY` on one process of this machine, undisturbed.
    """

    cluster: Cluster
    folder: Path
    expected: Mapping[str, bytes]

    def submit(self, *words: str, name: str = "run") -> Run:
        """Hand the toy workload to SLURM by ``tessera … cluster=slurm``, 2 nodes × 2 ranks."""
        path = self.folder / name
        said = self.cluster.tessera(*TOY, *QUICK, *TWO_BY_TWO, *words, f"run.dir={path}")
        return Run(self.cluster, path, job_in(said))

    def resume(self, run: Run, *words: str) -> Run:
        return Run(self.cluster, run.path, job_in(self.cluster.tessera("resume", run.path, *words)))

    def own_script(self, *flags: str, words: tuple[str, ...], name: str = "run") -> Run:
        """Hand the toy workload to SLURM by the template for scripts of a user's own, 2 nodes × 2 ranks."""
        text = (CHECKOUT / "slurm" / "template.sbatch").read_text()
        line = next(line for line in text.splitlines() if line.startswith("job=("))
        script, path = self.folder / f"{name}.sbatch", self.folder / name
        script.write_text(text.replace(line, f"job=({' '.join((*TOY, *QUICK, *words))})"))
        size = ["--nodes=2", "--ntasks-per-node=2", "--exclusive"]
        job = self.sbatch(script, *size, *flags, RUN=str(path))
        return Run(self.cluster, path, job)

    def sbatch(self, script: Path, *flags: str, **variables: str) -> str:
        """Submit a script of `slurm/`; return the job's number."""
        output = f"--output={self.folder / 'sbatch.log'}"
        return self.cluster.run("sbatch", "--parsable", output, *flags, script, **variables).strip()

    def log(self) -> str:
        """What a script of `slurm/` printed."""
        return (self.folder / "sbatch.log").read_text()

    def assert_right(self, run: Run) -> None:
        """The run has ended with the results of an undisturbed one, and nothing that was saved was computed again."""
        assert run.events("run_end")[-1]["state"] == "done"
        assert run.results() == self.expected
        counts = computed(run.path)
        assert len(counts) == UNITS
        assert set(counts.values()) == {1}, {key: n for key, n in counts.items() if n > 1}

    def assert_came_back(self, run: Run, seconds: float = 120.0) -> None:
        """The same job went on by itself to the right end."""
        ended = self.cluster.wait(run.job, seconds)
        assert ended["JobState"] == "COMPLETED", f"{ended}\n{run.said()}"
        assert int(ended["Restarts"]) >= 1
        assert run.progress()["attempt"] >= 2
        self.assert_right(run)


def job_in(said: str) -> str:
    """Return the job's number from what `tessera` printed."""
    match = re.search(r"SLURM job (\d+)", said)
    assert match, said
    return match[1]


def computed(run: Path) -> Counter[str]:
    """Count how often each unit of the map was stored, over all attempts."""
    from hpc.store.segments import read_columns

    files = (run / "checkpoints" / "squares").glob("*.h5")
    return Counter(key for file in files for key in read_columns(file, values=False)[0])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
