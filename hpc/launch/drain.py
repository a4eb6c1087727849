"""Keeps what ranks print in a file: ``python -I -S drain.py FILE``, without a module of this package.

mpiexec ends the run when its output cannot be written. Its output is a pipe to this process, which drops what a full
disk does not take, and outlives the `tessera` command, so that ranks can finish without it.
"""

import os
import sys


def main(path: str) -> None:
    """Append standard input to a file until nobody writes any more."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    lost = 0
    while data := os.read(0, 65536):
        if lost:
            note = f"\n[{lost} bytes of output are lost: the disk was full]\n".encode()
            lost = 0 if append(file, note) == len(note) else lost
        lost += len(data) - (append(file, data) if not lost else 0)


def append(file: int, data: bytes) -> int:
    """Write what the disk takes; return how many bytes that is."""
    written = 0
    while written < len(data):
        try:
            written += os.write(file, data[written:])
        except OSError:
            break
    return written


if __name__ == "__main__":
    main(sys.argv[1])
