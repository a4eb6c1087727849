"""Whatever is added to, taken from or linked into the folder of images: what a run looks at is as its inputs say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mcdropout.serial_run import options_of, picture_folder, tiny_model

from hpc.context import Context
from hpc.inputs import Inputs, differences, expanded, gathered, in_folders, look
from tessera.mcdropout import manifest
from tessera.mcdropout.errors import ImageError
from tessera.mcdropout.experiments import EXPERIMENTS
from tessera.mcdropout.job import McDropoutJob


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"), words=True)


def empty_class(pictures: Path) -> None:
    (pictures / "zebra").mkdir()


def empty_class_in_front(pictures: Path) -> None:
    (pictures / "ant").mkdir()


def new_class(pictures: Path) -> None:
    shutil.copytree(pictures / "cat", pictures / "dog")


def linked_class(pictures: Path) -> None:
    (pictures / "dog").symlink_to(pictures.parent / "more" / "dog")


def another_link(pictures: Path) -> None:
    (pictures / "linked").unlink()
    (pictures / "linked").symlink_to(pictures.parent / "more" / "dog")


def renamed_class(pictures: Path) -> None:
    (pictures / "none").rename(pictures / "nothing")


def class_gone(pictures: Path) -> None:
    (pictures / "none").rmdir()


def hidden_folder(pictures: Path) -> None:
    (pictures / ".cache").mkdir()


def one_more_image(pictures: Path) -> None:
    shutil.copy(min((pictures / "cat").iterdir()), pictures / "cat" / "zz.png")


def one_image_less(pictures: Path) -> None:
    min((pictures / "cat").iterdir()).unlink()


def note_beside(pictures: Path) -> None:
    (pictures / "readme.txt").write_text("x")


CHANGES = [
    value for value in list(globals().values()) if getattr(value, "__annotations__", {}).get("pictures") == "Path"
]


def inputs_of(job: McDropoutJob) -> Inputs:
    paths = expanded(job.inputs())
    return gathered(look(paths, {}, in_folders(paths)), in_folders(paths))


def looked_at(job: McDropoutJob, folder: Path) -> object:
    from tessera.mcdropout.experiments.design import settle

    folder.mkdir()
    found = job._subject_of(settle(job.options, job.experiment.defaults), Context(results_dir=folder))
    return found if isinstance(found, str) else (found.paths, found.classes, found.styles)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("experiment", ["exp0", "exp5", "groupwise", "text"])
def test_what_changes_the_subject_changes_the_inputs(
    experiment: str, change: Callable[[Path], None], model: Path, tmp_path: Path
):
    assert experiment in EXPERIMENTS
    pictures = tmp_path / "pictures"
    picture_folder(pictures, 6)
    picture_folder(tmp_path / "more", 3, ("dog", "cow"))
    (pictures / "linked").symlink_to(tmp_path / "more" / "cow")
    (pictures / "none").mkdir()
    job = McDropoutJob(options_of(pictures, model, experiment=experiment, passes=4))
    subject, before = looked_at(job, tmp_path / "first"), inputs_of(job)
    change(pictures)
    told = differences(before, inputs_of(job)).changed
    assert bool(told) >= (looked_at(job, tmp_path / "second") != subject)
    if change is note_beside:
        assert not told


def test_images_behind_links_are_found_once_and_loops_end(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in "a/1.png", "a/b/2.png":
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "links").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "to-c").symlink_to(tmp_path / "c")
    (tmp_path / "a" / "dangling").symlink_to("nowhere")
    found = [str(Path(p).relative_to(tmp_path)) for p in manifest.list_images(tmp_path)]
    assert found == ["a/1.png", "a/b/2.png", "c/links/1.png", "c/links/b/2.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_class_that_may_not_be_looked_into_is_not_left_out(tmp_path):
    picture_folder(tmp_path / "p", 4)
    (tmp_path / "p" / "cat").chmod(0)
    with pytest.raises(ImageError, match=r"cat cannot be listed \(Permission denied\)"):
        manifest.list_images(tmp_path / "p")
    (tmp_path / "p" / "cat").chmod(0o755)
