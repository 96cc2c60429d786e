"""The operations behind pack_spikes: a bit for each spike in the order of memory, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packing_cases import normal

from snnfast.ops.pack_bits import pack_bits, unpack_bits

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("count", [1, 3, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 1000, 4097])
def test_bits_are_the_spikes_in_memory_order(kernels, dtype, shift, count):
    spikes = ((normal(count + shift) > 0.5) * normal(count + shift, seed=1)).to(dtype)[shift:].to(kernels.device)
    bits = pack_bits(spikes)
    wanted = np.packbits((spikes.cpu().double().numpy() != 0), bitorder="little")
    assert bits.dtype == torch.uint8 and np.array_equal(bits.cpu().numpy(), wanted)
    again = unpack_bits(bits, count, dtype)
    assert again.dtype == dtype and torch.equal(again, (spikes != 0).to(dtype))


def smallest(dtype: torch.dtype) -> torch.Tensor:
    """The smallest subnormal number, and seven zeros."""
    values = torch.zeros(8, dtype=dtype)
    values.view(torch.uint8)[0] = 1
    return values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", ["each", "each five times", "the smallest"])
def test_whatever_is_not_zero_is_a_spike(kernels, dtype, which):
    tiny = torch.finfo(dtype).smallest_normal
    row = [0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf"), 1.0, -1.0, tiny, -tiny, 0.0, 1.0]
    values = {
        "each": torch.tensor(row, dtype=dtype),
        "each five times": torch.tensor(row * 5, dtype=dtype),
        "the smallest": smallest(dtype),
    }[which].to(kernels.device)
    found = unpack_bits(pack_bits(values), values.numel(), dtype)
    wanted = values.cpu().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]) << 1 != 0
    assert torch.equal(found.cpu(), wanted.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_tensors_take_every_thread_and_give_the_same_bits(dtype):
    count = (5 << 20) // torch.empty(0, dtype=dtype).element_size() + 13  # streamed past the caches
    spikes = (normal(count) > 1).to(dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(pack_bits(spikes))
            assert torch.equal(unpack_bits(found[-1], count, dtype), spikes), f"{threads} threads"
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], bits) for bits in found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "values",
    [normal(3, 5), normal(2, 3, 4, 5).to(memory_format=torch.channels_last), normal(0), normal(1)],
    ids=["3x5", "channels last", "empty", "one"],
)
def test_the_operations_are_what_torch_expects_of_an_operation(values, dtype):
    spikes = (values > 0).to(dtype)
    torch.library.opcheck(torch.ops.snnfast.pack_bits.default, (spikes,))
    torch.library.opcheck(torch.ops.snnfast.unpack_bits.default, (pack_bits(spikes), spikes.numel(), dtype))


BITS = torch.zeros(2, dtype=torch.uint8)
REFUSED = {
    "spikes of integers": (
        lambda: pack_bits(torch.zeros(3, dtype=torch.int32)),
        TypeError,
        "spikes must be float32.* got torch.int32",
    ),
    "spikes with gaps": (
        lambda: pack_bits(torch.zeros(4, 4)[:, ::2]),
        ValueError,
        r"spikes must be dense .* strides \[4, 2\]",
    ),
    "to integers": (lambda: unpack_bits(BITS, 9, torch.int8), TypeError, "dtype must be float32.* got torch.int8"),
    "bits of another dtype": (
        lambda: unpack_bits(BITS.int(), 9, torch.float32),
        TypeError,
        "bits must be uint8, got torch.int32",
    ),
    "bits in two dimensions": (
        lambda: unpack_bits(BITS.view(1, 2), 9, torch.float32),
        ValueError,
        "bits must be one contiguous dimension",
    ),
    "too few bits": (
        lambda: unpack_bits(BITS, 17, torch.float32),
        RuntimeError,
        "bits must be 3 bytes for 17 spikes, got 2",
    ),
    "a negative count": (lambda: unpack_bits(BITS, -1, torch.float32), ValueError, "count must be >= 0, got -1"),
}


@pytest.mark.parametrize(("call", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_arguments_of_the_operations_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
