"""Whatever a unit returns is stored as it is, or the unit is refused by name; the run goes on either way."""

from __future__ import annotations

import numpy as np
import pytest

from hpc.store.atomic import read_hdf5, write_hdf5
from hpc.store.compact import compact
from hpc.store.segments import Finished, Segment, scan, write_segment
from hpc.store.storable import storable

PAIR = np.dtype([("x", "f8"), ("n", "i4")])

GOOD = {
    "0-d": np.float64(3),
    "nothing": np.zeros((0, 3)),
    "no rows": np.zeros((3, 0), np.int8),
    "bool": np.array([True, False]),
    "half": np.ones(3, np.float16),
    "complex": np.array([1 + 2j]),
    "uint64": np.array([2**64 - 1], np.uint64),
    "bytes": np.array([b"a", b"bcd"]),
    "text": np.array(["", "ü", "語"]),
    "empty texts": np.array(["", ""]),
    "big-endian": np.arange(3, dtype=">f8"),
    "big-endian text": np.array(["ab", "ü"], dtype=">U2"),
    "structured": np.array([(1.5, 2), (2.5, 3)], PAIR),
    "aligned": np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "of arrays": np.zeros(2, [("a", "f4", (2, 2))]),
    "big-endian fields": np.array([(1, 2.5)], [("a", ">i4"), ("b", ">f8")]),
    "strided": np.arange(10)[::3],
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "list": [1, 2, 3],
    "unmasked": np.ma.masked_array([1.0, 2.0], [False, False]),
    "deep/name": np.ones(2),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_accepted_comes_back(tmp_path, name):
    arrays = storable({name: GOOD[name]})
    truth = np.asarray(GOOD[name])
    write_segment(tmp_path / "seg-1.h5", "s", [Finished("u", arrays, 0.1, 1, 0), Finished("v", arrays, 0.1, 1, 0)])
    write_hdf5(tmp_path / "gen.h5", arrays, {})
    for back in (Segment(tmp_path / "seg-1.h5")["v"][name], read_hdf5(tmp_path / "gen.h5")[0][name]):
        assert back.shape == truth.shape
        assert back.dtype.isnative
        np.testing.assert_array_equal(back, truth)
    compact(tmp_path, scan(tmp_path).home, tmp_path / "all.h5")


BAD = {
    "datetime64": ({"when": np.array(["2026-12-01"], "M8[s]")}, "'when' holds dates"),
    "timedelta64": ({"took": np.array([3], "m8[ms]")}, "'took' holds dates or times"),
    "date in a field": ({"row": np.zeros(1, [("t", "M8[s]")])}, "'row.t' holds dates"),
    "text in a field": ({"row": np.zeros(1, [("name", "U3")])}, "field 'name'"),
    "surrogates": ({"path": np.array(["a\udc80"])}, "'path' holds text with half characters"),
    "objects": ({"thing": np.array([None])}, "'thing' holds Python objects"),
    "objects in a field": ({"row": np.zeros(1, [("o", object)])}, "'row' holds Python objects"),
    "masked": ({"flux": np.ma.masked_array([1.0, 2.0], [False, True])}, "'flux' is a masked array"),
    "raw bytes": ({"raw": np.zeros(2, "V4")}, "'raw' is of type"),
    "no fields": ({"row": np.zeros(2, np.dtype([]))}, "'row' is of type"),
    "empty name": ({"": np.ones(1)}, "called ''"),
    "slash alone": ({"/": np.ones(1)}, "called '/'"),
    "trailing slash": ({"a/": np.ones(1)}, "called 'a/'"),
    "dots": ({"a/../b": np.ones(1)}, "called 'a/../b'"),
    "nul": ({"a\0b": np.ones(1)}, "called"),
    "odd name": ({"a\udc80": np.ones(1)}, "called"),
    "number as a name": ({3: np.ones(1)}, "called 3"),
    "one inside another": ({"a": np.ones(1), "a/b": np.ones(1)}, "'a/b' would lie inside the array 'a'"),
    "far inside another": ({"a/b/c": np.ones(1), "a": np.ones(1)}, "'a/b/c' would lie inside"),
    "ragged": ({"a": [[1], [1, 2]]}, ""),
    "nothing": (None, "NoneType instead of named arrays"),
    "an array": (np.ones(3), "ndarray instead of named arrays"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_stored_is_refused_by_name(case):
    arrays, words = BAD[case]
    with pytest.raises((TypeError, ValueError)) as caught:
        storable(arrays)
    assert words in str(caught.value)


def test_unequal_types_of_one_name_are_stored_side_by_side(tmp_path):
    """Structured types of one size were taken for the same and could not be put together."""
    other = np.dtype([("x", "i4"), ("n", "f8")])
    units = [
        Finished("u", {"row": np.array([(1.5, 2)], PAIR)}, 0.1, 1, 0),
        Finished("v", {"row": np.array([(7, 2.5)], other)}, 0.1, 1, 0),
        Finished("w", {"row": np.array([1.0])}, 0.1, 1, 0),
    ]
    write_segment(tmp_path / "seg-1.h5", "s", units)
    back = Segment(tmp_path / "seg-1.h5")
    for unit in units:
        assert back[unit.key]["row"].dtype == unit.arrays["row"].dtype
        np.testing.assert_array_equal(back[unit.key]["row"], unit.arrays["row"])
    compact(tmp_path, scan(tmp_path).home, tmp_path / "all.h5")
    from hpc import existing_hdf5

    with existing_hdf5(tmp_path / "all.h5") as file:
        groups = sorted(file["columns"])
        assert len(groups) == 3
        assert sorted(file[f"columns/{g}/data"].dtype.str for g in groups) == ["<f8", "|V12", "|V12"]


def test_a_unit_that_cannot_be_stored_is_quarantined_and_the_run_goes_on(toy):
    run = toy(units=6, steps=3, unstorable=["u00002"])
    assert run.code == 3
    record = run.json("checkpoints/squares/quarantine.json")
    assert list(record) == ["u00002"]
    assert "unit u00002 returned what cannot be stored: 'when' holds dates" in record["u00002"]["error"]
    assert run.text("results/squares.txt").startswith("5 ")


def test_a_loop_whose_state_cannot_be_stored_says_which_array(toy):
    run = toy(units=2, steps=3, unstorable=["walk"])
    assert run.code == 1
    assert "stage walk" in run.output
    assert "'when' holds dates or times" in run.output
