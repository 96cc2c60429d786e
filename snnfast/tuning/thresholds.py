"""Thresholds of a network without batch normalization, from the currents that its data cause."""

from __future__ import annotations

import inspect
import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from snnfast.functional import batch_norm_integrate_and_fire
from snnfast.layers import BatchNormNeuron
from snnfast.layers.state_dict import hold
from snnfast.tuning.gradients import over_time
from snnfast.tuning.trial import (
    Batches,
    SpikingLayer,
    check_batches,
    on_trial,
    passes_over,
    reset_states,
    spiking_layers,
)


class _Reached(Exception):
    """The layer in question has its current: nothing behind it needs to run."""


def normalize_thresholds(model: nn.Module, batches: Batches) -> dict[str, float]:
    """Sets every layer's threshold to its largest input current (end of the paper's section 2.6, MATH.md section 6).

    Layer by layer, in the order in which the forward pass reaches them: the threshold becomes the largest current over
    all batches, neurons and time steps, with the earlier layers' thresholds already set. The model runs in evaluation
    mode, without gradients. A threshold that is a tensor, buffer or parameter, keeps its shape; every channel gets the
    layer's one value. One that is a number stays one, which from now on the state dict has: :func:`hold_thresholds`.

    Args:
        model: called as ``model(inputs)``; with at least one spiking layer. Layers that the forward pass does not reach
            keep their thresholds.
        batches: a list or DataLoader of (inputs, targets), iterated once per layer and once more; the targets are not
            used.

    Returns:
        The threshold by layer name, in forward order. All else, everything if this raises, is as it was: see
        :mod:`snnfast.tuning`.

    Raises:
        TypeError: not a module; batches that are an iterator or not pairs.
        ValueError: no spiking layer, none reached, no batch; a layer whose largest current is not positive or not
            finite, by name.
    """
    check_batches(batches)
    found: dict[SpikingLayer, float] = {}
    with on_trial(model, training=False) as layers, torch.no_grad():
        calls = _calls(model, batches, layers)
        if not calls:
            raise ValueError("the model's forward pass reaches none of its spiking layers")
        for layer, number in calls.items():
            largest = _largest_current(model, batches, layers, layer, number)
            if not (0 < largest < math.inf):
                what = "positive" if largest <= 0 else "finite"
                raise ValueError(f"layer {layers[layer]!r}: its largest input current is {largest:.6g}, not {what}")
            _set_threshold(layer, largest)
            found[layer] = largest
    for layer, threshold in found.items():
        _set_threshold(layer, threshold)
        hold(layer, "threshold")
    return {layers[layer]: threshold for layer, threshold in found.items()}


def hold_thresholds(model: nn.Module) -> dict[str, float]:
    """Makes the state dict have the threshold of every spiking layer that has a number.

    A threshold given as a number is an option, as the reset is, and not in the state dict; one given as a tensor is.
    After this, a number is there too, under the layer's ``threshold``, a 0-d float64 tensor, as after
    :func:`normalize_thresholds` and :func:`snnfast.convert.to_spiking`. In the layer it stays a number. Loading such a
    state dict needs nothing of this: layers take their thresholds, and hold them. Call it for thresholds that were
    assigned by hand, and for a network that torch.distributed.checkpoint is to fill, in every process: that reads the
    keys which it finds there.

    Args:
        model: any module.

    Returns:
        The thresholds by layer name. Layers whose threshold is a tensor are not among them.

    Raises:
        TypeError, ValueError: not a module, or one without a spiking layer.
    """
    layers = {layer: name for layer, name in spiking_layers(model).items() if not isinstance(layer.threshold, Tensor)}
    for layer in layers:
        hold(layer, "threshold")
    return {name: layer.threshold for layer, name in layers.items()}


def _calls(model: nn.Module, batches: Batches, layers: dict[SpikingLayer, str]) -> dict[SpikingLayer, int]:
    """How often one forward pass calls each layer, at most, over all batches; in the order of the first calls."""
    most: dict[SpikingLayer, int] = {}
    for inputs, _ in passes_over(model, batches):
        calls: dict[SpikingLayer, int] = {}

        def count(layer: nn.Module, _: Any, calls: dict[SpikingLayer, int] = calls) -> None:
            calls[layer] = calls.get(layer, 0) + 1

        reset_states(layers)
        hooks = [layer.register_forward_pre_hook(count) for layer in layers]
        try:
            model(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        for layer, number in calls.items():
            most[layer] = max(number, most.get(layer, 0))
    return most


def _largest_current(
    model: nn.Module, batches: Batches, layers: dict[SpikingLayer, str], layer: SpikingLayer, calls: int
) -> float:
    """The largest current entering ``layer`` over all batches; NaN where one is met."""
    largest: Tensor | None = None
    remaining = 0

    def enter(layer: SpikingLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal largest, remaining
        current = entering_current(layer, inspect.signature(layer.forward).bind(*args, **kwargs).arguments)
        if current.numel():
            here = current.amax()
            largest = here if largest is None else torch.maximum(largest, here)
        remaining -= 1
        if remaining == 0:
            raise _Reached

    hook = layer.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        for inputs, _ in passes_over(model, batches):
            reset_states(layers)
            remaining = calls
            with suppress(_Reached):
                model(inputs)
    finally:
        hook.remove()
    return -math.inf if largest is None else largest.item()


def entering_current(layer: SpikingLayer, arguments: dict[str, Any]) -> Tensor:
    """What the neurons of a call integrate: its current, normalized and with the residual where the layer does that."""
    current, steps = arguments["current"], arguments.get("steps")
    if not isinstance(layer, BatchNormNeuron):
        return current
    residual = arguments.get("residual")
    timed = steps is None or (residual is not None and residual.dim() > current.dim())
    if timed:
        current = over_time(current, steps, layer.time_dim)
    # The neurons themselves say it: over one single step, at rest at 0 at first, their potential is their current.
    as_one_step = (lambda x: x.flatten(0, 1)[None]) if timed else (lambda x: x[None])
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


def _set_threshold(layer: SpikingLayer, value: float) -> None:
    if isinstance(layer.threshold, Tensor):
        with torch.no_grad():
            layer.threshold.fill_(value)
    else:
        layer.threshold = value
