"""What all networks share: time, readout, weights at the start, twins."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnfast._arguments.checks import integer
from snnfast._arguments.hints import own_options, refuse, to_floating
from snnfast.dynamics import not_a_tensor
from snnfast.layers import LIF, Readout
from snnfast.layers.base import Carries, copied
from snnfast.models.activations import LAYER_TYPES, Activation

__all__ = ["Network", "SummedLinear", "check_images", "check_sizes", "each_step", "named_options", "three_sizes"]

Make = TypeVar("Make", bound=Callable[..., nn.Module])


def named_options(make: Make) -> Make:
    """A function that makes a network, which says of an unknown option which network has none such, and the nearest.

    Options that the function does not name itself are those of its neurons, :class:`snnfast.LIF`'s among them, whatever
    the activation: a network and its twins are made from the same options.
    """

    @wraps(make)
    def checked(*args: Any, **options: Any) -> nn.Module:
        known = {*own_options(make), *own_options(LIF)}
        unknown = {name: value for name, value in options.items() if name not in known}
        if unknown:
            raise refuse(make.__name__, make, unknown, own_options(LIF))
        return make(*args, **options)

    return checked  # type: ignore[return-value]  # called as `make` is


def check_images(images: Tensor) -> None:
    """Raises TypeError or ValueError for what are no floating images [B, C, H, W]."""
    if not isinstance(images, Tensor):
        raise not_a_tensor("images", images)
    if not images.is_floating_point():
        raise TypeError(f"images must be floating, got {images.dtype}{to_floating('images', images)}")
    if images.dim() != 4:
        raise ValueError(f"images must have the shape [B, C, H, W], got {list(images.shape)}")


def check_sizes(**sizes: int) -> None:
    """Integers of at least 1; TypeError or ValueError with the name of the first that is not."""
    for name, value in sizes.items():
        integer(name, value, least=1)


def three_sizes(name: str, value: tuple[int, int, int]) -> tuple[int, int, int]:
    """``value``, if it is three integers of at least 1; ValueError with its ``name`` otherwise."""
    try:
        first, second, third = (integer(name, size, least=1) for size in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be three integers of at least 1, got {value!r}") from error
    return first, second, third


def each_step(module: nn.Module, maps: Tensor) -> Tensor:
    """A stateless module of maps [B, C, H, W], applied to all steps at once where they have a time axis in front.

    Spiking networks and their twins are the same code: the twin's activations have no time axis.
    """
    if maps.dim() == 4:
        return module(maps)
    return module(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])


class Replacement(Protocol):
    """What :meth:`Network.with_activation` puts in place of a network's neurons; :class:`Activation` is one."""

    @property
    def batch_norm(self) -> bool: ...

    @property
    def spiking(self) -> bool: ...

    def replacing(self, layer: nn.Module) -> nn.Module:
        """A layer with the parameters, running statistics, device and mode of ``layer``."""


class SummedLinear(nn.Linear):
    """A linear map of a sum over time, equal to the sum over time of the linear map.

    ``forward(total, steps)``: ``total`` is ``[B, in_features]``, the sum of T = ``steps`` inputs; the result, ``[B,
    out_features]``, is ``W·total + T·b``, since each step would have added the bias once (MATH.md, section 7).
    """

    def forward(self, total: Tensor, steps: int) -> Tensor:  # type: ignore[override]  # needs steps
        bias = None if self.bias is None else self.bias * steps
        return F.linear(total, self.weight, bias)

    def in_stream(self) -> nn.Module:
        """What stands for this layer where the steps come one by one (:func:`snnfast.streaming`)."""
        return _RunningSummedLinear(self)


class _RunningSummedLinear(Carries):
    """A :class:`SummedLinear` whose total is of all steps so far: it counts them."""

    def __init__(self, linear: SummedLinear) -> None:
        super().__init__()
        self.linear = linear
        self._state: int | None = None

    def forward(self, total: Tensor, steps: int) -> Tensor:
        self._state = steps + (self._state or 0)
        return self.linear(total, self._state)


