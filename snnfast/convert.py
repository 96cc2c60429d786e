"""From a trained ANN to a spiking network without training: the baseline of the paper's tables 2 and 3.

Threshold balancing layer by layer as in Sengupta et al. 2019 (MATH.md section 6), with the soft reset, which loses
no potential above the threshold (Rueckauer et al. 2017; Han et al. 2020). A spike of a layer stands for its threshold:
over T steps, a neuron that receives a mean current a emits about T·a/ϑ spikes, so its spike count times ϑ/T is ReLU(a).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from snnfast._arguments.checks import dense, integer
from snnfast.layers import BatchNormNeuron, Neuron
from snnfast.layers.state_dict import hold
from snnfast.models.activations import Activation
from snnfast.models.network import Network
from snnfast.models.residual import Shortcut
from snnfast.tuning import currents

__all__ = ["largest_current", "to_spiking"]


@torch.no_grad()
def to_spiking(ann: Network, batches: Iterable[Any], *, steps: int = 200) -> Network:
    """A soft-reset IF network that computes what a trained ReLU network of :mod:`snnfast.models` does, by its rates.

    Nothing is trained here. :func:`snnfast.to_spiking` is the other way: it makes any ReLU network a spiking network to
    be trained, whose logits are not the ANN's.

    A copy of the network with IF neurons, in evaluation mode: batch normalization stays the affine map of the current
    by the running statistics. Then for each neuron layer, input side first, with the earlier ones already set:

    1. its threshold becomes the largest current that it receives, over the batches and all time steps, normalization
       and residual included;
    2. the weights that read its spikes are multiplied by that threshold (an identity shortcut gets it as ``scale``), so
       that every current keeps the ANN's units, biases included.

    Logits are T times the ANN's, approximately, and closer the more steps there are: ``spiking(images, steps=1000)``.
    Max-pooling (the "7x7" stem) passes a spike where any neuron of the pool fires, and so overestimates the largest
    rate.

    Args:
        ann: a network made with ``activation="relu"``; it is left as it is.
        batches: calibration images, tensors [B, C, H, W], or pairs of which they are the first, moved to the
            network's device. All are kept in memory: every layer runs over all of them. For L layers that costs
            L/2 forward passes over the batches.
        steps: time steps of the calibration, and of the returned network's forward pass where none are named.

    Returns:
        The spiking network. Thresholds and the shortcuts' scales are numbers of its modules, and its state dict has
        them: a network made as this one, ``models.build(..., reset="soft", steps=...)``, takes them when it is loaded.

    Raises:
        TypeError: not such a network.
        ValueError: a network that is spiking already, or adds the spikes of several neurons; no batches; steps below 1;
            a layer whose largest current is not a positive finite number, by name.
    """
    if not isinstance(ann, Network):
        raise TypeError(f"ann must be a network of snnfast.models, got {type(ann).__name__}")
    if ann.activation.spiking:
        kind = ann.activation.kind if isinstance(ann.activation, Activation) else ann.activation
        raise ValueError(f"ann must be made with activation='relu', got {kind!r}")
    if ann.adds_spikes:
        raise ValueError(
            f"ann must be a network each of whose weights reads one neuron's spikes, got a {type(ann).__name__}, which "
            "adds the spikes of several"
        )
    integer("steps", steps, least=1)
    device = next(ann.parameters()).device
    images = [batch.to(device) for batch in _images_of(batches)]
    if not images:
        raise ValueError("batches is empty: thresholds are the largest currents over at least one batch")
    activation = Activation("if", ann.activation.batch_norm, {"reset": "soft"})
    spiking = ann.with_activation(activation).eval()
    spiking.steps = steps
    for module in spiking.modules():
        if isinstance(module, Shortcut):
            module.carry_spikes(False)  # as in the ANN, whose activations spikes stand for: scales come with thresholds
    names = {module: name for name, module in spiking.named_modules()}
    for neuron, readers in spiking.links():
        assert isinstance(neuron, Neuron), neuron
        largest = currents.largest_current(spiking, images, neuron, entering=_entering)
        if not (largest > 0 and math.isfinite(largest)):
            raise ValueError(f"the largest current of {names[neuron]} must be positive and finite, got {largest}")
        neuron.threshold = largest
        hold(neuron, "threshold")
        for reader in readers:
            _scale_input(reader, largest)
    return spiking


def _images_of(batches: Iterable[Any]) -> list[Tensor]:
    """The images of every batch; TypeError for what has none."""
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of images or pairs, got {type(batches).__name__}")
    found = [batch[0] if isinstance(batch, tuple | list) and batch else batch for batch in batches]
    for images in found:
        if not isinstance(images, Tensor):
            what = type(images).__name__
            raise TypeError(f"batches must hold tensors of images, or pairs with one first, got {what}")
    return found


@torch.no_grad()
def largest_current(network: Network, neuron: nn.Module, images: Tensor) -> float:
    """The largest input current of one spiking layer over a batch and all time steps (MATH.md section 6).

    Normalization, by the running statistics, and residual included. Layers after this one do not run.

    Args:
        network: a spiking network in evaluation mode.
        neuron: one of ``network.neurons()``.
        images: [B, C, H, W].

    Raises:
        ValueError: a network in training mode, or a layer that is not one of its neurons.
    """
    if not (isinstance(network, nn.Module) and hasattr(network, "neurons")):
        raise TypeError(f"network must be one of snnfast.models, got {type(network).__name__}")
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    dense("images", images)
    if network.training:
        raise ValueError("network must be in evaluation mode: call network.eval()")
    if not (isinstance(neuron, Neuron) and any(neuron is layer for layer in network.neurons())):
        raise ValueError("neuron must be one of network.neurons()")
    return currents.largest_current(network, [images], neuron, entering=_entering)


def _entering(layer: Neuron, arguments: dict[str, Any]) -> Tensor:
    """What a neuron integrates, the batch normalization being the affine map of MATH.md section 4.

    The neuron's own arithmetic (:func:`snnfast.tuning.currents.entering_current`) rounds that differently in the last
    bit, and the thresholds with it: networks that were converted before would not be found again.
    """
    current, residual = arguments["current"], arguments.get("residual")
    if isinstance(layer, BatchNormNeuron):
        current = _normalized(layer, current, 2 if arguments.get("steps") is None else 1)
    return current if residual is None else current + residual


def _normalized(layer: BatchNormNeuron, current: Tensor, channel_dim: int) -> Tensor:
    """The affine map of a batch normalization in evaluation (MATH.md section 4)."""
    shape = [1] * current.dim()
    shape[channel_dim] = -1
    assert layer.running_mean is not None and layer.running_var is not None  # our networks' layers track them
    mean, scale = layer.running_mean, layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return (current - mean.view(shape)) * scale.view(shape) + layer.bias.view(shape)


def _scale_input(reader: nn.Module, factor: float) -> None:
    """Makes a module see its input multiplied by ``factor``."""
    for module in reader.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # What precedes it, pooling and flattening, commutes with a positive factor.
            module.weight.mul_(factor)
            return
    assert isinstance(reader, Shortcut), reader
    reader.scale *= factor
    hold(reader, "scale")
