"""Residual networks: every ReLU a neuron, the shortcut added to the current before it (He et al. 2015; MATH.md, 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from snnfast._arguments.checks import flag, integer, number_within, word
from snnfast.layers.state_dict import WithNumbers
from snnfast.models.activations import Activation
from snnfast.models.batch_norm import BatchNorm2d
from snnfast.models.network import Network, SummedLinear, check_sizes, each_step, named_options

__all__ = ["ResNet", "ResidualBlock", "Shortcut", "resnet11", "resnet18", "resnet50"]


class Convolution(NamedTuple):
    """One convolution of a block: output channels, kernel size, stride; padded so that stride 1 keeps the size."""

    channels: int
    kernel: int = 3
    stride: int = 1

    def make(self, in_channels: int, bias: bool) -> nn.Conv2d:
        return nn.Conv2d(in_channels, self.channels, self.kernel, self.stride, padding=self.kernel // 2, bias=bias)


class Shortcut(WithNumbers):
    """The current that a block's input spikes give its last neuron, past its convolutions.

    A 1×1 convolution with the block's stride where the width changes (with batch normalization: every current is
    normalized); where only the size does, an average pool of 1×1 with that stride; otherwise the spikes themselves.
    ``scale`` is what a spike is worth where there is no convolution (conversion from an ANN sets it, and then the state
    dict has it); in an ANN, which has no spikes, it is 1, and ``spike_scale`` is what it would be.
    """

    _numbers = ("scale",)
    spike_scale = 1.0  # also of modules that were pickled before there was one

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        batch_norm: bool,
        spike_scale: float = 1.0,
        spiking: bool = True,
    ) -> None:
        super().__init__()
        self.spike_scale = spike_scale if in_channels == out_channels else 1.0
        self.carry_spikes(spiking)
        self.projection: nn.Module = nn.Identity()
        if in_channels != out_channels:
            convolution = Convolution(out_channels, 1, stride).make(in_channels, not batch_norm)
            self.projection = nn.Sequential(convolution, *[BatchNorm2d(out_channels)] * batch_norm)
        elif stride != 1:
            self.projection = nn.AvgPool2d(1, stride)

    def carry_spikes(self, spiking: bool) -> None:
        """Sets the scale for a network with spikes, or without; one that was measured stays."""
        if "scale" not in self._held:
            self.scale = self.spike_scale if spiking else 1.0

    def forward(self, spikes: Tensor) -> Tensor:
        """A current for spikes [T, B, C, H, W] (activations [B, C, H, W])."""
        current = spikes if isinstance(self.projection, nn.Identity) else each_step(self.projection, spikes)
        return current if self.scale == 1.0 else current * self.scale

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class Block(nn.Module):
    """Convolutions and, past them, a shortcut: what the blocks of all residual networks share.

    Args:
        in_channels: of the block's input.
        convolutions: what the block computes, input side first; its stride is the product of theirs.
        activation: makes the neurons.
    """

    def __init__(self, in_channels: int, convolutions: Sequence[Convolution], activation: Activation) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        channels, self.stride = in_channels, 1
        for convolution in convolutions:
            self.convolutions.append(convolution.make(channels, not activation.batch_norm))
            channels = convolution.channels
            self.stride *= convolution.stride
        self.in_channels, self.out_channels = in_channels, channels

    def last_norm(self) -> nn.Module:
        """The batch normalization behind the last convolution."""
        raise NotImplementedError

    def entries(self) -> list[nn.Module]:
        """The modules that the block's input goes into."""
        raise NotImplementedError

    def links(self, readers: list[nn.Module]) -> list[tuple[nn.Module, list[nn.Module]]]:
        """The block's neurons, input side first, with what reads them; ``readers`` read what the block gives."""
        raise NotImplementedError


