"""NIST's Statistical Reference Datasets for nonlinear regression: files, models, certified values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np


def _lanczos(x, b1, b2, b3, b4, b5, b6):
    return b1 * jnp.exp(-b2 * x) + b3 * jnp.exp(-b4 * x) + b5 * jnp.exp(-b6 * x)


def _gauss(x, b1, b2, b3, b4, b5, b6, b7, b8):
    peaks = b3 * jnp.exp(-((x - b4) ** 2) / b5**2) + b6 * jnp.exp(-((x - b7) ** 2) / b8**2)
    return b1 * jnp.exp(-b2 * x) + peaks


def _cubic(x, b1, b2, b3, b4, b5, b6, b7):
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def _enso(x, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    def wave(period, c, s):
        return c * jnp.cos(2 * jnp.pi * x / period) + s * jnp.sin(2 * jnp.pi * x / period)

    return b1 + wave(12.0, b2, b3) + wave(b4, b5, b6) + wave(b7, b8, b9)


def _chwirut(x, b1, b2, b3):
    return jnp.exp(-b1 * x) / (b2 + b3 * x)


MODELS = {
    "Bennett5": lambda x, b1, b2, b3: b1 * (b2 + x) ** (-1 / b3),
    "BoxBOD": lambda x, b1, b2: b1 * (1 - jnp.exp(-b2 * x)),
    "Chwirut1": _chwirut,
    "Chwirut2": _chwirut,
    "DanWood": lambda x, b1, b2: b1 * x**b2,
    "ENSO": _enso,
    "Eckerle4": lambda x, b1, b2, b3: (b1 / b2) * jnp.exp(-0.5 * ((x - b3) / b2) ** 2),
    "Gauss1": _gauss,
    "Gauss2": _gauss,
    "Gauss3": _gauss,
    "Hahn1": _cubic,
    "Kirby2": lambda x, b1, b2, b3, b4, b5: (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2),
    "Lanczos1": _lanczos,
    "Lanczos2": _lanczos,
    "Lanczos3": _lanczos,
    "MGH09": lambda x, b1, b2, b3, b4: b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4),
    "MGH10": lambda x, b1, b2, b3: b1 * jnp.exp(b2 / (x + b3)),
    "MGH17": lambda x, b1, b2, b3, b4, b5: b1 + b2 * jnp.exp(-x * b4) + b3 * jnp.exp(-x * b5),
    "Misra1a": lambda x, b1, b2: b1 * (1 - jnp.exp(-b2 * x)),
    "Misra1b": lambda x, b1, b2: b1 * (1 - (1 + b2 * x / 2) ** (-2)),
    "Misra1c": lambda x, b1, b2: b1 * (1 - (1 + 2 * b2 * x) ** (-0.5)),
    "Misra1d": lambda x, b1, b2: b1 * b2 * x * ((1 + b2 * x) ** (-1)),
    "Nelson": lambda x, b1, b2, b3: b1 - b2 * x[0] * jnp.exp(-b3 * x[1]),
    "Rat42": lambda x, b1, b2, b3: b1 / (1 + jnp.exp(b2 - b3 * x)),
    "Rat43": lambda x, b1, b2, b3, b4: b1 / ((1 + jnp.exp(b2 - b3 * x)) ** (1 / b4)),
    "Roszman1": lambda x, b1, b2, b3, b4: b1 - b2 * x - jnp.arctan(b3 / (x - b4)) / jnp.pi,
    "Thurber": _cubic,
}


@dataclass(frozen=True)
class Problem:
    """A data set: x (m,) or (k, m), y (m,), two starts, certified parameters and their standard deviations."""

    name: str
    x: np.ndarray
    y: np.ndarray
    starts: tuple[np.ndarray, np.ndarray]
    certified: np.ndarray
    deviations: np.ndarray
    squares: float

    @property
    def model(self):
        return MODELS[self.name]


def load(folder: Path, name: str) -> Problem:
    lines = (folder / f"{name}.dat").read_text().splitlines()
    rows = [[float(v) for v in line.split("=")[1].split()] for line in lines[40:60] if re.match(r"\s*b\d+ =", line)]
    table = np.array(rows)
    squares = next(float(line.split(":")[1]) for line in lines if "Sum of Squares" in line and ":" in line)
    data = np.array([[float(v) for v in line.split()] for line in lines[60:] if line.strip()]).T
    y = np.log(data[0]) if name == "Nelson" else data[0]
    x = data[1] if data.shape[0] == 2 else data[1:]
    return Problem(name, x, y, (table[:, 0], table[:, 1]), table[:, 2], table[:, 3], squares)


def digits(found: np.ndarray, certified: np.ndarray) -> float:
    """Number of digits all values agree to (log relative error), at most 11: more are not certified."""
    with np.errstate(divide="ignore"):
        return float(np.clip(-np.log10(np.max(np.abs(found - certified) / np.abs(certified))), 0, 11))
