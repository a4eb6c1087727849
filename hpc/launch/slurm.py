"""Handing runs to SLURM: one job, or the members of a sweep as arrays; and the scheduler's refusals explained."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from hpc.errors import ConfigError, LaunchError
from hpc.launch.already import take_over
from hpc.launch.defaults import with_users_defaults
from hpc.launch.environment import find_mpiexec, without_outer_job
from hpc.launch.node import PRIVATE, RUNS_FILE, open_private
from hpc.launch.outofservice import only_out_of_service
from hpc.launch.payload import Payload
from hpc.launch.script import Batch, node_command, parameters, rank_python, script_text
from hpc.options import plain
from hpc.settings import SlurmCluster
from hpc.terminal import say
from hpc.watch.queued import read_statuses
from hpc.watch.scheduler import submitted_from
from hpc.watch.submissions import Submission, forget_unanswered, last_submission, record_submission
from hpc.watch.sweeps import is_sweep, read_sweep

_PATIENCE: Final = 60.0
"""Seconds for SLURM's commands to answer."""

_OVER: Final = ("stopped", "failed", "quarantined", "unreadable")
"""States of runs for which it would be in vain to wait."""

_SBATCH_PATIENCE: Final = 180.0
"""Seconds after which an sbatch that says nothing is ended; it tries again by itself while the controller is busy."""

_LOOKS: Final = (0.0, 2.0, 5.0)
"""Seconds to wait before each look for a job of which sbatch did not say whether it was taken."""

_NO_ANSWER: Final = ("timed out", "send/recv", "zero bytes", "communication connection failure", "unexpected message")
"""Words of an sbatch that has sent the job but did not hear what became of it."""

_NO_NUMBER: Final = re.compile(r'could not make sense of sbatch output "(.*)"\n', re.IGNORECASE | re.DOTALL)
"""How submitit says that sbatch ended well and named no job: a wrapper of the site may keep the number to itself."""

_REMEDIES: Final = (
    ("invalid partition", "cluster.partition: choose one of {partitions}"),
    ("partition not available", "cluster.partition: this one takes no jobs now; wait, or choose another (sinfo -s)"),
    ("partition configuration", "cluster.partition: it gives no job so much; ask for less (scontrol show partition)"),
    ("group not permitted", "cluster.partition: you may not use this one; choose another of {partitions}"),
    ("access/permission", "cluster.partition, account, qos: you may not use one of them; ask the site"),
    ("invalid account", "cluster.account: give one of yours (sacctmgr show assoc user=$USER)"),
    ("invalid qos", "cluster.qos: give one you may use (sacctmgr show assoc user=$USER format=account,qos)"),
    ("invalid feature", "cluster.constraint: choose features that nodes have (sinfo -o '%N %f')"),
    ("generic resource", "cluster.gres, cluster.gpus_per_node: ask for what nodes have (sinfo -o '%N %G')"),
    ("memory specification", "cluster.mem: ask for less than a node has (sinfo -o '%N %m')"),
    ("time limit", "cluster.time: ask for less than the partition allows (sinfo -o '%P %l'); runs are continued"),
    ("node count", "cluster.nodes: ask for fewer than the partition has ({partitions})"),
    ("more processors", "cluster.ranks_per_node x cluster.threads_per_process: ask for fewer than a node has CPUs"),
    (
        "node configuration",
        (
            "ask for no more nodes than there are ({partitions}), and less of each: cluster.ranks_per_node, "
            "threads_per_process, mem (sinfo -o '%N %c %m')"
        ),
    ),
    ("reservation", "cluster.reservation: see scontrol show reservation"),
    ("license", "cluster.sbatch: see scontrol show licenses"),
    ("dependency", "cluster.after, cluster.dependency: the job it waits for must be known to SLURM"),
    ("node name", "cluster.nodelist, cluster.exclude: see sinfo -N for the names"),
    ("unrecognized option", "cluster.sbatch: see man sbatch for the flags of this SLURM"),
    ("policy", "you have reached a limit of your account: wait for other jobs, or ask for less"),
    ("contact slurm", "the controller does not answer: try again in a while (scontrol ping)"),
    ("configuration source", "SLURM is not set up on this machine: log in to the cluster, or export SLURM_CONF"),
)
"""What sbatch may say, in lower case, and what helps."""


def submit(runs: Sequence[Path], cluster: SlurmCluster, name: str, folder: Path, log_folder: Path) -> list[Submission]:
    """Submit prepared runs.

    Parameters
    ----------
    runs
        Run directories; several become one array, or more where the site limits its size.
    cluster
        What to ask for.
    name
        Of the job in SLURM.
    folder
        For submitit's files and the script.
    log_folder
        For what the ranks print.

    Returns
    -------
    list of Submission
        One for each run, as recorded in its ``slurm.json``.

    Raises
    ------
    hpc.errors.LaunchError
        If SLURM is not there or refuses, with its own words and a remedy.
    """
    _require_commands()
    cluster = with_users_defaults(cluster)
    size = array_limit() if len(runs) > 1 else 1
    submitted: list[Submission] = []
    for first in range(0, len(runs), size):
        # A throttle is kept over several arrays by letting each wait for the one before.
        after = f"afterany:{submitted[-1].job_id}" if submitted and cluster.array_parallelism else None
        submitted += _submit_chunk(runs[first : first + size], cluster, name, folder, log_folder, after)
    return submitted