class ResidualBlock(Block):
    """convolution – neuron – … – convolution – neuron, the shortcut being the last neuron's residual current.

    Args:
        in_channels, convolutions, activation: as of every ``Block``.
        shortcut_scale: what a spike on a shortcut without a convolution is worth.
    """

    def __init__(
        self, in_channels: int, convolutions: Sequence[Convolution], activation: Activation, shortcut_scale: float = 1.0
    ) -> None:
        super().__init__(in_channels, convolutions, activation)
        self.activations = nn.ModuleList(activation(convolution.channels) for convolution in convolutions)
        self.shortcut = Shortcut(
            in_channels, self.out_channels, self.stride, activation.batch_norm, shortcut_scale, activation.spiking
        )

    def forward(self, spikes: Tensor) -> Tensor:
        """Spikes [T, B, C, H, W] (activations [B, C, H, W]) to those of the last neuron."""
        residual = self.shortcut(spikes)
        *inner, last = zip(self.convolutions, self.activations, strict=True)
        for convolution, neuron in inner:
            spikes = neuron(each_step(convolution, spikes))
        convolution, neuron = last
        return neuron(each_step(convolution, spikes), residual=residual)

    def last_norm(self) -> nn.Module:
        return self.activations[-1]

    def entries(self) -> list[nn.Module]:
        return [self.convolutions[0], self.shortcut]

    def links(self, readers: list[nn.Module]) -> list[tuple[nn.Module, list[nn.Module]]]:
        inner = zip(self.activations[:-1], self.convolutions[1:], strict=True)
        return [*((neuron, [convolution]) for neuron, convolution in inner), (self.activations[-1], readers)]


class MakeBlock(Protocol):
    def __call__(self, in_channels: int, convolutions: Sequence[Convolution], activation: Activation) -> Block: ...


def check_zero_init(zero_init_residual: bool, activation: Activation) -> None:
    """TypeError or ValueError where the last batch normalization of blocks cannot begin with weights of 0."""
    if flag("zero_init_residual", zero_init_residual) and not activation.batch_norm:
        raise ValueError("zero_init_residual sets weights of batch normalizations: it needs batch_norm=True")


def _shortcuts_pass(activation: Activation, scale: float) -> bool:
    """Whether one spike of an identity shortcut alone makes a neuron at rest fire: the neuron itself says it."""
    if not activation.spiking:
        return True
    threshold = activation.neuron.get("threshold")
    channels = threshold.numel() if isinstance(threshold, Tensor) else 1
    with torch.device("cpu"), torch.no_grad():  # also for a network that is made on the meta device
        neuron = replace(activation, batch_norm=False)(channels)
        current = torch.tensor([scale, 0.0])[:, None, None].expand(
            2, 1, channels
        )  # a delayed neuron fires a step later
        return bool(neuron(current).any(0).all())


def _residual_blocks(activation: Activation, zero_init_residual: bool, shortcut_scale: float) -> MakeBlock:
    r"""Makes :class:`ResidualBlock`\ s; ValueError for options with which no spike would come through them."""
    scale = number_within("shortcut_scale", shortcut_scale, above=0)
    check_zero_init(zero_init_residual, activation)
    if zero_init_residual and not _shortcuts_pass(activation, scale):
        raise ValueError(
            f"zero_init_residual with shortcut_scale={scale:g}: a spike on an identity shortcut does not cross the "
            f"threshold, {activation.neuron.get('threshold', 1.0)}, so that none would come through the blocks; set "
            f"a larger shortcut_scale ({_worth(activation)}), a lower threshold, or fire_on_equal=True; or "
            "zero_init_residual=False"
        )
    return partial(ResidualBlock, shortcut_scale=scale)


def _worth(activation: Activation) -> str:
    """In words, what makes one spike enough."""
    tau = activation.neuron.get("tau", 2.0)
    if activation.kind == "lif" and activation.neuron.get("decay_input", True) and not isinstance(tau, Tensor):
        return f"{2.0 * tau:g} for a threshold of 1: LIF divides its input by tau, {tau:g}"
    return "2.0 for IF's threshold of 1"


