"""Which accelerator a rank computes on, found out without importing a GPU library."""

from __future__ import annotations

import os
from pathlib import Path


def device_of(local_rank: int) -> str:
    """Return ``cuda:N`` for the rank's place on its node, or ``cpu`` where no GPU is visible.

    Parameters
    ----------
    local_rank
        Number of the rank on its node; ranks beyond the number of GPUs share them.

    Returns
    -------
    str
        As torch and JAX name it. ``CUDA_VISIBLE_DEVICES``, which SLURM sets to the job's share, decides; without
        it all GPUs of the driver count.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    else:
        count = len([d for d in visible.split(",") if d.strip() not in ("", "-1", "NoDevFiles")])
    return f"cuda:{local_rank % count}" if count else "cpu"
