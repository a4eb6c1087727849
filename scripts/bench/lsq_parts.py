"""The parts of a fit measured by `scripts/bench/lsq`: passes, iterations, warm-up, streaming, ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lsq_problems import ANGLES, GAP, PROBLEMS, SECONDS, Q, frames, load, make, peak_mb

SIZES = (1_000, 5_000, 10_000, 50_000)
STARTS = 30
_CHUNKS = 4
_REPEATS = 5
_TURNS = 9
_AS_BOOST_CORR = "float32, LZF, one chunk per matrix"


def jacobian(folder: Path, _digits: Sequence[int]) -> None:
    """Print the time of one compiled pass over a chunk (cost, gradient, JᵀJ), beside the body of NLSQ's loop."""
    import jax

    jax.config.update("jax_enable_x64", True)
    print("\nOne chunk: model, Jacobian, JᵀJ, Jᵀr and cost; CPU ms, median of 7 after compilation\n")
    print("| model | points | Tessera | vmap(jacrev) as in NLSQ | ratio |\n|---|---:|---:|---:|---:|")
    for case in ("exp", "static", "flow"):
        make(folder, case, 5)
        for size in SIZES:
            ours, theirs = _one_chunk(folder, case, size)
            print(f"| {case} | {size} | {ours * 1e3:.2f} | {theirs * 1e3:.2f} | {theirs / ours:.1f} |", flush=True)


def _one_chunk(folder: Path, case: str, size: int) -> tuple[float, float]:
    import jax
    import jax.numpy as jnp
    from lsq_worker import _user_model

    from tessera.lsq.accumulate import ModelObjective
    from tessera.lsq.fit_model import describe
    from tessera.lsq.guard import Guarded
    from tessera.lsq.reduce import serial
    from tessera.lsq.sources import as_source

    f = _user_model(case, 5)
    x, y = (
        array[:size] for array in load(folder, case, 5, "x", "y")
    )  # the peer's chunk; ours is one of several, as in a streaming fit
    start = PROBLEMS[case].start
    columns = f if case == "exp" else (lambda xt, *p: f(xt.T, *p))
    source = Guarded(as_source((np.tile(x.T, _CHUNKS), np.tile(y, _CHUNKS)), chunk_size=size))
    objective = ModelObjective(describe(columns, start, names=PROBLEMS[case].names), source, serial())
    rows = jax.jit(jax.vmap(jax.jacrev(lambda p, xi: f(xi, *p)), in_axes=(None, 0)))
    p = jnp.asarray(start)

    def theirs() -> None:
        j = rows(p, x)
        r = y - f(x, *p)
        np.asarray(j.T @ j), np.asarray(j.T @ r), float(jnp.sum(r * r))

    return cpu(lambda: objective.evaluate(start)) / _CHUNKS, cpu(theirs)


def cpu(call: Any, times: int = 7) -> float:
    """Return the median CPU time of a call after a first one, s."""
    call()
    spent = []
    for _ in range(times):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return float(np.median(spent))


def iteration(folder: Path, digits: Sequence[int]) -> None:
    """Print where the time of a fit of a user's model goes, phase by phase."""
    from lsq_worker import _user_model

    from tessera.lsq import curve_fit
    from tessera.lsq.profile import recorded

    for case in ("exp", "static", "flow"):
        for digit in digits:
            make(folder, case, digit)
            f = _user_model(case, digit)
            x, y = load(folder, case, digit, "x", "y")
            problem = PROBLEMS[case]
            model = f if case == "exp" else (lambda xt, *p, f=f: f(xt.T, *p))
            with recorded() as tree:
                _, _, result = curve_fit(
                    model, x.T, y, problem.start, bounds=(problem.lower, problem.upper), full_output=True
                )
            print(f"\n{case}, 1e{digit} points, {result.evaluations} passes ({result.status.name})\n")
            print("\n".join(tree.lines()), flush=True)


