"""Build hook: compiles the C kernels of the XPCS fit, once for each generation of processors, into one library."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import zlib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/tessera/xpcs/native")
LIBRARY = FOLDER / "kernels.so"
X86 = {"x86_64", "amd64"}

# Suffix of the functions, -march, doubles in a vector register. Which of them run is chosen where they are loaded.
LEVELS = [("v4", "x86-64-v4", 8), ("v3", "x86-64-v3", 4), ("v1", "x86-64", 2)]

# Products and sums become one instruction where the processor has it; nothing else is reordered: the bits of a result
# depend on the generation of the processor only.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-fvisibility=hidden", "-Wno-psabi"]


def compile_kernels(root: Path) -> Path:
    """Compile the kernels where they are imported from, unless they are newer than their sources.

    Raises
    ------
    SystemExit
        If there is no compiler, or it fails; the message says what to do.
    """
    folder, library = root / FOLDER, root / LIBRARY
    sources = sorted(folder.glob("*.c"))
    read = [*sources, *folder.glob("*.h"), Path(__file__)]
    if library.exists() and library.stat().st_mtime > max(path.stat().st_mtime for path in read):
        return library
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        msg = (
            f"Tessera's kernels need a C compiler, and there is no {compiler[0]!r} on the PATH. Install one (Debian, "
            "Ubuntu: apt install gcc; clusters: module load gcc), or name one with CC=/path/to/gcc"
        )
        raise SystemExit(msg)
    levels = LEVELS if platform.machine().lower() in X86 else [("any", "", 2)]
    with tempfile.TemporaryDirectory() as folder_of_objects:
        objects = []
        for suffix, march, lanes in levels:
            for source in sources:
                objects.append(str(Path(folder_of_objects, f"{source.stem}_{suffix}.o")))
                target = [f"-march={march}"] if march else []
                defines = [f"-DLEVEL={suffix}", f"-DLANES={lanes}", f"-DSOURCES={checksum(folder)}u"]
                _run([*compiler, *FLAGS, *target, *defines, "-c", str(source), "-o", objects[-1]])
        # Put in place at once: a process that has the old one mapped keeps it.
        fresh = library.with_suffix(f".{os.getpid()}.tmp")
        _run([*compiler, "-shared", "-o", str(fresh), *objects, "-lm"])
        fresh.replace(library)
    return library


def checksum(folder: Path) -> int:
    """Return a number that tells one version of the sources from another, as `tessera.xpcs.native` computes it."""
    total = 0
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")], key=lambda p: p.name):
        total = zlib.crc32(path.read_bytes(), total)
    return total


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = (
            f"the C compiler could not build Tessera's kernels (GCC 12, Clang 15 or newer is needed):\n"
            f"{shlex.join(command)}\n{done.stderr}"
        )
        raise SystemExit(msg)


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles before a wheel is packed or an editable install is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library, and say for which machine it is."""
        del version
        if self.target_name == "sdist":
            return
        compile_kernels(Path(self.root))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
