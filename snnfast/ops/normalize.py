"""What lies between the passes of batch-normalized neurons: a batch's moments, and tables per channel made of them.

Moments are [2, C] in float64: mean and biased variance of every channel over time, batch and space. Tables are what the
kernels read, in the state's dtype (csrc/normalization.h).
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnfast import backends
from snnfast.dynamics import state_dtype
from snnfast.normalization import channels_of
from snnfast.ops.integrate import DTYPE_CODES, as_current, channel_sums
from snnfast.ops.layout import plan
from snnfast.ops.registry import define, library, op

define(
    "batch_norm_tables(Tensor current, Tensor? weight, Tensor? bias, float eps, SymInt steps, int time_dim) "
    "-> (Tensor moments, Tensor tables, Tensor tracked)"
)
define("normalization_tables(Tensor moments, Tensor? weight, Tensor? bias, float eps, ScalarType dtype) -> Tensor")
define(
    "normalization_gradients(Tensor sums, Tensor moments, Tensor tables, float eps, SymInt count, ScalarType dtype) "
    "-> (Tensor gradient_tables, Tensor grad_weight, Tensor grad_bias)"
)


def parameters(weight: Tensor | None, bias: Tensor | None) -> tuple[tuple[int, int, int], tuple[Tensor | None, ...]]:
    """Their dtype's code and addresses, and the tensors to keep alive: as given where both have one dtype."""
    given = [None if t is None else t.detach().contiguous() for t in (weight, bias)]
    dtypes = {t.dtype for t in given if t is not None}
    if len(dtypes) > 1:
        given = [None if t is None else t.to(torch.float64) for t in given]
        dtypes = {torch.float64}
    code = DTYPE_CODES[dtypes.pop()] if dtypes else 0
    return (code, *(0 if t is None else t.data_ptr() for t in given)), tuple(given)


def batch_norm_tables(
    current: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, steps: int, time_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of a batch, tables made of them, and [2, C] mean and unbiased variance for the running statistics."""
    channels = channels_of(current, steps > 0)
    state, device = state_dtype(current.dtype), current.device
    if current.numel() == 0:
        # No values have no moments, and the kernels must not look for a first one. Any finite ones do: the parameters'
        # gradients are sums of nothing times these.
        moments = torch.ones(2, channels, dtype=torch.float64, device=device)
        return moments, normalization_tables(moments, weight, bias, eps, state), moments.to(state, copy=True)
    p = plan(current.shape, current.stride(), steps, time_dim, channels)
    x = as_current(current, p, steps > 0, p.copy_current)
    moments = torch.empty(2, channels, dtype=torch.float64, device=device)
    tables = torch.empty(3, channels, dtype=state, device=device)
    tracked = torch.empty(2, channels, dtype=state, device=device)
    neurons = torch.empty(2, p.neurons, dtype=state, device=device)
    target, where = backends.target(current)
    dtype = DTYPE_CODES[current.dtype]
    target.moments(where, dtype, p.layout, x.data_ptr(), neurons.data_ptr())
    sums = channel_sums(neurons, p.sum_sizes, target, where)
    addresses, _kept = parameters(weight, bias)
    target.finish_moments(
        where,
        dtype,
        p.layout,
        current.numel() / channels,
        x.data_ptr(),
        sums.data_ptr(),
        eps,
        *addresses,
        moments.data_ptr(),
        tables.data_ptr(),
        tracked.data_ptr(),
    )
    return moments, tables, tracked


def normalization_tables(
    moments: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """Tables made of given moments."""
    channels = moments.shape[1]
    tables = torch.empty(3, channels, dtype=dtype, device=moments.device)
    if channels == 0:
        return tables
    target, where = backends.target(moments)
    addresses, _kept = parameters(weight, bias)
    target.normalization_tables(
        where, DTYPE_CODES[dtype], channels, eps, moments.data_ptr(), *addresses, tables.data_ptr()
    )
    return tables


def normalization_gradients(
    sums: Tensor, moments: Tensor, tables: Tensor, eps: float, count: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """[2, C] tables for the gradient through the batch's statistics, and the gradients of weight and bias."""
    channels = moments.shape[1]
    gradient_tables = torch.empty(2, channels, dtype=tables.dtype, device=tables.device)
    grad_weight = torch.empty(channels, dtype=dtype, device=tables.device)
    grad_bias = torch.empty(channels, dtype=dtype, device=tables.device)
    if channels == 0:
        return gradient_tables, grad_weight, grad_bias
    target, where = backends.target(moments)
    target.normalization_gradients(
        where,
        DTYPE_CODES[tables.dtype],
        channels,
        eps,
        float(count),
        sums.data_ptr(),
        moments.data_ptr(),
        tables.data_ptr(),
        gradient_tables.data_ptr(),
        DTYPE_CODES[dtype],
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
    )
    return gradient_tables, grad_weight, grad_bias


@torch.library.register_fake("snnfast::batch_norm_tables", lib=library)
def batch_norm_tables_shapes(current, weight, bias, eps, steps, time_dim):
    channels, state = channels_of(current, steps != 0), state_dtype(current.dtype)
    return (
        current.new_empty((2, channels), dtype=torch.float64),
        current.new_empty((3, channels), dtype=state),
        current.new_empty((2, channels), dtype=state),
    )


@torch.library.register_fake("snnfast::normalization_tables", lib=library)
def normalization_tables_shape(moments, weight, bias, eps, dtype):
    return moments.new_empty((3, moments.shape[1]), dtype=dtype)


@torch.library.register_fake("snnfast::normalization_gradients", lib=library)
def normalization_gradients_shapes(sums, moments, tables, eps, count, dtype):
    of_parameters = [tables.new_empty(tables.shape[1], dtype=dtype) for _ in range(2)]
    return torch.empty_like(tables[:2]), *of_parameters


batch_norm_tables_op = op("batch_norm_tables", batch_norm_tables)
normalization_tables_op = op("normalization_tables", normalization_tables)
normalization_gradients_op = op("normalization_gradients", normalization_gradients, 1)
