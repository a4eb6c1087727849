"""Which kernels the numeric libraries run: pinned to one level of CPU before they load, so that nodes agree to the bit.

OpenBLAS, MKL, oneDNN, numpy, torch and XLA choose their code by the CPU they find, and each way rounds differently. A
run chooses once, for all its ranks and all its attempts; see docs/kernels.md for what was measured.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Final

from hpc import cpu

LEVEL: Final = "TESSERA_KERNELS"
"""The pinned level, for compiled code of workloads; unset where nothing is pinned."""

PORTABLE: Final = "x86-64-v3"
"""AVX2 and FMA: what the CPUs of clusters have had since 2013 (Intel) and 2017 (AMD)."""

_XLA: Final = "XLA_FLAGS"
_XLA_LEVEL: Final = "--xla_cpu_max_isa="
_NUMPY: Final = "NPY_DISABLE_CPU_FEATURES"

_PINS: Final[dict[str, dict[str, str]]] = {
    "x86-64-v4": {
        "OPENBLAS_CORETYPE": "SkylakeX",
        "MKL_CBWR": "AVX512",
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        _XLA: f"{_XLA_LEVEL}AVX512",
    },
    "x86-64-v3": {
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_CBWR": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        _XLA: f"{_XLA_LEVEL}AVX2",
    },
    "x86-64-v2": {
        "OPENBLAS_CORETYPE": "Nehalem",
        "MKL_CBWR": "SSE4_2",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        _XLA: f"{_XLA_LEVEL}SSE4_2",
    },
}
"""What each library calls a level; numpy's names depend on its version, see `_numpy_features`."""

_SAME: Final = {
    "MKL_CBWR": ("MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE"),
    "ONEDNN_MAX_CPU_ISA": ("DNNL_MAX_CPU_ISA",),
    _NUMPY: ("NPY_ENABLE_CPU_FEATURES",),  # numpy refuses both together
}
"""Other variables for the same purpose: where one is set, ours is not."""

_WATCHED: Final = ("GLIBC_TUNABLES", "BLIS_ARCH_TYPE", *(name for names in _SAME.values() for name in names))
"""Variables that are never set here but change kernels too."""

_TOO_LATE: Final = ("GLIBC_TUNABLES",)
"""Variables that are read before a process begins: to set them here changes nothing."""

_NO_YNN: Final = "--xla_cpu_experimental_ynn_fusion_type="
"""Keeps XLA from YNNPACK, which looks at the CPU itself and cannot be pinned."""

_KNOWS_YNN: Final = ((0, 10), (0, 11))
"""Versions of jaxlib, from and below, that have this flag: XLA aborts at a flag that it does not know."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the first attempt ran on, which later ones keep.

    Attributes
    ----------
    level
        What its libraries were pinned to; where they were not, the lowest level of its CPUs.
    pinned
        Whether they were.
    cpu
        Lowest level of its CPUs.
    variables
        Those in effect, its own and the user's.
    """

    level: str
    pinned: bool
    cpu: str
    variables: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Kernels:
    """The choice of one attempt.

    Attributes
    ----------
    setting
        ``engine.kernels``.
    level, pinned, variables
        As in `Recorded`.
    cpu
        Lowest level of all ranks' CPUs.
    given
        Variables that the user or site had set, which are left alone.
    late
        Libraries that were loaded before they could be pinned.
    """

    setting: str
    level: str
    pinned: bool
    cpu: str
    variables: Mapping[str, str] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    late: tuple[str, ...] = ()

    def told(self, name: str) -> str:
        """Return what a library was told by its variable or another for the same purpose; else what its CPU decides."""
        values = [self.variables[n] for n in (name, *_SAME.get(name, ())) if n in self.variables]
        return " ".join(values) or f"as the CPU has it: {self.cpu}"


def choose(setting: str, cpus: str, recorded: Recorded | None) -> tuple[str, bool]:
    """Return the level for an attempt, and whether to pin the libraries to it.

    Parameters
    ----------
    setting
        ``auto``, ``portable`` or ``native``.
    cpus
        The lowest level of the CPUs of all ranks.
    recorded
        Of the first attempt, None if this is it.
    """
    kept = recorded if setting == "auto" else None
    if setting == "native" or (kept is not None and not kept.pinned) or cpus not in _PINS:
        return cpus, False
    wanted = PORTABLE if setting == "portable" else kept.level if kept is not None else cpus
    return cpu.lowest([wanted, cpus]), True


def pin(
    setting: str, cpus: str, recorded: Recorded | None, environment: MutableMapping[str, str] = os.environ
) -> Kernels:
    """Choose a level and set the variables of every library, before any of them is imported.

    A variable that is set already stays as it is. The variables of the first attempt are set again, whoever set them
    then, if this attempt can keep its level.
    """
    late = tuple(name for name in ("numpy", "torch", "jaxlib") if name in sys.modules)
    level, pinned = choose(setting, cpus, recorded)
    wanted: Mapping[str, str] = _wanted(level) if pinned else {}
    if recorded is not None and setting == "auto" and level == recorded.level and _has(cpus, recorded.cpu):
        wanted = {name: value for name, value in recorded.variables.items() if name not in _TOO_LATE}
    names = sorted({*_PINS[PORTABLE], _NUMPY, *_WATCHED})
    given = tuple(name for name in names if _set(environment, name))
    for name, value in wanted.items():
        if not any(other in given for other in (name, *_SAME.get(name, ()))):
            _put(environment, name, value)
    if pinned:
        environment[LEVEL] = level
    else:
        environment.pop(LEVEL, None)
    variables = {name: value for name in names if (value := _set(environment, name))}
    return Kernels(setting, level, pinned, cpus, variables, given, late)


