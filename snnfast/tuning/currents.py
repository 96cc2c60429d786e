"""The currents that enter a spiking layer, and the largest of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from snnfast.functional import batch_norm_integrate_and_fire
from snnfast.layers import BatchNormNeuron
from snnfast.tuning.trial import SpikingLayer


class _Reached(Exception):
    """Ends a forward pass at the layer that was asked about: nothing behind it needs to run."""


def over_time(current: Tensor, steps: int | None, time_dim: int) -> Tensor:
    """A current with a time dimension: a held one, expanded without a copy."""
    if steps is None:
        return current
    sizes = [*current.shape[:time_dim], steps, *current.shape[time_dim:]]
    return current.unsqueeze(time_dim).expand(sizes)


def entering_current(layer: SpikingLayer, arguments: dict[str, Any]) -> Tensor:
    """What the neurons of a call integrate: its current, normalized and with the residual where the layer does that."""
    current, steps, residual = arguments["current"], arguments.get("steps"), arguments.get("residual")
    if not isinstance(layer, BatchNormNeuron):
        return current if residual is None else current + residual
    timed = steps is None or (residual is not None and residual.dim() > current.dim())
    if timed:
        current = over_time(current, steps, layer.time_dim)

    def as_one_step(values: Tensor) -> Tensor:
        return (values.flatten(0, 1) if timed else values)[None]

    # The neurons themselves say it: over one single step, at rest at 0 at first, their potential is their current.
    return batch_norm_integrate_and_fire(
        as_one_step(current),
        residual=None if residual is None else as_one_step(residual),
        weight=layer.weight,
        bias=layer.bias,
        running_mean=layer.running_mean,
        running_var=layer.running_var,
        training=layer.training or layer.running_mean is None,
        momentum=0.0,
        eps=layer.eps,
        process_group=layer.process_group,
        threshold=math.inf,
        return_potential=True,
    )[2]


def largest_current(
    model: nn.Module,
    inputs: Iterable[Any],
    layer: SpikingLayer,
    *,
    calls: int = 1,
    entering: Callable[[SpikingLayer, dict[str, Any]], Tensor] = entering_current,
) -> float:
    """The largest current entering ``layer`` over all inputs and time steps; NaN where one is met.

    Args:
        model: called as ``model(one_of_the_inputs)``, and left once it has called the layer.
        inputs: gone through once.
        layer: of the model.
        calls: of the layer in each forward pass.
        entering: from a call's arguments, by name, to the current that enters.

    Returns:
        ``-inf`` where no current was met.
    """
    largest: Tensor | None = None
    remaining = 0

    def enter(layer: SpikingLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal largest, remaining
        current = entering(layer, inspect.signature(layer.forward).bind(*args, **kwargs).arguments)
        if current.numel():
            here = current.amax()
            largest = here if largest is None else torch.maximum(largest, here)
        remaining -= 1
        if remaining == 0:
            raise _Reached

    hook = layer.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        for one in inputs:
            remaining = calls
            with suppress(_Reached):
                model(one)
    finally:
        hook.remove()
    return -math.inf if largest is None else largest.item()
