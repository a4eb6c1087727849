"""Whether this is a SLURM cluster, and with which MPI plugins srun can start ranks."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Final

from hpc.doctor.finding import Finding

_TIMEOUT: Final = 30.0
FLAVOURS: Final = ("pmi2", "pmix", "cray_shasta")
"""What ``srun --mpi`` can start MPI ranks with."""


def check() -> Finding:
    """Ask SLURM's own commands for version, default MPI plugin and the plugins there are."""
    if shutil.which("sbatch") is None:
        return Finding("SLURM", "skipped", "no sbatch on PATH; runs start on this machine (cluster=local)")
    version = _output(["sbatch", "--version"])
    if not version:  # Debian's packages alone are no cluster
        return Finding("SLURM", "skipped", "its commands are here but know of no cluster; is SLURM_CONF to be set?")
    config = _output(["scontrol", "show", "config"])
    if not config:
        remedy = "check SLURM_CONF, or ask the site whether slurmctld is up"
        return Finding("SLURM", "fail", f"{version}; the controller does not answer", remedy)
    default = _setting(config, "MpiDefault")
    plugins = mpi_flavours()
    text = f"{version}, MpiDefault={default}, plugins: {', '.join(plugins) or 'none that start MPI ranks'}"
    text += f"; arrays of up to {int(_setting(config, 'MaxArraySize') or 1001) - 1} runs (longer sweeps are split)"
    if _setting(config, "JobRequeue") == "0":
        remedy = "runs still come back: their scripts say --requeue; if they do not, resume them or ask the site"
        return Finding("SLURM", "warn", f"{text}; JobRequeue=0: jobs are not requeued by default", remedy)
    if not plugins:
        remedy = "srun cannot start MPI ranks: use mpiexec inside the allocation, or ask the site for pmi2 or pmix"
        return Finding("SLURM", "warn", text, remedy)
    if default in {"none", ""}:
        text += f"; in your own scripts say srun --mpi={plugins[0]}, without it every rank is alone"
    return Finding("SLURM", "ok", text)


def mpi_flavours() -> list[str]:
    """Return the MPI flavours that this srun has and that can start ranks."""
    words = re.split(r"[\s,:]+", _output(["srun", "--mpi=list"]))
    return [flavour for flavour in FLAVOURS if flavour in words]


def node_count() -> int:
    """Return how many nodes SLURM has, 0 if it does not answer."""
    text = _output(["sinfo", "-h", "-o", "%D"])
    return sum(int(word) for word in text.split() if word.isdigit())


def _setting(config: str, name: str) -> str:
    found = re.search(rf"^{name}\s*=\s*(\S+)", config, re.MULTILINE)
    return found.group(1) if found else ""


def _output(command: list[str]) -> str:
    """Return what a command prints, on either stream (srun lists its plugins on stderr); nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout + done.stderr).strip()
