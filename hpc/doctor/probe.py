"""What one task on a node finds there: ``python -m hpc.doctor.probe DIRECTORY TOKEN``; prints one line of JSON."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from hpc.doctor.filesystem import fsync_seconds, try_lock
from hpc.threads import usable_cpus


def main(arguments: list[str]) -> int:
    """Look and print."""
    now = time.time()
    directory, token = Path(arguments[0]), arguments[1]
    folder = directory / token
    facts = {
        "host": socket.gethostname(),
        "node": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        "time": now,
        "sees": folder.is_dir(),
        "cpus": len(usable_cpus()),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "fsync": None,
        "trouble": "",
    }
    if facts["sees"]:
        own = folder / f"task-{os.environ.get('SLURM_PROCID', '0')}"
        try:
            own.mkdir()
            try_lock(own)
            facts["fsync"] = fsync_seconds(own)
        except OSError as error:
            facts["trouble"] = str(error)
    print("facts " + json.dumps(facts), flush=True)  # noqa: T201 - this is the answer
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
