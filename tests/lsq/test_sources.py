"""Chunks come out as the data went in, whatever the source; what is wrong with the data is said with its place."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from lsq.points import MASK, SIGMA, N, X, Y, whole, write_hdf5

from tessera.lsq.errors import DataError
from tessera.lsq.files import Columns, Hdf5Source, csv_source, npy_source
from tessera.lsq.guard import Guarded
from tessera.lsq.profile import phase, recorded
from tessera.lsq.sources import ArraySource, GeneratorSource, as_source, prefetched


def pieces(sizes=(100, 0, 3, 500, 434), sigma=True):
    def factory():
        start = 0
        for size in sizes:
            cut = slice(start, start + size)
            yield (X[:, cut], Y[cut], SIGMA[cut]) if sigma else (X[:, cut], Y[cut])
            start += size

    return factory


@pytest.fixture(params=["arrays", "columns", "generator", "hdf5", "hdf5-2d", "hdf5-rows", "npy", "csv"])
def source(request, tmp_path):
    kind, size = request.param, 100
    columns = Columns(("a/u", "a/v"), "y", "err", "use")
    if kind == "arrays":
        return ArraySource(X, Y, sigma=SIGMA, mask=MASK, chunk_size=size)
    if kind == "columns":
        return ArraySource([X[0], X[1]], Y, sigma=SIGMA, mask=MASK, chunk_size=size)
    if kind == "generator":
        return GeneratorSource(pieces(), chunk_size=size)
    if kind == "npy":
        for name, array in {"u": X[0], "v": X[1], "y": Y, "err": SIGMA, "use": MASK}.items():
            np.save(tmp_path / f"{name}.npy", array)
        return npy_source(tmp_path, Columns(("u", "v"), "y", "err", "use"), chunk_size=size)
    if kind == "csv":
        table = np.column_stack([SIGMA, MASK, X[1], X[0], Y])
        np.savetxt(tmp_path / "d.csv", table, fmt="%.17g", delimiter=",", header="err,use,v,u,y", comments="")
        return csv_source(tmp_path / "d.csv", Columns(("u", "v"), "y", "err", "use"), chunk_size=size)
    x = {"hdf5": ("a/u", "a/v"), "hdf5-2d": ("both",), "hdf5-rows": ("rows",)}[kind]
    return Hdf5Source(
        write_hdf5(tmp_path / "d.h5"), Columns(x, columns.y, columns.sigma, columns.mask), chunk_size=size
    )


def test_every_source_gives_the_data_back(source):
    assert (source.n_points, source.n_chunks) == (N, 11)
    for _ in range(2):  # a second pass is the same as the first
        x, y, sigma, mask = whole(source)
        np.testing.assert_array_equal(x, X)
        np.testing.assert_array_equal(y, Y)
        np.testing.assert_array_equal(sigma, SIGMA)
        assert mask is None or (mask == MASK).all()


def test_every_source_can_be_read_from_any_chunk(source):
    expected = [source.read(i).y for i in range(11)]
    for index in (7, 2, 2, 10, 0):
        np.testing.assert_array_equal(source.read(index).y, expected[index])


def resident():
    """Bytes of this process in memory."""
    return int((Path("/proc/self/statm")).read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_maps_are_not_kept_in_memory(tmp_path):
    """20 MB are read through a map; what stays resident is a fraction of that."""
    big = np.lib.format.open_memmap(tmp_path / "y.npy", mode="w+", dtype=float, shape=(2_500_000,))
    big[:] = np.arange(big.size)
    del big
    y = np.load(tmp_path / "y.npy", mmap_mode="r")
    source, total, before = ArraySource(y, y, chunk_size=50_000), 0.0, resident()
    for _, chunk in prefetched(source, range(source.n_chunks)):
        total += chunk.y.sum()
    assert total == y.size * (y.size - 1) / 2
    assert resident() - before < 6e6
    part = ArraySource(y[10:20], y[10:20])  # a part of a map, and a private one, are read as what they are
    np.testing.assert_array_equal(part.read(0).y, np.arange(10.0, 20.0))
    private = np.load(tmp_path / "y.npy", mmap_mode="c")
    private[5] = -1
    assert ArraySource(private, private).read(0).y[5] == -1


def test_a_transposed_map_is_not_kept_in_memory(tmp_path):
    big = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=float, shape=(1_250_000, 2))
    big[:] = np.arange(len(big))[:, None]
    del big
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    source, total, before = ArraySource(x.T, np.zeros(len(x)), chunk_size=50_000), 0.0, resident()
    for _, chunk in prefetched(source, range(source.n_chunks)):
        total += chunk.x.sum()
    assert total == len(x) * (len(x) - 1)
    assert resident() - before < 6e6


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_map_with_a_row_per_point_is_read_through_its_file(tmp_path, order):
    """x of shape (m, k), as numpy saves tables, transposed to (k, m); and scipy's form with maps."""
    from tessera.lsq.fit_curve import curve_fit

    rows = np.require(X.T, requirements=order)
    np.save(tmp_path / "x.npy", rows)
    np.save(tmp_path / "y.npy", Y)
    x, y = (np.load(tmp_path / name, mmap_mode="r") for name in ("x.npy", "y.npy"))
    source = ArraySource(x.T, y, chunk_size=100)
    assert not source.in_memory
    np.testing.assert_array_equal(whole(source)[0], X)

    def plane(x, a, b, c):
        return a + b * x[0] + c * x[1]

    mapped, _ = curve_fit(plane, x.T, y, (0.0, 0.0, 0.0))
    given, _ = curve_fit(plane, X, Y, (0.0, 0.0, 0.0))
    np.testing.assert_allclose(mapped, given, rtol=1e-12)
    np.testing.assert_array_equal(ArraySource(x.T[:, 5:9], y[5:9]).read(0).x, X[:, 5:9])


