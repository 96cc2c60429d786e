"""Spikes as bits: the two operations as torch sees them (their kernels: pack_bits in csrc/).

``snnfast::pack_bits`` turns a dense tensor into ``ceil(n / 8)`` bytes: element i of its memory order is bit i % 8 of
byte i / 8, set where the element is not zero (NaN is set, -0.0 is not). ``snnfast::unpack_bits`` turns them back into
zeros and ones. Both are opaque to torch.compile and know no autograd, as all ops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnfast import backends
from snnfast.backends import DTYPE_CODES, core
from snnfast.ops.registry import op

__all__ = ["is_dense", "pack_bits", "unpack_bits"]


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory, each its own place, in whatever order of the dimensions."""
    if tensor.is_contiguous():
        return True
    size = 1
    for stride, length in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != size:
            return False
        size *= length
    return True


def check_spikes(spikes: Tensor) -> None:
    if spikes.dtype not in DTYPE_CODES:
        raise TypeError(f"spikes must be float32, float64, float16 or bfloat16, got {spikes.dtype}")
    if not is_dense(spikes):
        raise ValueError(
            "spikes must be dense in memory (contiguous, or a permutation of it as channels-last is), got shape "
            f"{list(spikes.shape)} with strides {list(spikes.stride())}"
        )


def check_bits(bits: Tensor, count: int, dtype: torch.dtype) -> None:
    if dtype not in DTYPE_CODES:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    if bits.dtype != torch.uint8:
        raise TypeError(f"bits must be uint8, got {bits.dtype}")
    if bits.dim() != 1 or not bits.is_contiguous():
        raise ValueError(
            f"bits must be one contiguous dimension, got shape {list(bits.shape)} with strides {list(bits.stride())}"
        )
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    torch._check(
        bits.shape[0] == (count + 7) // 8,
        lambda: f"bits must be {(count + 7) // 8} bytes for {count} spikes, got {bits.shape[0]}",
    )


def pack(spikes: Tensor) -> Tensor:
    check_spikes(spikes)
    count = spikes.numel()
    bits = torch.empty((count + 7) // 8, dtype=torch.uint8, device=spikes.device)
    if count:
        call = core.PackBitsCall(dtype=DTYPE_CODES[spikes.dtype], count=count, spikes=spikes, bits=bits)
        backends.of(spikes).pack_bits(call)
    return bits


def unpack(bits: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    check_bits(bits, count, dtype)
    spikes = torch.empty(count, dtype=dtype, device=bits.device)
    if count:
        backends.of(bits).unpack_bits(
            core.UnpackBitsCall(dtype=DTYPE_CODES[dtype], count=count, bits=bits, spikes=spikes)
        )
    return spikes


def packed_shape(spikes: Tensor) -> Tensor:
    check_spikes(spikes)
    return spikes.new_empty((spikes.numel() + 7) // 8, dtype=torch.uint8)


def unpacked_shape(bits: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    check_bits(bits, count, dtype)
    return bits.new_empty(count, dtype=dtype)


pack_bits = op("pack_bits(Tensor spikes) -> Tensor", pack, packed_shape, groups=(None,))
unpack_bits = op(
    "unpack_bits(Tensor bits, SymInt count, ScalarType dtype) -> Tensor",
    unpack,
    unpacked_shape,
    groups=(None, None, None),
)
