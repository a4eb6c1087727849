"""Keeps what ranks print in a file: ``python -I -S drain.py FILE``, without a module of this package.

mpiexec ends the run when its output cannot be written. Its output is a pipe to this process, which drops what a full
disk does not take, and outlives the `tessera` command, so that ranks can finish without it. A workload that prints for
every pixel must not fill the disk: what is older than the newest `MOST` bytes is kept once more, as ``FILE.1``.
"""

import os
import sys

MOST = 8 << 20
"""Bytes of the file."""


def main(path: str) -> None:
    """Append standard input to a file until nobody writes any more."""
    file = opened(path)
    lost = 0
    while data := os.read(0, 65536):
        file = begun_anew(path, file)
        if lost:
            note = f"\n[{lost} bytes of output are lost: the disk was full]\n".encode()
            lost = 0 if append(file, note) == len(note) else lost
        lost += len(data) - (append(file, data) if not lost else 0)


def opened(path: str) -> int:
    """Return a descriptor of the file."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def begun_anew(path: str, file: int) -> int:
    """Return a descriptor of a new file if this one is full; the old one where that cannot be."""
    if os.fstat(file).st_size < MOST:
        return file
    try:
        os.rename(path, f"{path}.1")  # noqa: PTH104 - without a module but os
        new = opened(path)
    except OSError:
        return file
    os.close(file)
    return new


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
