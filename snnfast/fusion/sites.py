"""What snnfast.fuse finds: modules with a forward, calls of batch norms in them, and the neurons that go with those."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnfast.fusion.reshape import Shapes
from snnfast.fusion.trace import Forward
from snnfast.layers import Neuron

__all__ = ["Match", "Site", "Unit"]


@dataclass
class Unit:
    """A module with a forward that is understood."""

    name: str
    module: nn.Module
    forward: Forward

    @functools.cached_property
    def shapes(self) -> Shapes:
        return Shapes(self)

    def path(self, child: str) -> str:
        return f"{self.name}.{child}" if self.name else child


@dataclass
class Site:
    """A call whose result is a batch norm's output.

    Attributes:
        node: the call in the unit's graph.
        holders: from the module called to the one that holds the batch norm, outermost first (empty: it is called
            itself), each with its name in the network.
        over_time: the OverTime among the holders, or what another library has for it, with its name.
        timed: whether the batch norm takes [T, B, C, ...] itself.
    """

    unit: Unit
    node: fx.Node
    name: str
    batch_norm: _BatchNorm
    holders: list[tuple[str, nn.Module]]
    over_time: tuple[str, nn.Module] | None
    timed: bool = False

    @property
    def flat(self) -> bool:
        """Whether the call's value has time and batch in one dimension."""
        return self.over_time is None and not self.timed


@dataclass
class Match:
    """A batch norm and the neuron that it can be fused with.

    Attributes:
        between: the nodes between the two, in order.
        addition, residual: the node among them that adds another current, and that current, if so.
        split: the one that makes [T, B, ...] of [T·B, ...], if the forward does that itself.
        batch: T and B as the forward has them, where the neuron is elementwise and its spikes are to take the way of
            the batch norm's output: what is between the two rearranges more than a fused layer could follow.
        steps: the neuron's argument.
    """

    site: Site
    neuron_node: fx.Node
    neuron_name: str
    neuron: Neuron
    neuron_holders: list[tuple[str, nn.Module]] = field(default_factory=list)
    between: list[fx.Node] = field(default_factory=list)
    addition: fx.Node | None = None
    residual: fx.Node | None = None
    split: fx.Node | None = None
    batch: Any = None
    steps: object = None

    @property
    def needs_forward(self) -> bool:
        """Whether the children cannot simply be exchanged."""
        return not (self.addition is None and self.split is None and self.steps is None)

    @property
    def called_alone(self) -> bool:
        """Whether a rewritten forward calls the neuron itself, not an nn.Sequential that begins with it."""
        return self.needs_forward and not self.neuron_holders
