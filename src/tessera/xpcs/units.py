"""Whether wavevector, time step and gap are in the units of the formulas: 1/Å, s, Å."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tessera.xpcs.errors import XpcsInputError


@dataclass(frozen=True, slots=True)
class _Scale:
    """What a quantity may be, what it usually is, and what a wrong unit would look like."""

    key: str
    unit: str
    least: float
    most: float
    usual: tuple[float, float]
    hint: str


_SCALES: Final = {
    "q": _Scale("scattering.wavevector_q", "1/Å", 1e-6, 10.0, (1e-4, 0.5), "1 1/nm is 0.1 1/Å, and 1 1/µm is 1e-4 1/Å"),
    "dt": _Scale("dt", "s", 1e-10, 1e6, (1e-7, 3600.0), "a rate in 1/s has to be inverted, and 1 ms is 1e-3 s"),
    "gap": _Scale("geometry.stator_rotor_gap", "Å", 1e3, 1e9, (1e4, 1e8), "1 µm is 1e4 Å, and 1 mm is 1e7 Å"),
}


def check_units(q: float, dt: float, gap: float | None) -> list[str]:
    """Refuse values that cannot be meant, and say which are unusual.

    Parameters
    ----------
    q
        Wavevector, 1/Å.
    dt
        Time between frames, s.
    gap
        Between stator and rotor, Å; None where there is no flow.

    Returns
    -------
    list of str
        A warning for each value that is possible but unusual.

    Raises
    ------
    XpcsInputError
        If a value is not positive and finite, or is impossible in its unit.
    """
    warnings = []
    for name, value in (("q", q), ("dt", dt), ("gap", gap)):
        if value is None:
            continue
        scale = _SCALES[name]
        where = f"job.analyzer_parameters.{scale.key}"
        if not (math.isfinite(value) and value > 0):
            msg = f"{where} is {value:g}; it must be above zero, in {scale.unit}"
            raise XpcsInputError(msg)
        if not scale.least <= value <= scale.most:
            msg = (
                f"{where} is {value:g} {scale.unit}, outside of {scale.least:g} … {scale.most:g}: it looks like "
                f"another unit ({scale.hint})"
            )
            raise XpcsInputError(msg)
        if not scale.usual[0] <= value <= scale.usual[1]:
            warnings.append(f"{where} is {value:g} {scale.unit}, which is unusual; is the unit right? ({scale.hint})")
    return warnings
