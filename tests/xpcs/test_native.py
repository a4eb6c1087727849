"""The compiled sums: the same on all generations of processors, and what is said where they are missing."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import CHECKOUT
from xpcs.problems import FLOW, GAP, PHI, Q, noisy, times_of

from tessera.xpcs import fit, native
from tessera.xpcs.errors import KernelError
from tessera.xpcs.objective import XpcsObjective

needs_compiled = pytest.mark.skipif(not native._LIBRARY.exists(), reason="no C compiler was there to build the sums")
NEEDED = {"v4": 2, "v3": 1, "v1": 0}


def runnable():
    """Levels that this processor has; the best is what `level` says."""
    best = native.level()
    compiled = [name for name, rank in NEEDED.items() if rank <= NEEDED[best]] if best in NEEDED else [best]
    return compiled if best == native.PLAIN else [*compiled, native.PLAIN]


def quadratic(c2, model, **options):
    truth = FLOW if model == "laminar_flow" else FLOW[:3]
    objective = XpcsObjective(c2, PHI[::3], q=Q, gap=GAP, times=times_of(c2.shape[1]), model=model, **options)
    x = np.concatenate([truth, np.full(len(objective.names) - len(truth), 0.9)])
    return [objective.evaluate(x), objective.small.evaluate(x)]


@pytest.mark.parametrize("model", ["laminar_flow", "static_isotropic"])
@pytest.mark.parametrize("n_t", [45, 600])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["linear", "soft_l1"])
def test_all_levels_agree(monkeypatch, model, n_t, weighted, loss):
    """600 frames have a stand-in, 45 a last strip that is no multiple of any vector."""
    c2 = noisy(FLOW if model == "laminar_flow" else FLOW[:3], n_t, PHI[::3])
    sigma = np.broadcast_to(0.02 + 1e-5 * np.add.outer(np.arange(n_t), np.arange(n_t)), c2.shape) if weighted else 0.02
    expected = None
    for level in runnable():
        monkeypatch.setattr(native, "level", lambda level=level: level)
        found = quadratic(c2, model, scaling="shared", sigma=sigma, loss=loss)
        expected = expected or found
        for a, b in zip(found, expected, strict=True):
            assert a.cost == pytest.approx(b.cost, rel=1e-12)
            size = np.sqrt(np.diag(b.hessian))
            np.testing.assert_allclose(a.hessian / np.outer(size, size), b.hessian / np.outer(size, size), atol=1e-9)
            np.testing.assert_allclose(a.gradient / size, b.gradient / size, atol=1e-9 * np.sqrt(2 * b.cost))


@pytest.mark.parametrize("model", ["laminar_flow", "static_isotropic"])
def test_arrays_of_any_layout_are_read_alike(model):
    """Parts of larger arrays, Fortran order, and float32, which is exact in float64."""
    c2 = noisy(FLOW if model == "laminar_flow" else FLOW[:3], 70, PHI[::3], symmetric=False).astype(np.float32)
    whole = np.zeros((8, 75, 80), np.float32)
    whole[::2, 5:, 10:] = c2
    expected = quadratic(c2.astype(np.float64), model)[0]
    for given in (
        c2,
        whole[::2, 5:, 10:],
        np.asfortranarray(c2),
        c2.astype(">f4"),
        c2.astype(np.float64)[:, ::-1, ::-1][:, ::-1, ::-1],
    ):
        found = quadratic(given, model)[0]
        assert found.cost == expected.cost
        assert (found.hessian == expected.hessian).all()


@needs_compiled
def test_without_the_library_the_sums_run_in_numpy_and_say_so(monkeypatch, tmp_path):
    expected = fit(noisy(FLOW, 20, PHI), PHI, q=Q, gap=GAP, times=times_of(20))
    assert native.complaint() == ""
    monkeypatch.setattr(native, "_LIBRARY", tmp_path / "kernels.so")
    assert native.level() == native.PLAIN
    assert "kernels.so was not built" in native.complaint()
    found = fit(noisy(FLOW, 20, PHI), PHI, q=Q, gap=GAP, times=times_of(20))
    assert found.cost == pytest.approx(expected.cost, rel=1e-9)


@needs_compiled
def test_a_library_of_other_sources_is_refused(monkeypatch, tmp_path):
    """After a `git pull` without an installation its structs may be others."""
    shutil.copytree(CHECKOUT / "src/tessera/xpcs/native", tmp_path / "native")
    monkeypatch.setattr(native, "_LIBRARY", tmp_path / "native" / "kernels.so")
    native.functions.cache_clear()
    try:
        assert native.functions(native.level())
        native.functions.cache_clear()
        with (tmp_path / "native" / "flow.h").open("a") as header:
            header.write("/* changed */\n")
        with pytest.raises(KernelError, match=r"built from another version of the sources; install Tessera again"):
            native.functions(native.level())
    finally:
        native.functions.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "said"),
    [("no-such-compiler", r"no C compiler.*no-such-compiler.*CC="), ("false", "could not build Tessera's kernels")],
)
def test_a_build_without_a_compiler_goes_on_and_says_what_is_missing(tmp_path, compiler, said):
    for name in ("hatch_build.py", "src/tessera/xpcs/native"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, target, ignore=shutil.ignore_patterns("*.so"))
        else:
            shutil.copy(CHECKOUT / name, target)
    library = tmp_path / "src/tessera/xpcs/native/kernels.so"
    library.write_bytes(b"of older sources")
    os.utime(library, (0, 0))
    code = "import hatch_build, pathlib; print(hatch_build.compile_kernels(pathlib.Path.cwd()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "CC": compiler}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"
    assert "Traceback" not in done.stderr
    assert re.search(said, done.stderr, re.DOTALL), done.stderr
    assert "the XPCS fit will run in NumPy" in done.stderr
    assert not library.exists()
