from __future__ import annotations

import pytest
import torch
from mcdropout.small_towers import clip

from tessera.mcdropout.batching import MicroBatch, automatic_size, in_threads, padded
from tessera.mcdropout.device import choose_device, compiles, mask_form, send, sums_on
from tessera.mcdropout.errors import DeviceError
from tessera.mcdropout.sites import Site

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda:1"), torch.device("mps")


@pytest.fixture
def devices(monkeypatch):
    """Pretend that some devices are there."""

    def there(*, cuda: bool = False, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return there


def test_auto_takes_the_gpu_of_this_rank_then_metal_then_the_cpu(devices):
    devices(cuda=True, mps=True)
    assert choose_device("auto", "cuda:1") == CUDA
    assert choose_device("cuda") == torch.device("cuda:0")
    assert choose_device("cpu", "cuda:1") == CPU
    devices(mps=True)
    assert choose_device("auto") == MPS
    devices()
    assert choose_device("auto") == CPU


@pytest.mark.parametrize("asked", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error(devices, asked):
    devices()
    with pytest.raises(DeviceError, match=f"device={asked} is asked for.*use device="):
        choose_device(asked)


def test_what_metal_does_not_get():
    assert not compiles(MPS, "auto")
    assert compiles(CUDA, "auto")
    assert not compiles(CPU, "auto")
    assert compiles(CPU, wanted=True)
    with pytest.raises(DeviceError, match="MPS"):
        compiles(MPS, wanted=True)
    assert sums_on(MPS, torch.float64) == CPU
    assert sums_on(MPS, torch.float32) == MPS
    assert sums_on(CUDA, torch.float64) == CUDA
    assert (mask_form(CUDA), mask_form(MPS), mask_form(CPU)) == ("dense", "sparse", "sparse")


def test_sending_to_where_it_is_copies_nothing():
    x = torch.zeros(3)
    assert send(x, CPU).data_ptr() == x.data_ptr()


def test_the_batch_fits_the_cache_of_a_cpu_and_the_memory_of_a_gpu(monkeypatch):
    base = [Site(0, "blocks.00.mlp.fc1", "mlp", 0, (50, 3072))]
    large = [Site(0, "blocks.00.mlp.fc1", "mlp", 0, (729, 4304))]
    assert automatic_size(base, CPU) == 8
    assert automatic_size(large, CPU) == 1
    assert automatic_size(clip().sites(), CPU) == 32
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 << 30, 16 << 30))
    assert automatic_size(base, CUDA) == 256
    assert automatic_size(large, CUDA) == 16


def test_batches_are_filled_with_their_last_row():
    assert padded(torch.arange(2, 5).numpy(), 5).tolist() == [2, 3, 4, 4, 4]


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(DeviceError, match="from 1 on"):
        MicroBatch(0)


def test_threads_give_results_in_order_and_pass_errors_on():
    parts = [torch.tensor([i]).numpy() for i in range(9)]
    assert [int(x) for x in in_threads(lambda part: torch.from_numpy(part) * 2, parts, 3)] == list(range(0, 18, 2))

    def fails(part):
        if part[0] == 5:
            msg = "the sixth"
            raise ValueError(msg)
        return torch.from_numpy(part)

    with pytest.raises(ValueError, match="the sixth"):
        list(in_threads(fails, parts, 3))
