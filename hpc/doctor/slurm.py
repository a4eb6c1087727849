"""Whether this is a SLURM cluster, and with which MPI plugins srun can start ranks."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Final

from hpc.doctor.finding import Finding

_TIMEOUT: Final = 30.0
_GOOD: Final = ("pmi2", "pmix", "cray_shasta")


def check() -> Finding:
    """Ask SLURM's own commands for version, default MPI plugin and the plugins there are."""
    if shutil.which("sbatch") is None:
        return Finding("SLURM", "skipped", "no sbatch on PATH; runs start on this machine (cluster=local)")
    version = _output(["sbatch", "--version"])
    config = _output(["scontrol", "show", "config"])
    if not config:
        remedy = "check SLURM_CONF, or ask the site whether slurmctld is up"
        return Finding("SLURM", "fail", f"{version}; the controller does not answer", remedy)
    default = _setting(config, "MpiDefault")
    plugins = [word for word in re.split(r"[\s,:]+", _output(["srun", "--mpi=list"])) if word in _GOOD]
    text = f"{version}, MpiDefault={default}, plugins: {', '.join(plugins) or 'none that start MPI ranks'}"
    if not plugins:
        remedy = "srun cannot start MPI ranks: use mpiexec inside the allocation, or ask the site for pmi2 or pmix"
        return Finding("SLURM", "warn", text, remedy)
    if default in {"none", ""}:
        remedy = f"say which: srun --mpi={plugins[0]} (without it every rank is alone, silently)"
        return Finding("SLURM", "warn", text, remedy)
    return Finding("SLURM", "ok", text)


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
