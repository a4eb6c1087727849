"""``fit.h5``: the fit as arrays in their natural shapes, and facts as attributes of the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from hpc import existing_hdf5, new_hdf5


@dataclass(frozen=True)
class Found:
    """A ``fit.h5`` in memory.

    Attributes
    ----------
    arrays
        By dataset name.
    attributes
        Facts; lists and tables are kept as JSON text in the file.
    """

    arrays: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Any]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array by name."""
        return self.arrays[name]


def write_fit(path: Path, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> None:
    """Write a fit; the same content gives the same bytes."""
    with new_hdf5(path) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, track_times=False)
        for name, value in attributes.items():
            file.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value)


def read_fit(path: Path) -> Found | None:
    """Read a fit; None if it is not there yet."""
    if not path.is_file():
        return None
    arrays: dict[str, NDArray[Any]] = {}

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            arrays[name] = node[()]

    with existing_hdf5(path) as file:
        file.visititems(visit)
        attributes = {name: _value(value) for name, value in file.attrs.items()}
    return Found(arrays, attributes)


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value.item() if hasattr(value, "item") else value
    return json.loads(value) if value[:1] in ("[", "{") or value == "null" else value
