"""Which images an experiment looks at: listed, drawn and written down as mcdo-vlm-uncertainty does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpc.inputs import files_below
from hpc.store.plain import read_json
from tessera.mcdropout.errors import ImageError

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def list_images(data_dir: Path) -> list[str]:
    """Return all image files below a folder, sorted by their paths; links to folders are followed.

    Raises
    ------
    ImageError
        If the folder is missing or holds no image, or a folder in it cannot be listed.
    """
    if not data_dir.is_dir():
        msg = f"job.data_dir {data_dir} is not a folder; give the folder of images"
        raise ImageError(msg)
    try:
        paths = sorted(p for p in files_below(data_dir) if Path(p).suffix.lower() in SUFFIXES and Path(p).is_file())
    except OSError as error:
        msg = f"job.data_dir {error.filename} cannot be listed ({error.strerror}); see that it may be read"
        raise ImageError(msg) from error
    if not paths:
        msg = f"job.data_dir {data_dir} holds no image ({', '.join(sorted(SUFFIXES))}); give the folder of images"
        raise ImageError(msg)
    return paths


def sample_paths(paths: Sequence[str], number: int, seed: int) -> list[str]:
    """Return some of the paths, drawn without replacement, in their order; all for 0 or more than there are."""
    if number <= 0 or number >= len(paths):
        return list(paths)
    chosen = np.random.default_rng(seed).choice(len(paths), size=number, replace=False)
    return [paths[i] for i in np.sort(chosen)]


def read_manifest(path: Path) -> list[str]:
    """Return the paths of a manifest ``{"num_images": …, "paths": […]}``; relative ones are below its folder.

    Raises
    ------
    ImageError
        If it cannot be read, holds no paths, or names a file that is not there.
    """
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        msg = f'manifest {path} cannot be read ({error}); it has to be JSON with a list "paths"'
        raise ImageError(msg) from error
    paths = record.get("paths") if isinstance(record, dict) else None
    if not isinstance(paths, list) or not paths or not all(isinstance(p, str) for p in paths):
        msg = f'manifest {path} holds no list "paths" of images; write one such as {{"paths": ["a.png"]}}'
        raise ImageError(msg)
    found = [str(path.parent / p) for p in paths]
    missing = [p for p in found if not os.path.isfile(p)]  # noqa: PTH113 - the method raises for long names
    if missing:
        msg = f"manifest {path} names {len(missing)} files that are not there, such as {missing[0]}; correct the paths"
        raise ImageError(msg)
    return found


def manifest_record(paths: Sequence[str]) -> dict[str, Any]:
    """Return a manifest as the original writes it."""
    return {"num_images": len(paths), "paths": list(paths)}


def class_folders(data_dir: Path, paths: Sequence[str]) -> list[str]:
    """Return the names of the classes' folders: those directly below ``data_dir``, else those the images lie in."""
    folders = sorted(p.name for p in data_dir.iterdir() if p.is_dir())
    return folders or sorted({Path(p).parent.name for p in paths})
