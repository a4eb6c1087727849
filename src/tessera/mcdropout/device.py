"""Where trials run, and how the device is set up.

CUDA and MPS paths are written from torch's documentation; the tests run on CPU.
"""

from __future__ import annotations

import contextlib
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from tessera.mcdropout.errors import DeviceError
from tessera.mcdropout.masks import Form

DeviceChoice: TypeAlias = Literal["auto", "cuda", "mps", "cpu"]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]

_HALF: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(asked: DeviceChoice, assigned: str = "cpu") -> torch.device:
    """Choose the device of this process.

    Parameters
    ----------
    asked
        ``auto``: CUDA where there is a GPU, else MPS, else CPU.
    assigned
        Which of several GPUs is this process's, ``cuda:N``; ``cpu`` leaves the choice to torch.

    Raises
    ------
    DeviceError
        The device asked for is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if asked == "cuda" and not cuda:
        how = "is built without CUDA" if torch.version.cuda is None else "finds no GPU (see nvidia-smi)"
        msg = f"device=cuda is asked for, and torch {torch.__version__} {how}; use device=cpu or device=auto"
        raise DeviceError(msg)
    if asked == "mps" and not mps:
        msg = "device=mps is asked for, and torch finds no Metal device; use device=cpu or device=auto"
        raise DeviceError(msg)
    if asked == "cuda" or (asked == "auto" and cuda):
        return torch.device(assigned if assigned.startswith("cuda") else "cuda:0")
    return torch.device("mps" if asked == "mps" or (asked == "auto" and mps) else "cpu")


def device_name(device: torch.device) -> str:
    """Return the kind of a device: ``cpu``, ``mps``, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def set_switches(device: torch.device, *, tf32: bool, cudnn_benchmark: bool) -> None:
    """Set the switches of torch that trade bits for speed; without effect but on CUDA.

    Parameters
    ----------
    device
        Where trials run.
    tf32
        Let float32 matrix products round their inputs to 10 bits of mantissa.
    cudnn_benchmark
        Let cuDNN time its convolutions and take the fastest: runs may then differ in their last bits.
    """
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = cudnn_benchmark


def half_precision(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Return the autocast of a forward pass; towers keep their projection, and trials their sums, out of it."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_HALF[precision])


def mask_form(device: torch.device) -> Form:
    """Return the form in which masks are drawn: sparse on the host for CPU and MPS, dense and fused on CUDA."""
    return "dense" if device.type == "cuda" else "sparse"


def sums_on(device: torch.device, dtype: torch.dtype) -> torch.device:
    """Return where moments are summed: MPS has no float64, so there they are summed on the host."""
    return torch.device("cpu") if device.type == "mps" and dtype == torch.float64 else device


def compiles(device: torch.device, wanted: bool | Literal["auto"]) -> bool:
    """Say whether the forward pass is compiled: by itself only on CUDA; never on MPS."""
    if wanted == "auto":
        return device.type == "cuda"
    if wanted and device.type == "mps":
        msg = "compile=true is asked for on MPS, which is not supported; use compile=auto"
        raise DeviceError(msg)
    return wanted


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; to CUDA from pinned memory, so that the copy overlaps with what the GPU is doing."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU, None elsewhere."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
