"""A finished fit made by hand: data of a known truth, and a result that says the truth was found."""

import numpy as np

from tessera.lsq.result import Result, Status
from tessera.xpcs import outputs
from tessera.xpcs.dataset import ArrayC2, Dataset
from tessera.xpcs.fitted import Fitted, compare
from tessera.xpcs.generate import Truth

NOISE = 0.02
PHYSICAL = {"D0": 1500.0, "alpha": -0.4, "D_offset": 200.0}
FLOW = {"gamma_dot_t0": 3e-4, "beta": 0.2, "gamma_dot_t_offset": 5e-5, "phi0": 4.0}
NAMES = (*PHYSICAL, *FLOW, "contrast_0", "contrast_1", "offset_0", "offset_1")


def fitted(n: int = 61, holes: int = 0) -> Fitted:
    truth = Truth(
        "laminar_flow", PHYSICAL | FLOW, np.array([0.0, 40.0]), n + 1, 0.3, 0.0054, 2e6, [0.3, 0.2], [1.0, 1.02]
    )
    c2 = truth.stack(NOISE, seed=4)[:, 1:, 1:]
    c2[0, :holes, 30] = c2[0, 30, :holes] = np.nan
    data = Dataset(ArrayC2(c2), truth.phi, truth.times[1:], 0.0054, (2, n + 1), "array", "made.h5", ("a note",))
    physical = np.array([*(PHYSICAL | FLOW).values()])
    return Fitted(data, physical, 2e6, np.array([0.3, 0.2]), np.array([1.0, 1.02]), NOISE)


def made_finding() -> outputs.Finding:
    found = fitted()
    x = np.array([*(PHYSICAL | FLOW).values(), 0.3, 0.2, 1.0, 1.02])
    errors = 0.01 * np.abs(x)
    history = np.column_stack([[9.0, 4.0, 4.0], [30, 1, 1e-9], [1, 2, 2], [0.5, 0.2, 0.1], [0.9, 0.2, 1], [1, 0, 1]])
    result = Result(
        NAMES, x, np.diag(errors**2), errors, 1800.0, 3600.0, 1.02, 3660, 0, Status.CONVERGED, Status.CONVERGED.text,
        True, 3, 4, history.astype(float),
    )  # fmt: skip
    lower, upper = x - 1, x + 1
    lower[6] = x[6]
    angles = tuple(compare(found, a) for a in range(2))
    quality = {name: np.ones(2) for name in ("least", "most", "mean", "early", "late", "noise")}
    loss = ("linear", 1.0)
    return outputs.Finding(
        "laminar_flow", "individual", loss, "hessian", result, lower, upper, {}, found, angles, quality, ("a note",)
    )