def require_acceptable(cluster: SlurmCluster, members: int, directory: Path) -> None:
    """Let sbatch judge the script before anything is written (``--test-only``).

    sbatch itself takes jobs that can never start, such as one for more nodes than there are.

    Parameters
    ----------
    cluster, members
        What would be submitted.
    directory
        Of the run or the sweep.

    Raises
    ------
    hpc.errors.LaunchError
        If SLURM is not there or would refuse, with its own words and a remedy.
    """
    _require_commands()
    cluster = with_users_defaults(cluster, say=True)
    batch = plan_batch(cluster, "tessera", members, directory / "slurm" / "1", directory / "logs")
    script = script_text(cluster, batch)
    try:
        with _own_environment():
            done = subprocess.run(
                ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
    except subprocess.TimeoutExpired:
        return  # a busy controller is no refusal
    if done.returncode and only_out_of_service(done.stderr, cluster):
        say("note: nodes that this asks for are drained or down now; the job waits for them")
    elif done.returncode and _remedy(done.stderr) is not None:
        raise LaunchError(explain_refusal(done.stderr))


def _require_commands() -> None:
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            msg = (
                f"cluster=slurm needs {command}, which is not on PATH; log in to the cluster (or load its SLURM "
                "module), or run on this machine with cluster=local"
            )
            raise LaunchError(msg)


def plan_batch(cluster: SlurmCluster, name: str, members: int, folder: Path, log_folder: Path) -> Batch:
    """Return what would be submitted for so many runs."""
    for folder_of in (folder, log_folder):
        if wrong := next((c for c in str(folder_of) if c in "%\\" or not c.isprintable()), None):
            msg = (
                f"run.dir: {str(folder_of.parent)!r} holds {wrong!r}, which SLURM replaces or cannot write in "
                "the names of log files; give another run.dir (run.sweep_dir)"
            )
            raise ConfigError(msg)
    name = cluster.job_name or "".join(c if c.isprintable() else "_" for c in name)
    python = cluster.python or shlex.quote(sys.executable)
    pattern = "slurm-%A_%a.log" if members > 1 else "slurm-%j.log"
    mpiexec = shlex.join(find_mpiexec(None)) if cluster.mpi == "mpiexec" else "mpiexec"
    return Batch(name, folder, log_folder / pattern, members, python, mpiexec, dependency(cluster))


def dependency(cluster: SlurmCluster) -> str | None:
    """Return ``cluster.after`` and ``cluster.dependency`` in sbatch's words; a run that is done is no condition.

    Raises
    ------
    hpc.errors.LaunchError
        If the run to wait for, or one of the sweep, has failed or is in no queue.
    """
    words = [cluster.dependency] if cluster.dependency else []
    if isinstance(cluster.after, int):
        words.append(f"afterok:{cluster.after}")
    elif cluster.after is not None:
        jobs = _jobs_of(cluster.after)
        words += ["afterok:" + ":".join(jobs)] if jobs else []
    return ",".join(words) or None


def _jobs_of(path: Path) -> list[str]:
    """Return the jobs that work on a run, or on the members of a sweep; nothing of those that are done."""
    if not is_sweep(path) and not os.path.lexists(path / "config.yaml"):
        msg = f"cluster.after: no run and no sweep lies in {path}; give the directory of one, or the number of a job"
        raise LaunchError(msg)
    runs = [path / member.run for member in read_sweep(path)] if is_sweep(path) else [path]
    waiting: list[Submission] = []
    for run, status in zip(runs, read_statuses(runs), strict=True):
        if status.state == "done":
            continue
        submission = last_submission(run)
        if submission is None or not submission.job_id or status.state in _OVER:
            msg = (
                f"cluster.after: the run in {run} is {status.state} and in no queue; run it first, or leave "
                "cluster.after out"
            )
            raise LaunchError(msg)
        waiting.append(submission)
    if len(waiting) == len(runs) > 1:  # whole arrays: sbatch's words have a greatest length
        return list(dict.fromkeys(submission.job_id for submission in waiting))
    return [submission.slurm_id for submission in waiting]


def array_limit() -> int:
    """Return how many members an array may have here."""
    try:
        done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 1000
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return max(1, int(found[1]) - 1) if found else 1000


def _submit_chunk(
    runs: Sequence[Path], cluster: SlurmCluster, name: str, folder: Path, log_folder: Path, after: str | None
) -> list[Submission]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    own = _new_folder(folder)
    log_folder.mkdir(parents=True, exist_ok=True)
    (own / RUNS_FILE).write_text("".join(f"{run}\n" for run in runs), encoding="utf-8")
    batch = plan_batch(cluster, name, len(runs), own, log_folder)
    if after:
        batch = replace(batch, dependency=",".join(filter(None, (batch.dependency, after))))
    executor = _executor(own, rank_python(cluster, batch))
    executor.update_parameters(**parameters(cluster, batch))
    section = plain(cluster)
    logs = [str(batch.log_of(index)) for index in range(len(runs))]
    tasks = [f"_{index}" for index in range(len(runs))] if len(runs) > 1 else [""]
    for run, task, log in zip(runs, tasks, logs, strict=True):  # should this process or sbatch's answer be lost
        record_submission(run, task, section, str(own / "script.sh"), log)
    try:
        with _own_environment(), _bounded(), redirect_stderr(io.StringIO()):  # it would print sbatch's words, too
            jobs = executor.submit_array([Payload(str(run)) for run in runs])
    except (FailedJobError, FailedSubmissionError) as error:
        return _after_no_answer(runs, own, error)
    finally:
        _keep_private(own)
    return [
        record_submission(run, job.job_id, section, str(job.paths.submission_file), log)
        for run, job, log in zip(runs, jobs, logs, strict=True)
    ]


def _after_no_answer(runs: Sequence[Path], own: Path, error: Exception) -> list[Submission]:
    """Tell a refusal from an answer that was lost on its way, and find the job in this case.

    Raises
    ------
    hpc.errors.LaunchError
        If SLURM refused, or if it may have taken the job but does not show it.
    """
    said = str(error)
    if not _may_be_queued(said):
        for run in runs:
            forget_unanswered(run)
        raise LaunchError(explain_refusal(said)) from error
    words = _quoted(said) or "nothing"
    trouble = ""
    for pause in _LOOKS:
        time.sleep(pause)
        job, trouble = submitted_from(str(own))
        if job:
            say(f"sbatch said: {words}; but SLURM has the job: found it in the queue")
            return [take_over(run, lost, job) for run in runs if (lost := last_submission(run))]
    where = f"SLURM cannot be asked now ({trouble})" if trouble else "the queue does not show it so far"
    msg = (
        f"sbatch said: {words}\nthe job may be queued all the same; {where}. Nothing is lost: tessera resume looks for "
        f"it before it submits another (squeue --me shows it, script in {own})"
    )
    raise LaunchError(msg) from error


def _may_be_queued(said: str) -> bool:
    """Say whether sbatch's words leave open that the controller has taken the job."""
    return not said.strip() or bool(_NO_NUMBER.search(said)) or any(sign in said.lower() for sign in _NO_ANSWER)


@contextmanager
def _bounded() -> Iterator[None]:
    """End an sbatch that hangs; submitit would wait for it for ever, and makes a plain executor for arrays."""
    from submitit import SlurmExecutor

    method = "_make_submission_command"
    theirs = getattr(SlurmExecutor, method)
    setattr(SlurmExecutor, method, lambda _, file: ["timeout", f"{_SBATCH_PATIENCE:g}", "sbatch", str(file)])
    try:
        yield
    finally:
        setattr(SlurmExecutor, method, theirs)


def _executor(folder: Path, python: str) -> Any:
    """Return submitit's executor, with our own module in the place of ``submitit.core._submit`` on the nodes."""
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):  # type: ignore[misc]
        @property
        def _submitit_command_str(self) -> str:
            return node_command(self.python, self.folder)

    return Executor(folder, python=python)


