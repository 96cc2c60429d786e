"""What lies between the passes of batch-normalized neurons: a batch's moments, and tables per channel made of them.

Moments are [2, C] in float64: mean and biased variance of every channel over time, batch and space. Tables are what the
kernels read, in the state's dtype (csrc/normalization.h).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _backend
from ._layout import plan
from .dynamics import state_dtype
from .ops import DTYPE_CODES, as_current, channel_sums, implement, library

library.define(
    "batch_moments(Tensor current, SymInt steps, int time_dim) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)
library.define(
    "normalization_tables(Tensor moments, Tensor? weight, Tensor? bias, float eps, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "normalization_gradients(Tensor sums, Tensor moments, Tensor tables, float eps, SymInt count) "
    "-> (Tensor gradient_tables, Tensor grad_parameters)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def channels_of(current: Tensor, held: bool) -> int:
    """The channels of a current [T, B, C, ...] ([B, T, C, ...]), or held [B, C, ...]."""
    return current.shape[1 if held else 2]


def batch_moments(current: Tensor, steps: int, time_dim: int) -> Tensor:
    channels = channels_of(current, steps > 0)
    state, device = state_dtype(current.dtype), current.device
    if current.numel() == 0:  # no values have no moments: the kernels must not look for a first one
        return torch.zeros(2, channels, dtype=torch.float64, device=device)
    p = plan(current.shape, current.stride(), steps, time_dim, channels)
    x = as_current(current, p, steps > 0, p.copy_current)
    moments = torch.empty(2, channels, dtype=torch.float64, device=device)
    neurons = torch.empty(2, p.neurons, dtype=state, device=device)
    target, where = _backend.target(current)
    dtype = DTYPE_CODES[current.dtype]
    target.moments(where, dtype, p.layout, x.data_ptr(), neurons.data_ptr())
    sums = channel_sums(neurons, p.sum_sizes, target, where)
    count = current.numel() / channels
    target.finish_moments(where, dtype, p.layout, count, x.data_ptr(), sums.data_ptr(), moments.data_ptr())
    return moments


def in_float64(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach().to(torch.float64).contiguous()


def normalization_tables(
    moments: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    channels = moments.shape[1]
    tables = torch.empty(3, channels, dtype=dtype, device=moments.device)
    if channels == 0:
        return tables
    weight, bias = in_float64(weight), in_float64(bias)
    target, where = _backend.target(moments)
    target.normalization_tables(
        where, DTYPE_CODES[dtype], channels, eps, moments.data_ptr(),
        0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(), tables.data_ptr(),
    )  # fmt: skip
    return tables


def normalization_gradients(
    sums: Tensor, moments: Tensor, tables: Tensor, eps: float, count: int
) -> tuple[Tensor, Tensor]:
    channels = moments.shape[1]
    gradient_tables = torch.empty(2, channels, dtype=tables.dtype, device=tables.device)
    grad_parameters = torch.empty(2, channels, dtype=torch.float64, device=tables.device)
    if channels == 0:
        return gradient_tables, grad_parameters
    target, where = _backend.target(moments)
    target.normalization_gradients(
        where, DTYPE_CODES[tables.dtype], channels, eps, float(count), sums.data_ptr(), moments.data_ptr(),
        tables.data_ptr(), gradient_tables.data_ptr(), grad_parameters.data_ptr(),
    )  # fmt: skip
    return gradient_tables, grad_parameters


@torch.library.register_fake("snnfast::batch_moments", lib=library)
def batch_moments_shape(current, steps, time_dim):
    return current.new_empty((2, current.shape[1 if steps else 2]), dtype=torch.float64)


@torch.library.register_fake("snnfast::normalization_tables", lib=library)
def normalization_tables_shape(moments, weight, bias, eps, dtype):
    return moments.new_empty((3, moments.shape[1]), dtype=dtype)


@torch.library.register_fake("snnfast::normalization_gradients", lib=library)
def normalization_gradients_shape(sums, moments, tables, eps, count):
    return torch.empty_like(tables[:2]), torch.empty_like(moments)


implement("batch_moments", batch_moments)
implement("normalization_tables", normalization_tables)
implement("normalization_gradients", normalization_gradients)
