"""How tensors are laid before the kernels: as [outer, steps, inner] with strides (csrc/calls.h).

A kernel walks `inner` neighbouring neurons at a time, so every tensor of a call must be readable, with one split of the
dimensions other than time, as outer × inner, inner being contiguous. That covers both time dimensions, channels-last
and any other dense order, slices of the batch, of time or of leading channels, and expanded dimensions. What it does
not cover (time innermost, every second column) is copied by step.py.

Everything here is arithmetic on shapes and strides, cached: in the steady state a call costs one look-up.
"""

from __future__ import annotations

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


@lru_cache(maxsize=4096)
def plan(
    current_shape: Sizes,
    current_strides: Sizes,
    steps: int | None,
    time_dim: int,
    channels: int,
    grad_spikes_strides: Sizes | None = None,
    grad_potential_strides: Sizes | None = None,
    residual_strides: Sizes | None = None,
    residual_held: bool = False,
) -> Plan:
    """The plan for one combination of shapes and strides. `channels`: length of the tables, 1 without."""
    held = steps is not None
    meta = torch.empty_strided(current_shape, current_strides, device="meta", dtype=torch.float32)
    spikes = spikes_like(meta, steps, time_dim)
    shape, strides = tuple(spikes.shape), spikes.stride()
    rest = [d for d in range(len(shape)) if d != time_dim]
    # Memory order; dimensions of size 1 have no say, and keep their place. Nor has any where there is no neuron.
    order = sorted(rest, key=lambda d: -strides[d])
    longer = [] if 0 in shape else [d for d in order if shape[d] > 1]

    valid = splits(shape, strides, longer)
    run_strides = strides
    if not valid:
        run_strides = dense_strides(shape, [time_dim, *order])
        valid = splits(shape, run_strides, longer)

    def with_time(tensor_strides: Sizes, held: bool) -> Sizes:
        return (*tensor_strides[:time_dim], 0, *tensor_strides[time_dim:]) if held else tensor_strides

    used: list[Sizes] = []
    copied: list[bool] = []
    given = (
        with_time(current_strides, held),
        grad_spikes_strides,
        grad_potential_strides,
        None if residual_strides is None else with_time(residual_strides, residual_held),
    )
    for tensor_strides in given:
        common = valid if tensor_strides is None else valid & splits(shape, tensor_strides, longer)
        copied.append(not common)
        used.append(run_strides if tensor_strides is None or not common else tensor_strides)
        valid = common or valid
    split = min(valid)
    one_step = torch.empty_like(spikes.select(time_dim, 0))
    state_shape, state_strides = tuple(one_step.shape), one_step.stride()
    if held and copied[0]:
        used[0] = with_time(state_strides, held)  # a copy of a held current has no time axis either
    if residual_held and copied[3]:
        used[3] = with_time(state_strides, residual_held)

    inner = outer = 1
    for dim in longer[split:]:
        inner *= shape[dim]
    for dim in longer[:split]:
        outer *= shape[dim]

    def pair(tensor_strides: Sizes) -> tuple[int, int]:
        step = tensor_strides[time_dim] if shape[time_dim] > 1 else 0
        return (tensor_strides[longer[split - 1]] if split else 0, step)

    # A channel's neurons in the flat order: `after` neighbours, again and again.
    after = 1
    if channels > 1:
        for dim in reversed(order):
            if dim == 2:
                break
            after *= shape[dim]
    layout = core.Layout(
        extent=(outer, shape[time_dim], inner),
        channels=(channels, after),
        held=held,
        residual_held=residual_held,
        current=pair(used[0]),
        residual=pair(used[3]),
        spikes=pair(run_strides),
        grad_spikes=pair(used[1]),
        grad_potential=pair(used[2]),
        grad_current=pair(run_strides),
    )
    neurons = outer * inner
    if 0 in shape:
        neurons = 0
    return Plan(
        layout=layout,
        shape=shape,
        strides=strides,
        run_strides=run_strides,
        state_shape=state_shape,
        state_strides=state_strides,
        steps=shape[time_dim],
        neurons=neurons,
        sum_sizes=(max(neurons // max(channels * after, 1), 1), channels, after),
        copy_current=copied[0],
        copy_grad_spikes=copied[1],
        copy_grad_potential=copied[2],
        copy_residual=copied[3],
    )
