"""Processes beside the harness that make attempts at runs of the toy workload, and the environment they need."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc import cpu, kernels

CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
"""Seconds after which nothing is waited for any longer."""


def child_environment() -> dict[str, str]:
    """Return the environment in which the toy workload can be imported, and in which nobody has chosen kernels."""
    folders = [str(CHECKOUT / "tests" / "hpc"), str(Path(__file__).parent), str(CHECKOUT)]
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    chosen = {cpu.LOWER, kernels.LEVEL, *kernels._WATCHED, kernels._NUMPY, *kernels._PINS[kernels.PORTABLE]}
    clean = {name: value for name, value in os.environ.items() if name not in chosen}
    return {**clean, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


class Worker:
    """A process of ``attempts.py`` that answers one request at a time."""

    def __init__(self, arguments: list[str], ranks: int, errors: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("attempts.py")), *arguments]
        if ranks > 1:
            command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), *command]
        self.count = 0
        with errors.open("ab") as said:
            self._process = subprocess.Popen(
                command,
                env=child_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._process.poll() is None

    def ask(self, **request: Any) -> int:
        """Run one attempt; return its exit code, 1 if it took the worker along."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.count += 1
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        if not ready:
            self.close()
            msg = f"no answer after {PATIENCE:g} s: {request}"
            raise TimeoutError(msg)
        line = self._process.stdout.readline()
        return int(json.loads(line)["code"]) if line.startswith(b"{") else 1

    def close(self) -> None:
        """End it and everything it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
