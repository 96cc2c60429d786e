"""Thresholds and time constants of a layer: Python numbers, buffers or parameters, and what they start from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from snnfast._arguments.checks import device as check_device
from snnfast.dynamics import DTYPES, check_dtype

__all__ = ["LOGITS", "logit_of", "reset_tables", "set_table", "show_table", "start_of", "write_table"]

# The logits between which a learned tau neither rounds to 1 nor overflows. Its gradient is 0 beyond.
LOGITS = {dtype: (-math.log(torch.finfo(dtype).max / 2), -math.log(torch.finfo(dtype).eps)) for dtype in DTYPES}


def set_table(
    layer: nn.Module,
    name: str,
    value: float | Tensor,
    learn: bool,
    device: Any = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Stores a number as it is, a tensor as a buffer, and what is learned as a parameter."""
    check_device("device", device)
    if dtype is not None and not any(dtype is allowed for allowed in DTYPES):
        raise TypeError(f"dtype must be float32, float64, float16, bfloat16 or None, got {dtype!r}")
    if isinstance(value, Tensor):
        check_dtype(name, value)
        if value.is_meta and device is not None and torch.device(device).type != "meta":
            raise ValueError(f"{name} is a tensor on the meta device, which has no values to put on {device}")
        tensor = value.detach().to(device=device, dtype=dtype, copy=True)
    elif learn:
        tensor = torch.tensor(float(value), device=device, dtype=dtype)
    else:
        number: Any = float(value)
        nn.Module.__setattr__(layer, name, number)
        return
    vars(layer)["_started"][name] = start_of(value)
    if learn:
        layer.register_parameter(name, nn.Parameter(tensor))
    else:
        layer.register_buffer(name, tensor)


def start_of(value: float | Tensor) -> float | Tensor:
    """What a table starts from, as :func:`reset_tables` needs it after the table itself lost its values."""
    if not isinstance(value, Tensor):
        return float(value)
    return value.detach().to("meta" if value.is_meta else "cpu", copy=True)


def reset_tables(layer: nn.Module) -> None:
    """Gives every table that is a tensor the values that it started from; numbers are options, and stay.

    Raises:
        RuntimeError: a table started from a tensor on the meta device, or is computed from other tensors.
    """
    for name, start in vars(layer)["_started"].items():
        table = getattr(layer, name, None)
        if not isinstance(table, Tensor):
            continue
        if isinstance(start, Tensor) and start.is_meta and not table.is_meta:
            raise RuntimeError(
                f"{name.removesuffix('_logit')} of {type(layer).__name__} was given as a tensor on the meta device, "
                "which has no values to start from: give a number, or make the tensor with device='cpu'"
            )
        write_table(layer, name, start)


def write_table(layer: nn.Module, name: str, value: float | Tensor) -> None:
    """Writes values into a parameter or buffer, in place; through a parametrization as torch does (``right_inverse``).

    Raises:
        RuntimeError: the table is computed from other tensors.
    """
    with torch.no_grad():
        if parametrize.is_parametrized(layer, name):
            shape = getattr(layer, name)
            setattr(layer, name, torch.as_tensor(value).to(shape).expand_as(shape))
            return
        table: Any = layer._parameters.get(name)
        if table is None:
            table = layer._buffers.get(name)
        if table is None:
            raise RuntimeError(
                f"{name} of {type(layer).__name__} cannot be set: it is computed from other tensors (by pruning, "
                "weight normalization or DataParallel), which must be set instead"
            )
        if not isinstance(value, Tensor):
            table.fill_(value)
        elif hasattr(table, "device_mesh"):  # a DTensor, whose values all processes have
            from torch.distributed.tensor import DTensor, Replicate

            mesh, value = table.device_mesh, value.to(table.to_local()).expand(table.shape).contiguous()
            everywhere = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
            table.copy_(everywhere.redistribute(mesh, table.placements))
        else:
            table.copy_(value)


def logit_of(tau: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """What stands for a learned tau, -log(tau - 1), a number for a number; ValueError where the dtype cannot hold it.

    A tensor's values are read where that waits for no device.
    """
    least, most = LOGITS[dtype]
    if isinstance(tau, Tensor):
        check_dtype("tau", tau)
        exact = -torch.log(tau.detach().double() - 1)
        readable = type(tau) in (Tensor, nn.Parameter) and tau.is_cpu
        fits = not readable or bool(((exact >= least) & (exact <= most)).all())
        logit: float | Tensor = exact.to(dtype)
    else:
        logit = number = -math.log(tau - 1)
        fits = least <= number <= most
    if not fits:
        limits = torch.finfo(dtype)
        raise ValueError(
            f"tau must be at least 1 + {limits.eps:.3g} and at most {limits.max / 2:.3g} to be learned in {dtype}, "
            f"got {tau}"
        )
    return logit


def show_table(value: float | Tensor) -> str:
    """A number as floats print, whether given as 20, 20.0 or learned; of other tensors the shape."""
    if not isinstance(value, Tensor):
        return repr(float(value))
    if value.dim() == 0 and not value.is_meta and type(value) in (Tensor, nn.Parameter):
        return repr(float(f"{value.item():.6g}"))
    return f"tensor of shape {list(value.shape)}"