def warmup(_folder: Path, _digits: Sequence[int]) -> None:
    """Print how many passes warm-up takes from random starts, and where the fits end, per preset."""
    import jax.numpy as jnp

    from tessera.lsq import HybridStreamingConfig, fit

    rng = np.random.default_rng(7)
    problem = PROBLEMS["exp"]
    x = np.linspace(0, 4, 20_000)
    y = (
        problem.truth[0] * np.exp(-problem.truth[1] * x)
        + problem.truth[2]
        + problem.noise * rng.standard_normal(x.size)
    )
    starts = rng.uniform(problem.lower, problem.upper, (STARTS, 3))
    print(f"\nWarm-up passes from {STARTS} starts drawn over the whole box; exponential, 20,000 points. By default it")
    print("runs only where Gauss-Newton fails; forced: enable_warm_start_detection=False\n")
    print("| preset | without warm-up | median | 90 % | most | ended at the minimum | said so | false success |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    presets = ("default", "conservative", "aggressive", "scientific_default", "defense_strict")
    for preset, forced in (("default", False), *((name, True) for name in presets)):
        config = HybridStreamingConfig.preset(preset).replace(enable_warm_start_detection=not forced)
        found = [
            fit(
                lambda x, a, b, c: a * jnp.exp(-b * x) + c,
                (x, y),
                p,
                bounds=(problem.lower, problem.upper),
                config=config,
            )
            for p in starts
        ]
        least = min(r.cost for r in found)
        right = np.array([r.cost <= least * (1 + 1e-9) for r in found])
        said = np.array([r.success for r in found])
        passes = np.array([int(r.telemetry.get("warmup", {}).get("passes", 0)) for r in found])
        print(
            f"| {preset}{', forced' * forced} | {np.count_nonzero(passes == 0)} | {np.median(passes):.0f} "
            f"| {np.quantile(passes, 0.9):.0f} | {passes.max()} | {np.count_nonzero(right)} "
            f"| {np.count_nonzero(right & said)} | {np.count_nonzero(~right & said)} |",
            flush=True,
        )


def stream(folder: Path, digits: Sequence[int]) -> None:
    """Print time and peak memory of whole processes that fit laminar flow from an HDF5 file."""
    print(f"\nLaminar flow from APS-U HDF5, whole processes, the fastest of {_REPEATS}\n")
    print("| points | stored as | threads | kept in memory | wall s | CPU s | fit, ns per point | passes | peak MB |")
    print("|---:|---|---:|---|---:|---:|---:|---:|---:|")
    for digit in digits:
        for stored, threads, kept in (
            ("float64", 1, True),
            ("float64", 2, True),
            ("float64", 1, False),
            (_AS_BOOST_CORR, 1, True),
            (_AS_BOOST_CORR, 1, False),
        ):
            path = _hdf5(folder, digit, stored)
            command = [sys.executable, __file__, "fit", str(path), str(digit), str(threads), "kept" * kept]
            report = min((_child(command) for _ in range(_REPEATS)), key=lambda told: float(told["wall"]))
            points = len(ANGLES) * frames("flow", digit) ** 2
            per_point = report["fit_cpu"] / points * 1e9
            print(
                f"| {points:.2e} | {stored} | {threads} | {'yes' if kept else 'no'} | {report['wall']:.2f} "
                f"| {report['cpu']:.2f} | {per_point:.0f} | {report['passes']} | {report['rss_mb']:.0f} |",
                flush=True,
            )


def ranks(folder: Path, digits: Sequence[int]) -> None:
    """Print one rank beside two, one thread each, on the same file, and whether the bits agree.

    They run in turn, and ratios are taken turn by turn: the machine's speed drifts by more than the ratio's error. What
    its two processors give at best is told by two fits side by side that have nothing to do with each other.
    """
    print(f"\nLaminar flow from HDF5 on one and two MPI ranks, one thread each; medians of {_TURNS} turns\n")
    print(
        "| points | kept in memory | fit s, one rank | two | ratio (least, most) | at best | CPU s | two | same bits |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|---:|---|")
    for digit in digits:
        path = _hdf5(folder, digit)
        for kept in (True, False):
            arguments = [str(path), str(digit), "1", "kept" * kept]
            turns = [_turn(arguments) for _ in range(_TURNS + 1)][1:]
            one, two, aside = (
                np.array([[report["fit_wall"], report["fit_cpu"]] for report in column])
                for column in zip(*turns, strict=True)
            )
            ratio, best = one[:, 0] / two[:, 0], 2 * one[:, 0] / aside[:, 0]
            bits = {report["bits"] for turn in turns for report in turn}
            print(
                f"| {len(ANGLES) * frames('flow', digit) ** 2:.2e} | {'yes' if kept else 'no'} "
                f"| {np.median(one[:, 0]):.2f} | {np.median(two[:, 0]):.2f} "
                f"| {np.median(ratio):.2f} ({ratio.min():.2f}, {ratio.max():.2f}) | {np.median(best):.2f} "
                f"| {np.median(one[:, 1]):.2f} | {np.median(two[:, 1]):.2f} | {'yes' if len(bits) == 1 else 'NO'} |",
                flush=True,
            )


def _turn(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return a fit on one rank, one on two, and the slower one of two on one rank each at the same time."""
    one, two = _on_ranks(1, arguments), _on_ranks(2, arguments)
    with ThreadPoolExecutor(2) as pool:
        aside = list(pool.map(_on_ranks, (1, 1), (arguments, arguments)))
    return one, two, max(aside, key=lambda report: float(report["fit_wall"]))


def _on_ranks(count: int, arguments: list[str]) -> dict[str, Any]:
    mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(count)]
    return _child([*mpiexec, sys.executable, __file__, "fit", *arguments])


def _hdf5(folder: Path, digit: int, stored: str = "float64") -> Path:
    """Write the file once: symmetric data with noise of half the variance on either side, as averaging would leave."""
    from tessera.xpcs.generate import Truth
    from tessera.xpcs.write_files import write_aps_u

    small = stored == _AS_BOOST_CORR
    path = folder / (f"flow_{digit}_lzf.h5" if small else f"flow_{digit}.h5")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        problem = PROBLEMS["flow"]
        physical = dict(zip(problem.names[:-2], problem.truth.tolist(), strict=False))
        n = frames("flow", digit)
        truth = Truth("laminar_flow", physical, ANGLES, n + 1, SECONDS / (n - 1), Q, GAP)
        matrices = truth.noisy(problem.noise, seed=digit)
        partial = path.with_suffix(".part")
        if small:
            write_aps_u(partial, (m.astype(np.float32) for m in matrices), ANGLES, np.array([Q]), compression="lzf")
        else:
            write_aps_u(partial, matrices, ANGLES, np.array([Q]))
        partial.rename(path)
    return path


def _child(command: list[str]) -> dict[str, Any]:
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    out = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    report: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return {**report, "wall": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime}


def fit_file(path: Path, digit: int, threads: int, *, kept: bool) -> None:
    """Fit one file, on the ranks there are, and print a line of JSON on rank 0."""
    from tessera.xpcs import fit
    from tessera.xpcs.load import Selection, load

    comm = None
    if "PMI_SIZE" in os.environ:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        comm.Barrier()
    problem = PROBLEMS["flow"]
    data = load(path, Selection(q=Q, dt=SECONDS / (frames("flow", digit) - 1)))
    wall, cpu = time.perf_counter(), time.process_time()
    result = fit(
        data.rows, data.phi, q=Q, gap=GAP, times=data.times, scaling="shared", comm=comm, threads=threads,
        in_memory=kept, p0=dict(zip(problem.names[:-2], problem.start.tolist(), strict=False)),
    )  # fmt: skip
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = peak_mb()
    if comm is not None:
        cpu, memory = sum(comm.allgather(cpu)), max(comm.allgather(memory))
    if comm is None or comm.rank == 0:
        first = result.telemetry.get("first_fit", {}).get("passes", 0)
        print(
            json.dumps(
                {"fit_wall": wall, "fit_cpu": cpu, "rss_mb": memory, "passes": result.evaluations, "coarse": first,
                 "status": result.status.name, "bits": result.x.tobytes().hex()}
            )
        )  # fmt: skip


if __name__ == "__main__":
    fit_file(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), kept=bool(sys.argv[5]))
