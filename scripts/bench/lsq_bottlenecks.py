"""The eight bottlenecks that NLSQ's performance plan names, each measured here: `scripts/bench/lsq bottlenecks`.

Laminar flow as a user's JAX model, 1e5 points in chunks of 1e4 (NLSQ's); CPU time, so that other work on the machine
counts little. What NLSQ does is written out beside it, as its code has it (version 0.7), not imported.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lsq_parts import cpu
from lsq_problems import PROBLEMS, load, make

CHUNK = 10_000
CASE = "flow"


def bottlenecks(folder: Path, _digits: Sequence[int]) -> None:
    """Print a row for each."""
    import jax

    jax.config.update("jax_enable_x64", True)
    make(folder, CASE, 5)
    passes = _Passes(folder)
    print(f"\nLaminar flow by a user's model, 1e5 points, chunks of {CHUNK}\n")
    print("| bottleneck | here | measured |\n|---|---|---|")
    for name, what, measured in (
        ("1 Jacobian recompiled", "one compilation for each kind of pass, kept between fits", _compilations(folder)),
        ("2 cost evaluated twice", "the pass that judges a step is the next one's", _passes_a_step(folder)),
        ("3 Python loops", "`lax.scan` over tiles inside the compiled chunk", passes.loops()),
        ("4 residuals in lists", "sums only: nothing of the size of the data", _memory()),
        ("5 physics recomputed", "grid once per chunk (XLA moves it out of the scan), forward mode", passes.physics()),
        ("6 allocations", "sums carried in place; nothing large is returned, so nothing to donate", passes.faults()),
        ("7 blocking checkpoints", "a copy, then a thread writes", _checkpoint()),
        ("8 telemetry always on", "`off`, `basic`, `detailed`", _telemetry()),
    ):
        print(f"| {name} | {what} | {measured} |", flush=True)


class _Passes:
    """Passes over the same data: NLSQ's ways, and ours."""

    def __init__(self, folder: Path) -> None:
        import jax
        import jax.numpy as jnp
        from lsq_worker import _user_model

        f = _user_model(CASE, 5)
        x, y = load(folder, CASE, 5, "x", "y")
        n = len(y) // CHUNK * CHUNK
        self.x, self.y, self.p = x[:n], y[:n], PROBLEMS[CASE].start
        self.parts = [(jnp.asarray(a), jnp.asarray(b)) for a, b in zip(_cut(self.x), _cut(self.y), strict=True)]
        self.stacked = (jnp.stack([a for a, _ in self.parts]), jnp.stack([b for _, b in self.parts]))

        def sums(jacobian: Any, p: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
            j, r = jacobian(p, x), y - f(x, *p)
            return j.T @ j, j.T @ r, jnp.sum(r * r)

        reverse = jax.vmap(jax.jacrev(lambda p, at: f(at, *p)), in_axes=(None, 0))
        forward = jax.jacfwd(lambda p, x: f(x, *p))
        self.reverse = jax.jit(lambda p, x, y: sums(reverse, p, x, y))
        self.forward = jax.jit(lambda p, x, y: sums(forward, p, x, y))
        self.jacobian = jax.jit(reverse)
        self.f = f

        def scanned(p: Any, x: Any, y: Any) -> Any:
            def body(carry: Any, part: Any) -> Any:
                return tuple(a + b for a, b in zip(carry, sums(forward, p, *part), strict=True)), None

            size = len(PROBLEMS[CASE].start)
            return jax.lax.scan(body, (jnp.zeros((size, size)), jnp.zeros(size), jnp.zeros(())), (x, y))[0]

        self.scanned, self.compiled = scanned, jax.jit(scanned)
        self.ours = _objective(f, self.x, self.y, CHUNK)
        self.larger = _objective(f, self.x, self.y, len(self.y))

    def loops(self) -> str:
        """Compare ways to go over the chunks, the same forward Jacobian in all."""
        import jax

        naive = cpu(lambda: jax.block_until_ready(self.scanned(self.p + 0.0, *self.stacked)), 3)
        loop = cpu(lambda: [jax.block_until_ready(self.forward(self.p, *part)) for part in self.parts])
        scan = cpu(lambda: jax.block_until_ready(self.compiled(self.p, *self.stacked)))
        ours, larger = (cpu(lambda at=at: at.evaluate(self.p)) for at in (self.ours, self.larger))
        return (
            f"scan not compiled, traced at each call (NLSQ's) {naive * 1e3:.0f} ms a pass; loop over compiled chunks "
            f"{loop * 1e3:.0f}; compiled scan over chunks {scan * 1e3:.0f}; scan over tiles of 2048, as here "
            f"{ours * 1e3:.0f}, with the default chunk {larger * 1e3:.0f}; C (`xpcs`) {_compiled_pass() * 1e3:.2f}"
        )

    def physics(self) -> str:
        """Compare the Jacobian that goes back through the grid for each point."""
        import jax

        reverse = cpu(lambda: [jax.block_until_ready(self.reverse(self.p, *part)) for part in self.parts], 3)
        ours = cpu(lambda: self.ours.evaluate(self.p))
        return f"reverse mode by point (NLSQ's) {reverse * 1e3:.0f} ms a pass, here {ours * 1e3:.0f}"

    def faults(self) -> str:
        """Count the pages that passes touch for the first time."""

        def theirs() -> None:
            for x, y in self.parts:
                j, r = self.jacobian(self.p, x), y - self.f(x, *self.p)
                np.asarray(j.T @ j), np.asarray(j.T @ r), float((r * r).sum())

        return f"page faults a pass: Jacobian as an array (NLSQ's) {_faults(theirs)}, here " + str(
            _faults(lambda: self.ours.evaluate(self.p))
        )


def _cut(array: Any) -> list[Any]:
    return [array[first : first + CHUNK] for first in range(0, len(array), CHUNK)]


def _objective(f: Any, x: Any, y: Any, chunk: int) -> Any:
    from tessera.lsq.accumulate import ModelObjective
    from tessera.lsq.fit_model import describe
    from tessera.lsq.guard import Guarded
    from tessera.lsq.reduce import serial
    from tessera.lsq.sources import as_source

    source = Guarded(as_source((x.T, y), chunk_size=chunk))
    model = describe(lambda xt, *p: f(xt.T, *p), PROBLEMS[CASE].start, names=PROBLEMS[CASE].names)
    return ModelObjective(model, source, serial())


def _compiled_pass() -> float:
    """Return the CPU time of a pass of the XPCS kernel over as many points."""
    from lsq_kernel import FLOW, GAP, Q, data

    from tessera.xpcs.objective import XpcsObjective

    c2, phi, times = data("laminar_flow", 101)
    objective = XpcsObjective(c2, phi, q=Q, gap=GAP, times=times, scaling="shared")
    return cpu(lambda: objective.evaluate(np.concatenate([FLOW, [0.5, 1.0]])))


def _faults(call: Callable[[], Any]) -> int:
    call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5


def _fit(folder: Path, **options: Any) -> Any:
    from lsq_worker import _user_model

    from tessera.lsq import HybridStreamingConfig, fit

    f = _user_model(CASE, 5)
    x, y = load(folder, CASE, 5, "x", "y")
    problem = PROBLEMS[CASE]
    config = HybridStreamingConfig(**options)

    def model(xt: Any, *p: Any) -> Any:
        return f(xt.T, *p)

    return lambda: fit(
        model,
        (x.T, y),
        dict(zip(problem.names, problem.start.tolist(), strict=True)),
        bounds=(problem.lower, problem.upper),
        config=config,
    )


def _compilations(folder: Path) -> str:
    """Count XLA's compilations in a fit and in the same fit once more."""
    from jax import monitoring

    counted: list[str] = []
    monitoring.register_event_duration_secs_listener(lambda name, _seconds, **_more: counted.append(name))
    counts = []
    run = _fit(folder, chunk_size=CHUNK)
    for _ in range(2):
        counted.clear()
        run()
        counts.append(sum(name.endswith("backend_compile_duration") for name in counted))
    return f"{counts[0]} compilations in the first fit, {counts[1]} in the next"


def _passes_a_step(folder: Path) -> str:
    result = _fit(folder)()
    return (
        f"{result.evaluations} passes for {result.iterations} accepted steps, the first pass and the rejected included"
    )


def _memory() -> str:
    return "`lsq stream`, and `tessera-mapped` of `lsq fits`: memory with the points"


def _checkpoint() -> str:
    return "`scripts/bench/checkpoint loop`: the time blocked a MiB; the state of a fit has some KiB"


def _telemetry() -> str:
    from tessera.lsq import HybridStreamingConfig, fit

    x = np.linspace(0.0, 4.0, 1_000)
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.05 * np.random.default_rng(1).standard_normal(x.size)

    def model(x: Any, a: Any, b: Any, c: Any) -> Any:
        import jax.numpy as jnp

        return a * jnp.exp(-b * x) + c

    spent = {}
    for level in ("off", "basic", "detailed"):
        config = HybridStreamingConfig(
            telemetry=level, enable_warm_start_detection=False, warmup_iterations=30, max_warmup_iterations=30
        )
        spent[level] = cpu(lambda config=config: fit(model, (x, y), (1.0, 0.5, 0.0), config=config), 15)
    return (
        "; ".join(f"{level} {seconds * 1e3:.1f} ms" for level, seconds in spent.items())
        + " a fit with 30 warm-up passes"
    )
