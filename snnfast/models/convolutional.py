"""Networks without branches: the paper's MNIST network, and the plain networks of its figures 5 and 6."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from snnfast.models.activations import Activation
from snnfast.models.network import Network, SummedLinear, check_sizes, each_step, flat_features, named_options

__all__ = ["FeedForwardNet", "mnist_net", "plain_net"]


class FeedForwardNet(Network):
    """layers[0] – neuron – layers[1] – neuron – … – head – linear, the last two once, on the sum over time.

    Args:
        layers: modules of one step's maps; the first makes the held current.
        channels: of each layer's current.
        head: from the last neuron's summed spikes [B, ...] to [B, features].
        features, num_classes: of the last linear map.
        activation, steps: see :class:`snnfast.models.network.Network`.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        channels: Sequence[int],
        head: nn.Module,
        features: int,
        num_classes: int,
        activation: Activation,
        steps: int,
    ) -> None:
        super().__init__(activation, steps)
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList(activation(width) for width in channels)
        self.head = head
        self.classifier = SummedLinear(features, num_classes)
        self.initialize()

    def features(self, images: Tensor, steps: int) -> Tensor:
        """Spikes [T, B, ...] (activations [B, ...]) of the last neuron."""
        spikes = self.activations[0](self.layers[0](images), steps=steps)
        for layer, neuron in zip(self.layers[1:], self.activations[1:], strict=True):
            spikes = neuron(each_step(layer, spikes))
        return spikes

    def links(self) -> list[tuple[nn.Module, list[nn.Module]]]:
        """Every neuron, input side first, with the modules that its spikes go into."""
        readers = [*self.layers[1:], self.classifier]
        return [(neuron, [reader]) for neuron, reader in zip(self.activations, readers, strict=True)]


@named_options
def mnist_net(
    num_classes: int = 10,
    in_channels: int = 1,
    *,
    image_size: int = 28,
    activation: str = "if",
    batch_norm: bool = False,
    steps: int = 10,
    **neuron: Any,
) -> FeedForwardNet:
    """The paper's MNIST network (section 3.2, table 1; MATH.md section 9).

    conv 5×5 32 – neuron – average pool 2 – conv 5×5 64 – neuron – average pool 2 – linear 1024 – neuron – dropout 0.5 –
    linear, without padding; soft reset and no batch normalization unless told otherwise. The dropout's mask is one for
    all steps: it is applied to the spike counts.

    Args:
        num_classes: logits per image.
        in_channels, image_size: of the square images [B, in_channels, image_size, image_size].
        activation: "if", "lif", or "relu" for the ANN twin.
        batch_norm: whether every current is batch-normalized; the layers before it have no bias then.
        steps: time steps of a forward pass that names none.
        **neuron: options of the neuron, see :class:`snnfast.models.Activation`.

    Raises:
        TypeError, ValueError: an option that is not allowed; images too small for the two poolings.
    """
    made = Activation(activation, batch_norm, {"reset": "soft", **neuron})
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size, steps=steps)
    bias = not batch_norm
    convolutions = [
        nn.Conv2d(in_channels, 32, 5, bias=bias),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(32, 64, 5, bias=bias)),
    ]
    flatten = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    features = flat_features("mnist_net", nn.Sequential(*convolutions, flatten), in_channels, image_size)
    hidden = nn.Sequential(*flatten, nn.Linear(features, 1024, bias=bias))
    return FeedForwardNet([*convolutions, hidden], [32, 64, 1024], nn.Dropout(0.5), 1024, num_classes, made, steps)


_PLAIN_BLOCKS = {3: (1, 1), 4: (1, 1, 1), 5: (1, 1, 1, 1), 9: (2, 2, 2, 2), 13: (3, 3, 3, 3)}
"""Convolutions in each block, by the number of layers, the linear one included."""


@named_options
def plain_net(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    layers: int = 5,
    width: int = 32,
    image_size: int = 32,
    activation: str = "if",
    batch_norm: bool = True,
    steps: int = 10,
    **neuron: Any,
) -> FeedForwardNet:
    """The paper's plain networks (section 3.3, figures 5 and 6; MATH.md section 9).

    Convolutions 3×3 with padding 1, each followed by a neuron, and one linear layer of the last map. With 3, 4 and 5
    layers every convolution has stride 2; with 9 and 13 there are 4 blocks of 2 and 3, the first of each with stride 2.
    ``width`` channels in the first block, twice as many in each one after it.

    Args:
        layers: 3, 4, 5, 9 or 13, the linear one included.
        width: channels of the first block, at least 1; the paper's networks have 32.

    The other arguments are those of :func:`mnist_net`, with the hard reset and batch normalization as defaults.

    Raises:
        TypeError, ValueError: an option that is not allowed.
    """
    if type(layers) is not int or layers not in _PLAIN_BLOCKS:
        raise ValueError(f"layers must be one of {', '.join(map(str, _PLAIN_BLOCKS))}, got {layers!r}")
    made = Activation(activation, batch_norm, neuron)
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size, steps=steps, width=width)
    blocks = _PLAIN_BLOCKS[layers]
    channels = [width * 2**index for index, count in enumerate(blocks) for _ in range(count)]
    strides = [2 if first else 1 for count in blocks for first in (True, *[False] * (count - 1))]
    convolutions = [
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=not batch_norm)
        for (before, after), stride in zip(pairwise([in_channels, *channels]), strides, strict=True)
    ]
    features = flat_features("plain_net", nn.Sequential(*convolutions), in_channels, image_size)
    return FeedForwardNet(convolutions, channels, nn.Flatten(), features, num_classes, made, steps)
