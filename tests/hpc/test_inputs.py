"""What identifies input files: every way in which one may become another, and what costs nothing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from hpc import inputs
from hpc.inputs import Differences, FolderNames, Inputs, differences, expanded, gathered, in_folders, look


def found(*paths: Path | FolderNames, known: Inputs | None = None) -> Inputs:
    listed = expanded(paths)
    folders = in_folders(listed)
    return gathered(look(listed, known.files if known else {}, folders), folders)


def age(*paths: Path) -> None:
    """Let some time pass since files were written, as far as the clock's coarseness goes."""
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))
    time.sleep(0.01)


@pytest.fixture
def pair(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Two files of one size and one time; what was written just now is trusted like old files."""
    monkeypatch.setattr(inputs, "_COARSE", 0)
    files = tmp_path / "a", tmp_path / "b"
    for file, letter in zip(files, "xy", strict=True):
        file.write_text(letter * 1000)
    age(*files)
    return files


def change(kind: str, a: Path, b: Path) -> None:
    if kind == "size":
        a.write_text("x" * 1001)
    elif kind == "content":
        a.write_text("x" * 999 + "z")
    elif kind == "content under the old time":
        a.write_text("x" * 999 + "z")
        os.utime(a, ns=(10**18, 10**18))
    elif kind == "gone":
        a.unlink()
    elif kind == "swapped":
        a.rename(a.with_name("c"))
        b.rename(a)
        a.with_name("c").rename(b)
    elif kind == "link to another":
        a.unlink()
        a.symlink_to(b)
    elif kind == "a folder":
        a.unlink()
        a.mkdir()
    elif kind == "a named pipe":
        a.unlink()
        os.mkfifo(a)
    elif kind == "a device":
        a.unlink()
        a.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("size", ["has 1001 bytes and had 1000"]),
        ("content", ["has other content of the same size"]),
        ("content under the old time", ["has other content of the same size"]),
        ("gone", ["is not there"]),
        ("swapped", ["has other content of the same size"] * 2),
        ("link to another", ["has other content of the same size"]),
        ("a folder", ["is not there any more"]),
        ("a named pipe", ["cannot be read (it is a named pipe, not a file)"]),
        ("a device", ["cannot be read (it is a device, not a file)"]),
    ],
)
def test_every_change_of_a_file_is_named(pair, kind, told):
    before = found(*pair)
    change(kind, *pair)
    now = differences(before, found(*pair, known=before))
    where = pair if len(told) == 2 else pair[:1]
    if kind != "a folder":
        assert now.changed == tuple(f"{p}: {t}" for p, t in zip(where, told, strict=True))
    assert str(pair[0]) in now.changed[0]


def test_touched_copied_and_moved_files_are_the_same(pair):
    a, b = pair
    before = found(a, b)
    a.touch()
    b.rename(b.with_name("c"))
    b.write_bytes(b.with_name("c").read_bytes())
    now = found(a, b, known=before)
    said = differences(before, now)
    assert not said.changed
    assert not said.doubted
    assert said.touched
    assert not differences(now, found(a, b, known=now)).touched


def test_what_nothing_was_done_to_is_not_read_again(pair, monkeypatch):
    before = found(*pair)
    monkeypatch.setattr(inputs, "digest_of", lambda path: pytest.fail(f"{path} was read"))
    assert found(*pair, known=before) == before


def test_a_file_written_a_moment_ago_is_read_again(tmp_path):
    file = tmp_path / "young"
    file.write_text("x")
    assert found(file).files[str(file)].ctime == 0


def test_a_folder_stands_for_its_files(tmp_path):
    for name in "one", "below/two", ".hidden", ".git/three":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = found(tmp_path)
    assert [Path(p).name for p in before.files] == ["two", "one"]
    (tmp_path / "below" / "four").write_text("4")
    (tmp_path / "one").unlink()
    told = differences(before, found(tmp_path)).changed
    assert told == (
        f"{tmp_path}/below/four: is an input now and was none",
        f"{tmp_path}/one: is not there any more",
    )


def test_names_of_folders_are_an_input(tmp_path):
    names = FolderNames(tmp_path / "d")
    assert differences(found(names), found(names)).changed == (f"{tmp_path}/d/: is not there",)
    for name in "a", "b":
        (tmp_path / "d" / name).mkdir(parents=True)
    (tmp_path / "d" / "file").touch()
    before = found(names)
    again = Inputs.from_json(json.loads(json.dumps(before.as_json())))
    assert again == before
    assert (before.count, before.nbytes) == (1, 0)
    (tmp_path / "d" / "another file").touch()
    (tmp_path / "d" / "a" / "below").mkdir()
    assert differences(before, found(names, known=before)) == Differences()
    (tmp_path / "d" / "c").symlink_to("a")
    assert differences(before, found(names)).changed == (
        f"{tmp_path}/d/: holds 3 folders, whose names count, and held 2",
    )
    (tmp_path / "d" / "b").rmdir()
    assert differences(before, found(names)).changed == (f"{tmp_path}/d/: the names of its 2 folders are others",)


def test_links_to_folders_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_text("f")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("../real")
    (tmp_path / "real" / "loop").symlink_to("../in")
    before = found(tmp_path / "in")
    assert list(before.files) == [f"{tmp_path}/in/link/f"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "f").write_text("g")
    (tmp_path / "in" / "link").unlink()
    (tmp_path / "in" / "link").symlink_to("../other")
    assert differences(before, found(tmp_path / "in", known=before)).changed


def test_large_files_are_sampled_from_first_to_last_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "WHOLE", 1 << 20)
    monkeypatch.setattr(inputs, "BLOCKS", 16)
    monkeypatch.setattr(inputs, "BLOCK", 1 << 10)
    monkeypatch.setattr(inputs, "_COARSE", 0)
    file = tmp_path / "large"
    content = np.random.default_rng(1).bytes(1_500_000)
    file.write_bytes(content)
    before = found(file)
    assert before.files[str(file)].digest.startswith("sampled:")
    for at in 0, len(content) - 1:
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert differences(before, found(file, known=before)).changed
    file.write_bytes(content[:2000] + bytes(100_000) + content[102_000:])  # wider than the distance of two blocks
    assert differences(before, found(file, known=before)).changed
    file.write_bytes(content)
    time.sleep(0.02)
    before = found(file)
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    doubt = f"{file}: was written to or moved; its size and the blocks that were read are as before"
    file.write_bytes(content[:2000] + b"!" + content[2001:])  # between the blocks: it is said that this is not known
    for ns in None, times:  # also where the old time was put back
        if ns:
            os.utime(file, ns=ns)
        said = differences(before, found(file, known=before))
        assert (said.changed, said.doubted) == ((), (doubt,))
    now = found(file, known=before)
    assert not differences(now, found(file, known=now)).doubted


def test_very_many_files_are_recorded_by_folder_and_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MANY", 40)
    monkeypatch.setattr(inputs, "_FEW_IN_A_FOLDER", 5)
    pictures, weights = tmp_path / "pictures", tmp_path / "weights"
    for folder, number in (pictures, 50), (weights, 2):
        folder.mkdir()
        for n in range(number):
            (folder / f"{n:03d}").write_text("x")
    before = found(pictures, weights)
    assert (before.count, before.nbytes, len(before.files), len(before.folders)) == (52, 52, 2, 1)
    assert Inputs.from_json(before.as_json()) == before
    assert not differences(before, found(pictures, weights)).changed
    (pictures / "007").write_text("y")
    assert differences(before, found(pictures, weights)).changed == (
        f"{pictures}: names or times of its 50 inputs are others (so many are not read)",
    )
    (pictures / "007").unlink()
    assert "has 49 inputs of 49 bytes and had 50 of 50" in differences(before, found(pictures, weights)).changed[0]
