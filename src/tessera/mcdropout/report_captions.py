"""What the pictures of the report show, and what would be a bad sign in them."""

from __future__ import annotations

from typing import Final

RANKS: Final = (
    "Agreement of the trials about the order of the images (left: median and quartiles of Spearman's rank correlation "
    "over all pairs of trials), signal over noise (middle) and ICC(1,1) (right), of the trace before normalisation. "
    "Dashed: what usable needs in all three; dotted: below it a model has failed. A curve below the dashed line that "
    "still rises asks for more passes, a flat one for another recipe."
)
ARMS: Final = (
    "The same for every arm at its largest T, best first. Arms whose quartiles overlap cannot be told apart by these "
    "trials."
)
MAPS: Final = (
    "The trace of every image (columns, sorted by their mean) in every trial (rows), over the median of all, on a "
    "logarithmic scale. Reliable uncertainties make upright stripes that shade from left to right; a speckled map "
    "means that the order of the images is chance, a row lighter or darker than the others a trial whose masks "
    "happened to matter more."
)
GALLERY: Final = (
    "Images of the lowest (top) and highest (bottom) mean trace, in rising order. Pictures at the bottom should look "
    "harder to you, too: blurred, cluttered, cropped, or of something else; if they only differ in brightness or "
    "format, the trace measures that."
)
CONVERGENCE: Final = (
    "Left: the mean trace at each T over that at the largest T. The biased one (divided by T) rises towards 1 as "
    "(T-1)/T, dashed; the unbiased one stays near 1. Right: distance of the mean over T passes from the features "
    "without perturbation; it falls as the square root of T (dashed) as long as noise rules, and flattens where "
    "perturbation moves the mean: a bias."
)
RATES: Final = (
    "Rank correlation of the images' mean traces between arms of one model. Values near 1 along the diagonal: "
    "the order does not depend on the choice."
)
AMBIGUITY: Final = (
    "Trace against how unsure the zero-shot classifier is. A cloud without slope: the uncertainty does not find what "
    "the classifier is unsure of."
)
SPECTRUM: Final = (
    "Distribution over images of the effective rank of the passes' covariance, (Σλ)²/Σλ²: in how many directions the "
    "features move. A rank near 1 means one direction carries all uncertainty; the trace then needs more passes."
)
TIMING: Final = (
    "Seconds: setup and stages, the longest over all ranks; computing: the sum over ranks of time inside units; rate: "
    "image passes per second of computing on a rank, prefix reuse included."
)