class BlockNetwork(Network):
    """What the networks of blocks share: the blocks, and what their batch norms begin with."""

    zero_init_residual: bool
    blocks: nn.Sequential

    def add_blocks(
        self,
        blocks: Sequence[Sequence[Convolution]],
        channels: int,
        activation: Activation,
        make_block: MakeBlock,
        zero_init_residual: bool,
    ) -> int:
        """Makes ``blocks`` of their convolutions, behind ``channels``; returns the channels of the last one."""
        check_zero_init(zero_init_residual, activation)
        self.zero_init_residual = zero_init_residual
        self.blocks = nn.Sequential()
        for convolutions in blocks:
            block = make_block(channels, convolutions, activation)
            self.blocks.append(block)
            channels = block.out_channels
        return channels

    def initialize(self) -> None:
        """As of every :class:`Network`; with ``zero_init_residual`` a block's output is its shortcut alone at first."""
        super().initialize()
        if self.zero_init_residual:
            for block in self.blocks:
                assert isinstance(block, Block), block
                weight = block.last_norm().weight
                assert isinstance(weight, Tensor), weight
                nn.init.zeros_(weight)


class ResNet(BlockNetwork):
    """stem – neuron – pool – residual blocks – [linear – neuron] – head – linear, the last two on the sum over time.

    Args:
        stem: makes the held current, [B, channels, H, W], from images.
        channels: of the stem.
        pool: after the first neuron; an nn.Identity for none.
        blocks: the convolutions of each residual block.
        hidden: in and out features of a linear layer with a neuron of its own, or None.
        head: from the last neuron's summed spikes [B, ...] to [B, features].
        num_classes: logits per image.
        activation, steps: see :class:`snnfast.models.network.Network`.
        zero_init_residual: whether the last batch normalization of every block begins with weights of 0.
        make_block: a block of its input's channels, convolutions and activation.
    """

    def __init__(
        self,
        stem: nn.Conv2d,
        pool: nn.Module,
        blocks: Sequence[Sequence[Convolution]],
        hidden: tuple[int, int] | None,
        head: nn.Module,
        num_classes: int,
        activation: Activation,
        steps: int,
        *,
        zero_init_residual: bool = False,
        make_block: MakeBlock = ResidualBlock,
    ) -> None:
        super().__init__(activation, steps)
        self.stem = stem
        self.stem_activation = activation(stem.out_channels)
        self.pool = pool
        channels = self.add_blocks(blocks, stem.out_channels, activation, make_block, zero_init_residual)
        self.hidden: nn.Module | None = None
        self.hidden_activation: nn.Module | None = None
        if hidden is not None:
            self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(*hidden, bias=not activation.batch_norm))
            channels = hidden[1]
            self.hidden_activation = activation(channels)
        self.head = head
        self.classifier = SummedLinear(channels, num_classes)
        self.initialize()

    def features(self, images: Tensor, steps: int) -> Tensor:
        """Spikes [T, B, ...] (activations [B, ...]) of the last neuron."""
        spikes = self.stem_activation(self.stem(images), steps=steps)
        spikes = self.blocks(each_step(self.pool, spikes))
        if self.hidden is not None and self.hidden_activation is not None:
            spikes = self.hidden_activation(each_step(self.hidden, spikes))
        return spikes

    def links(self) -> list[tuple[nn.Module, list[nn.Module]]]:
        """Every neuron, input side first, with the modules that its spikes go into."""
        last: list[nn.Module] = [self.classifier] if self.hidden is None else [self.hidden]
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        entries = [*(block.entries() for block in blocks), last]
        links = [(self.stem_activation, entries[0])]
        for block, readers in zip(blocks, entries[1:], strict=True):
            links += block.links(readers)
        if self.hidden_activation is not None:
            links.append((self.hidden_activation, [self.classifier]))
        return links


