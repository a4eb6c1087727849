"""The XPCS part of a run's report page: what was found, how well it describes the data, and what to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from hpc.report.view import Figure, RunView, Section, Table
from tessera.lsq import plots as fit_plots
from tessera.xpcs import plots
from tessera.xpcs.fit_file import Found, read_fit
from tessera.xpcs.physics import Floats, parameters_of, power_law, safe_times

_STRONG: Final = 0.98
"""Correlation from which two parameters are named."""

_MAPS: Final = (
    "Two-time correlations: data (its diagonal left out), fit, and their difference over the noise of a pixel of the "
    "picture. A good residual is plain noise; stripes are frames with another brightness, structure along the "
    "diagonal a model that does not hold at short lags, colours that change along it a sample that ages otherwise than "
    "t^alpha."
)
_DECAYS: Final = (
    "C₂ averaged over all pairs of frames with the same lag. Wiggles that the fit lacks point to a flow at another "
    "angle or rate; a floor that differs from the fit's to an offset of each angle's own (per_angle_mode: individual)."
)
_CHI2: Final = (
    "χ² per point of each angle; grey: two standard deviations of pure noise. Noise grows with C₂, so that "
    "angles which stay correlated longer lie a few per cent higher; one far above the others is spoilt, or sees the "
    "flow at an angle that the model does not know."
)
_TRANSPORT: Final = (
    "Diffusion coefficient and shear rate over time, with the standard errors that all parameters together leave. "
    "These are often known much better than the single parameters, which are correlated."
)
_CONVERGENCE: Final = (
    "Left: cost above its lowest value. Middle: how far the next step would go, in standard errors; the fit ends far "
    "below 1. Right: trust radius and length of the steps. Many crosses: the start was far off."
)
_ERRORS: Final = {
    "hessian": "from the curvature at the minimum and the scatter of the residuals",
    "sandwich": "from the curvature at the minimum and the residuals where they are (sandwich)",
}
_CORRELATIONS: Final = "Correlation of the fitted parameters. ±1: only a combination of the two is determined."


def sections(run: RunView) -> list[Section]:
    """Return the sections, from ``results/fit.h5``.

    Parameters
    ----------
    run
        The run, finished or not.
    """
    found = read_fit(run.results_dir / "fit.h5")
    if found is None:
        return [Section("XPCS fit", "The fit is not finished; parameters and pictures come with results/fit.h5.")]
    shown = int(run.config.get("job", {}).get("output", {}).get("plotted_angles", 4))
    return [_parameters(found), _against_data(found, shown), _how(found), _data(found)]


def _parameters(found: Found) -> Section:
    facts = found.attributes
    text = (
        f"{facts['message'][:1].upper()}{facts['message'][1:]}; after {facts['passes']} passes over the data. "
        f"{_cost_name(facts)} per degree of freedom {facts['reduced']:.4g} with a noise of {facts['sigma']:.3g}; "
        f"{facts['points']} independent points, {facts['rejected']} left out; quality: {facts['quality_flag']}."
    )
    stuck = set(facts["at_bounds"])
    units = facts["units"]
    rows: list[tuple[object, ...]] = []
    for k, name in enumerate(facts["names"]):
        unit = units.get(name.split("_c")[0] if name.startswith("contrast") else name, "")
        remark = "at its bound: widen parameter_space.bounds if the model allows" if name in stuck else ""
        x, error = float(found["x"][k]), float(found["errors"][k])
        limits = f"{float(found['lower'][k]):g} … {float(found['upper'][k]):g}"
        rows.append((name, x, error, unit, limits, remark))
    rows += [(name, float(value), None, units.get(name, ""), "", "fixed") for name, value in facts["fixed"].items()]
    columns = ("parameter", "value", "standard error", "unit", "bounds", "remark")
    caption = f"Errors are one standard deviation, {_ERRORS[facts['kind_of_errors']]}."
    figure = Figure(plots.transport(found["times"], _curves(found)), _TRANSPORT)
    return Section("Parameters", text, [Table(columns, rows, caption)], [figure])


def _cost_name(facts: Mapping[str, Any]) -> str:
    """Say what was minimised."""
    if facts["loss"] == "linear":
        return "χ²"
    return f"Loss {facts['loss']}, not quadratic from {facts['loss_scale']:g} standard errors on,"


def _curves(found: Found) -> list[tuple[str, Floats, Floats]]:
    """Return D(t), and the shear rate if there is one, with standard errors by linear propagation."""
    t = safe_times(found["times"])
    names = [p.name for p in parameters_of(found.attributes["analysis_mode"])]
    fitted = found.attributes["names"]
    covariance = found["covariance"]
    curves = []
    for first, label in ((0, "diffusion coefficient, Å²/s"), (3, "shear rate, 1/s")):
        if first >= len(names):
            break
        law = found["physical"][first : first + 3]
        power = t ** law[1]
        slopes = (power, law[0] * power * np.log(t), np.ones_like(t))
        own = [(fitted.index(n), s) for n, s in zip(names[first : first + 3], slopes, strict=True) if n in fitted]
        error = np.zeros_like(t)
        if own:
            index, jacobian = [k for k, _ in own], np.stack([s for _, s in own])
            part = covariance[np.ix_(index, index)]
            error = np.sqrt(np.maximum(np.einsum("it,ij,jt->t", jacobian, part, jacobian), 0.0))
        curves.append((label, power_law(t, *law), error))
    return curves


def _against_data(found: Found, shown: int) -> Section:
    reduced = found["chi2"] / np.maximum(found["count"], 1)
    worst = np.argsort(-reduced, kind="stable")[:shown]
    chosen = sorted(worst.tolist(), key=lambda a: float(found["phi"][a]))
    figures = []
    if chosen:
        pictures = [
            plots.AngleMaps(
                float(found["phi"][a]), float(reduced[a]), *(found[f"maps/{m}"][a] for m in ("data", "fit", "residual"))
            )
            for a in chosen
        ]
        figures.append(Figure(plots.maps(pictures, float(found["times"][-1])), _MAPS))
        lags = [found[f"lag_{name}"][chosen] for name in ("data", "fit")]
        figures.append(Figure(plots.decays(found["phi"][chosen], found["times"], *lags), _DECAYS))
    if reduced.size > 1:
        figures.append(Figure(plots.chi2_of_angles(found["phi"], reduced, found["count"]), _CHI2))
    rows = [
        (float(phi), float(c), float(o), float(r), int(n))
        for phi, c, o, r, n in zip(
            found["phi"], found["contrast"], found["offset"], reduced, found["count"], strict=True
        )
    ]
    text = ""
    if len(chosen) < reduced.size:
        text = f"Shown are the {len(chosen)} angles of {reduced.size} with the largest χ² (output.plotted_angles)."
    columns = ("φ, deg", "contrast", "offset", "χ² per point", "points")
    return Section("Data against fit", text, [Table(columns, rows)], figures)


def _how(found: Found) -> Section:
    names, matrix = found.attributes["names"], found["correlation"]
    figures = [Figure(fit_plots.correlations(names, matrix), _CORRELATIONS)]
    if len(found["history"]):
        figures.insert(0, Figure(fit_plots.convergence(found["history"]), _CONVERGENCE))
    pairs = [
        f"{names[i]} and {names[j]} ({matrix[i, j]:+.3f})"
        for i, j in zip(*np.triu_indices(len(names), 1), strict=True)
        if abs(matrix[i, j]) > _STRONG
    ]
    text = ""
    if pairs:
        text = f"Hardly told apart by these data: {'; '.join(pairs)}. Only their combination is well known."
    return Section("How it converged", text, figures=figures)


def _data(found: Found) -> Section:
    facts = found.attributes
    first, last = facts["frames"]
    text = f"{facts['source']}: q = {facts['q']:g} 1/Å, frames {first} … {last}, {facts['dt']:g} s apart. " + " ".join(
        f"{note[0].upper()}{note[1:]}." for note in facts["notes"] if note
    )
    names = ("mean", "least", "most", "early", "late", "noise")
    rows = [(float(phi), *(float(found[f"quality/{name}"][a]) for name in names)) for a, phi in enumerate(found["phi"])]
    columns = ("φ, deg", "mean", "least", "most", "at short lags", "at long lags", "noise")
    caption = "C₂ off its diagonal; noise from second differences along rows."
    return Section("Data", text, [Table(columns, rows, caption)])
