"""Measure a pass of the XPCS fit against the ceilings of one core, and whole fits; prints a table.

Ceilings are measured in the same run by CPU time: reading (the faster of numpy's sum and the dot product of an array
far larger than the caches), triad (a = b + s c) and multiply-adds (matrix product). The floor of a pass is the larger
of its bytes over the reading rate and its flops over the rate of multiply-adds; flops are those of the factorised
formulas, not of the direct ones.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np

from tessera.xpcs.fit import fit
from tessera.xpcs.objective import XpcsObjective
from tessera.xpcs.physics import g1_squared

Q, GAP, TOTAL, SIGMA = 0.0054, 2.0e6, 100.0, 0.02
FLOW = np.array([1500.0, -0.40, 200.0, 3.0e-4, 0.20, 5.0e-5, 4.0])
START = np.array([1000.0, -0.20, 100.0, 2.0e-4, 0.30, 0.0, 0.0])
PHI = np.linspace(-90.0, 81.0, 10)

FLOPS = {
    # T and the slope of the sinc 13 (sums of two products, 1/delta, smoothing, decay); g and h 4; gy, g², hy, h², gh 5;
    # and sums of each over the columns and times the vectors it is needed with: g, gy and g² 7 each, h, hy and h² 9
    # each, gh 15, and over the rows of g², gh, h² 2 each.
    "laminar_flow": 13 + 4 + 5 + 3 * 7 + 3 * 9 + 15 + 3 * 2,
    # The data times four vectors.
    "static_isotropic": 2 * 4,
}
"""Per pair of times (i < j) and angle."""


def cpu(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the least CPU time of some calls, s."""
    best = np.inf
    for _ in range(repeats):
        before = time.process_time()
        work()
        best = min(best, time.process_time() - before)
    return best


def ceilings() -> dict[str, float]:
    """Measure what one core can read, stream and multiply."""
    a, b, c = (np.full(2**24, 1.0) for _ in range(3))
    square = np.full((1024, 1024), 1.0)
    return {
        "read GB/s": a.nbytes / min(cpu(a.sum), cpu(lambda: a @ a)) / 1e9,
        "triad GB/s": 3 * a.nbytes / cpu(lambda: (np.multiply(c, 2.0, out=a), np.add(a, b, out=a))) / 1e9,
        "GFLOP/s": 2 * 1024**3 / cpu(lambda: square @ square) / 1e9,
    }


def data(model: str, n_t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return noisy C2 with independent halves, angles and times: the problems of the comparison with peers."""
    flow = model == "laminar_flow"
    times, phi = np.linspace(0.0, TOTAL, n_t), PHI if flow else PHI[:1]
    rng = np.random.default_rng(n_t)
    c2 = np.empty((phi.size, n_t, n_t))
    for k, angle in enumerate(phi):
        c2[k] = 1 + 0.3 * g1_squared(FLOW if flow else FLOW[:3], times, q=Q, gap=GAP, phi=float(angle))
        c2[k] += SIGMA * rng.standard_normal((n_t, n_t))
    return c2, phi, times


def measure(model: str, n_t: int, ceiling: dict[str, float]) -> None:
    """Print a line of the table."""
    c2, phi, times = data(model, n_t)
    options = {"q": Q, "gap": GAP, "times": times, "model": model, "scaling": "shared"}
    physical = START if model == "laminar_flow" else START[:3]
    objective = XpcsObjective(c2, phi, **options)
    x = np.concatenate([physical, [0.5, 1.0]])
    read = cpu(lambda: objective.evaluate(x), 1)
    one = cpu(lambda: objective.evaluate(x))
    before = time.process_time(), time.perf_counter()
    result = fit(c2, phi, p0=physical, **options)
    whole = time.process_time() - before[0], time.perf_counter() - before[1]
    pairs = phi.size * n_t * (n_t - 1) / 2
    floor = max(8 / ceiling["read GB/s"], FLOPS[model] / ceiling["GFLOP/s"])
    ns = one / pairs * 1e9
    share = 100 * floor / ns
    print(
        f"{model:17s} {2 * pairs:9.2e} {read:8.3f} {one:8.4f} {ns:8.2f} {ns / 2:9.2f} {floor:8.2f} {share:6.0f} %"
        f" {whole[0]:8.3f} {whole[1]:8.3f} {result.telemetry['first_fit']['passes']:6d} {result.evaluations:5d}"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:7.0f}  {result.status.name}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n_t", nargs="*", type=int, default=[317, 1001], help="frames of the flow problems (10 angles)")
    arguments = parser.parse_args()
    ceiling = ceilings()
    print("one core: " + ", ".join(f"{name} {value:.1f}" for name, value in ceiling.items()))
    print("CPU seconds; points are those of the whole square, pairs those above the diagonal; floor per pair")
    print(
        "model               points    first     pass  ns/pair  ns/point   floor  share   fit CPU fit wall  first  full"
        " RSS MB  status"
    )
    for n_t in arguments.n_t:
        measure("laminar_flow", n_t, ceiling)
        measure("static_isotropic", round(n_t * np.sqrt(10)), ceiling)


if __name__ == "__main__":
    main()
