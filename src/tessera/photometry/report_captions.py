"""What the pictures of the report show, and what would be a bad sign in them."""

from __future__ import annotations

from typing import Final

FIELD: Final = (
    "White stack of all bands, arcsinh scale, with the catalog's sources; dashed: the cropped frame. Marks beside "
    "their objects mean a shifted WCS or pixel origin; bright objects without a mark are missing from the catalog "
    "and spoil their neighbours; doubtful fits in a row or a corner point to a bad column or a wrong PSF there."
)
RESIDUAL: Final = (
    "Data, model, and what is left over in units of the noise, all bands averaged. A good fit leaves noise "
    "without structure. Rings around bright stars: the PSF is too wide or too narrow; dipoles: positions; blobs: "
    "sources missing from the catalog; light or dark clouds: the sky."
)
PIXEL_PULLS: Final = (
    "The same left-over of every pixel, band by band, against the unit Gaussian (line); the outermost bins hold "
    "all that lies beyond. Wider or narrower: the noise in the headers or weight planes is wrong. A tail on the "
    "right: light that is not in the model; on both sides: the core of the PSF."
)
PATCHES: Final = (
    "Left: the median χ² of the sources of each patch, 1 where the model fits. One patch far from 1 has a local "
    "trouble; a gradient over the frame is a PSF that varies more than its cells. Right: how the sources are "
    "spread, and with them the work."
)
MAGNITUDE_ERRORS: Final = (
    "Quoted magnitude errors. Stars should lie on the line of photon noise and scatter upwards where neighbours "
    "take part of the information; galaxies lie above it because their light is spread. Points well below the "
    "line, or a floor far above it at the bright end, mean a wrong gain or sky noise."
)
CHI2: Final = (
    "χ² of the sources, weighted with their profiles. It should peak at 1 in every band. A band that peaks "
    "elsewhere has a wrong noise; in a long tail to the right are bright sources whose PSF or profile does not "
    "fit."
)
FLUX_PULLS: Final = (
    "Errors of the fluxes in units of the quoted ones, against the unit Gaussian (line); mean ± standard "
    "deviation. A shift is a bias, a wider distribution means errors that are quoted too small."
)
FLUX_RATIOS: Final = (
    "Measured over true flux with the quoted error, cut off at half and one and a half. A bend at the faint end "
    "is a bias of the noise model, an offset at the bright end one of the PSF."
)
PSF_CORES: Final = (
    "Cores of the PSFs on a logarithmic scale over three decades, cells as they lie on the frame. Good ones are "
    "smooth and alike; a second peak or an arm is the light of a neighbour, a hole or a flat top a saturated "
    "star."
)
PSF_PROFILES: Final = (
    "Light of the PSFs against the distance from their centre, all cells of a band; line: half of the FWHM. "
    "Points should form narrow bands that fall steadily; a scatter within the core is an elongated PSF, a plateau "
    "in the wings is sky that was left in."
)
TIMING: Final = (
    "Seconds, the longest over all ranks. Total: of the five before it, reading and selecting; whole run: setup "
    "and all stages, without starting Python."
)
