"""Residual networks that add spikes to spikes: SEW-ResNet (Fang et al. 2021, arXiv:2102.04159), with its ADD.

Not the paper's networks: the shortcut is added behind the last neuron of a block, not to its current, so that blocks
pass on small whole numbers, and the identity exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from snnfast.models.activations import Activation
from snnfast.models.network import each_step
from snnfast.models.residual import Block, Convolution, ResNet, basic_blocks, bottlenecks, other_resnet

__all__ = ["SpikeElementWiseBlock", "SpikeElementWiseResNet", "sew_resnet18", "sew_resnet50"]


class SpikeElementWiseBlock(Block):
    """convolution – neuron – … – convolution – neuron, the shortcut's spikes added to the last neuron's.

    The shortcut is the input itself, and where the shape changes a 1×1 convolution and a neuron.

    Args:
        in_channels, convolutions, activation: as of every ``Block``.
    """

    def __init__(self, in_channels: int, convolutions: Sequence[Convolution], activation: Activation) -> None:
        super().__init__(in_channels, convolutions, activation)
        self.activations = nn.ModuleList(activation(one.channels) for one in convolutions)
        self.projection: nn.Module | None = None
        if self.in_channels != self.out_channels or self.stride != 1:
            convolution = Convolution(self.out_channels, 1, self.stride)
            self.projection = convolution.make(in_channels, not activation.batch_norm)
            self.projection_activation = activation(self.out_channels)

    def forward(self, spikes: Tensor) -> Tensor:
        """Whole numbers [T, B, C, H, W] (activations [B, C, H, W]): the sum of the last neuron's and the shortcut's."""
        shortcut = spikes
        if self.projection is not None:
            shortcut = self.projection_activation(each_step(self.projection, spikes))
        for convolution, neuron in zip(self.convolutions, self.activations, strict=True):
            spikes = neuron(each_step(convolution, spikes))
        return spikes + shortcut

    def last_norm(self) -> nn.Module:
        return self.activations[-1]

    def entries(self) -> list[nn.Module]:
        return [self.convolutions[0], *([] if self.projection is None else [self.projection])]

    def links(self, readers: list[nn.Module]) -> list[tuple[nn.Module, list[nn.Module]]]:
        shortcut = [] if self.projection is None else [(self.projection_activation, readers)]
        inner = zip(self.activations[:-1], self.convolutions[1:], strict=True)
        return [*shortcut, *((neuron, [convolution]) for neuron, convolution in inner), (self.activations[-1], readers)]


class SpikeElementWiseResNet(ResNet):
    """A :class:`ResNet` whose blocks are :class:`SpikeElementWiseBlock`, with the same arguments."""

    adds_spikes = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, make_block=SpikeElementWiseBlock)


sew_resnet18 = other_resnet(
    "sew_resnet18",
    SpikeElementWiseResNet,
    basic_blocks,
    """SEW-ResNet18 (Fang et al. 2021): the convolutions of :func:`resnet18`, spikes added to spikes.

    Not the paper's network. Between blocks there are whole numbers, which grow by 1 a block where all neurons fire.
    :func:`snnfast.convert.to_spiking` does not take its ReLU twin.

    The arguments and errors are those of :func:`resnet18`, without a scale: a spike on a shortcut does not have to
    cross a threshold.
    """,
)
sew_resnet50 = other_resnet(
    "sew_resnet50",
    SpikeElementWiseResNet,
    bottlenecks,
    """SEW-ResNet50 (Fang et al. 2021): the convolutions of :func:`resnet50`, spikes added to spikes.

    The arguments and errors are those of :func:`sew_resnet18`.
    """,
)
