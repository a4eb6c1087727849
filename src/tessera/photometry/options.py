"""The options of the photometry job; ``conf/job/photometry.yaml`` is their documented default.

Names and defaults are tract7dt's where the thing still exists. What the engine does itself (processes, resume,
payload files) has no option here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from hpc.options import Range

Positive = Annotated[float, Range(gt=0)]
NonNegative = Annotated[float, Range(ge=0)]
Count = Annotated[int, Range(ge=1)]
Workers = Annotated[int, Range(ge=1)] | Literal["auto"]


@dataclass(frozen=True, slots=True)
class InputOptions:
    """Which frames and which sources."""

    image_list_file: Path
    input_catalog: Path
    truth: Path | None = None
    tile_name: str = ""
    extension: int | str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    pixel_origin: Annotated[int, Range(ge=0, le=1)] = 0


@dataclass(frozen=True, slots=True)
class HeaderOptions:
    """Where each value of a frame comes from: text is a header key, a number is the value, null is neither."""

    filter: str | None = "FILTER"
    zero_point: float | str | None = "ZP_AUTO"
    gain: float | str | None = "EGAIN"
    sky_sigma: float | str | None = "SKYSIG"
    saturation: float | str | None = "SATURATE"
    fwhm_pix: float | str | None = "PEEING"
    fwhm_arcsec: float | str | None = "SEEING"


@dataclass(frozen=True, slots=True)
class PlaneOptions:
    """Weight and mask planes that lie beside the frames."""

    weight_replace: tuple[str, str] | None = None
    mask_replace: tuple[str, str] | None = None
    weight_kind: Literal["inverse_variance", "variance", "sigma"] = "inverse_variance"
    mask_bits: Annotated[int, Range(ge=1)] | None = None


@dataclass(frozen=True, slots=True)
class ScalingOptions:
    """The common flux scale."""

    zp_ref: float = 25.0


@dataclass(frozen=True, slots=True)
class BackgroundOptions:
    """Subtraction of the sky from whole frames."""

    subtract: bool = False
    boxsize: Count = 64
    filtersize: Count = 3


@dataclass(frozen=True, slots=True)
class CropOptions:
    """The edge that is left out."""

    enabled: bool = True
    margin: Annotated[int, Range(ge=0)] = 0


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What has to hold between the frames."""

    require_wcs_alignment: bool = True
    wcs_tolerance_pix: Positive = 0.05


@dataclass(frozen=True, slots=True)
class SaturationOptions:
    """Sources that are too near to saturated pixels to be measured."""

    enabled: bool = True
    radius_pix: NonNegative = 20.0
    require_all_bands: bool = False
    saturation_divisor: Annotated[float, Range(ge=1)] = 1.3


@dataclass(frozen=True, slots=True)
class PerformanceOptions:
    """Threads inside one rank; they never change a result."""

    frame_prep_workers: Workers = "auto"
    white_stack_workers: Workers = "auto"


@dataclass(frozen=True, slots=True)
class EpsfOptions:
    """The point-spread function: where it comes from, and how it is built."""

    source: Literal["build", "file", "moffat", "gaussian"] = "build"
    files: dict[str, Path] = field(default_factory=dict)
    epsf_ngrid: Count | Literal["auto"] = "auto"
    skip_empty_epsf_patches: bool = True
    thresh_sigma: Positive = 10.0
    minarea: Count = 9
    q_range: tuple[Positive, Positive] = (0.7, 1.3)
    min_snr: NonNegative = 20.0
    max_neighbor_fraction: NonNegative = 0.02
    cutout_size: Annotated[int, Range(ge=11)] = 61
    edge_pad: Annotated[int, Range(ge=0)] = 0
    min_sep: NonNegative = 12.0
    max_stars: Count = 40
    min_epsf_nstars_for_use: Count = 4
    oversamp: Annotated[int, Range(ge=1, le=4)] | Literal["auto"] = "auto"
    maxiters: Count = 2
    do_clip: bool = True
    recenter_boxsize: Annotated[int, Range(ge=3)] = 5
    final_psf_size: Annotated[int, Range(ge=11)] = 55

    def __post_init__(self) -> None:
        for name in ("cutout_size", "final_psf_size", "recenter_boxsize"):
            if getattr(self, name) % 2 == 0:
                msg = f"{name} must be odd, so that the PSF has a central pixel; give {getattr(self, name) + 1}"
                raise ValueError(msg)
        if self.q_range[0] >= self.q_range[1]:
            msg = f"q_range is [low, high] with low < high, not {list(self.q_range)}"
            raise ValueError(msg)
        if self.final_psf_size > self.cutout_size:
            msg = (
                f"final_psf_size {self.final_psf_size} is larger than cutout_size {self.cutout_size}; "
                "the PSF is cut from the stamps of the stars, so make cutout_size at least as large"
            )
            raise ValueError(msg)
        if self.source != "file" and self.files:
            msg = f"files are given but source is {self.source!r}; set source: file to use them"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class MoffatOptions:
    """The analytic PSF where none is built."""

    beta: Annotated[float, Range(gt=1)] = 3.5
    fwhm_default_pix: Positive = 4.0


@dataclass(frozen=True, slots=True)
class PatchOptions:
    """How the frame is cut into patches."""

    patch_size: Annotated[int, Range(ge=16)] = 160
    halo_pix_min: Annotated[int, Range(ge=0)] = 20


@dataclass(frozen=True, slots=True)
class PatchRunOptions:
    """The fit of a patch."""

    gal_model: Literal["exp", "dev", "star"] = "exp"
    n_opt_iters: Count = 20
    dlnp_stop: Positive = 1e-3
    pos_max_shift_pix: Positive = 5.0
    fit_sky: bool = True
    fit_shapes: bool = True
    re_fallback_pix: Positive = 3.0


@dataclass(frozen=True, slots=True)
class DiagnosticOptions:
    """What is kept for looking at."""

    save_models: Annotated[int, Range(ge=0)] = 9
    display_downsample: Count | Literal["auto"] = "auto"


@dataclass(frozen=True, slots=True)
class PhotometryOptions:
    """All options of the job."""

    inputs: InputOptions
    headers: HeaderOptions = HeaderOptions()
    planes: PlaneOptions = PlaneOptions()
    image_scaling: ScalingOptions = ScalingOptions()
    background: BackgroundOptions = BackgroundOptions()
    crop: CropOptions = CropOptions()
    checks: CheckOptions = CheckOptions()
    source_saturation_cut: SaturationOptions = SaturationOptions()
    performance: PerformanceOptions = PerformanceOptions()
    epsf: EpsfOptions = EpsfOptions()
    moffat_psf: MoffatOptions = MoffatOptions()
    patches: PatchOptions = PatchOptions()
    patch_run: PatchRunOptions = PatchRunOptions()
    diagnostics: DiagnosticOptions = DiagnosticOptions()
