"""The networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from snnfast.layers import IF, LIF
from snnfast.models.activations import Activation
from snnfast.models.convolutional import mnist_net, plain_net
from snnfast.models.digits import DigitsNet
from snnfast.models.membrane import ms_resnet18, ms_resnet50
from snnfast.models.network import check_sizes, named_options, three_sizes
from snnfast.models.residual import resnet11, resnet18, resnet50
from snnfast.models.spike_element_wise import sew_resnet18, sew_resnet50

__all__ = ["build", "digits", "for_images", "names", "takes"]


@named_options
def digits(
    num_classes: int = 10,
    in_channels: int = 1,
    *,
    image_size: int = 8,
    activation: str = "if",
    steps: int = 10,
    widths: tuple[int, int, int] = (32, 64, 128),
    **neuron: Any,
) -> DigitsNet:
    """:class:`snnfast.models.DigitsNet` under the options of the other networks; soft reset unless told otherwise.

    Args:
        num_classes, in_channels, image_size, steps: as of :func:`snnfast.models.mnist_net`.
        activation: "if" or "lif"; this network has no ANN twin.
        widths: channels of the two convolutions and features of the hidden linear layer.
        **neuron: options of :class:`snnfast.IF` or :class:`snnfast.LIF`.

    Raises:
        TypeError, ValueError: an option that is not allowed.
    """
    kinds = {"if": IF, "lif": LIF}
    if not isinstance(activation, str) or activation not in kinds:
        raise ValueError(f"activation must be 'if' or 'lif' for digits, got {activation!r}")
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    options = Activation(activation, False, {"reset": "soft", **neuron}).neuron
    return DigitsNet(
        (in_channels, image_size, image_size),
        num_classes,
        steps=steps,
        widths=widths,
        neuron=lambda: kinds[activation](**options),
    )


_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "digits": digits,
    "mnist_net": mnist_net,
    "plain_net": plain_net,
    "resnet11": resnet11,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "ms_resnet18": ms_resnet18,
    "ms_resnet50": ms_resnet50,
    "sew_resnet18": sew_resnet18,
    "sew_resnet50": sew_resnet50,
}


def names() -> tuple[str, ...]:
    """The names that :func:`build` knows."""
    return tuple(_NETWORKS)


def _network(name: str) -> Callable[..., nn.Module]:
    if not isinstance(name, str) or name not in _NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(_NETWORKS)}")
    return _NETWORKS[name]


def takes(name: str, option: str) -> bool:
    """Whether the network ``name`` has an argument ``option`` of its own; an option of its neurons is none.

    ``takes("resnet11", "image_size")`` is true: its linear layer is of one image size. ``takes("resnet18",
    "image_size")`` is false: it averages maps of any size.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    found = inspect.signature(_network(name)).parameters.get(option)
    return found is not None and found.kind is not inspect.Parameter.VAR_KEYWORD


def build(name: str, **options: Any) -> nn.Module:
    """The network ``name``, made with ``options``: ``build("resnet18", num_classes=100)`` is ``resnet18(100)``.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
        TypeError, ValueError: an option that the network does not have or allow.
    """
    return _network(name)(**options)


def for_images(name: str, image_shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
    """The network ``name`` for images of a data set: :func:`build` with classes, channels and, where it counts, size.

    Args:
        name: as :func:`names` gives them.
        image_shape: channels, height and width, as :attr:`snnfast.data.ImageData.image_shape`; the images are square.
        classes: of the data set.
        **options: the network's others.

    Raises:
        What :func:`build` raises.
    """
    channels, size, _ = three_sizes("image_shape", image_shape)
    given: dict[str, Any] = {"num_classes": classes, "in_channels": channels}
    if takes(name, "image_size"):
        given["image_size"] = size
    return build(name, **given, **options)
