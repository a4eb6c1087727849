"""The pixel cache: the same bits however it is built, and nothing unusual passes unsaid."""

import errno
import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tessera.mcdropout import pixels
from tessera.mcdropout.errors import ImageError
from tessera.mcdropout.images import read_image
from tessera.mcdropout.pixel_plan import PixelPlan
from tessera.mcdropout.pixels import Block, PixelCache, build, build_block, finish, open_cache, prepare
from tessera.mcdropout.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess

CLIP = Preprocess(32, "crop", "bicubic", OPENAI_MEAN, OPENAI_STD, "even")


def levels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    for i in range(11):
        Image.fromarray(levels(i, 40 + i, 60, 3)).save(path / f"{i:02d}.png")
    return path


def plan_of(folder: Path, **changes) -> PixelPlan:
    return PixelPlan(tuple(sorted(folder.iterdir())), CLIP, folder.parent / "cache", "run1", **changes)


def expected(plan: PixelPlan) -> np.ndarray:
    return np.stack([CLIP.levels(Image.open(path).convert("RGB")) for path in plan.paths])


@pytest.mark.parametrize(("block", "threads"), [(3, 1), (4, 3), (64, 2)])
def test_the_cache_holds_what_the_model_sees(folder, block, threads):
    plan, ticks = plan_of(folder), []
    cache = build(plan, plan.key(), block=block, threads=threads, tick=ticks.append)
    assert np.array_equal(cache.levels, expected(plan))
    assert cache.levels.dtype == np.uint8
    assert not cache.levels.flags.writeable
    assert cache.usable().tolist() == list(range(11))
    assert ticks[-1] == 11
    again = open_cache(plan, plan.key(), verify=True)
    assert np.array_equal(again.levels, cache.levels)
    with h5py.File(again.where) as file:
        assert np.array_equal(file["levels"], cache.levels)
        assert json.loads(file.attrs["preprocess"])["interpolation"] == "bicubic"
        assert file["paths"].asstr()[3] == str(plan.paths[3])
    assert [path.name for path in plan.folder.iterdir()] == [f"pixels-{plan.key()}.h5"]


def test_blocks_come_from_any_process_in_any_order_and_again(folder):
    plan = plan_of(folder)
    key = plan.key()
    prepare(plan, key)
    prepare(plan, key)
    script = (
        "import sys, json; from pathlib import Path; from tessera.mcdropout.pixel_plan import *; from tessera.mcdropout.pixels import *; "
        "from tessera.mcdropout.preprocess import *; "
        f"plan = PixelPlan(tuple(sorted(Path({str(folder)!r}).iterdir())), Preprocess(**json.loads(sys.argv[1])), "
        f"Path({str(plan.folder)!r}), 'run1'); build_block(plan, plan.key(), 8, 11); build_block(plan, plan.key(), 4, 8)"
    )
    subprocess.run([sys.executable, "-c", script, json.dumps(CLIP.record())], check=True, timeout=60)
    blocks = [build_block(plan, key, start, stop) for start, stop in [(8, 11), (0, 4), (4, 8), (0, 4)]][:3]
    stored = [Block.of({name: np.array(value) for name, value in block.arrays().items()}) for block in blocks]
    assert np.array_equal(finish(plan, key, stored).levels, expected(plan))
    # A run that was killed after the last step asks again.
    assert np.array_equal(finish(plan, key, stored).levels, expected(plan))


def test_blocks_lost_with_a_machine_are_made_again(folder):
    plan = plan_of(folder)
    key = plan.key()
    prepare(plan, key)
    blocks = [build_block(plan, key, start, stop) for start, stop in plan.blocks(4)]
    with plan.unfinished(key).open("r+b") as file:
        file.seek(pixels._offset(plan.unfinished(key)) + 5 * 3 * 32 * 32)
        file.write(bytes(500))
    assert np.array_equal(finish(plan, key, blocks).levels, expected(plan))


def test_the_key_tells_what_the_pixels_depend_on(folder):
    plan = plan_of(folder)
    key = plan.key()
    assert plan_of(folder).key() == key
    assert replace(plan, preprocess=replace(CLIP, interpolation="bilinear")).key() != key
    assert replace(plan, paths=plan.paths[::-1]).key() != key
    assert replace(plan, odd="skip").key() != key
    assert replace(plan, token="run2", unreadable="refuse").key() == key
    image, kept = plan.paths[0], plan.paths[0].stat()
    os.utime(image, ns=(1, 1))
    touched = plan.key()
    assert touched != key
    image.write_bytes(image.read_bytes()[::-1])  # another of the same size, under the time of the first
    os.utime(image, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert plan.key() not in (key, touched)
    plan.paths[0].unlink()
    assert plan.key() != key
    assert open_cache(plan, key) is None


def test_a_damaged_cache_is_not_used(folder):
    plan = plan_of(folder)
    key = plan.key()
    path = Path(build(plan, key).where)
    whole = path.read_bytes()
    offset = pixels._offset(path)
    flipped = bytearray(whole)
    flipped[offset + 7 * 3 * 32 * 32] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(ImageError, match=r"images 0 to 10 do not hold what was written\); delete it"):
        open_cache(plan, key, verify=True)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="is damaged"):
        open_cache(plan, key)
    path.write_bytes(whole)
    other = plan.file("f" * 32)
    path.rename(other)
    with pytest.raises(ImageError, match="its key is"):
        open_cache(plan, "f" * 32)