def _new_folder(folder: Path) -> Path:
    """Make a folder of its own for a submission, ``folder/1``, ``2``, …: this user's alone, for it holds a pickle.

    Raises
    ------
    hpc.errors.LaunchError
        If the file system does not keep others out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        own = folder / str(number)
        try:
            own.mkdir(mode=PRIVATE)
        except FileExistsError:
            number += 1
        else:
            os.close(open_private(own))
            return own


def _keep_private(folder: Path) -> None:
    """Take the files of a submission from others. Not by the umask: sbatch would hand it to the job."""
    for file in folder.iterdir():
        with suppress(OSError):
            if not file.is_symlink():
                file.chmod(0o600)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide an outer job from sbatch for the block: its limits and CPU binding would be inherited."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(without_outer_job(before))
    os.environ.setdefault("TESSERA_COMMAND", shlex.join(sys.argv))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def explain_refusal(said: str) -> str:
    """Return the scheduler's own words and what helps against them."""
    words = _quoted(said)
    remedy = _remedy(said) or "see the script with cluster.dry_run=true"
    return f"SLURM refused the job: {words}\n{remedy.replace('{partitions}', partitions())}"


def _quoted(said: str) -> str:
    if without := _NO_NUMBER.search(said):
        said = without[1]
    lines = [re.sub(r"^(sbatch: )?(error: )?", "", line) for line in said.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def _remedy(said: str) -> str | None:
    return next((remedy for sign, remedy in _REMEDIES if sign in said.lower()), None)


def partitions() -> str:
    """Return the partitions with their limits, as far as SLURM tells."""
    try:
        command = ["sinfo", "-h", "-o", "%R (%D nodes, limit %l)"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "those of sinfo"
    return ", ".join(dict.fromkeys(done.stdout.splitlines())) or "those of sinfo"
