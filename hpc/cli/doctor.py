"""`tessera doctor`: whether runs will work here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from hpc.cli.arguments import Parser
from hpc.cli.cluster import cluster_settings
from hpc.errors import EXIT_DONE, EXIT_FAILED, ConfigError
from hpc.watch.console import console

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red"), "skipped": ("–", "dim")}


def main(arguments: Sequence[str]) -> int:
    """Print every finding; 0 if nothing failed."""
    parser = Parser("doctor", "Check packages, threads, MPI, the file system, GPUs and SLURM.")
    parser.add_argument(
        "words", nargs="*", help="where runs will lie [here]; cluster=NAME and cluster.KEY=VALUE look at nodes, too"
    )
    parser.add_argument("-cd", "--config-dir", action="append", default=[], help="folder with cluster/NAME.yaml")
    given = parser.read(arguments)
    folders = [word for word in given.words if "=" not in word]
    if len(folders) > 1:
        msg = f"doctor looks at one folder at a time, not at {' and '.join(folders)}"
        raise ConfigError(msg)
    overrides = [word for word in given.words if "=" in word]
    cluster = cluster_settings(overrides, given.config_dir) if overrides else None
    from hpc.doctor import examine

    screen = console()
    failed = False
    for finding in examine(Path(*folders).absolute(), cluster):
        mark, style = _MARKS[finding.status]
        text = Text(f"{mark:5}", style=style)
        text.append(f" {finding.name}: ", style="bold")
        text.append(finding.text, style="")
        if finding.remedy:
            text.append(f"\n      → {finding.remedy}", style="yellow")
        screen.print(text)
        failed |= finding.status == "fail"
    return EXIT_FAILED if failed else EXIT_DONE