@named_options
def resnet11(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    width: int = 64,
    image_size: int = 32,
    zero_init_residual: bool = False,
    shortcut_scale: float = 1.0,
    activation: str = "if",
    batch_norm: bool = True,
    steps: int = 10,
    **neuron: Any,
) -> ResNet:
    """The residual network of Lee et al. 2020 with batch normalization (the paper's table 2; MATH.md section 9).

    conv 3×3 64 – neuron – average pool 2 – four blocks of two 3×3 convolutions, 128, 256, 512 and 512 channels, the
    second convolution of the second and fourth block with stride 2 – linear 1024 – neuron – linear.

    Args:
        num_classes: logits per image.
        width: channels of the first convolution, at least 1; those of the blocks scale with it, and the linear layer's
            1024 features do not.
        in_channels, image_size: of the square images [B, in_channels, image_size, image_size].
        zero_init_residual, shortcut_scale: as of :func:`resnet18`.
        activation: "if", "lif", or "relu" for the ANN twin.
        batch_norm: whether every current is batch-normalized; the layers before it have no bias then.
        steps: time steps of a forward pass that names none.
        **neuron: options of the neuron, see :class:`snnfast.models.Activation`.

    Raises:
        TypeError, ValueError: an option that is not allowed; images of fewer than 2×2 pixels.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=image_size, steps=steps, width=width)
    integer("image_size", image_size, least=2)  # the pool after the first neuron halves it
    made = Activation(activation, batch_norm, neuron)
    size = image_size // 2
    blocks = []
    for channels, stride in ((2 * width, 1), (4 * width, 2), (8 * width, 1), (8 * width, 2)):
        blocks.append([Convolution(channels), Convolution(channels, stride=stride)])
        size = (size - 1) // stride + 1
    return ResNet(
        Convolution(width).make(in_channels, not batch_norm),
        nn.AvgPool2d(2),
        blocks,
        (8 * width * size * size, 1024),
        nn.Identity(),
        num_classes,
        made,
        steps,
        zero_init_residual=zero_init_residual,
        make_block=_residual_blocks(made, zero_init_residual, shortcut_scale),
    )


def _stem(name: str, in_channels: int, width: int, bias: bool) -> tuple[nn.Conv2d, nn.Module]:
    """The first convolution, and the pool after its neuron."""
    word("stem", name, ("3x3", "7x7"))
    if name == "3x3":
        return Convolution(width).make(in_channels, bias), nn.Identity()
    return Convolution(width, 7, 2).make(in_channels, bias), nn.MaxPool2d(3, stride=2, padding=1)


@named_options
def resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    width: int = 64,
    stem: str = "3x3",
    zero_init_residual: bool = False,
    shortcut_scale: float = 1.0,
    activation: str = "if",
    batch_norm: bool = True,
    steps: int = 10,
    **neuron: Any,
) -> ResNet:
    """ResNet18 (the paper's figures 3 and 4; MATH.md section 9): four stages of two blocks of two 3×3 convolutions.

    Images of any size: the last maps are averaged, over space and with the sum over time, before the linear layer.

    Args:
        num_classes: logits per image.
        in_channels: of the images [B, in_channels, H, W].
        width: channels of the first convolution, at least 1; all others scale with it.
        stem: "3x3", stride 1, for 32×32 images; "7x7", stride 2 and a max-pool after the first neuron, as
            He et al. have it, for larger ones.
        zero_init_residual: whether the last batch normalization of every block begins with weights of 0 (as in
            torchvision), so that a block passes on its input at first. Not the paper's; with ``shortcut_scale=2.0``
            it lets deep spiking networks learn that do not otherwise (the guide: When a deep network does not learn).
        shortcut_scale: what a spike is worth on a shortcut without a convolution, above 0; the paper's is 1. A spike
            that is worth no more than the threshold does not make one by itself. Not used with "relu".
        activation: "if", "lif", or "relu" for the ANN twin.
        batch_norm: whether every current is batch-normalized; the convolutions have no bias then.
        steps: time steps of a forward pass that names none.
        **neuron: options of the neuron, see :class:`snnfast.models.Activation`.

    Raises:
        TypeError, ValueError: an option that is not allowed; ``zero_init_residual`` without batch normalization, or
            where a spike of ``shortcut_scale`` does not cross the threshold.
    """
    made = Activation(activation, batch_norm, neuron)
    make_block = _residual_blocks(made, zero_init_residual, shortcut_scale)
    kind = partial(ResNet, zero_init_residual=zero_init_residual, make_block=make_block)
    return staged(kind, basic_blocks, width, stem, num_classes, in_channels, made, steps)


@named_options
def resnet50(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    width: int = 64,
    stem: str = "3x3",
    zero_init_residual: bool = False,
    shortcut_scale: float = 1.0,
    activation: str = "if",
    batch_norm: bool = True,
    steps: int = 10,
    **neuron: Any,
) -> ResNet:
    """ResNet50 (the paper's table 3; MATH.md section 9): stages of 3, 4, 6 and 3 blocks of 1×1, 3×3, 1×1 convolutions.

    A stage's stride is that of its first 3×3 convolution, as in torchvision (He et al. had it one convolution before).
    The arguments and errors are those of :func:`resnet18`.
    """
    made = Activation(activation, batch_norm, neuron)
    make_block = _residual_blocks(made, zero_init_residual, shortcut_scale)
    kind = partial(ResNet, zero_init_residual=zero_init_residual, make_block=make_block)
    return staged(kind, bottlenecks, width, stem, num_classes, in_channels, made, steps)


def basic_blocks(width: int) -> list[list[Convolution]]:
    """The blocks of the ResNets of 18 layers: four stages of two, of two 3×3 convolutions."""
    return [
        [Convolution(channels, stride=stride), Convolution(channels)]
        for channels, first_stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2))
        for stride in (first_stride, 1)
    ]


def bottlenecks(width: int) -> list[list[Convolution]]:
    """The blocks of the ResNets of 50 layers: four stages of 3, 4, 6 and 3, of 1×1, 3×3 and 1×1 convolutions."""
    return [
        [Convolution(inner, 1), Convolution(inner, 3, first_stride if block == 0 else 1), Convolution(4 * inner, 1)]
        for inner, count, first_stride in ((width, 3, 1), (2 * width, 4, 2), (4 * width, 6, 2), (8 * width, 3, 2))
        for block in range(count)
    ]


Made = TypeVar("Made", bound=Network)


def staged(
    kind: Callable[..., Made],
    blocks: Callable[[int], Sequence[Sequence[Convolution]]],
    width: int,
    stem: str,
    num_classes: int,
    in_channels: int,
    activation: Activation,
    steps: int,
) -> Made:
    """A network of ``kind`` and of one of the ResNets' shapes, whose last maps are averaged before the linear layer."""
    check_sizes(num_classes=num_classes, in_channels=in_channels, steps=steps, width=width)
    convolution, pool = _stem(stem, in_channels, width, not activation.batch_norm)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return kind(convolution, pool, blocks(width), None, head, num_classes, activation, steps)


def other_resnet(
    name: str, kind: Callable[..., Made], blocks: Callable[[int], Sequence[Sequence[Convolution]]], text: str
) -> Callable[..., Made]:
    """A function that makes a network of other shortcuts than the paper's; ``text`` is its docstring."""

    def make(
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        width: int = 64,
        stem: str = "3x3",
        zero_init_residual: bool = False,
        activation: str = "if",
        batch_norm: bool = True,
        steps: int = 10,
        **neuron: Any,
    ) -> Made:
        made = partial(kind, zero_init_residual=zero_init_residual)
        of = Activation(activation, batch_norm, neuron)
        return staged(made, blocks, width, stem, num_classes, in_channels, of, steps)

    make.__name__ = make.__qualname__ = name
    make.__module__ = kind.__module__
    make.__doc__ = text
    return named_options(make)
