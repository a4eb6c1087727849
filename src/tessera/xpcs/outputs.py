"""The results of an XPCS fit under homodyne's names: its JSON files, and what goes into ``fit.h5``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.result import HISTORY, Result
from tessera.xpcs.fitted import AngleFit, Fitted
from tessera.xpcs.physics import CONTRAST, OFFSET, Floats, parameters_of

GOOD, MARGINAL = 2.0, 5.0
"""Largest reduced chi² of a good and of a marginal fit (homodyne's)."""
_AT_BOUND: Final = 1e-9


@dataclass(frozen=True)
class Finding:
    """All that is known of a finished fit.

    Attributes
    ----------
    model
        ``static_isotropic``, ``static_anisotropic`` or ``laminar_flow``.
    scaling
        How contrast and offset were treated.
    loss
        What was minimised: ``linear``, that is chi², or a robust loss with its scale in standard errors.
    errors
        ``hessian`` or ``sandwich``.
    result
        Of the optimizer.
    lower, upper
        Bounds of its parameters, shape (p,).
    fixed
        Parameters that were not fitted.
    fitted
        Data and model.
    angles
        One record per angle.
    quality
        Figures of the data, per angle.
    notes
        What the reader should know: of the selection, of the data.
    """

    model: str
    scaling: str
    loss: tuple[str, float]
    errors: str
    result: Result
    lower: Floats
    upper: Floats
    fixed: Mapping[str, float]
    fitted: Fitted
    angles: tuple[AngleFit, ...]
    quality: Mapping[str, Floats]
    notes: tuple[str, ...]

    @property
    def at_bounds(self) -> tuple[str, ...]:
        """Names of the parameters that ended at a bound."""
        x, width = self.result.x, self.upper - self.lower
        near = np.minimum(x - self.lower, self.upper - x) <= _AT_BOUND * np.where(np.isfinite(width), width, 0.0)
        return tuple(name for name, stuck in zip(self.result.names, near, strict=True) if stuck)

    @property
    def quality_flag(self) -> str:
        """Return homodyne's verdict: good, marginal or poor, by reduced chi² and number of parameters at bounds."""
        reduced, stuck = self.result.reduced, len(self.at_bounds)
        if self.result.success and reduced < GOOD and stuck == 0:
            return "good"
        return "marginal" if self.result.success and reduced < MARGINAL and stuck <= 2 else "poor"


def parameter_table(finding: Finding) -> dict[str, dict[str, float | None]]:
    """Return value and uncertainty of each physical parameter, and of contrast and offset.

    Where these differ between angles, their value is the mean over angles and their uncertainty the root of the mean
    square, as in homodyne; each angle's own are in ``fit.h5`` and ``per_angle``.
    """
    result = finding.result
    own = {
        name: {"value": float(x), "uncertainty": _finite(error)}
        for name, x, error in zip(result.names, result.x, result.errors, strict=True)
    }
    table: dict[str, dict[str, float | None]] = {}
    for name, values in ((CONTRAST.name, finding.fitted.contrast), (OFFSET.name, finding.fitted.offset)):
        errors = [e for n, e in zip(result.names, result.errors, strict=True) if n.startswith(name)]
        rms = float(np.sqrt(np.mean(np.square(errors)))) if errors else None
        table[name] = own.get(name, {"value": float(np.mean(values)), "uncertainty": _finite(rms)})
    for parameter in parameters_of(finding.model):
        fixed = finding.fixed.get(parameter.name)
        table[parameter.name] = own.get(parameter.name) or {"value": fixed, "uncertainty": None}
    return table


def parameters_json(finding: Finding) -> dict[str, Any]:
    """Return the content of ``parameters.json``."""
    result = finding.result
    units = {p.name: p.unit for p in (*parameters_of(finding.model), CONTRAST, OFFSET)}
    return {
        "timestamp": _now(),
        "analysis_mode": finding.model,
        "chi_squared": _finite(result.chi2),
        "reduced_chi_squared": _finite(result.reduced),
        "convergence_status": _status(result),
        "parameters": parameter_table(finding),
        "units": units,
        "fixed_parameters": dict(finding.fixed),
        "per_angle": [
            {"phi": float(phi), "contrast": float(c), "offset": float(o)}
            for phi, c, o in zip(
                finding.fitted.dataset.phi, finding.fitted.contrast, finding.fitted.offset, strict=True
            )
        ],
    }


def analysis_json(finding: Finding) -> dict[str, Any]:
    """Return the content of ``analysis_results_nlsq.json``."""
    result, data = finding.result, finding.fitted.dataset
    return {
        "method": "nlsq",
        "timestamp": _now(),
        "analysis_mode": finding.model,
        "fit_quality": {
            "chi_squared": _finite(result.chi2),
            "reduced_chi_squared": _finite(result.reduced),
            "degrees_of_freedom": result.count - len(result.names),
            "quality_flag": finding.quality_flag,
        },
        "dataset_info": {
            "n_angles": data.rows.n_phi,
            "n_time_points": data.rows.n_t**2,
            "total_data_points": data.rows.n_phi * data.rows.n_t**2,
            "independent_data_points": result.count,
            "q_value": data.q,
            "dt": data.dt,
            "frames": list(data.frames),
            "phi_angles": data.phi.tolist(),
            "sigma": finding.fitted.sigma,
            "source": data.source,
            "layout": data.layout,
            "notes": list(finding.notes),
        },
        "optimization_summary": {
            "convergence_status": _status(result),
            "iterations": result.iterations,
            "passes_over_data": result.evaluations,
            "message": result.message,
            "scaling": finding.scaling,
            "loss": finding.loss[0],
            "loss_scale": finding.loss[1],
            "errors": finding.errors,
        },
    }


def complaint(path: Path) -> str | None:
    """Return why the fit of a ``convergence_metrics.json`` did not succeed; None if it did."""
    record = json.loads(path.read_text())
    status = record["convergence"]["status"]
    return None if status == "converged" else f"the fit did not converge ({status}): {record['quality_warnings'][0]}"


def convergence_json(finding: Finding) -> dict[str, Any]:
    """Return the content of ``convergence_metrics.json``."""
    result = finding.result
    warnings = [f"parameter {name} is at its bound" for name in finding.at_bounds]
    if not result.success:
        warnings.insert(0, result.message)
    if not result.reduced < MARGINAL:
        warnings.append(
            f"reduced chi² is {result.reduced:.3g}: the model does not describe the data, or sigma is too small"
        )
    return {
        "convergence": {
            "status": _status(result),
            "iterations": result.iterations,
            "final_chi_squared": _finite(result.chi2),
            "chi_squared_reduction": _reduction(result.history),
        },
        "recovery_actions": [],
        "quality_flag": finding.quality_flag,
        "device_info": {"device": "cpu"},
        "quality_validation_passed": not warnings,
        "quality_warnings": warnings,
        "quality_checks": ["convergence", "reduced_chi_squared", "bounds"],
    }


def fit_arrays(finding: Finding) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return arrays and attributes of ``fit.h5``: everything the report draws, and the whole covariance."""
    result, fitted, angles = finding.result, finding.fitted, finding.angles
    arrays: dict[str, NDArray[Any]] = {
        "x": result.x,
        "errors": result.errors,
        "covariance": result.covariance,
        "correlation": result.correlation,
        "lower": finding.lower,
        "upper": finding.upper,
        "history": result.history,
        "physical": fitted.physical,
        "phi": fitted.dataset.phi,
        "times": fitted.dataset.times,
        "contrast": fitted.contrast,
        "offset": fitted.offset,
        "chi2": np.array([a.chi2 for a in angles]),
        "count": np.array([a.count for a in angles]),
        "lag_data": np.stack([a.lag_data for a in angles]),
        "lag_fit": np.stack([a.lag_fit for a in angles]),
        "maps/data": np.stack([a.data for a in angles]),
        "maps/fit": np.stack([a.fit for a in angles]),
        "maps/residual": np.stack([a.residual for a in angles]),
        **{f"quality/{name}": values for name, values in finding.quality.items()},
    }
    attributes = {
        "names": list(result.names),
        "units": {p.name: p.unit for p in (*parameters_of(finding.model), CONTRAST, OFFSET)},
        "history_columns": list(HISTORY),
        "analysis_mode": finding.model,
        "scaling": finding.scaling,
        "loss": finding.loss[0],
        "loss_scale": finding.loss[1],
        "kind_of_errors": finding.errors,
        "status": result.status.name.lower(),
        "success": result.success,
        "message": result.message,
        "chi2": result.chi2,
        "reduced": result.reduced,
        "points": result.count,
        "rejected": result.rejected,
        "passes": result.evaluations,
        "iterations": result.iterations,
        "sigma": fitted.sigma,
        "q": fitted.dataset.q,
        "dt": fitted.dataset.dt,
        "gap": fitted.gap,
        "frames": list(fitted.dataset.frames),
        "source": fitted.dataset.source,
        "step": angles[0].step,
        "fixed": dict(finding.fixed),
        "at_bounds": list(finding.at_bounds),
        "quality_flag": finding.quality_flag,
        "notes": list(finding.notes),
    }
    return arrays, attributes


def _status(result: Result) -> str:
    return "converged" if result.success else result.status.name.lower()


def _reduction(history: Floats) -> float | None:
    """Return by which fraction the cost fell, None if it is not known."""
    costs = history[:, 0] if history.size else np.empty(0)
    return _finite(1.0 - costs[-1] / costs[0]) if costs.size and costs[0] > 0 else None


def _finite(value: float | None) -> float | None:
    """Return a number for JSON, which knows no NaN and no infinity."""
    return float(value) if value is not None and np.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