def test_prefetched_in_order_and_ahead(source):
    threads = set()
    read = source.read

    class Spied:
        n_points, chunk_size, n_chunks = source.n_points, source.chunk_size, source.n_chunks

        def read(self, index):
            threads.add(threading.get_ident())
            return read(index)

    got = list(prefetched(Spied(), range(3, 9)))
    assert [i for i, _ in got] == list(range(3, 9))
    for index, chunk in got:
        np.testing.assert_array_equal(chunk.y, Y[100 * index : 100 * index + 100])
    assert threading.get_ident() not in threads
    assert len(threads) == 1


def test_prefetch_reads_the_next_chunk_while_this_one_is_used():
    """The second chunk is asked for before the first is handed out; a reader that lagged would wait for ever."""
    second = threading.Event()

    class Slow:
        n_points, chunk_size, n_chunks = 2, 1, 2

        def read(self, index):
            if index == 1:
                second.set()
            return index

    stream = prefetched(Slow(), range(2))
    next(stream)
    assert second.wait(10)
    stream.close()


def test_prefetch_hands_errors_on():
    class Broken:
        n_points, chunk_size, n_chunks = 3, 1, 3

        def read(self, index):
            if index == 1:
                msg = "no such luck"
                raise DataError(msg)
            return index

    stream = prefetched(Broken(), range(3))
    assert next(stream) == (0, 0)
    with pytest.raises(DataError, match="luck"):
        next(stream)


@pytest.mark.parametrize("change", [-1, 1, 250])
def test_generator_that_changes_length_is_noticed(change):
    calls = []

    def factory():
        calls.append(1)
        n = 300 + (change if len(calls) > 2 else 0)
        yield X[0, :n], Y[:n]

    source = GeneratorSource(factory, chunk_size=100)  # the first call counts
    whole(source)
    with pytest.raises(DataError, match=f"{300 + change} points in this pass but 300"):
        whole(source)


def test_generator_that_is_exhausted_says_so():
    once = iter([(X[0], Y)])
    with pytest.raises(DataError, match="same exhausted iterator"):
        GeneratorSource(lambda: ())
    source = GeneratorSource(lambda: once, n_points=N, chunk_size=500)
    whole(source)
    with pytest.raises(DataError, match="yields 0 points in this pass"):
        source.read(0)


class Changing:
    """A user's own source whose chunk 1 shrinks in the second pass."""

    n_points, chunk_size, n_chunks = 200, 100, 2
    passes = 0

    def read(self, index):
        self.passes += index == 0
        n = 90 if self.passes > 1 and index == 1 else 100
        return ArraySource(X[0, :n], Y[:n]).read(0)


def test_any_source_that_changes_length_is_noticed():
    guarded = Guarded(Changing())
    whole(guarded)
    with pytest.raises(DataError, match="chunk 1 has 90 points but 100 in an earlier pass"):
        whole(guarded)


