"""One optimizer on one problem in one process: ``lsq_worker.py TOOL CASE DIGITS FOLDER`` prints a line of JSON.

The caller measures the whole process, imports and compilation included; the line tells what was found, how long the
fit took after the data were in memory, and how long a second one took in the same process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lsq_problems import GAP, PROBLEMS, SECONDS, Q, angles, frames, load, peak_mb, times

Found = tuple[Any, Any]
"""Parameters, and a count of passes or iterations as the tool gives it."""


def tessera_xpcs(case: str, digits: int, folder: Path) -> Callable[[], Found]:
    """Return Tessera's XPCS fit on the two-time matrices."""
    import tessera.xpcs as xpcs

    problem = PROBLEMS[case]
    c2 = load(folder, case, digits, "c2")[0]
    name = "laminar_flow" if case == "flow" else "static_isotropic"
    physical = problem.names[:-2]

    def run() -> Found:
        result = xpcs.fit(
            c2,
            angles(case),
            q=Q,
            dt=SECONDS / (frames(case, digits) - 1),
            gap=GAP,
            model=name,
            p0=dict(zip(physical, problem.start.tolist(), strict=False)),
            bounds=dict(zip(physical, zip(problem.lower.tolist(), problem.upper.tolist(), strict=True), strict=False)),
            scaling="shared",
        )  # on one thread: its calls are too short for a second one to gain
        order = [result.names.index(n) for n in problem.names]
        return result.x[order], result.evaluations

    return run


def tessera_curve_fit(
    case: str, digits: int, folder: Path, mmap_mode: Literal["r"] | None = None
) -> Callable[[], Found]:
    """Return Tessera's fit of a user's model, without a Jacobian of its own."""
    from tessera.lsq import curve_fit

    f = _user_model(case, digits)
    x, y = load(folder, case, digits, "x", "y", mmap_mode=mmap_mode)
    problem = PROBLEMS[case]
    model = f if case == "exp" else (lambda xt, *p: f(xt.T, *p))

    def run() -> Found:
        popt, _, result = curve_fit(
            model, x.T, y, problem.start, bounds=(problem.lower, problem.upper), full_output=True
        )
        return popt, result.evaluations

    return run


def tessera_mapped(case: str, digits: int, folder: Path) -> Callable[[], Found]:
    """Return the same with data that stay in their files: nothing of their size is in memory."""
    return tessera_curve_fit(case, digits, folder, "r")


def scipy_lm(case: str, digits: int, folder: Path) -> Callable[[], Found]:
    """Return MINPACK's Levenberg-Marquardt with a numpy model and finite differences."""
    from scipy.optimize import curve_fit

    x, y = load(folder, case, digits, "x", "y")
    f = _numpy_model(case, digits)

    def run() -> Found:
        start = PROBLEMS[case].start
        popt, _, info, *_ = curve_fit(f, x, y, start, method="lm", full_output=True, maxfev=5000)
        return popt, info["nfev"]

    return run


def scipy_trf(case: str, digits: int, folder: Path) -> Callable[[], Found]:
    """Return scipy's trust-region reflective algorithm with the exact Jacobian, compiled by JAX."""
    import jax
    from scipy.optimize import least_squares

    f = _user_model(case, digits)
    x, y = load(folder, case, digits, "x", "y")
    problem = PROBLEMS[case]
    residual = jax.jit(lambda p: f(x, *p) - y)
    jacobian = jax.jit(jax.jacfwd(lambda p: f(x, *p)))

    def run() -> Found:
        found = least_squares(
            lambda p: np.asarray(residual(p)),
            problem.start,
            lambda p: np.asarray(jacobian(p)),
            (problem.lower, problem.upper),
            x_scale="jac",
        )
        return found.x, found.nfev

    return run


def optimistix_lm(case: str, digits: int, folder: Path) -> Callable[[], Found]:
    """Return optimistix's Levenberg-Marquardt, the parameters scaled by hand, which it needs here."""
    import jax.numpy as jnp
    import optimistix

    f = _user_model(case, digits)
    x, y = load(folder, case, digits, "x", "y")
    scale = jnp.asarray(PROBLEMS[case].scale)
    start = jnp.asarray(PROBLEMS[case].start) / scale
    solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)

    def run() -> Found:
        found = optimistix.least_squares(
            lambda z, args: f(args[0], *(z * scale)) - args[1], solver, start, args=(x, y), max_steps=500
        )
        return np.asarray(found.value * scale), int(found.stats["num_steps"])

    return run


def nlsq(case: str, digits: int, folder: Path) -> Callable[[], Found]:
    """Return NLSQ's curve_fit, its best path on these problems."""
    from nlsq import curve_fit

    f = _user_model(case, digits)
    x, y = load(folder, case, digits, "x", "y")
    problem = PROBLEMS[case]
    model = f if case == "exp" else (lambda xt, *p: f(xt.T, *p))

    def run() -> Found:
        data = np.asarray(x) if case == "exp" else np.asarray(x).T
        popt, _ = curve_fit(model, data, np.asarray(y), problem.start, bounds=(problem.lower, problem.upper))
        return np.asarray(popt), 0

    return run


