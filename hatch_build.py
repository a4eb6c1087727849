"""Build hook: compiles the C kernels of the XPCS fit, once for each generation of processors, into one library."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
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


def compile_kernels(root: Path) -> Path | None:
    """Compile the kernels where they are imported from, unless they are newer than their sources.

    Without a compiler, or if it fails, this says what to do, and returns None: the fit then runs in NumPy.
    """
    folder, library = root / FOLDER, root / LIBRARY
    sources = sorted(folder.glob("*.c"))
    read = [*sources, *folder.glob("*.h"), Path(__file__)]
    if library.exists() and library.stat().st_mtime > max(path.stat().st_mtime for path in read):
        return library
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        _without(
            library,
            f"there is no C compiler {compiler[0]!r} on the PATH. For the compiled sums install one (Debian, Ubuntu: "
            "apt install gcc; clusters: module load gcc), or name one with CC=/path/to/gcc, and install Tessera again",
        )
        return None
    try:
        _compile(folder, library, compiler, sources)
    except BuildError as error:
        _without(library, str(error))
        return None
    return library


class BuildError(Exception):
    """The compiler does not build the kernels."""


def _without(library: Path, reason: str) -> None:
    """Go on without the kernels; those of other sources would be refused."""
    library.unlink(missing_ok=True)
    sys.stderr.write(f"the XPCS fit will run in NumPy, several times slower: {reason}\n")


def _compile(folder: Path, library: Path, compiler: list[str], sources: list[Path]) -> None:
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
        raise BuildError(msg)


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles before a wheel is packed or an editable install is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library, and say for which machine it is."""
        del version
        if self.target_name == "sdist":
            return
        if compile_kernels(Path(self.root)) is None:
            return  # in NumPy it runs on any machine
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
