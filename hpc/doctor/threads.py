"""How many threads a rank will use, and whether the numeric libraries obey."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Final

from hpc.doctor.finding import Finding
from hpc.launch.environment import Crew, rank_environment
from hpc.quota import quota
from hpc.threads import usable_cpus

_PROBE: Final = """
import json, numpy, threadpoolctl
print(json.dumps([[p["prefix"], p["num_threads"]] for p in threadpoolctl.threadpool_info()]))
"""
_TIMEOUT: Final = 60.0


def check() -> Finding:
    """Count the usable CPUs and start a process with a budget of one thread to see who keeps to it."""
    usable, present = len(usable_cpus()), os.cpu_count() or 1
    text = f"{usable} of {present} CPUs usable" if usable < present else f"{usable} CPUs usable"
    limit = quota()
    if limit is not None and limit < usable:
        text += f", of which a quota of CPU time pays for {limit:.3g}"
    if "OMP_NUM_THREADS" in os.environ:
        text += f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} here (runs set their own)"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            env=rank_environment(Crew(1, 1)),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=True,
        )
        pools = [(str(name), int(threads)) for name, threads in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return Finding("threads", "fail", f"{text}; numpy does not start: {error}", "pip install numpy threadpoolctl")
    disobedient = [f"{name} uses {threads}" for name, threads in pools if threads > 1]
    if disobedient:
        return Finding(
            "threads",
            "warn",
            f"{text}; with a budget of 1 thread {', '.join(disobedient)}",
            "unset what overrides the budget (sitecustomize, module files), or set cluster.threads_per_process",
        )
    names = ", ".join(sorted({name for name, _ in pools})) or "no thread pools"
    return Finding("threads", "ok", f"{text}; {names} keep to the budget")
