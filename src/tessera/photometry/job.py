"""The photometry job: check the inputs, load them once per node, and list the stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hpc.errors import InputError
from hpc.job import Job, Stage
from tessera.photometry.catalog import Catalog, CatalogReading, read_catalog
from tessera.photometry.errors import PhotometryInputError, PsfFileError
from tessera.photometry.frames import FrameSet, Preparation, prepare_frame, reference_gains
from tessera.photometry.headers import FrameHeader, check_grid, quiet_fits, read_header
from tessera.photometry.image_list import FrameEntry, read_image_list
from tessera.photometry.options import PhotometryOptions, Workers
from tessera.photometry.patches import cells_per_side, grid
from tessera.photometry.psf_files import read_psf
from tessera.photometry.select import Box, Selection, crop_box, near_saturated, require_sources
from tessera.photometry.sources import Kind
from tessera.photometry.stages import EpsfStage, Field, PatchStage, WhiteStage

if TYPE_CHECKING:
    from hpc.context import Context
    from hpc.report.view import RunView, Section
    from tessera.photometry.psf import PsfField


class PhotometryJob(Job):
    """Forced multi-band PSF photometry of a catalog on registered frames."""

    Options: ClassVar[type] = PhotometryOptions

    def __init__(self, options: PhotometryOptions) -> None:
        self.options = options
        self._field: Field | None = None

    @property
    def field(self) -> Field:
        """What `setup` loaded."""
        if self._field is None:
            msg = "the inputs are not loaded; call setup(ctx) first"
            raise RuntimeError(msg)
        return self._field

    def check(self) -> None:
        """Read all headers and the catalog, and see that every file is there and fits the others."""
        with explained():
            headers = self._headers()
            for header in headers:
                _require_files(header)
            catalog = self._catalog(headers)
            box = self._box(headers[0].shape)
            outside = ~box.holds(catalog.sources.x, catalog.sources.y)
            require_sources(Selection(outside, np.zeros_like(outside)), str(catalog.path), box)
            self._psfs(headers)
            _require_truth(self.options.inputs.truth)

    def inputs(self) -> Iterator[Path]:
        """Name the image list and the frames with their planes, the catalog, PSF files, and the truth of the report."""
        given = self.options
        yield from (given.inputs.image_list_file, given.inputs.input_catalog)
        if given.inputs.truth is not None:
            yield given.inputs.truth
        with explained():
            entries = self._entries()
        from_files = given.epsf.source == "file"
        for entry in entries:
            planes = (entry.image, entry.weight, entry.mask, entry.psf if from_files else None)
            yield from (path for path in planes if path is not None)
        if from_files:
            yield from given.epsf.files.values()

    def setup(self, ctx: Context) -> None:
        """Prepare the frames, shared by the ranks of each node, and select the sources."""
        options = self.options
        with explained():
            headers = self._headers()
            with ctx.timed("prep"):
                frames = self._frames(headers, ctx)
            catalog = self._catalog(headers)
            with ctx.timed("crop"):
                box = self._box(headers[0].shape)
                outside = ~box.holds(catalog.sources.x, catalog.sources.y)
            with ctx.timed("sat"):
                saturated = self._near_saturated(frames, catalog, ctx)
            selection = Selection(outside, saturated)
            require_sources(selection, str(catalog.path), box)
            psfs = self._psfs(headers)
        side = cells_per_side(box, options.epsf.epsf_ngrid)
        self._field = Field(
            options=options,
            headers=tuple(headers),
            gains=reference_gains(headers, options.image_scaling.zp_ref),
            frames=frames,
            catalog=catalog,
            selection=selection,
            box=box,
            cells=grid(box, side, side),
            psfs=psfs,
        )
        if ctx.rank == 0:
            _log_selection(self._field, ctx)

    def stages(self) -> Sequence[Stage]:
        """White stack, PSFs where they are built from the frames, patches."""
        epsf: list[Stage] = [EpsfStage(self)] if self.options.epsf.source == "build" else []
        return [WhiteStage(self), *epsf, PatchStage(self)]

    def report(self, run: RunView) -> Sequence[Section]:
        """Return the pictures of `tessera.photometry.report`."""
        from tessera.photometry.report import sections

        return sections(run)

    def _headers(self) -> list[FrameHeader]:
        headers = [read_header(entry, self.options.headers) for entry in self._entries()]
        checks = self.options.checks
        check_grid(headers, checks.wcs_tolerance_pix if checks.require_wcs_alignment else None)
        return headers

    def _entries(self) -> list[FrameEntry]:
        inputs, planes = self.options.inputs, self.options.planes
        return read_image_list(inputs.image_list_file, inputs.extension, planes.weight_replace, planes.mask_replace)

    def _catalog(self, headers: Sequence[FrameHeader]) -> Catalog:
        inputs, run = self.options.inputs, self.options.patch_run
        how = CatalogReading(inputs.columns, inputs.pixel_origin, Kind[run.gal_model.upper()], run.re_fallback_pix)
        return read_catalog(inputs.input_catalog, [h.band for h in headers], headers[0].wcs, how)

    def _box(self, shape: tuple[int, int]) -> Box:
        crop = self.options.crop
        return crop_box(shape, crop.margin if crop.enabled else 0)

    def _frames(self, headers: Sequence[FrameHeader], ctx: Context) -> FrameSet:
        how = Preparation(
            self.options.planes,
            self.options.background,
            self.options.image_scaling.zp_ref,
            self.options.source_saturation_cut.saturation_divisor,
        )
        bands, shape = len(headers), headers[0].shape

        def fill(memory: NDArray[Any], part: int, parts: int) -> None:
            frames = FrameSet.over(memory, bands, shape)
            mine = range(part, bands, parts)
            workers = thread_count(self.options.performance.frame_prep_workers, len(mine), ctx.threads)
            with quiet_fits(), ThreadPoolExecutor(workers) as pool:
                list(pool.map(lambda b: prepare_frame(headers[b], b, frames, how), mine))

        memory = ctx.shared((FrameSet.nbytes(bands, shape),), np.uint8, fill)
        return FrameSet.over(memory, bands, shape)

    def _near_saturated(self, frames: FrameSet, catalog: Catalog, ctx: Context) -> NDArray[np.bool_]:
        cut = self.options.source_saturation_cut
        if not cut.enabled:
            return np.zeros(len(catalog), bool)
        near = None
        if ctx.rank == 0:
            near = near_saturated(frames, catalog.sources, cut.radius_pix, require_all_bands=cut.require_all_bands)
        return np.asarray(ctx.ranks.bcast_arrays(None if near is None else {"near": near})["near"])

    def _psfs(self, headers: Sequence[FrameHeader]) -> tuple[PsfField, ...]:
        """Read the PSF models, where they come from files."""
        if self.options.epsf.source != "file":
            return ()
        given = self.options.epsf.files
        unknown = set(given) - {h.band for h in headers}
        if unknown:
            msg = (
                f"job.epsf.files names bands {', '.join(sorted(unknown))}, which no frame has; "
                f"the bands are {', '.join(h.band for h in headers)}"
            )
            raise PsfFileError(msg)
        return tuple(read_psf(_psf_path(header, given)) for header in headers)


def _psf_path(header: FrameHeader, given: dict[str, Path]) -> Path:
    path = header.entry.psf or given.get(header.band)
    if path is None:
        msg = (
            f"epsf.source is file but band {header.band} has no PSF file; add psf= to the line of "
            f"{header.entry.image} in the image list, or set job.epsf.files.{header.band}"
        )
        raise PsfFileError(msg)
    return path


def _require_files(header: FrameHeader) -> None:
    for name in ("weight", "mask", "psf"):
        path = getattr(header.entry, name)
        if path is not None and not path.is_file():
            msg = (
                f"{name} file {path} of frame {header.entry.image} does not exist; "
                "correct it in the image list or in job.planes"
            )
            raise PhotometryInputError(msg)


def _require_truth(path: Path | None) -> None:
    if path is not None and not path.is_file():
        msg = f"job.inputs.truth names {path}, which is not there; correct it, or leave it out: only the report uses it"
        raise PhotometryInputError(msg)


def _log_selection(field: Field, ctx: Context) -> None:
    chosen = field.selection
    ctx.log.info(
        "Active (non-excluded) sources: %d/%d (off the cropped frame: %d, near saturated pixels: %d)",
        np.count_nonzero(field.active),
        len(field.catalog),
        np.count_nonzero(chosen.excluded_crop),
        np.count_nonzero(chosen.excluded_saturation),
    )


def thread_count(setting: Workers, items: int, threads: int) -> int:
    """Return the threads for some items: ``auto`` is one each, within this process's thread budget."""
    return max(1, min(items, threads if setting == "auto" else min(setting, threads)))


@contextmanager
def explained() -> Iterator[None]:
    """Hand errors about the inputs to the engine as what they are, without a traceback for the user."""
    try:
        yield
    except PhotometryInputError as error:
        raise InputError(str(error)) from error