TOOLS: dict[str, Callable[[str, int, Path], Callable[[], Found]]] = {
    "tessera": tessera_xpcs,
    "tessera-user": tessera_curve_fit,
    "tessera-mapped": tessera_mapped,
    "scipy-lm": scipy_lm,
    "scipy-trf": scipy_trf,
    "optimistix": optimistix_lm,
    "nlsq": nlsq,
}


def _numpy_model(case: str, digits: int) -> Callable[..., Any]:
    """Return the pointwise model in numpy: the integrals on the grid, then gathers."""
    from lsq_problems import ANGLES, FLOOR, SMOOTHING, _cumulated, _sinc

    if case == "exp":
        return lambda x, a, b, c: a * np.exp(-b * x) + c
    t = times(frames(case, digits))
    dt = t[1] - t[0]
    safe = np.where(t > dt * 0.5, t, dt * 0.5)

    def g2(x: Any, *p: float) -> Any:
        i, j = x[:, 1].astype(np.int32), x[:, 2].astype(np.int32)
        with np.errstate(over="ignore", invalid="ignore"):
            c = _cumulated(p[0] * safe ** p[1] + p[2])
            g1 = np.exp(np.clip(-0.5 * Q * Q * dt * np.sqrt((c[i] - c[j]) ** 2 + SMOOTHING), -700, 0))
            if case == "static":
                return p[4] + p[3] * np.maximum(g1, FLOOR) ** 2
            s = _cumulated(p[3] * safe ** p[4] + p[5])
            cosines = np.cos(np.deg2rad(p[6] - ANGLES))[x[:, 0].astype(np.int32)]
            path = 0.5 / np.pi * Q * GAP * dt * np.sqrt((s[i] - s[j]) ** 2 + SMOOTHING)
            return p[8] + p[7] * np.maximum(g1 * _sinc(path * cosines) ** 2, FLOOR) ** 2

    return g2


def _user_model(case: str, digits: int) -> Callable[..., Any]:
    """Return a user's JAX model ``f(x, *params)`` of points; x is (N,) or (N, 3)."""
    import jax
    import jax.numpy as jnp
    from lsq_problems import ANGLES, FLOOR, SMOOTHING

    jax.config.update("jax_enable_x64", True)
    if case == "exp":
        return lambda x, a, b, c: a * jnp.exp(-b * x) + c
    t = times(frames(case, digits))
    dt = float(t[1] - t[0])
    safe = jnp.asarray(np.where(t > dt * 0.5, t, dt * 0.5))
    phi = jnp.asarray(ANGLES)

    def cumulated(rate: Any) -> Any:
        rate = jnp.where(rate > FLOOR, rate, FLOOR)
        return jnp.concatenate([jnp.zeros(1, rate.dtype), jnp.cumsum(0.5 * (rate[:-1] + rate[1:]))])

    def sinc(v: Any) -> Any:
        near = jnp.abs(v) < 1e-4
        return jnp.where(near, 1 - v * v / 6 + v**4 / 120, jnp.sin(v) / jnp.where(near, 1.0, v))

    def g2(x: Any, *p: Any) -> Any:
        i, j = x[..., 1].astype(jnp.int32), x[..., 2].astype(jnp.int32)
        c = cumulated(p[0] * safe ** p[1] + p[2])
        g1 = jnp.exp(jnp.clip(-0.5 * Q * Q * dt * jnp.sqrt((c[i] - c[j]) ** 2 + SMOOTHING), -700, 0))
        if case == "static":
            return p[4] + p[3] * jnp.maximum(g1, FLOOR) ** 2
        s = cumulated(p[3] * safe ** p[4] + p[5])
        cosines = jnp.cos(jnp.deg2rad(p[6] - phi))[x[..., 0].astype(jnp.int32)]
        path = 0.5 / np.pi * Q * GAP * dt * jnp.sqrt((s[i] - s[j]) ** 2 + SMOOTHING)
        return p[8] + p[7] * jnp.maximum(g1 * sinc(path * cosines) ** 2, FLOOR) ** 2

    return g2


def main() -> None:
    """Run one tool and print what it found."""
    tool, case, digits, folder = sys.argv[1:5]
    start_words = [word.removeprefix("--start=") for word in sys.argv if word.startswith("--start=")]
    if start_words:
        PROBLEMS[case] = replace(PROBLEMS[case], start=np.array([float(v) for v in start_words[0].split(",")]))
    run = TOOLS[tool](case, int(digits), Path(folder))
    start = time.perf_counter()
    x, passes = run()
    first = time.perf_counter() - start
    again = None
    if "--twice" in sys.argv:
        start = time.perf_counter()
        run()
        again = time.perf_counter() - start
    found = {"x": [float(v) for v in x], "passes": int(passes), "fit": first, "again": again, "peak_mb": peak_mb()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
