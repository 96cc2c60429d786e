"""A small convolutional network of integrate-and-fire neurons for small grey or colour images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from snnfast._arguments.checks import function, integer
from snnfast.layers import IF, OverTime, Readout
from snnfast.models.network import SummedLinear, check_images, three_sizes

NeuronFactory = Callable[[], nn.Module]
"""Makes one spiking layer: ``layer(current)`` on ``[T, B, …]``, ``layer(current, steps=T)`` on a held ``[B, …]``."""


class DigitsNet(nn.Module):
    """conv 3×3 – neuron – pool 2 – conv 3×3 – neuron – pool 2 – linear – neuron – linear, summed over time.

    * ``image_shape``: ``(channels, height, width)``, height and width at least 4. Default ``(1, 8, 8)``.
    * ``classes``: length of the result's last dimension. Default 10.
    * ``steps``: time steps of a forward pass that names none. Default 10.
    * ``widths``: channels of the two convolutions and features of the hidden linear layer.
    * ``neuron``: makes each of the three spiking layers. Default: ``IF(reset="soft")``, as the paper's MNIST network
      has it.

    The image is a constant current, so the first convolution runs once and its output is held over the steps; the
    pooling, convolution and linear layers between neurons see all steps as one batch; the last linear map runs once,
    on the spike counts. Raises ``ValueError`` for images too small for the two poolings and for steps below 1.
    """

    holds_images = True  # see Network

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        classes: int = 10,
        *,
        steps: int = 10,
        widths: tuple[int, int, int] = (32, 64, 128),
        neuron: NeuronFactory | None = None,
    ) -> None:
        super().__init__()
        channels, height, width = three_sizes("image_shape", image_shape)
        integer("classes", classes, least=1)
        if neuron is not None:
            function("neuron", neuron)
        if min(height, width) < 4:
            raise ValueError(f"image_shape must be at least 4×4 pixels, got {height}×{width}")
        make_neuron = neuron if neuron is not None else (lambda: IF(reset="soft"))
        first, second, hidden = three_sizes("widths", widths)
        self.steps = integer("steps", steps, least=1)
        self.stem = nn.Conv2d(channels, first, 3, padding=1)
        self.neuron1 = make_neuron()
        self.conv = OverTime(nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(first, second, 3, padding=1)))
        self.neuron2 = make_neuron()
        features = second * (height // 4) * (width // 4)
        self.hidden = OverTime(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(features, hidden)))
        self.neuron3 = make_neuron()
        self.count = Readout("sum")
        self.classifier = SummedLinear(hidden, classes)

    def neurons(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The spiking layers, input side first."""
        return self.neuron1, self.neuron2, self.neuron3

    def forward(self, image: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Logits ``[B, classes]`` for images ``[B, C, H, W]``, each held for ``steps`` (default: the network's)."""
        steps = self.steps if steps is None else integer("steps", steps, least=1)
        check_images(image)
        spikes = self.neuron1(self.stem(image), steps=steps)
        spikes = self.neuron2(self.conv(spikes))
        spikes = self.neuron3(self.hidden(spikes))
        return self.classifier(self.count(spikes), steps)
