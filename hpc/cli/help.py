"""What `tessera --help` prints: read from folders, so that it comes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hpc.cli.folders import groups, headline
from hpc.cli.main import VERBS, workload_verbs

_USAGE = """\
Tessera: work cut into tiles, laid by MPI ranks, restartable whenever it is stopped.

usage: tessera job=NAME [key=value …]      run a job
       tessera -m job=NAME key=a,b …       run every combination, one after another or as one SLURM array
       tessera VERB …                      see tessera VERB --help
"""

_FLAGS = """\
flags
  -m, --multirun           sweep over a,b and range(0,5) and glob(*), in Hydra's grammar
  --cfg job|hydra|all      print the configuration instead of running
  --resolve                with --cfg: with interpolations resolved
  -p, --package KEY        with --cfg: only this section
  --config-dir DIR         add a folder with job/NAME.yaml, cluster/NAME.yaml, …
  -sc, --shell-completion install=bash    eval "$(tessera -sc install=bash)" completes with TAB
  -h, --help               this text; tessera job=NAME --help explains the keys of a job
  --version
"""

_CODES = """\
exit codes
  0 done   1 failed   2 bad input or configuration   3 finished with quarantined units   75 stopped; resume it
"""


def help_text(overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """Return the general help, or the commented files of the options that the words choose (``job=NAME``)."""
    known = groups(folders)
    chosen = [word.partition("=") for word in overrides]
    files = [known[key][value] for key, _, value in chosen if value in known.get(key, {})]
    if files:
        engine = folders[0] / "config.yaml"
        return "\n".join(_commented(file) for file in [*files, engine])
    parts = [_USAGE, _verbs(), _groups(known), _FLAGS, _CODES]
    return "\n".join(part for part in parts if part).rstrip()


def _commented(file: Path) -> str:
    text = file.read_text(encoding="utf-8").rstrip()
    return f"── {file} ──\n{text}\n"


def _verbs() -> str:
    others = {name: f"from {entry.value.partition('.')[0]}" for name, entry in workload_verbs().items()}
    return _block("verbs", {**VERBS, **others})


def _groups(known: Mapping[str, Mapping[str, Path]]) -> str:
    shown = {f"{group}={name}": headline(file) for group, options in known.items() for name, file in options.items()}
    return _block("choices", shown)


def _block(title: str, lines: Mapping[str, str]) -> str:
    width = max((len(key) for key in lines), default=0)
    return "\n".join([title, *(f"  {key:{width}}  {text}".rstrip() for key, text in lines.items()), ""])
