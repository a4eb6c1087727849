"""Whether there are GPUs, and the installed torch sees them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from typing import Final

from hpc.doctor.finding import Finding

_TIMEOUT: Final = 60.0
_PROBE: Final = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.device_count())"


def check() -> Finding:
    """Ask nvidia-smi, then torch in a process of its own: a broken driver must not take the doctor along."""
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "skipped", "no nvidia-smi; everything also runs on CPUs")
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    listed = _output(asked)
    if not listed:
        return Finding("GPU", "warn", "nvidia-smi finds no GPU", "on a login node this is normal; try a GPU node")
    text = "; ".join(listed.splitlines())
    if importlib.util.find_spec("torch") is None:
        return Finding("GPU", "warn", f"{text}; torch is not installed", "pip install 'tessera-hpc[torch]'")
    answer = _output([sys.executable, "-P", "-c", _PROBE]).split()
    if len(answer) != 3 or answer[2] == "0":
        return Finding(
            "GPU", "warn", f"{text}; torch does not see it", "install a torch built for the driver's CUDA version"
        )
    return Finding("GPU", "ok", f"{text}; torch {answer[0]} (CUDA {answer[1]}) sees {answer[2]}")


def _output(command: list[str]) -> str:
    """Return what a command prints, nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
