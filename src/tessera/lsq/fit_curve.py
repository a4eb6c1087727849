"""`curve_fit` with SciPy's signature."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tessera.lsq.errors import DataError, FitInputError
from tessera.lsq.fit_model import BoundsLike, fit
from tessera.lsq.guard import NanPolicy
from tessera.lsq.options import HybridStreamingConfig
from tessera.lsq.result import Result, Status

_TOLERANCES: Final = ("ftol", "xtol", "gtol")
_EVALUATIONS: Final = ("maxfev", "max_nfev")
_WITHOUT_EFFECT: Final = ("diff_step", "epsfcn", "factor", "x_scale", "diag", "col_deriv", "tr_solver", "verbose")
"""Of scipy's solvers: steps of finite differences and scalings, of which this one needs none."""


def curve_fit(
    f: Callable[..., Any],
    xdata: Any,
    ydata: ArrayLike,
    p0: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    absolute_sigma: bool = False,
    check_finite: bool | None = None,
    bounds: BoundsLike = (-np.inf, np.inf),
    method: str | None = None,
    jac: Callable[..., Any] | str | None = None,
    *,
    full_output: bool = False,
    nan_policy: str | None = None,
    **kwargs: Any,
) -> Any:
    """Fit a function to data: `scipy.optimize.curve_fit` for functions written with `jax.numpy`.

    Parameters
    ----------
    f
        ``f(x, *parameters)``, JAX-traceable.
    xdata
        Shape (m,) or (k, m); (m, k) is recognised where k differs from m.
    ydata
        Shape (m,).
    p0
        Start values; None: 1 for each parameter, or inside the bounds.
    sigma
        Standard errors of y, shape (m,) or one for all.
    absolute_sigma
        Whether they are absolute; else the covariance is scaled by the reduced chi².
    check_finite, nan_policy
        Data that are not finite are always an error, unless ``nan_policy="omit"`` leaves them out.
    bounds
        ``(lower, upper)`` or scipy's ``Bounds``.
    method
        ``lm``, ``trf`` or ``dogbox``: accepted, all the same here.
    jac
        ``jac(x, *parameters)`` of shape (m, p), JAX-traceable; names of difference schemes are accepted and not needed,
        derivatives are exact.
    full_output
        Whether to return the `Result` as well.
    **kwargs
        ``ftol``, ``xtol``, ``gtol`` (the smallest becomes the tolerance in standard errors), ``maxfev`` or ``max_nfev``
        (passes), ``loss`` and ``f_scale``, ``config`` (`HybridStreamingConfig` or the name of a preset).

    Returns
    -------
    popt, pcov
        Parameters (p,) and covariance (p, p), infinite with an ``OptimizeWarning`` where it cannot be estimated.
    result
        Only with ``full_output``.

    Raises
    ------
    FitInputError
        If an argument cannot be used (a ``ValueError``, as in scipy).
    RuntimeError
        If the fit fails; the message says why.
    """
    y = np.atleast_1d(_floats(ydata))
    if y.size == 0:
        msg = "`ydata` must not be empty!"
        raise DataError(msg)
    function, x = _laid_out(f, xdata, y.size)
    result = fit(
        function,
        (x, y),
        p0,
        sigma=_errors(sigma, y.size),
        bounds=bounds,
        config=_options(kwargs, method),
        loss=kwargs.get("loss", "linear"),
        loss_scale=float(kwargs.get("f_scale", 1.0)),
        jacobian=jac if callable(jac) else None,
        absolute_sigma=absolute_sigma,
        nan_policy=_policy(nan_policy, check_finite),
        names=_names(f, p0, bounds),
    )
    covariance = result.covariance
    if result.status is Status.SINGULAR or not np.isfinite(covariance).all():
        _warn_of_covariance(result)
        covariance = np.full_like(covariance, np.inf)
    elif not result.success:
        msg = f"Optimal parameters not found: {result.message}"
        raise RuntimeError(msg)
    return (result.x, covariance, result) if full_output else (result.x, covariance)


