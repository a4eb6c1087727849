"""The report's charts: errors against magnitude, distributions of chi² and of pulls, measured against true fluxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tessera.plot_style import (
    BLUE,
    INK,
    ORANGE,
    SOFT,
    WIDTH,
    band_colours,
    legend,
    new_figure,
    panels,
    png,
    robust,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_MAG_OF_LN: Final = 2.5 / np.log(10)
_PIXEL_RANGE: Final = 8.0
_FLUX_RANGE: Final = 5.0
_FAR: Final = 5.0
_CHI2_RANGE: Final = (0.2, 10.0)


@dataclass(frozen=True)
class BandFluxes:
    """The sources of one band, counts at the common zero point.

    Attributes
    ----------
    band
        Its name.
    flux, error
        Shape (n,), measured.
    chi2
        Shape (n,), of the fit of each source.
    galaxy
        Shape (n,), which are no stars.
    alone
        Shape (n,), which have next to no light of others on them.
    true
        Shape (n,), None where the truth is not known.
    floor
        Best error that a lone star of flux ``f`` can have is ``sqrt(floor + f / gain)``; NaN if it is not known.
    gain
        Electrons per count.
    """

    band: str
    flux: Floats
    error: Floats
    chi2: Floats
    galaxy: Bools
    alone: Bools
    true: Floats | None
    floor: float
    gain: float

    @property
    def good(self) -> Bools:
        """Which sources have a flux above zero and an error."""
        return np.asarray(np.isfinite(self.flux) & np.isfinite(self.error) & (self.error > 0) & (self.flux > 0))


def magnitude_errors(bands: Sequence[BandFluxes], zp_ref: float) -> bytes:
    """Draw each source's magnitude error against its magnitude, with what photon noise alone allows."""
    figure, grid = panels(len(bands), 0.9, sharex=True, sharey=True)
    for axes, band in zip(grid, bands, strict=True):
        for chosen, colour, name in ((~band.galaxy, BLUE, "stars"), (band.galaxy, ORANGE, "galaxies")):
            use = chosen & band.good
            mag = zp_ref - 2.5 * np.log10(band.flux[use])
            axes.plot(mag, _MAG_OF_LN * band.error[use] / band.flux[use], ".", ms=4, color=colour, label=name)
        if band.good.any() and np.isfinite(band.floor):
            flux = np.geomspace(band.flux[band.good].min(), band.flux[band.good].max(), 60)
            least = _MAG_OF_LN * np.sqrt(band.floor + flux / band.gain) / flux
            axes.plot(zp_ref - 2.5 * np.log10(flux), least, color=INK, lw=1, label="photon noise")
        axes.set_yscale("log")
        tidy(axes, band.band, "AB magnitude", "magnitude error")
    legend(figure.axes[0], loc="upper left")
    return png(figure)


def chi2_histogram(bands: Sequence[BandFluxes]) -> bytes:
    """Draw the distribution of the sources' chi² in each band."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3.1, 0.62 * WIDTH)
    axes = figure.subplots()
    edges = np.geomspace(*_CHI2_RANGE, 50)
    colours = band_colours([band.band for band in bands])
    for band in bands:
        values = np.clip(band.chi2[np.isfinite(band.chi2)], *_CHI2_RANGE)
        axes.hist(values, edges.tolist(), histtype="step", lw=1.5, color=colours[band.band], label=band.band)
    axes.axvline(1, color=SOFT, lw=1)
    axes.set_xscale("log")
    axes.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["≤ 0.2", "0.5", "1", "2", "5", "≥ 10"])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes, "", "χ² of a source", "sources")
    legend(axes, loc="upper right", ncols=1 + len(bands) // 9)
    return png(figure)


def pixel_pulls(pulls: Mapping[str, NDArray[np.floating]]) -> bytes:
    """Draw the distribution of ``(data - model) / sigma`` of all pixels of each band over the unit Gaussian."""
    figure, grid = panels(len(pulls), 0.8, sharex=True, sharey=True)
    for axes, (band, values) in zip(grid, pulls.items(), strict=True):
        _pull_panel(axes, values, BLUE, 0.25, _PIXEL_RANGE)
        axes.set_yscale("log")
        axes.set_ylim(1e-6, 1)
        far = np.count_nonzero(np.abs(values) > _FAR)
        title = f"{band}: width {robust(values)[1]:.3f}; beyond {_FAR:g} σ: {far} of {values.size}"
        tidy(axes, title, "(data − model) / σ of a pixel", "share of pixels per unit")
    return png(figure)


def flux_pulls(bands: Sequence[BandFluxes]) -> bytes:
    """Draw the distribution of ``(measured - true) / error`` in each band over the unit Gaussian."""
    figure, grid = panels(len(bands), 0.8, sharex=True)
    for axes, band in zip(grid, bands, strict=True):
        pull = flux_pull(band)
        for chosen, colour, name in ((~band.galaxy, BLUE, "stars"), (band.galaxy, ORANGE, "galaxies")):
            values = pull[chosen & np.isfinite(pull)]
            if values.size:
                label = f"{name}: {values.mean():+.2f} ± {values.std():.2f}"
                _pull_panel(axes, values, colour, 0.5, _FLUX_RANGE, label)
        legend(axes, loc="upper left", handlelength=0.8)
        axes.set_ylim(0, 0.85)
        tidy(axes, band.band, "(measured − true) / error", "share of sources per unit")
    return png(figure)


def flux_pull(band: BandFluxes) -> Floats:
    """Return ``(measured - true) / error`` of each source, NaN where it is not known."""
    if band.true is None:
        return np.full(band.flux.shape, np.nan)
    safe = np.where(band.error > 0, band.error, np.nan)
    return np.asarray((band.flux - band.true) / safe)


def flux_ratios(bands: Sequence[BandFluxes]) -> bytes:
    """Draw measured over true flux against the true flux in units of the error."""
    figure, grid = panels(len(bands), 0.8, sharex=True, sharey=True)
    for axes, band in zip(grid, bands, strict=True):
        if band.true is None:
            continue
        snr = band.true / np.where(band.error > 0, band.error, np.nan)
        for chosen, colour, name in ((~band.galaxy, BLUE, "stars"), (band.galaxy, ORANGE, "galaxies")):
            ratio = np.clip(band.flux[chosen] / band.true[chosen], 0.5, 1.5)
            axes.errorbar(
                snr[chosen], ratio, 1 / snr[chosen], fmt=".", ms=4, lw=0.6, color=colour, label=name, alpha=0.8
            )
        axes.axhline(1, color=INK, lw=0.8)
        axes.set_xscale("log")
        axes.set_ylim(0.48, 1.52)
        tidy(axes, band.band, "true signal-to-noise ratio", "measured / true flux")
    legend(figure.axes[0], loc="upper right")
    return png(figure)


def _pull_panel(
    axes: Axes, values: NDArray[np.floating], colour: str, width: float, reach: float, label: str = ""
) -> None:
    """Draw a histogram over the unit Gaussian; the outermost bins hold all that lies beyond."""
    edges = np.arange(-reach, reach + width / 2, width)
    clipped = np.clip(values, -reach + width / 2, reach - width / 2)
    weights = np.full(values.shape, 1 / max(values.size, 1) / width)
    axes.hist(
        clipped, edges.tolist(), weights=weights, histtype="stepfilled", alpha=0.35, fc=colour, ec=colour, label=label
    )
    x = np.linspace(-reach, reach, 400)
    axes.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color=INK, lw=1)
