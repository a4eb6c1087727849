"""Two-time correlations of a known truth, with the noise that counting photons brings: for tests and demonstrations.

Noise model: C2(t1, t2) is a mean over pixels of products of photon counts. With few photons per pixel and frame it is a
count of photon pairs, which is a Poisson number: its variance is proportional to C2 itself and inversely to the number
of pairs expected without correlation, N k² for N pixels of k photons (the regime limited by shot noise; see
Falus, Lurio, Mochrie, J. Synchrotron Rad. 13, 253 (2006)). So the standard deviation is ``noise * sqrt(C2)`` with
``noise = 1/sqrt(N k²)``, and for many pairs the distribution is normal. C2 is symmetric, so both halves carry the same
noise. On the diagonal each photon is paired with itself as well, which adds 1/k: the bright line that a fit leaves out.
Fluctuations of the speckle pattern itself, which correlate neighbouring values, are not part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tessera.xpcs.errors import ParameterError
from tessera.xpcs.physics import g1_squared, parameters_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """A sample and how it is watched.

    Attributes
    ----------
    model
        ``static_isotropic``, ``static_anisotropic`` or ``laminar_flow``.
    physical
        Value of each physical parameter by name, in homodyne's units.
    phi
        Angles, deg, shape (n_phi,).
    n_t
        Number of frames; the first is at t=0.
    dt
        Time between frames, s.
    q
        Wavevector, 1/Å.
    gap
        Between stator and rotor, Å.
    contrast, offset
        One value, or one per angle.
    """

    model: str
    physical: Mapping[str, float]
    phi: Floats
    n_t: int
    dt: float
    q: float
    gap: float | None = None
    contrast: ArrayLike = 0.3
    offset: ArrayLike = 1.0

    def __post_init__(self) -> None:
        names = [p.name for p in parameters_of(self.model)]
        if set(self.physical) != set(names):
            msg = f"the truth of {self.model} needs values for {', '.join(names)}, not {', '.join(self.physical)}"
            raise ParameterError(msg)

    @property
    def times(self) -> Floats:
        """Of the frames, s, shape (n_t,)."""
        return self.dt * np.arange(self.n_t, dtype=np.float64)

    def exact(self, angle: int) -> Floats:
        """Return C2 of one angle without noise, shape (n_t, n_t)."""
        phi = np.atleast_1d(np.asarray(self.phi, np.float64))
        contrast, offset = (float(np.broadcast_to(v, phi.shape)[angle]) for v in (self.contrast, self.offset))
        physical = np.array([self.physical[p.name] for p in parameters_of(self.model)])
        g1 = g1_squared(physical, self.times, q=self.q, gap=self.gap, phi=float(phi[angle]))
        return np.asarray(offset + contrast * g1)

    def noisy(self, noise: float, seed: int, photons: float = 0.1) -> Iterator[Floats]:
        """Yield the symmetric C2 of each angle with noise, shape (n_t, n_t), one at a time.

        Parameters
        ----------
        noise
            Standard deviation of a value where C2 is 1: one over the root of the number of photon pairs.
        seed
            Each angle has its own stream, so that an angle does not depend on how many there are.
        photons
            Per pixel and frame; only the diagonal depends on it.
        """
        for angle in range(np.size(self.phi)):
            random = np.random.Generator(np.random.Philox(key=[seed, angle]))
            c2 = self.exact(angle)
            c2 += np.sqrt(c2) * noise * random.standard_normal(c2.shape)
            upper = np.triu(c2, 1)
            diagonal = np.diagonal(c2) + 1.0 / photons
            yield upper + upper.T + np.diag(diagonal)

    def stack(self, noise: float, seed: int, photons: float = 0.1) -> Floats:
        """Return the noisy C2 of all angles, shape (n_phi, n_t, n_t)."""
        return np.stack(list(self.noisy(noise, seed, photons)))