def _laid_out(f: Callable[..., Any], xdata: Any, m: int) -> tuple[Callable[..., Any], NDArray[np.float64]]:
    """Return function and x with points along the last axis."""
    try:
        x = _floats(xdata)
    except (TypeError, ValueError) as error:
        msg = f"xdata is no array of numbers ({error}); give shape (m,) or (k, m)"
        raise DataError(msg) from error
    if x.ndim == 2 and x.shape[-1] != m and x.shape[0] == m:
        return (lambda x, *p: f(x.T, *p)), x.T
    return f, x


def _floats(data: Any) -> NDArray[np.float64]:
    """Return data as float64; memory maps stay what they are, so that they are read chunk by chunk."""
    mapped = isinstance(data, np.memmap) and data.dtype == np.float64
    return np.asanyarray(data) if mapped else np.asarray(data, np.float64)


def _names(f: Callable[..., Any], p0: ArrayLike | None, bounds: BoundsLike) -> tuple[str, ...] | None:
    """Return parameter names where the function to be fitted is wrapped, or the bounds alone say how many there are."""
    from tessera.lsq.model import argument_names

    if p0 is not None:
        return argument_names(f, np.atleast_1d(np.asarray(p0)).size)
    pair = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else tuple(bounds)
    counts = [np.size(side) for side in pair if np.ndim(side) > 0]
    return argument_names(f, counts[0] if counts else None)


def _errors(sigma: ArrayLike | None, m: int) -> NDArray[np.float64] | None:
    if sigma is None:
        return None
    errors = np.asarray(sigma, np.float64)
    if errors.ndim == 2:
        msg = (
            f"sigma has shape {errors.shape}: a covariance of the data ties all points together, which a fit in chunks "
            "cannot have; whiten data and model with its Cholesky factor, or give standard errors of shape (m,)"
        )
        raise DataError(msg)
    if errors.size not in {1, m}:
        msg = f"`sigma` has incorrect shape {errors.shape}; give one standard error for each of the {m} points"
        raise DataError(msg)
    return errors.reshape(-1) if errors.size == m else np.full(m, float(errors.reshape(-1)[0]))


def _policy(nan_policy: str | None, check_finite: bool | None) -> NanPolicy:
    if nan_policy not in {None, "raise", "omit"}:
        msg = f"nan_policy must be one of {{None, 'raise', 'omit'}}, not {nan_policy!r}"
        raise FitInputError(msg)
    del check_finite  # what is not finite is found in any case: the pass over the data sees it
    return "mask" if nan_policy == "omit" else "raise"


def _options(kwargs: dict[str, Any], method: str | None) -> HybridStreamingConfig:
    """Return the options that scipy's keywords ask for."""
    if method not in {None, "lm", "trf", "dogbox"}:
        msg = f"`method` must be 'lm', 'trf' or 'dogbox' (all the same here), not {method!r}"
        raise FitInputError(msg)
    known = {*_TOLERANCES, *_EVALUATIONS, *_WITHOUT_EFFECT, "loss", "f_scale", "config"}
    strange = [k for k in kwargs if k not in known]
    if strange:
        msg = f"curve_fit has no argument {strange[0]!r}; it takes {', '.join(sorted(known))}"
        raise TypeError(msg)
    chosen = kwargs.get("config")
    if isinstance(chosen, HybridStreamingConfig):
        config = chosen
    else:
        config = HybridStreamingConfig.preset(chosen or "default", max_warmup_iterations=0, warmup_iterations=0)
    tolerances = [float(kwargs[k]) for k in _TOLERANCES if kwargs.get(k) is not None]
    passes = [int(kwargs[k]) for k in _EVALUATIONS if kwargs.get(k)]
    changes: dict[str, Any] = {"gauss_newton_max_iterations": min(passes) if passes else 1000}
    if tolerances:
        changes["gauss_newton_tol"] = max(min(tolerances), np.finfo(float).tiny)
    return config.replace(**changes)


def _warn_of_covariance(result: Result) -> None:
    from scipy.optimize import OptimizeWarning

    msg = f"Covariance of the parameters could not be estimated: {result.message}"
    warnings.warn(msg, OptimizeWarning, stacklevel=3)
