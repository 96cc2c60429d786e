"""How tensors are laid before the kernels: as [outer, steps, inner] with strides (csrc/calls.h).

A kernel walks `inner` neighbouring neurons at a time, so every tensor of a call must be readable, with one split of the
dimensions other than time, as outer × inner, inner being contiguous. That covers both time dimensions, channels-last
and any other dense order, slices of the batch, of time or of leading channels, and expanded dimensions. What it does
not cover (time innermost, every second column) is copied by step.py.

Everything here is arithmetic on shapes and strides, cached: in the steady state a call costs one look-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch

from snnfast.backends import core

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What a step needs to run kernels: the core's layout, what to allocate and what to copy."""

    layout: core.Layout
    shape: Sizes  # [T, B, ...] or [B, T, ...]
    strides: Sizes  # of the spikes, as the user gets them
    run_strides: Sizes  # of the spikes, as the kernel writes them; other than `strides`: a copy follows
    state_shape: Sizes  # [B, ...]
    state_strides: Sizes  # dense, in the memory order of the spikes
    steps: int
    neurons: int
    sum_sizes: tuple[int, int, int]  # [before, channels, after] of a per-neuron array, for sums per channel
    copy_current: bool
    copy_grad_spikes: bool
    copy_grad_potential: bool
    copy_residual: bool


def spikes_like(current: torch.Tensor, steps: int | None, time_dim: int) -> torch.Tensor:
    """An empty tensor with the shape and memory format of the spikes; without steps, the current has a time axis."""
    if steps is None:
        return torch.empty_like(current)
    held = torch.empty_like(current).unsqueeze(time_dim)
    return torch.empty_like(held.expand(*held.shape[:time_dim], steps, *held.shape[time_dim + 1 :]))


def dense_strides(shape: Sizes, order: list[int]) -> Sizes:
    """Strides of a dense tensor whose dimensions, slowest first, are `order`."""
    strides, size = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = size
        size *= shape[dim]
    return tuple(strides)


def splits(shape: Sizes, strides: Sizes, order: list[int]) -> set[int]:
    """The p for which order[:p] is one strided and order[p:] one contiguous dimension."""

    def merges(slow: int, fast: int) -> bool:
        return strides[slow] == strides[fast] * shape[fast]

    n = len(order)
    if n == 0:
        return {0}
    found = set()
    for p in range(n):
        inner, outer = order[p:], order[:p]
        if (
            strides[inner[-1]] == 1
            and all(merges(a, b) for a, b in pairwise(inner))
            and all(merges(a, b) for a, b in pairwise(outer))
        ):
            found.add(p)
    return found


def with_time(strides: Sizes, time_dim: int, held: bool) -> Sizes:
    """Strides of a tensor with time: what is held has none in memory, and steps nowhere."""
    return (*strides[:time_dim], 0, *strides[time_dim:]) if held else strides


@dataclass(frozen=True)
class _Readable:
    """How a kernel reads tensors that have one split of the dimensions in common."""

    run_strides: Sizes  # of what it writes
    split: int  # of the dimensions longer than 1, slowest first: how many are outer
    used: list[Sizes]  # for each tensor its own strides, or those of the copy that is read in its place
    copied: list[bool]


def _readable(shape: Sizes, strides: Sizes, longer: list[int], dense: Sizes, given: list[Sizes | None]) -> _Readable:
    """Finds the split. ``given``: strides of each tensor, None where there is none; the first say which others fit."""
    valid = splits(shape, strides, longer)
    run_strides = strides
    if not valid:
        run_strides = dense
        valid = splits(shape, run_strides, longer)
    used: list[Sizes] = []
    copied: list[bool] = []
    for tensor_strides in given:
        common = valid if tensor_strides is None else valid & splits(shape, tensor_strides, longer)
        copied.append(not common)
        used.append(run_strides if tensor_strides is None or not common else tensor_strides)
        valid = common or valid
    return _Readable(run_strides, min(valid), used, copied)


def _strides(found: _Readable, shape: Sizes, time_dim: int, outer_dim: int | None) -> dict[str, tuple[int, int]]:
    """Of each tensor of a call, of the dimension that stands for outer and of a step."""

    def pair(strides: Sizes) -> tuple[int, int]:
        return (0 if outer_dim is None else strides[outer_dim], strides[time_dim] if shape[time_dim] > 1 else 0)

    current, grad_spikes, grad_potential, residual = found.used
    return {
        "current": pair(current),
        "residual": pair(residual),
        "spikes": pair(found.run_strides),
        "grad_spikes": pair(grad_spikes),
        "grad_potential": pair(grad_potential),
        "grad_current": pair(found.run_strides),
    }


@lru_cache(maxsize=4096)
def plan(
    current_shape: Sizes,
    current_strides: Sizes,
    steps: int | None,
    time_dim: int,
    channels: int,
    others: tuple[Sizes | None, Sizes | None, Sizes | None] = (None, None, None),
    residual_held: bool = False,
) -> Plan:
    """The plan for one combination of shapes and strides.

    Args:
        channels: length of the tables, 1 without.
        others: strides of the spikes' and the potential's gradients and of the residual.
    """
    held = steps is not None
    meta = torch.empty_strided(current_shape, current_strides, device="meta", dtype=torch.float32)
    spikes = spikes_like(meta, steps, time_dim)
    shape, strides = tuple(spikes.shape), spikes.stride()
    rest = [d for d in range(len(shape)) if d != time_dim]
    # Memory order; dimensions of size 1 have no say, and keep their place. Nor has any where there is no neuron.
    order = sorted(rest, key=lambda d: -strides[d])
    longer = [] if 0 in shape else [d for d in order if shape[d] > 1]

    grad_spikes, grad_potential, residual = others
    given = [
        with_time(current_strides, time_dim, held),
        grad_spikes,
        grad_potential,
        None if residual is None else with_time(residual, time_dim, residual_held),
    ]
    found = _readable(shape, strides, longer, dense_strides(shape, [time_dim, *order]), given)
    one_step = torch.empty_like(spikes.select(time_dim, 0))
    state_shape, state_strides = tuple(one_step.shape), one_step.stride()
    for i, without_time in ((0, held), (3, residual_held)):
        if without_time and found.copied[i]:  # a copy of what is held has no time axis either
            found.used[i] = with_time(state_strides, time_dim, True)

    outer = math.prod(shape[dim] for dim in longer[: found.split])
    inner = math.prod(shape[dim] for dim in longer[found.split :])
    # A channel's neurons in the flat order: `after` neighbours, again and again.
    after = math.prod(shape[dim] for dim in order[order.index(2) + 1 :]) if channels > 1 else 1
    outer_dim = longer[found.split - 1] if found.split else None
    layout = core.Layout(
        extent=(outer, shape[time_dim], inner),
        channels=(channels, after),
        held=held,
        residual_held=residual_held,
        **_strides(found, shape, time_dim, outer_dim),
    )
    neurons = 0 if 0 in shape else outer * inner
    return Plan(
        layout=layout,
        shape=shape,
        strides=strides,
        run_strides=found.run_strides,
        state_shape=state_shape,
        state_strides=state_strides,
        steps=shape[time_dim],
        neurons=neurons,
        sum_sizes=(max(neurons // max(channels * after, 1), 1), channels, after),
        copy_current=found.copied[0],
        copy_grad_spikes=found.copied[1],
        copy_grad_potential=found.copied[2],
        copy_residual=found.copied[3],
    )
