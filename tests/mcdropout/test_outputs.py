"""Files: equal data make equal bytes, JSON is plain, and HDF5 holds every column."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpc.options import build
from tessera.mcdropout import manifest, outputs
from tessera.mcdropout.errors import ImageError
from tessera.mcdropout.experiments.design import Arm, ArmTable, ByRecipe, Defaults, Study, settle
from tessera.mcdropout.options import McDropoutOptions
from tessera.mcdropout.tables import Place, pass_blocks, places


def study(trials: int = 3) -> Study:
    options = build(McDropoutOptions, {"data_dir": "images"})
    arm = Arm("clip/p0.01", "clip", ByRecipe("uniform", 0.01), tuple(range(trials)), (4, 16))
    rng = np.random.default_rng(0)
    columns = {(name, t): rng.random((trials, 5)) for name in ("trace_pre", "trace_post") for t in (4, 16)}
    table = ArmTable(arm, np.arange(5), columns, rng.random((5, 8)).astype(np.float32))
    settings = settle(options, Defaults(("clip",), 5, trials, (4, 16)))
    return Study(settings, tuple(f"é/{i}.png" for i in range(5)), {arm.key: table}, sites={arm.key: ["a", "b"]})


def test_npz_is_readable_and_has_the_same_bytes_every_time(tmp_path):
    arrays = {"paths": np.array(["é.png", "b.png"]), "trial_pre": np.arange(6.0).reshape(2, 3), "n": np.int64(4)}
    for name in ("a.npz", "b.npz"):
        outputs.write_npz(tmp_path / name, arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        for name, value in arrays.items():
            np.testing.assert_array_equal(read[name], value)


def test_npz_refuses_objects(tmp_path):
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        outputs.write_npz(tmp_path / "a.npz", {"a": np.array([{}])})


def test_json_has_null_where_a_number_is_not_finite(tmp_path):
    record = {"icc": float("nan"), "snr": np.float64("inf"), "n": np.int64(3), "p": (0.1, Path("a")), 4: [None]}
    outputs.write_json(tmp_path / "a.json", record)
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"icc": None, "snr": None, "n": 3, "p": [0.1, "a"], "4": [None]}


def test_hdf5_holds_every_column_and_its_meaning(tmp_path):
    made = study()
    outputs.write_hdf5(tmp_path / "a.h5", made, {"experiment": "exp0"}, [("sites/x", {"id": np.array(["ß"])})])
    with h5py.File(tmp_path / "a.h5") as file:
        arm = file["arms/clip/p0.01"]
        np.testing.assert_array_equal(arm["T0016/trace_pre"][:], made.tables["clip/p0.01"].trials("trace_pre"))
        np.testing.assert_array_equal(arm["T0004/trace_post"][:], made.tables["clip/p0.01"].trials("trace_post", 4))
        assert json.loads(arm.attrs["perturbation"])["p"] == 0.01
        assert json.loads(arm.attrs["seeds"]) == [0, 1, 2]
        assert file["paths"][0].decode() == "é/0.png"
        assert file["sites/x/id"][0].decode() == "ß"
        assert arm["T0016/trace_pre"].fletcher32


def test_summary_is_flat(tmp_path):
    found = outputs.summary(study())
    assert set(found) >= {"decision", "clip/p0.01.status", "clip/p0.01.snr", "clip/p0.01.trace_mean"}
    assert all(isinstance(v, str | float) for v in found.values())
    assert outputs.summary(Study(study().settings, (), {}))["decision"] == "no-go"


def test_units_cover_every_pass_of_every_image_once():
    arm = Arm("m/p0.01", "m", ByRecipe("uniform", 0.01), (1, 2), (4, 16, 64))
    assert pass_blocks(arm, None) == [(0, 64)]
    assert pass_blocks(arm, 10) == [
        (0, 4),
        (4, 10),
        (10, 16),
        (16, 20),
        (20, 30),
        (30, 40),
        (40, 50),
        (50, 60),
        (60, 64),
    ]
    listed = list(places(arm, 23, 8, 10))
    cells = np.zeros((2, 23, 64), int)
    for place in listed:
        assert Place.of(place.key) == place
        cells[place.trial, place.first : place.end, place.start : place.stop] += 1
    assert (cells == 1).all()
    assert [p.key for p in listed] == sorted(p.key for p in listed)


def test_manifests(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.txt", "sub/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = manifest.list_images(tmp_path)
    assert [Path(p).name for p in found] == ["a.jpg", "b.PNG", "d.webp"]
    rng = np.random.default_rng(42)
    many = [f"{i:03d}" for i in range(100)]
    assert manifest.sample_paths(many, 7, 42) == [many[i] for i in np.sort(rng.choice(100, size=7, replace=False))]
    assert manifest.sample_paths(many, 0, 42) == many
    path = tmp_path / "manifest.json"
    outputs.write_json(path, manifest.manifest_record(["a.jpg", str(tmp_path / "b.PNG")]))
    assert manifest.read_manifest(path) == [str(tmp_path / "a.jpg"), str(tmp_path / "b.PNG")]
    (tmp_path / "empty").mkdir()
    for text, word in (('{"paths": []}', "no list"), ("{", "cannot be read"), ('{"paths": ["x.png"]}', "not there")):
        path.write_text(text)
        with pytest.raises(ImageError, match=word):
            manifest.read_manifest(path)
    with pytest.raises(ImageError, match="holds no image"):
        manifest.list_images(tmp_path / "empty")
