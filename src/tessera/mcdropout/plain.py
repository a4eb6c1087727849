"""The loop that users come from, kept as the reference that the engine is measured against and has to agree with.

It is the first version of mcdo-vlm-uncertainty's trial: every pass opens, decodes and prepares every image again, runs
the whole tower with dropout modules on the outputs of its linear layers, and adds plain sums of features and squares.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

Prepare = Callable[[Image.Image], NDArray[np.float32]]


class DroppedLinear(nn.Module):
    """A linear layer followed by dropout, as the original wraps it."""

    def __init__(self, linear: nn.Linear, p: float) -> None:
        super().__init__()
        self.linear = linear
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        dropped: Tensor = self.dropout(self.linear(x))
        return dropped


@contextlib.contextmanager
def dropout_after(tower: nn.Module, linears: Sequence[str], p: float) -> Iterator[None]:
    """Wrap some linear layers of a tower, by the paths of their modules, while this lasts."""
    wrapped: list[tuple[nn.Module, str, nn.Linear]] = []
    for path in linears:
        parent, leaf = tower.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
        linear = parent.get_submodule(leaf)
        if not isinstance(linear, nn.Linear):
            msg = f"module {path} is no linear layer"
            raise TypeError(msg)
        setattr(parent, leaf, DroppedLinear(linear, p))
        wrapped.append((parent, leaf, linear))
    try:
        yield
    finally:
        for parent, leaf, linear in wrapped:
            setattr(parent, leaf, linear)


def plain_trial(
    tower: nn.Module, paths: Sequence[Path], prepare: Prepare, *, passes: int, batch: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run a trial as the original does.

    Parameters
    ----------
    tower
        With its dropout modules in place (`dropout_after`), and in training mode where they are.
    paths
        N image files.
    prepare
        From a picture of mode RGB to (3, H, W).
    passes, batch, seed
        T, images in a batch, seed of torch's global stream.

    Returns
    -------
    trace_pre, trace_post
        (N,) float32: mean over dimensions of the biased variance of the features, and of the normalised features.
    """
    torch.manual_seed(seed)
    sums: list[Tensor] = []
    device = next(tower.parameters()).device
    for _ in range(passes):
        for start in range(0, len(paths), batch):
            pictures = [torch.from_numpy(prepare(_open(path))) for path in paths[start : start + batch]]
            with torch.inference_mode():
                pre = tower(torch.stack(pictures).to(device, non_blocking=True)).float().cpu().double()
            post = functional.normalize(pre, dim=-1)
            sums = sums or [torch.zeros((len(paths), pre.shape[1]), dtype=torch.float64) for _ in range(4)]
            for total, part in zip(sums, (pre, pre * pre, post, post * post), strict=True):
                total[start : start + len(pre)] += part
    return _trace(sums[0], sums[1], passes), _trace(sums[2], sums[3], passes)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _trace(first: Tensor, second: Tensor, passes: int) -> NDArray[np.float32]:
    mean = first / float(passes)
    variance = second / float(passes) - mean * mean
    return (variance.sum(dim=1) / float(variance.shape[1])).float().numpy()
