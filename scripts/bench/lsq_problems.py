"""Least-squares problems with known truth for `scripts/bench/lsq`: an exponential, XPCS static, XPCS laminar flow.

Formulas and start values are homodyne's (q 0.0054 1/Å, gap 2e6 Å, 100 s of frames). Only numpy is imported, so that
the peers' environments can read this file too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Case = Literal["exp", "static", "flow"]

Q: Final = 0.0054  # 1/Å
GAP: Final = 2.0e6  # Å
SECONDS: Final = 100.0
ANGLES: Final = np.linspace(-90.0, 81.0, 10)  # degrees
SMOOTHING: Final = 1e-12  # steps², under the roots
FLOOR: Final = 1e-10
FRAMES: Final = {
    ("static", 5): 317,
    ("static", 6): 1001,
    ("static", 7): 3163,
    ("static", 8): 10001,
    ("flow", 5): 101,
    ("flow", 6): 317,
    ("flow", 7): 1001,
    ("flow", 8): 3163,
}


@dataclass(frozen=True)
class Problem:
    """One kind of problem: names, truth, start, bounds, a natural scale of each parameter, and the noise."""

    names: tuple[str, ...]
    truth: Floats
    start: Floats
    lower: Floats
    upper: Floats
    scale: Floats
    noise: float


def _problem(noise: float, **rows: tuple[float, float, float, float, float]) -> Problem:
    table = np.array(list(rows.values()), float).T
    return Problem(tuple(rows), *table, noise)


PROBLEMS: Final[dict[str, Problem]] = {
    "exp": _problem(0.05, a=(2.5, 1, 0, 10, 1), b=(1.3, 0.5, 0, 10, 1), c=(0.5, 0, -5, 5, 1)),
    "static": _problem(
        0.02,
        D0=(1500, 1000, 100, 1e5, 1000),
        alpha=(-0.4, -0.2, -2, 2, 0.2),
        D_offset=(200, 100, -1e5, 1e5, 100),
        contrast=(0.3, 0.5, 0, 1, 0.5),
        offset=(1, 1.05, 0.5, 1.5, 1),
    ),
    "flow": _problem(
        0.02,
        D0=(1500, 1000, 100, 1e5, 1000),
        alpha=(-0.4, -0.2, -2, 2, 0.2),
        D_offset=(200, 100, -1e5, 1e5, 100),
        gamma_dot_t0=(3e-4, 2e-4, 1e-6, 0.5, 2e-4),
        beta=(0.2, 0.3, -2, 2, 0.3),
        gamma_dot_t_offset=(5e-5, 0, -0.1, 0.1, 5e-5),
        phi0=(4, 0, -10, 10, 4),
        contrast=(0.3, 0.4, 0, 1, 0.4),
        offset=(1, 1.02, 0.5, 1.5, 1),
    ),
}


def frames(case: str, digits: int) -> int:
    """Return the number of frames that gives about 10**digits points."""
    return FRAMES[case, digits]


def times(n: int) -> Floats:
    """Return the frame times in seconds, shape (n,)."""
    return np.linspace(0.0, SECONDS, n)


def angles(case: str) -> Floats:
    """Return the angles of a case in degrees."""
    return ANGLES if case == "flow" else ANGLES[:1] * 0


def model(case: str, p: Floats, n: int, rows: slice = slice(None)) -> Iterator[Floats]:
    """Yield g2 of each angle on the time grid: shape (rows, n), homodyne's formulas as they stand."""
    t = times(n)
    dt = t[1] - t[0]
    safe = np.where(t > max(dt * 0.5, 1e-8), t, max(dt * 0.5, 1e-8))
    diffusion = _cumulated(p[0] * safe ** p[1] + p[2])
    distance = np.sqrt((diffusion[rows, None] - diffusion) ** 2 + SMOOTHING)
    g1 = np.exp(np.clip(-0.5 * Q * Q * dt * distance, -700, 0))
    if case == "static":
        yield p[4] + p[3] * np.maximum(g1, FLOOR) ** 2
        return
    shear = _cumulated(p[3] * safe ** p[4] + p[5])
    path = 0.5 / np.pi * Q * GAP * dt * np.sqrt((shear[rows, None] - shear) ** 2 + SMOOTHING)
    for angle in ANGLES:
        yield p[8] + p[7] * np.maximum(g1 * _sinc(path * np.cos(np.deg2rad(p[6] - angle))) ** 2, FLOOR) ** 2


def _cumulated(rate: Floats) -> Floats:
    rate = np.where(rate > FLOOR, rate, FLOOR)
    return np.concatenate([[0.0], np.cumsum(0.5 * (rate[:-1] + rate[1:]))])


def _sinc(x: Floats) -> Floats:
    near = np.abs(x) < 1e-4
    return np.where(near, 1 - x * x / 6 + x**4 / 120, np.sin(x) / np.where(near, 1.0, x))


def make(folder: Path, case: str, digits: int) -> None:
    """Write the data, once: `exp` as x and y; the others as c2 (angles, n, n) and as flat x, y for pointwise models."""
    if _path(folder, case, digits, "y").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1234 + digits)
    problem = PROBLEMS[case]
    if case == "exp":
        x = np.linspace(0, 4, 10**digits)
        clean = problem.truth[0] * np.exp(-problem.truth[1] * x) + problem.truth[2]
        np.save(_path(folder, case, digits, "x"), x)
        np.save(_path(folder, case, digits, "y"), clean + problem.noise * rng.standard_normal(x.size))
        return
    n = frames(case, digits)
    c2 = np.stack(list(model(case, problem.truth, n)))
    c2 += problem.noise * rng.standard_normal(c2.shape)
    np.save(_path(folder, case, digits, "c2"), c2)
    off = ~np.eye(n, dtype=bool)
    i, j = np.nonzero(off)
    pairs = np.column_stack([i, j]).astype(float)
    x = np.concatenate([np.column_stack([np.full(len(pairs), float(a)), pairs]) for a in range(len(c2))])
    np.save(_path(folder, case, digits, "x"), x)
    np.save(_path(folder, case, digits, "y"), c2[:, off].ravel())


def load(
    folder: Path, case: str, digits: int, *kinds: str, mmap_mode: Literal["r"] | None = None
) -> list[NDArray[Any]]:
    """Read arrays written by `make`, or map them."""
    return [np.load(_path(folder, case, digits, kind), mmap_mode=mmap_mode) for kind in kinds]


def cost(folder: Path, case: str, digits: int, p: Floats) -> float:
    """Return half the sum of squared residuals over all points, by the direct formula in row blocks."""
    if case == "exp":
        x, y = load(folder, case, digits, "x", "y")
        return 0.5 * float(np.sum((p[0] * np.exp(-p[1] * x) + p[2] - y) ** 2))
    c2 = np.load(_path(folder, case, digits, "c2"), mmap_mode="r")
    n = c2.shape[1]
    total = []
    for start in range(0, n, 200):
        rows = slice(start, min(start + 200, n))
        for measured, expected in zip(c2[:, rows], model(case, p, n, rows), strict=True):
            residual = expected - measured
            residual[np.arange(residual.shape[0]), np.arange(rows.start, rows.stop)] = 0.0
            total.append(float(np.sum(residual**2)))
    return 0.5 * float(np.sum(total))


def _path(folder: Path, case: str, digits: int, kind: str) -> Path:
    return folder / f"{case}_{digits}_{kind}.npy"


def peak_mb() -> float:
    """Return the most memory this process had resident so far, MB; unlike ru_maxrss, nothing of its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")
