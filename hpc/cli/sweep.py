"""`tessera -m`: every combination composed and checked before the first one runs.

Then they run one after another, or are submitted to SLURM as one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hpc.cli.compose import Composed, compose_run, expand, sweep_directory
from hpc.errors import EXIT_DONE, TesseraError
from hpc.identity import refuse_others
from hpc.launch.outcome import resume_line
from hpc.launch.start import start
from hpc.launch.sweep import SEVERITY, common_cluster, in_turn, submit_sweep, unfinished
from hpc.rundir import RunDir
from hpc.settings import SlurmCluster
from hpc.terminal import say
from hpc.watch.sweeps import MemberRecord, is_sweep, write_sweep

_MEANING = {0: "done", 1: "failed", 2: "bad input", 3: "quarantined", 75: "stopped"}


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a sweep: its words that differ between members, and its configuration."""

    label: str
    composed: Composed


def sweep(overrides: Sequence[str], folders: Sequence[Path], base: Path) -> int:
    """Run or submit all members; one that fails does not stop the rest, Ctrl-C does.

    Returns
    -------
    int
        The worst exit code of the members, 0 if they were submitted.

    Raises
    ------
    hpc.errors.ConfigError, hpc.errors.InputError
        If any member is wrong; then none has been started.
    """
    members = plan(overrides, folders, base)
    if isinstance(members[0].composed.settings.cluster, SlurmCluster):
        return _submit(members)
    _prepare(members)

    def one(numbered: tuple[int, Member]) -> int:
        number, member = numbered
        say(f"[{number}/{len(members)}] {member.label}")
        settings = member.composed.settings
        return start(settings.run.dir, settings.job["name"], settings.cluster)

    codes = in_turn(enumerate(members, 1), one)
    _print_summary(members, codes)
    from hpc.report.gather import gather

    say(f"table    {gather(members[0].composed.settings.run.dir.parent)[0]}")
    return max(codes, key=SEVERITY.index, default=EXIT_DONE)


def _prepare(members: Sequence[Member]) -> Path:
    """Make the run directories and the sweep's record; return the sweep's directory."""
    for member in members:
        settings = member.composed.settings
        RunDir.prepare(settings.run.dir, member.composed.mapping, partial(refuse_others, settings=settings))
    directory = members[0].composed.settings.run.dir.parent
    names = (member.composed.settings.run.dir.name for member in members)
    records = [MemberRecord(n, m.label, m.composed.overrides) for n, m in zip(names, members, strict=True)]
    write_sweep(directory, records)
    return directory


def _submit(members: Sequence[Member]) -> int:
    from hpc.launch.plan import sweep_script
    from hpc.launch.slurm import require_acceptable

    settings = [member.composed.settings for member in members]
    cluster = common_cluster(settings)
    _print_plan(members, cluster)
    if cluster.dry_run:
        say(f"\n{sweep_script(settings, cluster)}")
        return EXIT_DONE
    directory = settings[0].run.dir.parent
    todo = {s.run.dir.name for s in settings}
    if is_sweep(directory):  # typed again: members that are done or on their way are left alone
        todo = set(unfinished(directory, sorted(name for name in todo if (directory / name / "config.yaml").exists())))
        todo |= {s.run.dir.name for s in settings if not (s.run.dir / "config.yaml").exists()}
    if not todo:
        return EXIT_DONE
    require_acceptable(cluster, 1, directory)
    _prepare(members)
    return submit_sweep(directory, {s.run.dir: s for s in settings if s.run.dir.name in todo})


def _print_plan(members: Sequence[Member], cluster: SlurmCluster) -> None:
    from rich.table import Table
    from rich.text import Text

    from hpc.launch.plan import units_of
    from hpc.load import load_job
    from hpc.watch.console import console

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("run", "combination", "units", "ranks x threads", "hours at most"):
        table.add_column(name, justify="left" if name in {"run", "combination"} else "right")
    hours = "partition's" if cluster.minutes is None else f"{cluster.minutes / 60:.4g}"
    for number, member in enumerate(members):
        units = units_of(load_job(member.composed.settings.job))
        crew = f"{cluster.ranks} x {cluster.threads_per_process}"
        table.add_row(str(number), Text(member.label), "?" if units is None else str(units), crew, hours)
    console().print(table)


def plan(overrides: Sequence[str], folders: Sequence[Path], base: Path) -> list[Member]:
    """Compose and check every member, in ``SWEEP_DIR/0``, ``1``, …, before anything is written."""
    combinations = expand(overrides, folders)
    directory = sweep_directory(combinations[0], folders, base)
    varying = [i for i, words in enumerate(zip(*combinations, strict=True)) if len(set(words)) > 1]
    labels = [" ".join(words[i] for i in varying) or " ".join(words) for words in combinations]
    return [
        Member(label, _composed(label, words, folders, base, directory / str(number)))
        for number, (label, words) in enumerate(zip(labels, combinations, strict=True))
    ]


def _composed(label: str, words: Sequence[str], folders: Sequence[Path], base: Path, directory: Path) -> Composed:
    try:
        return compose_run(words, folders, base, directory)
    except TesseraError as error:
        msg = f"in the combination {label}:\n{error}"
        raise type(error)(msg) from None


def _print_summary(members: Sequence[Member], codes: Sequence[int]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("run", "state", "combination"):
        table.add_column(name)
    for number, member in enumerate(members):
        state = _MEANING.get(codes[number], "failed") if number < len(codes) else "not started"
        table.add_row(str(number), state, Text(member.label))
    from hpc.watch.console import console

    say("")
    console().print(table)
    directory = members[0].composed.settings.run.dir.parent
    say(f"runs     {directory}")
    if len(codes) < len(members):
        say(f"the rest was not started; go on with:  {resume_line(directory)}")
