"""Write the results of a study: the original's files, one HDF5 file, the features of the passes, small pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hpc.job import Results
from hpc.store.atomic import write_atomically
from tessera.mcdropout import outputs
from tessera.mcdropout.experiments.design import Arm, Study
from tessera.mcdropout.stages import Ready, stage_name
from tessera.mcdropout.tables import Place
from tessera.mcdropout.workbench import schedule_of

if TYPE_CHECKING:
    from hpc.context import Context

_THUMBNAIL: Final = 96


def write_results(study: Study, job: Ready, steps: int, ctx: Context) -> None:
    """Write everything below ``results``.

    Parameters
    ----------
    study
        Of all stages.
    job
        What was loaded.
    steps
        How many stages of trials there were.
    ctx
        Of rank 0.
    """
    folder = ctx.results_dir
    files = job.subject.experiment.export(study)
    for name, arrays in files.npz.items():
        _write(folder / name, lambda p, a=arrays: outputs.write_npz(p, a))
    for name, record in files.json.items():
        _write(folder / name, lambda p, r=record: outputs.write_json(p, r))
    _write(folder / "summary.json", lambda p: outputs.write_json(p, outputs.summary(study)))
    facts = _facts(study, job)
    groups = [*_sites(study, job), *_thumbnails(study), *_ambiguity(study)]
    _write(folder / outputs.TABLES, lambda p: outputs.write_hdf5(p, study, facts, groups))
    if facts["bad_images"]:
        _write(folder / "bad_images.json", lambda p: outputs.write_json(p, facts["bad_images"]))
    if study.settings.options.outputs.features:
        arms = {key: table.arm for key, table in study.tables.items()}
        stages = [ctx.results(stage_name(step)) for step in range(steps)]
        _write(folder / outputs.FEATURES, lambda p: write_features(p, study, arms, stages))
    for model, reason in study.skipped.items():
        ctx.log.warning("model %s has no results: %s", model, reason)
    ctx.log.info("decision: %s", outputs.summary(study)["decision"])


def _write(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def _facts(study: Study, job: Ready) -> dict[str, Any]:
    options = study.settings.options
    models = {}
    for name in study.done():
        loaded = job.bench.model(name)
        sums = {} if loaded.files is None else loaded.files.sha256()
        models[name] = {**loaded.provenance, "sha256": sums, "remarks": list(loaded.remarks)}
    return {
        "experiment": options.experiment,
        "models": models,
        "skipped": dict(study.skipped),
        "classes": list(study.classes),
        "styles": list(study.styles),
        "bad_images": {study.paths[i]: reason for i, reason in job.bad_images().items()},
        "rng": options.perturbation.rng,
        "masks": options.perturbation.masks,
        "form": job.bench.form,
        "compat": options.perturbation.compat,
        "precision": options.performance.precision,
        "device": str(job.bench.device),
        "batch_size": dict(job.bench.micro_batches),
        "pass_block": options.performance.pass_block,
        "variances": "trace_pre, trace_post: divided by T (biased); names with unbiased, and geometry: by T - 1",
    }


def _sites(study: Study, job: Ready) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Yield the site table of every arm as columns."""
    for key, table in study.tables.items():
        rows = schedule_of(table.arm, job.bench.architecture(table.arm.model)).table()
        yield f"sites/{key}", {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _ambiguity(study: Study) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    for model, found in study.ambiguity.items():
        yield f"ambiguity/{model}", asdict(found)


def _thumbnails(study: Study) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Yield small pictures of the images of lowest and highest trace of each model's first arm, lowest first."""
    number = study.settings.options.outputs.thumbnails
    for model in study.done():
        table = study.of(model)[0]
        if number == 0 or table.arm.tower != "vision":
            continue
        order = np.argsort(table.trials("trace_pre").mean(axis=0), kind="stable")
        chosen = (
            order if order.size <= number else np.concatenate([order[: number // 2], order[-(number - number // 2) :]])
        )
        pictures = [_small(study.paths[table.images[i]]) for i in chosen]
        yield f"thumbnails/{model}", {"rows": chosen, "pictures": np.stack(pictures)}


def _small(path: str) -> NDArray[np.uint8]:
    from PIL import Image

    canvas = np.full((_THUMBNAIL, _THUMBNAIL, 3), 255, np.uint8)
    try:
        with Image.open(path) as image:
            scale = _THUMBNAIL / max(image.size)
            small = image.convert("RGB").resize([max(1, round(scale * side)) for side in image.size])
    except OSError:  # moved since it was read: the report shows an empty field
        return canvas
    pixels = np.asarray(small)
    top, left = ((_THUMBNAIL - n) // 2 for n in pixels.shape[:2])
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


def write_features(path: Path, study: Study, arms: dict[str, Arm], stages: list[Results]) -> None:
    """Write the features of all passes, a unit at a time.

    Parameters
    ----------
    path
        New file; ``ARM/trial000`` is (T, N, D) float32, its images are those of the arm's table.
    study, arms
        What was computed.
    stages
        The stages' results.
    """
    from hpc import new_hdf5

    with new_hdf5(path) as file:
        for results in stages:
            for unit, arrays in results.items():
                place = Place.of(unit)
                if place.arm not in arms or "features" not in arrays:
                    continue
                arm, values = arms[place.arm], arrays["features"]
                name = f"{place.arm}/trial{place.trial:03d}"
                if name not in file:
                    images = len(study.tables[place.arm].images)
                    whole = (arm.passes[-1], images, values.shape[2])
                    data = file.create_dataset(name, whole, np.float32, chunks=values.shape, fletcher32=True)
                    data.attrs["seed"] = arm.seeds[place.trial]
                file[name][place.start : place.stop, place.first : place.end] = values