def as_they_are() -> Kernels:
    """Return the kernels of a process that pinned none."""
    return Kernels("native", cpu.level(), pinned=False, cpu=cpu.level())


def loaded(kernels: Kernels, own: Mapping[str, str]) -> dict[str, str]:
    """Return what the loaded libraries run, by library; ``own`` are the compiled parts of the workload."""
    from threadpoolctl import threadpool_info

    found = dict(own)
    pools = threadpool_info()
    for library in ("openblas", "blis"):
        kinds = {str(p.get("architecture")) for p in pools if p["internal_api"] == library}
        if kinds:
            found[library] = "+".join(sorted(kinds))
    core = sys.modules.get("numpy._core._multiarray_umath")
    if core is not None:
        active = [name for name in core.__cpu_dispatch__ if core.__cpu_features__[name]]
        found["numpy"] = " ".join(active) or "baseline"
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = str(torch.backends.cpu.get_cpu_capability())
    if any(p["internal_api"] == "mkl" for p in pools) or (torch is not None and torch.backends.mkl.is_available()):
        found["mkl"] = f"{kernels.told('MKL_CBWR')} ({cpu.vendor()})"  # its ways differ between vendors at one level
    if "jaxlib" in sys.modules:
        found["xla"] = kernels.told(_XLA)
    if "jaxlib" in sys.modules or torch is not None:
        found["onednn"] = kernels.told("ONEDNN_MAX_CPU_ISA")
    # Functions such as exp have one way with fused multiply-add and one without.
    way = kernels.variables.get("GLIBC_TUNABLES") or ("fma" if _has(cpu.level(), "x86-64-v3") else f"of {cpu.level()}")
    found["libm"] = f"{way}, {_libc()}"
    return found


def unlike_asked(kernels: Kernels, found: Mapping[str, str]) -> list[str]:
    """Say which libraries do not run what they were told to here."""
    wrong: list[str] = []
    if not kernels.pinned:
        return wrong
    for library, name in (("openblas", "OPENBLAS_CORETYPE"), ("torch", "ATEN_CPU_CAPABILITY")):
        asked = kernels.variables.get(name, "")
        if library in found and name not in kernels.given and found[library].lower() != asked.lower():
            wrong.append(f"{library} runs its kernels for {found[library]}, not those for {asked} that it was told to")
    beyond = _beyond(kernels.level, found.get("numpy", ""))
    if kernels.setting == "portable" and beyond and _NUMPY not in kernels.given:
        wrong.append(
            f"numpy also runs its kernels for {' '.join(beyond)}: this build of it cannot be pinned (PyPI wheels can)"
        )
    if kernels.late:
        names = ", ".join(kernels.late)
        wrong.append(f"{names} had been imported before the kernels could be chosen; look for it in sitecustomize.py")
    return wrong


def _libc() -> str:
    """Return the C library's name and version, whose functions may round otherwise in another."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "libc"
    except (OSError, ValueError):
        return "libc"


def _wanted(level: str) -> dict[str, str]:
    wanted = dict(_PINS[level])
    features = _numpy_features(level)
    if features:
        wanted[_NUMPY] = " ".join(features)
    version = _version("jaxlib")
    if _KNOWS_YNN[0] <= version < _KNOWS_YNN[1]:
        wanted[_XLA] = f"{wanted[_XLA]} {_NO_YNN}"
    return wanted


def _numpy_features(level: str) -> list[str]:
    """Return what numpy must leave alone at a level, by the names that this version knows.

    Only its wheels are known to dispatch all of them: a numpy built with some of them for granted would not even start.
    """
    return _features_above(level) if _version("numpy") and _is_wheel() else []


def _features_above(level: str) -> list[str]:
    """Return what numpy calls the features above a level, in its version that is installed."""
    if _version("numpy") >= (2, 4):
        groups = {"x86-64-v2": ["X86_V3"], "x86-64-v3": ["X86_V4"], "x86-64-v4": ["AVX512_ICL", "AVX512_SPR"]}
    else:
        groups = {
            "x86-64-v2": ["AVX", "F16C", "FMA3", "AVX2"],
            "x86-64-v3": ["AVX512F", "AVX512CD", "AVX512_SKX"],
            "x86-64-v4": ["AVX512_CLX", "AVX512_CNL", "AVX512_ICL", "AVX512_SPR"],
        }
    above = cpu.LEVELS[cpu.LEVELS.index(level) :]
    return [name for group in above for name in groups.get(group, ())]


def _beyond(level: str, active: str) -> list[str]:
    """Return which of numpy's active features are above a level."""
    return [name for name in active.split() if name in _features_above(level)]


def _is_wheel() -> bool:
    text = importlib.metadata.distribution("numpy").read_text("WHEEL") or ""
    return "manylinux" in text or "musllinux" in text


def _version(package: str) -> tuple[int, ...]:
    """Return major and minor version of a package, empty if it is not installed."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _has(cpus: str, level: str) -> bool:
    """Say whether CPUs can do what a level can."""
    return cpus == level or (cpus in cpu.LEVELS and level in cpu.LEVELS and cpu.lowest([cpus, level]) == level)


def _set(environment: Mapping[str, str], name: str) -> str:
    """Return a variable's value, empty if it is not set; of XLA's flags only those that choose kernels."""
    value = environment.get(name, "")
    if name == _XLA:
        value = " ".join(flag for flag in value.split() if flag.startswith((_XLA_LEVEL, _NO_YNN)))
    return value


def _put(environment: MutableMapping[str, str], name: str, value: str) -> None:
    if name == _XLA and environment.get(name):
        value = f"{environment[name]} {value}"
    environment[name] = value