class Network(nn.Module):
    """Images [B, C, H, W] to logits [B, classes], over ``steps`` time steps or, with ReLU, without time.

    The image is a constant current (MATH.md section 7): what precedes the first neuron is computed once and held; the
    spikes of the last neuron are counted over time before the last linear map. Subclasses give :meth:`features` and
    :meth:`links`, and call :meth:`initialize` once their modules are there.

    Args:
        activation: makes the neurons, or ReLUs.
        steps: time steps of a forward pass that names none.

    Raises:
        TypeError, ValueError: steps that are no int, or below 1.
    """

    head: nn.Module
    classifier: SummedLinear
    holds_images = True
    """Whether images come without a time axis, which snnfast.to_nir asks."""
    adds_spikes = False
    """Whether a layer reads the sum of several neurons' spikes, so that no weight is one neuron's alone."""

    def __init__(self, activation: Activation, steps: int) -> None:
        super().__init__()
        self.activation: Replacement = activation
        self.steps = integer("steps", steps, least=1)
        self.count = Readout("sum")

    def features(self, images: Tensor, steps: int) -> Tensor:
        """Spikes [T, B, ...] (activations [B, ...]) of the last neuron."""
        raise NotImplementedError

    def links(self) -> list[tuple[nn.Module, list[nn.Module]]]:
        """Every neuron, input side first, with the modules that its spikes go into."""
        raise NotImplementedError

    def neurons(self) -> tuple[nn.Module, ...]:
        """The spiking (or ReLU) layers, input side first."""
        return tuple(neuron for neuron, _ in self.links())

    def initialize(self) -> None:
        """He et al. 2015's weights for convolutions, as torchvision's resnets have them; no bias in them.

        Normal with variance 2 / (output channels · kernel area). Linear layers keep torch's own initialization. For a
        network made on the meta device: after ``to_empty`` and the ``reset_parameters`` of its modules.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, steps: int | None = None, *, per_step: bool = False) -> Tensor:
        """Logits [B, classes]: the last layer's currents, summed over time.

        Args:
            images: [B, C, H, W], floating, each held as a constant current.
            steps: number of time steps; default the network's own. Not used with ReLU.
            per_step: whether to give each step's currents, [T, B, classes], in the place of their sum; with ReLU T is
                1. The dropout of a network that has one draws a mask for each step then.

        Raises:
            TypeError: images that are no floating tensor, steps that are no int.
            ValueError: steps below 1, images of another number of dimensions.
        """
        steps = self.steps if steps is None else integer("steps", steps, least=1)
        check_images(images)
        features = self.features(images, steps)
        if per_step:
            features = features if self.activation.spiking else features[None]
            return self.classifier(self.head(features.flatten(0, 1)), 1).unflatten(0, features.shape[:2])
        if self.activation.spiking:
            features = self.count(features)
        else:
            steps = 1  # the twin adds its bias once
        return self.classifier(self.head(features), steps)

    def with_activation(self, activation: Replacement) -> Network:
        """A copy whose neurons are of another kind, with this network's weights, running statistics and process group.

        Thresholds that were measured (:func:`snnfast.tuning.hold_thresholds`) go to spiking neurons along with them.

        Args:
            activation: of the copy, with batch normalization where this network has it.

        Raises:
            ValueError: batch normalization in one and not in the other.
        """
        if activation.batch_norm != self.activation.batch_norm:
            raise ValueError(f"batch_norm must be {self.activation.batch_norm}, as in the network to be copied")
        copy = copied(self)
        copy.activation = activation
        for name, module in list(copy.named_modules()):
            if isinstance(module, LAYER_TYPES):
                copy.set_submodule(name, activation.replacing(module))
            elif hasattr(module, "carry_spikes"):  # a shortcut
                module.carry_spikes(activation.spiking)
        return copy


def flat_features(network_name: str, layers: nn.Module, in_channels: int, image_size: int) -> int:
    """How many features an image has after ``layers``; ValueError where it is too small for them."""
    integer("image_size", image_size, least=1)
    with torch.device("meta"):
        image = torch.empty(1, in_channels, image_size, image_size)
    try:
        return deepcopy(layers).to("meta")(image).numel()
    except RuntimeError:
        raise ValueError(f"image_size is too small for {network_name}, got {image_size}") from None
