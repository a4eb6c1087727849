"""`tessera -m`: every combination composed and checked before the first one runs, then one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc.cli.compose import Composed, compose_run, expand, sweep_directory
from hpc.errors import EXIT_DONE, EXIT_STOPPED, TesseraError
from hpc.launch.local import launch
from hpc.launch.outcome import resume_line
from hpc.rundir import RunDir

_MEANING = {0: "done", 1: "failed", 2: "bad input", 3: "quarantined", 75: "stopped"}

_SEVERITY = (0, 3, 75, 2, 1)
"""Exit codes from best to worst: the sweep's code is the worst of its members'."""


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a sweep: its words that differ between members, and its configuration."""

    label: str
    composed: Composed


def sweep(overrides: Sequence[str], folders: Sequence[Path], base: Path) -> int:
    """Run all members; one that fails does not stop the rest, Ctrl-C does.

    Returns
    -------
    int
        The worst exit code of the members.

    Raises
    ------
    hpc.errors.ConfigError, hpc.errors.InputError
        If any member is wrong; then none has been started.
    """
    members = plan(overrides, folders, base)
    for member in members:
        RunDir.prepare(member.composed.settings.run.dir, member.composed.mapping)
    codes: list[int] = []
    for number, member in enumerate(members):
        print(f"[{number + 1}/{len(members)}] {member.label}", flush=True)
        codes.append(_run(member))
        if codes[-1] == EXIT_STOPPED:
            break
    _print_summary(members, codes)
    return max(codes, key=_SEVERITY.index, default=EXIT_DONE)


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


def _run(member: Member) -> int:
    settings = member.composed.settings
    try:
        return launch(settings.run.dir, settings.cluster)
    except TesseraError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code


def _print_summary(members: Sequence[Member], codes: Sequence[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("run", "state", "combination"):
        table.add_column(name)
    for number, member in enumerate(members):
        state = _MEANING.get(codes[number], "failed") if number < len(codes) else "not started"
        table.add_row(str(number), state, Text(member.label))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print()
    console.print(table)
    directory = members[0].composed.settings.run.dir.parent
    console.print(f"runs     {directory}")
    if len(codes) < len(members):
        console.print("the rest was not started; go on with:")
        for member in members[len(codes) - 1 :]:
            console.print(f"  {resume_line(member.composed.settings.run.dir)}")
