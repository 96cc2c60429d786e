"""The options of a normalization, and what a call with one may be given; beside dynamics.py, which has the neuron's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast._arguments.checks import number_within
from snnfast.dynamics import DTYPES, check_dense, check_dtype, not_a_tensor

__all__ = [
    "WORLD_ONCE_INITIALISED",
    "Affine",
    "Normalization",
    "channels_of",
    "check_eps",
    "check_momentum",
    "check_normalized_call",
    "resolve_group",
]

WORLD_ONCE_INITIALISED = "world, once initialised"
"""The process group of layers that nn.SyncBatchNorm.convert_sync_batchnorm converted, as lenient as torch's own."""


class Affine(NamedTuple):
    """Per channel, [C] each: the parameters (None: 1 and 0), and the running statistics."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    variance: Tensor | None


@dataclass(frozen=True)
class Normalization:
    """What one call normalizes by, in the terms of torch.nn.functional.batch_norm. The options are checked already."""

    eps: float
    batch: bool  # by the batch's own statistics, through which the gradient passes; otherwise by the running ones
    affine: Affine
    process_group: Any = None  # statistics over its processes; None: of this process alone
    momentum: float | Tensor | None = None  # of the running statistics, where a batch moves them; None: it does not
    batches: Tensor | None = None  # counted up with them
    channels: int | None = None  # that the current must have; None: any

    def with_statistics(self, mean: Tensor, variance: Tensor) -> Normalization:
        """The same by given statistics."""
        affine = Affine(self.affine.weight, self.affine.bias, mean, variance)
        return Normalization(self.eps, False, affine, self.process_group)


def check_eps(eps: float) -> float:
    return number_within("eps", eps, least=0)


def check_momentum(momentum: float) -> float:
    return number_within("momentum", momentum, least=0, most=1)


def resolve_group(group: Any) -> Any:
    """The process group of a name or a group; ValueError without torch.distributed, TypeError for anything else."""
    if group is None:
        return None
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        if isinstance(group, str) and group == WORLD_ONCE_INITIALISED:
            return None
        raise ValueError(
            f"process_group is {group!r}, but torch.distributed is not initialised: call "
            "torch.distributed.init_process_group first, or leave process_group out"
        )
    if isinstance(group, str) and group in ("world", WORLD_ONCE_INITIALISED):
        return distributed.group.WORLD
    if not isinstance(group, distributed.ProcessGroup):
        error = ValueError if isinstance(group, str) else TypeError
        raise error(f"process_group must be a torch.distributed process group or 'world', got {group!r}")
    return group


def check_normalized_call(
    current: Tensor,
    residual: Tensor | None,
    steps: int | None,
    time_dim: int,
    channels: int | None,
    **per_channel: Tensor | None,
) -> None:
    """Checks what a call is given beyond what a plain one is, reading shapes, dtypes and devices only.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """
    held = steps is not None
    if current.dim() < (2 if held else 3) or (channels is not None and channels_of(current, held) != channels):
        raise wrong_channels(current, held, time_dim, channels)
    found = channels_of(current, held)
    for name, value in per_channel.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise not_a_tensor(name, value)
        if value.dtype not in DTYPES:
            check_dtype(name, value)
        check_dense(name, value)
        if value.shape != (found,):
            raise ValueError(f"{name} must have the shape [{found}], one value per channel, got {list(value.shape)}")
        if value.device != current.device:
            raise ValueError(f"{name} is on {value.device}, current on {current.device}; both must be on one device")
    if residual is not None:
        check_residual(residual, current, steps, time_dim)


def wrong_channels(current: Tensor, held: bool, time_dim: int, channels: int | None) -> ValueError:
    """What to say of a current whose channels are not where a normalization looks for them."""
    shape = list(current.shape)
    axes = "[B, C, ...]" if held else "[T, B, C, ...]" if time_dim == 0 else "[B, T, C, ...]"
    short = len(shape) < (2 if held else 3)
    what = "a channel dimension" if short else f"{channels} channels (num_features)"
    got = shape if short else f"{channels_of(current, held)} in {shape}"
    meant = ""
    if not held and ((short and len(shape) == 2) or (channels is not None and shape[1:2] == [channels])):
        meant = "; [B, C, ...] without time axis is held by steps=T, as in layer(current, steps=10)"
    elif held and shape[2:3] == [channels]:
        meant = "; steps=T is for a current without time axis: leave it out for [T, B, C, ...]"
    elif shape[-1] == channels:
        meant = f"; the channels seem to be the last dimension: current.movedim(-1, {1 if held else 2})"
    return ValueError(f"current must have {what}, as {axes}, to be normalized; got {got}{meant}")


def check_residual(residual: Tensor, current: Tensor, steps: int | None, time_dim: int) -> None:
    """A residual has the output's shape, or the current's where that is held; its dtype and device."""
    if not isinstance(residual, Tensor):
        raise not_a_tensor("residual", residual)
    check_dense("residual", residual)
    if residual.dtype != current.dtype:
        raise TypeError(f"residual must have the current's dtype, {current.dtype}, got {residual.dtype}")
    if residual.device != current.device:
        raise ValueError(f"residual is on {residual.device}, current on {current.device}; both must be on one device")
    allowed: list[tuple[int, ...]] = [current.shape]
    if steps is not None:
        allowed.append((*current.shape[:time_dim], steps, *current.shape[time_dim:]))
    # Shapes of as many dimensions only: while a network is exported, comparing others would restrict their sizes.
    if not any(residual.dim() == len(shape) and tuple(residual.shape) == tuple(shape) for shape in allowed):
        raise ValueError(
            f"residual must have the shape {' or '.join(str(list(shape)) for shape in allowed)}, "
            f"got {list(residual.shape)}"
        )


def channels_of(current: Tensor, held: bool) -> int:
    """The channels of a current [T, B, C, ...] ([B, T, C, ...]), or held [B, C, ...]."""
    return current.shape[1 if held else 2]
