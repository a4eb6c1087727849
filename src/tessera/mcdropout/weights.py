"""Read weights from safetensors files, whole or in shards, and say exactly what does not fit.

Pickle files (.bin, .pt, .pth, .ckpt) are never opened: reading one runs the code it holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tessera.input_files import explained, require_file
from tessera.mcdropout.errors import WeightsError
from tessera.mcdropout.model_config import OPEN_CLIP_WEIGHTS, read_json
from tessera.mcdropout.sites import Layout
from tessera.mcdropout.tensor_names import Source, belongs_to_vision, is_buffer

_NAME = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LISTED = 12
_COPY_AGAIN = "the file is damaged or of another model: copy it again"
_PIECE = 1 << 22


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of a model.

    Attributes
    ----------
    paths
        One file, or all shards in the order of their names.
    """

    paths: tuple[Path, ...]

    def sha256(self) -> dict[str, str]:
        """Return the digest of every file by its name: for provenance, about a second for every 1.5 GB."""
        return {path.name: _sha256(path) for path in self.paths}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def find_weights(folder: Path, layout: Layout) -> WeightFiles:
    """Find the safetensors files in a model's folder; some hold the same model in several layouts.

    Raises
    ------
    WeightsError
        If there are none, if a shard is missing, or if there are only pickle files.
    """
    if layout != "hf" and (folder / OPEN_CLIP_WEIGHTS).is_file():
        return WeightFiles((folder / OPEN_CLIP_WEIGHTS,))
    if (folder / _INDEX).is_file():
        names = sorted(set(_weight_map(folder / _INDEX).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            msg = f"{folder / _INDEX} lists {', '.join(missing)}, which is not there; copy all shards"
            raise WeightsError(msg)
        return WeightFiles(tuple(folder / name for name in names))
    if (folder / _NAME).is_file():
        return WeightFiles((folder / _NAME,))
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(others) == 1:
        return WeightFiles((folder / others[0],))
    raise WeightsError(_no_weights(folder, others))


def _weight_map(path: Path) -> Mapping[str, str]:
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
        msg = f"{path} has no usable weight_map; copy it again from the model's repository"
        raise WeightsError(msg)
    return names


def _no_weights(folder: Path, others: list[str]) -> str:
    if others:
        return f"{folder} holds {', '.join(others)} and none is called {_NAME}; rename the right one"
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        return (
            f"{folder} has only pickled weights ({', '.join(pickles)}), and reading a pickle runs whatever code it "
            "holds; take the repository's safetensors file, or, if you trust the source, convert it once: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
        )
    return f"{folder} holds no weights; copy {_NAME} or {OPEN_CLIP_WEIGHTS} there, or set model.init=random for a test"


class Weights:
    """The tensors of open weight files, read one at a time."""

    def __init__(self, files: WeightFiles, stack: ExitStack) -> None:
        self.files = files
        self._holders: dict[str, Any] = {}
        for path in files.paths:
            file = _open(path, stack)
            self._holders |= dict.fromkeys(file.keys(), file)

    def __contains__(self, name: str) -> bool:
        return name in self._holders

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._holders)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor as it is stored."""
        with explained(f"tensor {name} of the weights", _COPY_AGAIN, WeightsError):
            tensor: Tensor = self._holders[name].get_tensor(name)
            return tensor

    def number(self, name: str) -> float | None:
        """Return a tensor of one number, or None if there is none of that name."""
        if name not in self:
            return None
        tensor = self.tensor(name)
        if tensor.numel() != 1 or not tensor.is_floating_point():
            msg = f"tensor {name} of the weights has shape {tuple(tensor.shape)} and is to be one number; {_COPY_AGAIN}"
            raise WeightsError(msg)
        return float(tensor.flatten()[0])


@contextmanager
def open_weights(files: WeightFiles) -> Iterator[Weights]:
    """Open weight files for reading.

    Raises
    ------
    WeightsError
        If a file is damaged or cut short.
    """
    with ExitStack() as stack:
        yield Weights(files, stack)


def load_into(
    module: nn.Module, weights: Weights, source_of: Callable[[str], Source], prefixes: Sequence[tuple[str, str]] = ()
) -> set[str]:
    """Fill a module's parameters from weight files, in float32.

    Parameters
    ----------
    module
        A tower; its parameters may lie on the meta device.
    weights
        The open files.
    source_of
        Gives the tensors that make up a parameter.
    prefixes
        Other spellings of tensor names: ``(usual, instead)`` pairs of prefixes.

    Returns
    -------
    set
        Names of the tensors that were read.

    Raises
    ------
    WeightsError
        If tensors are missing or of another shape; the message lists them with both shapes.
    """
    problems: list[str] = []
    loaded: dict[str, Tensor] = {}
    read: set[str] = set()
    for name, parameter in module.named_parameters():
        source = source_of(name)
        spelled = [_spelled(tensor, weights, prefixes) for tensor in source.names]
        missing = [n for n in spelled if n not in weights]
        if missing:
            problems += [f"{n}: missing" for n in missing]
            continue
        read |= set(spelled)
        try:
            parts = [weights.tensor(n) for n in spelled]
            whole_numbers = [n for n, part in zip(spelled, parts, strict=True) if not part.is_floating_point()]
            if whole_numbers:
                problems += [f"{n}: holds whole numbers, which are no weights" for n in whole_numbers]
                continue
            loaded[name] = source.build(parts, parameter.shape)
        except WeightsError as error:
            problems.append(str(error))
    if problems:
        raise WeightsError(_misfit(weights.files, problems))
    module.load_state_dict(loaded, strict=True, assign=True)
    return read


def require_all_read(weights: Weights, read: set[str]) -> None:
    """Refuse weights whose image encoder has more tensors than were read: it is another architecture.

    Raises
    ------
    WeightsError
        With the names of the tensors.
    """
    unread = [n for n in weights.names() if belongs_to_vision(n) and not is_buffer(n) and n not in read]
    if unread:
        problems = [f"{n} {tuple(weights.tensor(n).shape)}: the model has no such tensor" for n in unread]
        raise WeightsError(_misfit(weights.files, problems))


def _spelled(name: str, weights: Weights, prefixes: Sequence[tuple[str, str]]) -> str:
    spellings = [name, *(new + name.removeprefix(old) for old, new in prefixes if name.startswith(old))]
    return next((spelling for spelling in spellings if spelling in weights), name)


def _misfit(files: WeightFiles, problems: list[str]) -> str:
    shown = problems[:_LISTED]
    more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    names = ", ".join(str(path) for path in files.paths)
    lines = "\n  ".join(shown)
    return (
        f"{names} does not fit the model that its configuration describes ({len(problems)} tensors):\n  {lines}{more}\n"
        "copy weights and configuration from one repository"
    )


def _open(path: Path, stack: ExitStack) -> Any:
    from safetensors import safe_open

    require_file(path, "", _COPY_AGAIN, WeightsError)
    try:
        return stack.enter_context(safe_open(path, framework="pt", device="cpu"))
    except Exception as error:  # of Rust, of Python's reading of its names, of the file system
        size = path.stat().st_size if path.is_file() else 0
        with path.open("rb") as raw:
            start = raw.read(32)
        if start.startswith(b"version https://git-lfs"):
            cause = "it is a Git LFS pointer, not the weights: run git lfs pull in the repository"
        else:
            cause = f"{error}; it is damaged or cut short ({size} bytes): copy it again and compare its size"
        msg = f"{path} cannot be read: {cause}"
        raise WeightsError(msg) from error