def damaged(where="y"):
    x, y, sigma = X.copy(), Y.copy(), SIGMA.copy()
    {"y": y, "x": x[1], "sigma": sigma}[where][[512, 517]] = np.nan
    return ArraySource(x, y, sigma=sigma, mask=MASK | True, chunk_size=100)


@pytest.mark.parametrize("where", ["x", "y", "sigma"])
def test_nan_is_an_error_that_names_chunk_and_point(where):
    with pytest.raises(DataError, match=f"chunk 5 holds 2 points .* first in {where} at point 512.*nan_policy"):
        whole(Guarded(damaged(where)))


@pytest.mark.parametrize("where", ["x", "y", "sigma"])
def test_nan_masked_point_by_point_or_by_the_chunk(where):
    source = Guarded(damaged(where), "mask")
    x, y, sigma, _ = whole(source)
    chunk = source.read(5)
    assert np.flatnonzero(~chunk.mask).tolist() == [12, 17]
    assert np.isfinite(x).all()
    assert np.isfinite(y).all()
    assert (sigma > 0).all()
    assert source.left_out == {5: (2, where)}
    skipping = Guarded(damaged(where), "skip")
    assert not skipping.read(5).mask.any()
    assert skipping.read(4).mask.all()
    assert skipping.left_out == {5: (100, where)}


def test_masked_nan_is_nobodys_business():
    y = np.where(MASK, Y, np.nan)
    source = Guarded(ArraySource(X, y, mask=MASK, chunk_size=100))
    _, filled, _, mask = whole(source)
    np.testing.assert_array_equal(mask, MASK)
    assert np.isfinite(filled).all()
    assert source.left_out == {}


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_sigma_must_be_positive(value):
    sigma = SIGMA.copy()
    sigma[733] = value
    with pytest.raises(DataError, match=r"sigma is .* at point 733 \(chunk 7, 1 such"):
        whole(Guarded(ArraySource(X, Y, sigma=sigma, chunk_size=100)))
    with pytest.raises(DataError, match="sigma"):
        whole(Guarded(ArraySource(X, Y, sigma=value, chunk_size=100)))


def test_float32_data_out_of_range_are_named():
    with np.errstate(over="ignore"):
        y = np.where(np.arange(N) == 800, 1e300, Y).astype(np.float32)
    with pytest.raises(DataError, match=r"point 800 \(float32 holds numbers up to 3.4e38"):
        whole(Guarded(ArraySource(X, y, chunk_size=100)))


@pytest.mark.parametrize(
    ("y", "fits"),
    [
        (Y, True),
        (Y * 1e300, False),
        (Y * 1e-300, False),
        (1.7e9 + Y, False),
        (np.full(N, 5.0), True),
        (Y.astype("f4"), True),
    ],
)
def test_data_that_float32_cannot_tell_apart_are_recognised(y, fits):
    guarded = Guarded(ArraySource(X, y, chunk_size=100))
    whole(guarded)
    assert guarded.single is fits


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X.T, Y), "transpose"),
        ((X[:, :-1], Y), "1037 points"),
        ((X, Y.reshape(17, 61)), "one-dimensional"),
        ((X[:, :0], Y[:0]), "no points"),
        ((X, Y + 1j), "complex128; a fit needs real numbers"),
        ((X[0], np.array(["a"] * N)), "real numbers"),
    ],
)
def test_arrays_that_do_not_fit(arguments, words):
    with pytest.raises(DataError, match=words):
        ArraySource(*arguments)


def test_as_source_takes_what_can_be_fitted():
    assert as_source((X, Y), sigma=SIGMA).n_points == N
    assert as_source(pieces(), chunk_size=100).n_chunks == 11
    assert as_source(Changing()).n_chunks == 2
    with pytest.raises(DataError, match="dict"):
        as_source({"x": X})
    with pytest.raises(DataError, match="sigma"):
        as_source(pieces(), sigma=SIGMA)


def test_timing_tree_adds_up():
    with phase("unheard"):
        pass
    with recorded() as tree:
        for _ in range(3):
            with phase("pass"), phase("I/O"):
                pass
        with phase("solve"):
            pass
    told = tree.as_dict()
    assert [p["name"] for p in told["parts"]] == ["pass", "solve"]
    assert told["parts"][0]["calls"] == told["parts"][0]["parts"][0]["calls"] == 3
    assert told["seconds"] >= sum(p["seconds"] for p in told["parts"])
    assert "I/O" in "\n".join(tree.lines())
