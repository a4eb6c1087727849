"""The runs of a sweep: submitted as one array, resumed where unfinished."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from hpc.errors import EXIT_COME_BACK, EXIT_DONE, ConfigError, TesseraError
from hpc.launch.already import FINISHED, adopt, harmed, refuse_if_unsure
from hpc.launch.outcome import resume_line
from hpc.launch.start import crew_text, start, told
from hpc.options import plain
from hpc.rundir import RunDir
from hpc.settings import Settings, SlurmCluster
from hpc.terminal import complain, only_accompany, say
from hpc.watch.queued import read_statuses
from hpc.watch.scheduler import LONG_PATIENCE, JobState, job_states
from hpc.watch.status import LIVE, RunStatus
from hpc.watch.submissions import forget_unanswered
from hpc.watch.sweeps import read_sweep

T = TypeVar("T")

SEVERITY: Final = (0, 3, 75, 2, 1)
"""Exit codes from best to worst: the sweep's code is the worst of its members'."""


def in_turn(items: Iterable[T], run: Callable[[T], int]) -> list[int]:
    """Run one after another on this machine; return the exit codes.

    One that fails does not stop the rest. One that was told to stop does: whoever presses Ctrl-C means all of it.
    """
    codes = []
    for item in items:
        try:
            codes.append(run(item))
        except TesseraError as error:
            complain(f"error: {error}")
            codes.append(error.exit_code)
        if codes[-1] == EXIT_COME_BACK:
            break
    return codes


def submit_sweep(directory: Path, members: Mapping[Path, Settings]) -> int:
    """Submit prepared runs as one array, or more where the site limits its size.

    Raises
    ------
    hpc.errors.ConfigError
        If the members ask for different clusters.
    hpc.errors.LaunchError
        If SLURM is not there or refuses.
    """
    from hpc.launch.slurm import submit

    only_accompany()
    cluster = common_cluster(list(members.values()))
    name = next(iter(members.values())).job["name"]
    submitted = submit(list(members), cluster, f"tessera-{name}", directory / "slurm", directory / "logs")
    say(told(submitted, directory, cluster))
    return EXIT_DONE


def common_cluster(members: Sequence[Settings]) -> SlurmCluster:
    """Return what all members ask for.

    Raises
    ------
    hpc.errors.ConfigError
        If they differ: an array has one size.
    """
    clusters = {json.dumps(plain(m.cluster), sort_keys=True): m.cluster for m in members}
    first = members[0].cluster
    if len(clusters) > 1 or not isinstance(first, SlurmCluster):
        msg = "a sweep is one job array, whose members all get the same; sweep over job.* and seed, not over cluster.*"
        raise ConfigError(msg)
    return first


def resume_sweep(
    directory: Path,
    resettled: Callable[[RunDir], Settings],
    *,
    retry_failed: bool,
    job_has_ended: bool = False,
) -> int:
    """Go on with the runs of a sweep that are not done.

    Parameters
    ----------
    directory
        The sweep's.
    resettled
        Returns the settings with which a run goes on.
    retry_failed
        Whether runs that are finished but for quarantined units count as not done.
    job_has_ended
        Whether somebody knows that no job of these runs lives although SLURM does not say so.

    Returns
    -------
    int
        The worst exit code of those that ran here, 0 if they were submitted.
    """
    names = [member.run for member in read_sweep(directory)]
    todo = unfinished(directory, names, retry_failed=retry_failed, job_has_ended=job_has_ended)
    runs = {directory / name: resettled(RunDir.open(directory / name)) for name in todo}
    if not runs:
        return EXIT_DONE
    in_slurm = any(isinstance(settings.cluster, SlurmCluster) for settings in runs.values())
    if in_slurm:
        from hpc.launch.slurm import require_acceptable

        cluster = common_cluster(list(runs.values()))
        if cluster.dry_run:
            say(f"would be submitted: {crew_text(cluster)} for each")
            return EXIT_DONE
        require_acceptable(cluster, 1, directory)
    from hpc.identity import refuse_others
    from hpc.retry import forget_quarantine

    for run, settings in runs.items():
        RunDir.prepare(run, plain(settings), partial(refuse_others, settings=settings))
        if retry_failed:
            forget_quarantine(RunDir(run))
    if in_slurm:
        return submit_sweep(directory, runs)
    codes = in_turn(runs, lambda run: start(run, runs[run].job["name"], runs[run].cluster))
    if len(codes) < len(runs):
        say(f"the rest was not started; go on with:  {resume_line(directory)}")
    return max(codes, key=SEVERITY.index)


def unfinished(
    directory: Path, names: Sequence[str], *, retry_failed: bool = False, job_has_ended: bool = False
) -> list[str]:
    """Say how the members of a sweep stand; return those that are neither done nor on their way.

    Raises
    ------
    hpc.errors.LockedError
        If SLURM does not say whether the job of any of them lives.
    """
    runs = {name: directory / name for name in names}
    if job_has_ended:
        for run in runs.values():
            forget_unanswered(run)
    else:
        adopt(*runs.values())
    statuses = dict(zip(names, read_statuses(list(runs.values()), _patient), strict=True))
    todo = [
        name
        for name, status in statuses.items()
        if _unfinished(status, retry_failed=retry_failed) or (status.state in FINISHED and harmed(runs[name]))
    ]
    say(_tally(statuses, todo))
    if not job_has_ended:
        refuse_if_unsure(statuses[name] for name in todo)
    return todo


def _patient(jobs: Iterable[str]) -> dict[str, JobState]:
    return job_states(jobs, LONG_PATIENCE)


def _unfinished(status: RunStatus, *, retry_failed: bool) -> bool:
    if status.state in {"done", "pending", *LIVE}:
        return False
    return status.state != "quarantined" or retry_failed


def _tally(statuses: Mapping[str, RunStatus], todo: Sequence[str]) -> str:
    states = [status.state for status in statuses.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    if not todo:
        hint = "; add --retry-failed for the quarantined units" if "quarantined" in states else ""
        return f"{counts}: there is nothing to resume{hint}"
    return f"{counts}; going on with {', '.join(todo)}"
