"""Thresholds of a network without batch normalization, from the currents that its data cause."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from snnfast.layers.state_dict import hold
from snnfast.tuning.currents import largest_current
from snnfast.tuning.trial import (
    Batches,
    SpikingLayer,
    check_batches,
    on_trial,
    passes_over,
    reset_states,
    spiking_layers,
)


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
            largest = largest_current(model, _reset_before_each(model, batches, layers), layer, calls=number)
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
    held: dict[str, float] = {}
    for layer, name in spiking_layers(model).items():
        if not isinstance(layer.threshold, Tensor):
            hold(layer, "threshold")
            held[name] = layer.threshold
    return held


def _calls(model: nn.Module, batches: Batches, layers: dict[SpikingLayer, str]) -> dict[SpikingLayer, int]:
    """How often one forward pass calls each layer, at most, over all batches; in the order of the first calls."""
    most: dict[SpikingLayer, int] = {}
    for inputs in _reset_before_each(model, batches, layers):
        calls: dict[SpikingLayer, int] = {}

        def count(layer: SpikingLayer, _: Any, calls: dict[SpikingLayer, int] = calls) -> None:
            calls[layer] = calls.get(layer, 0) + 1

        hooks = [layer.register_forward_pre_hook(count) for layer in layers]
        try:
            model(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        for layer, number in calls.items():
            most[layer] = max(number, most.get(layer, 0))
    return most


def _reset_before_each(model: nn.Module, batches: Batches, layers: dict[SpikingLayer, str]) -> Iterator[Any]:
    """The inputs of one pass, before each of which the layers are put to rest."""
    for inputs, _ in passes_over(model, batches):
        reset_states(layers)
        yield inputs


def _set_threshold(layer: SpikingLayer, value: float) -> None:
    if isinstance(layer.threshold, Tensor):
        with torch.no_grad():
            layer.threshold.fill_(value)
    else:
        layer.threshold = value
