"""The records that go into a patch fit and come out of it.

All positions are 0-based frame pixels (the centre of the first pixel is 0), all fluxes and images are
counts at the common zero point, all radii are pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Kind(IntEnum):
    """What is drawn for a source."""

    STAR = 0
    """A point."""
    EXP = 1
    """An exponential disk, not truncated."""
    DEV = 2
    """A de Vaucouleurs profile, softened in the core and cut off at 8 half-light radii."""


STAR: Final = Kind.STAR
EXP: Final = Kind.EXP
DEV: Final = Kind.DEV


@dataclass(frozen=True)
class PatchPixels:
    """A cut-out of all bands on one pixel grid.

    Attributes
    ----------
    x0, y0
        Frame pixel of ``image[:, 0, 0]``.
    image
        Shape (B, h, w), sky-subtracted reference counts. Pixels that are not finite are not used.
    sky_variance
        Shape (B, h, w), counts², without the noise of the sources. A pixel counts only where this is
        finite and above zero: ``inf`` marks NaN, masked and saturated pixels.
    gain
        Shape (B,), electrons per reference count, for the Poisson noise of the sources; ``inf`` for none.
    """

    x0: int
    y0: int
    image: NDArray[np.floating]
    sky_variance: NDArray[np.floating]
    gain: Floats

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.sky_variance.shape != self.image.shape:
            msg = (
                f"patch image has shape {self.image.shape} and its sky variance {self.sky_variance.shape}; "
                "give both the same shape (bands, rows, columns)"
            )
            raise ValueError(msg)
        if self.gain.shape != self.image.shape[:1] or not np.all(self.gain > 0):
            msg = f"patch gain is {self.gain}; give one number above zero for each band (inf: no noise)"
            raise ValueError(msg)


@dataclass(frozen=True)
class Sources:
    """The sources whose light reaches a patch, those of its halo and those just outside of it included.

    A source that is left out although its wings reach the pixels is taken for sky and for its neighbours.

    Attributes
    ----------
    x, y
        Shape (n,), where the fit starts.
    kind
        Shape (n,), codes of `Kind`.
    flux
        Shape (n, B), first guess; NaN where there is none. Fluxes are linear, so that a guess only serves to
        weight the pixels of the first solution.
    re, ab, theta
        Shape (n,), half-light radius along the major axis, axis ratio b/a and position angle of the major
        axis in degrees counter-clockwise from +x. Not used for stars; where they are not finite, or not
        above zero, a small round galaxy is taken.
    position_sigma
        Shape (n,), standard deviation per axis of a Gaussian prior on the position; ``inf`` for none.
    """

    x: Floats
    y: Floats
    kind: Ints
    flux: Floats
    re: Floats
    ab: Floats
    theta: Floats
    position_sigma: Floats

    def __post_init__(self) -> None:
        n = len(self.x)
        for name in ("y", "kind", "re", "ab", "theta", "position_sigma"):
            if getattr(self, name).shape != (n,):
                msg = f"sources: {name} has shape {getattr(self, name).shape}; x has ({n},): give one value a source"
                raise ValueError(msg)
        if self.flux.ndim != 2 or len(self.flux) != n:
            msg = f"sources: flux has shape {self.flux.shape}; give (n sources, bands) = ({n}, B)"
            raise ValueError(msg)
        if not np.isin(self.kind, list(Kind)).all():
            msg = (
                f"sources: kind holds {np.unique(self.kind)}; valid: {', '.join(f'{k.value} ({k.name})' for k in Kind)}"
            )
            raise ValueError(msg)
        if not np.all(self.position_sigma > 0):
            row = int(np.argmin(self.position_sigma > 0))
            msg = f"sources: position_sigma[{row}] is {self.position_sigma[row]}; it must be above zero (inf: no prior)"
            raise ValueError(msg)

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class FitOptions:
    """How long and how freely a patch is fitted.

    Attributes
    ----------
    n_opt_iters
        Most steps of the joint fit.
    dlnp_stop
        A source is done when its next step would raise ln P by less than this: 1e-3 is a step of 0.045 sigma.
    pos_max_shift_pix
        Half-side of the box around the first position that a source may not leave.
    fit_sky
        Fit one constant per band beside the sources.
    fit_shapes
        Fit radius, axis ratio and angle of galaxies; otherwise they stay as given.
    shear_sigma
        Standard deviation of a Gaussian prior on each component of ``ln(a/b) (cos 2t, sin 2t)`` around a round
        shape: 1 is b/a = 0.37. Keeps noise from squeezing faint galaxies to needles; ``inf`` for none.
    re_min_pix, re_max_pix
        Bounds of the geometric mean of the two half-light radii.
    """

    n_opt_iters: int = 20
    dlnp_stop: float = 1e-3
    pos_max_shift_pix: float = 5.0
    fit_sky: bool = True
    fit_shapes: bool = True
    shear_sigma: float = 1.0
    re_min_pix: float = 0.1
    re_max_pix: float = 50.0

    def __post_init__(self) -> None:
        for name in ("n_opt_iters", "dlnp_stop", "pos_max_shift_pix", "shear_sigma", "re_min_pix"):
            if not getattr(self, name) > 0:
                msg = f"{name} is {getattr(self, name)}; it must be above zero"
                raise ValueError(msg)
        if not self.re_max_pix > self.re_min_pix:
            msg = f"re_max_pix is {self.re_max_pix}; it must be above re_min_pix = {self.re_min_pix}"
            raise ValueError(msg)


@dataclass(frozen=True)
class PatchFit:
    """What was measured; sources in the order of `Sources`, halo sources included.

    Attributes
    ----------
    flux, flux_err
        Shape (n, B). NaN in a band where less than 0.1 % of the source's light falls on good pixels.
    x, y, x_err, y_err
        Shape (n,). NaN errors where the position stopped at its bound or was held: a source with less than
        10 % of its light on good pixels in every band keeps its position and shape.
    re, ab, theta, re_err, ab_err, theta_err
        Shape (n,), as in `Sources`; NaN for stars, errors NaN where shapes are not fitted or stopped at a
        bound.
    sky, sky_err
        Shape (B,): the constant left in the image, 0 and NaN if it was not fitted.
    chi2
        Shape (n, B), mean of the squared normalised residuals weighted by the source's profile (the
        ``rchisq`` of the Legacy Surveys): 1 for a good fit.
    npix
        Shape (n, B), good pixels under the source's stamp.
    fracflux
        Shape (n, B), profile-weighted light of all other sources over that of this one (``fracflux`` of the
        Legacy Surveys): 0 when alone, 1 for a twin on top.
    niters
        Shape (n,), steps until the source was done.
    converged, hit_max_iters, bound_stalled, degenerate
        Shape (n,): done within `FitOptions.n_opt_iters` and not degenerate; not done by then; a position or
        radius rests on its bound; two fluxes cannot be told apart (identical stamps).
    last_dlnp
        Shape (n,), the gain in ln P that the next step promised when the source was last looked at.
    model
        Shape (B, h, w), sources and sky.

    Notes
    -----
    All errors are marginal: square roots of the diagonal of the inverse of the joint Fisher matrix over
    positions, shapes, fluxes and sky of all sources.
    """

    flux: Floats
    flux_err: Floats
    x: Floats
    y: Floats
    x_err: Floats
    y_err: Floats
    re: Floats
    ab: Floats
    theta: Floats
    re_err: Floats
    ab_err: Floats
    theta_err: Floats
    sky: Floats
    sky_err: Floats
    chi2: Floats
    npix: Ints
    fracflux: Floats
    niters: Ints
    converged: Bools
    hit_max_iters: Bools
    bound_stalled: Bools
    degenerate: Bools
    last_dlnp: Floats
    model: NDArray[np.float32]