def odd_images(folder: Path) -> dict[str, str]:
    """Write images of every odd kind; return what is said of them."""
    rgb = levels(1, 40, 50, 3)
    image = Image.fromarray(rgb)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png")
    image.convert("P").save(folder / "clear.png", transparency=bytes(range(256)))
    Image.fromarray(levels(2, 40, 50, 4)).save(folder / "alpha.png")
    image.save(folder / "anim.webp", save_all=True, append_images=[image.rotate(90)], duration=10)
    exif = Image.Exif()
    exif[274] = 6
    image.save(folder / "turned.jpg", exif=exif)
    return {
        "alpha.png": "transparency dropped",
        "anim.webp": "first frame of an animation",
        "clear.png": "transparency dropped, palette",
        "cmyk.jpg": "CMYK colours",
        "palette.png": "palette",
        "turned.jpg": "EXIF rotation ignored",
    }


def test_odd_images_are_read_as_the_original_reads_them_and_said(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    said = odd_images(path)
    Image.fromarray(levels(3, 40, 50)).save(path / "zgrey.png")
    plan = plan_of(path)
    cache = build(plan, plan.key())
    names = [p.name for p in plan.paths]
    assert {names[i]: text.split(": ", 1)[1][: len(said[names[i]])] for i, text in cache.remarks.items()} == said
    assert len(cache.usable()) == 7
    with pytest.warns(UserWarning, match="Transparency"):
        assert np.array_equal(cache.levels, expected(plan))

    skipping = replace(plan, odd="skip")
    assert build(skipping, skipping.key()).usable().tolist() == [6]
    refusing = replace(plan, odd="refuse")
    with pytest.raises(ImageError, match=r"6 of 7 images are refused:\n  .*alpha\.png: transparency dropped"):
        build(refusing, refusing.key())


def png_with_huge_sides() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 9) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunks + bytes(20)


def test_unreadable_images_are_said_and_left_out(folder):
    whole = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(whole[: len(whole) // 2])
    (folder / "04.png").write_bytes(b"")
    (folder / "05.png").write_text("<html>not found</html>")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    (folder / "06.png").write_bytes(flipped)
    (folder / "07.png").write_bytes(png_with_huge_sides())
    Image.fromarray(levels(1, 40, 50).astype(np.uint16) * 200).save(folder / "08.png")
    plan = plan_of(folder)
    (folder / "09.png").unlink()
    cache = build(plan, plan.key(), block=4)
    assert cache.usable().tolist() == [0, 1, 2, 10]
    assert sorted(cache.remarks) == list(range(3, 10))
    assert not cache.levels[3].any()
    assert "too large" in cache.remarks[7]
    assert "more than 8 bits" in cache.remarks[8]
    assert "09.png does not exist" in cache.remarks[9]
    with pytest.raises(ImageError, match=r"7 of 11 images are refused:\n  .*03\.png cannot be read"):
        open_cache(replace(plan, unreadable="refuse"), plan.key())


def test_a_thread_of_pixels_does_not_fill_the_memory(folder):
    Image.fromarray(levels(1, 1, 4000, 3)).save(folder / "00.png")
    plan = plan_of(folder)
    assert "would become 128000 along the longer side" in build(plan, plan.key()).remarks[0]


def test_a_full_disk_is_said(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plan = plan_of(folder)
    prepare(plan, plan.key())
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"No space left.* images 4 to 7 were written; free space and resume: .*building"):
        build_block(plan, plan.key(), 4, 8)


@pytest.mark.parametrize(("missing", "named"), [(0, "0 to 3"), (1, "4 to 7"), (2, "8 to 10")])
def test_a_block_that_was_not_made_is_missed(folder, missing, named):
    """Images without pixels would be black ones that count as good, with the remarks of their neighbours."""
    plan = plan_of(folder)
    key = plan.key()
    prepare(plan, key)
    blocks = [build_block(plan, key, start, stop) for start, stop in plan.blocks(4)]
    del blocks[missing]
    with pytest.raises(ImageError, match=f"images {named} were not made.* --retry-failed"):
        finish(plan, key, blocks)
    assert not plan.file(key).exists()


def test_every_damage_to_a_file_is_an_image_error_or_an_image(tmp_path):
    """Flip and cut bytes of every format: nothing but `ImageError` may come out, or one bad file would end a run."""
    image, rng = Image.fromarray(levels(1, 20, 30, 3)), np.random.default_rng(5)
    raised = 0
    for suffix in ("jpg", "png", "bmp", "webp"):
        path = tmp_path / f"a.{suffix}"
        image.save(path)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
            for at in rng.integers(0, len(damaged), 4):
                damaged[at] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            try:
                read_image(path)
            except ImageError:
                raised += 1
    assert raised > 40


def test_no_usable_image_is_an_error(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    (path / "a.jpg").write_bytes(b"no")
    plan = plan_of(path)
    with pytest.raises(ImageError, match="none of the 1 images can be used"):
        build(plan, plan.key())
    with pytest.raises(ImageError, match="the list of images is empty"):
        replace(plan, paths=()).key()


def test_too_small_a_disk_is_said_before_anything_is_written(folder, monkeypatch):
    plan = plan_of(folder)
    monkeypatch.setattr(pixels, "free_bytes", lambda _: plan.nbytes - 1)
    with pytest.raises(ImageError, match="or keep the pixels in memory"):
        prepare(plan, plan.key())
    assert not plan.folder.exists()
    memory = np.zeros(plan.shape, np.uint8)
    block = pixels.decode_block(plan, 0, memory, threads=2)
    cache = PixelCache(memory, block.status, block.remarks, CLIP, "memory")
    assert np.array_equal(cache.levels, expected(plan))
