"""Residual networks whose shortcut carries currents, not spikes: MS-ResNet (Hu et al. 2021, arXiv:2112.08954).

Not the paper's networks: between blocks there are numbers, which a neuron at the head of each block makes spikes of, so
that neither the signal nor the gradient on the shortcut passes through one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from snnfast.models.activations import Activation
from snnfast.models.batch_norm import BatchNorm2d
from snnfast.models.network import SummedLinear, each_step
from snnfast.models.residual import Block, BlockNetwork, Convolution, Shortcut, basic_blocks, bottlenecks, other_resnet

__all__ = ["MembraneBlock", "MembraneResNet", "ms_resnet18", "ms_resnet50"]


class MembraneBlock(Block):
    """neuron – convolution – … – neuron – convolution – batch norm, added to the shortcut's current.

    Args:
        in_channels, convolutions, activation: as of every ``Block``.
    """

    def __init__(self, in_channels: int, convolutions: Sequence[Convolution], activation: Activation) -> None:
        super().__init__(in_channels, convolutions, activation)
        # What the first neuron integrates is normalized already, on its way into the sum.
        first = replace(activation, batch_norm=False)(in_channels)
        self.activations = nn.ModuleList([first, *(activation(one.channels) for one in convolutions[:-1])])
        self.norm: nn.Module = BatchNorm2d(self.out_channels) if activation.batch_norm else nn.Identity()
        self.shortcut = Shortcut(in_channels, self.out_channels, self.stride, activation.batch_norm)

    def forward(self, current: Tensor, steps: int) -> Tensor:
        """The next block's current [T, B, C, H, W] from this one's, which may be held for ``steps``: [B, C, H, W]."""
        shortcut = self.shortcut(current)
        spikes = self.activations[0](current, steps=steps if current.dim() == 4 else None)
        for convolution, neuron in zip(self.convolutions[:-1], self.activations[1:], strict=True):
            spikes = neuron(each_step(convolution, spikes))
        return each_step(self.norm, each_step(self.convolutions[-1], spikes)) + shortcut

    def last_norm(self) -> nn.Module:
        return self.norm

    def entries(self) -> list[nn.Module]:
        return [self.activations[0], self.shortcut]

    def links(self, readers: list[nn.Module]) -> list[tuple[nn.Module, list[nn.Module]]]:
        return [(neuron, [reader]) for neuron, reader in zip(self.activations, self.convolutions, strict=True)]


class MembraneResNet(BlockNetwork):
    """stem – batch norm – pool – blocks – neuron – head – linear, the last two on the sum over time.

    Args:
        stem: makes the held current, [B, channels, H, W], from images.
        pool: of that current; an nn.Identity for none.
        blocks: the convolutions of each :class:`MembraneBlock`.
        hidden: None, as these networks have one linear layer.
        head: from the last neuron's summed spikes [B, ...] to [B, features].
        num_classes: logits per image.
        activation, steps: see :class:`snnfast.models.network.Network`.
        zero_init_residual: whether the last batch normalization of every block begins with weights of 0.
    """

    def __init__(
        self,
        stem: nn.Conv2d,
        pool: nn.Module,
        blocks: Sequence[Sequence[Convolution]],
        hidden: None,
        head: nn.Module,
        num_classes: int,
        activation: Activation,
        steps: int,
        *,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__(activation, steps)
        self.stem = stem
        self.norm: nn.Module = BatchNorm2d(stem.out_channels) if activation.batch_norm else nn.Identity()
        self.pool = pool
        channels = self.add_blocks(blocks, stem.out_channels, activation, MembraneBlock, zero_init_residual)
        self.last_activation = replace(activation, batch_norm=False)(channels)
        self.head = head
        self.classifier = SummedLinear(channels, num_classes)
        self.initialize()

    def features(self, images: Tensor, steps: int) -> Tensor:
        """Spikes [T, B, C, H, W] (activations [B, C, H, W]) of the last neuron."""
        current = self.pool(self.norm(self.stem(images)))
        for block in self.blocks:
            current = block(current, steps)
        return self.last_activation(current, steps=steps if current.dim() == 4 else None)

    def links(self) -> list[tuple[nn.Module, list[nn.Module]]]:
        """Every neuron, input side first, with the modules that its spikes go into."""
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        links = [link for block in blocks for link in block.links([])]
        return [*links, (self.last_activation, [self.classifier])]


ms_resnet18 = other_resnet(
    "ms_resnet18",
    MembraneResNet,
    basic_blocks,
    """MS-ResNet18 (Hu et al. 2021): the convolutions of :func:`resnet18`, shortcuts that carry currents.

    Not the paper's network. The neurons are of :class:`snnfast.IF` unless told otherwise; Hu et al. have
    leaky ones. Its ReLU twin is He et al.'s pre-activation network with the batch norms behind the convolutions.

    The arguments and errors are those of :func:`resnet18`, without a scale: nothing on the shortcut has to cross a
    threshold.
    """,
)
ms_resnet50 = other_resnet(
    "ms_resnet50",
    MembraneResNet,
    bottlenecks,
    """The convolutions of :func:`resnet50` with the shortcuts of MS-ResNet; Hu et al. have 18, 34 and 104 layers.

    The arguments and errors are those of :func:`ms_resnet18`.
    """,
)
