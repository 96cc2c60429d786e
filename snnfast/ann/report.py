"""What snnfast.to_spiking did, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from snnfast.fusion.apply import FuseReport, Left

__all__ = ["Replaced", "SpikingReport"]


class Replaced(NamedTuple):
    """An activation in whose place a neuron is now.

    Attributes:
        neuron: the neuron's name in the spiking network.
        activation: what was there: "ReLU", "relu", ...
        held: whether the neuron gets a constant current, computed once and held over the steps: a first neuron.
    """

    neuron: str
    activation: str
    held: bool


@dataclass(frozen=True)
class SpikingReport:
    """What :func:`snnfast.to_spiking` replaced and what it left, and why. ``str(report)`` is a table.

    Attributes:
        replaced: one entry for each neuron, in the order of the network.
        left: one entry with the reason for each operation that is no linear map and was left as it is, by the module's
            name or its own, max pooling among them; and for hooks that do not run.
        readout: the operations that the mean over time goes into, all linear from there on; empty where spikes
            or currents are summed at the very end.
        fused: what :func:`snnfast.fuse` made of it; None if it was not asked to.
        tuning: the :class:`snnfast.tuning.GammaSearch`, if γ was tuned.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    readout: tuple[str, ...]
    fused: FuseReport | None = None
    tuning: Any = None

    @property
    def first(self) -> tuple[str, ...]:
        """The names of the first neurons, whose constant currents are computed once and held over the steps."""
        return tuple(entry.neuron for entry in self.replaced if entry.held)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} neurons, each in the place of an activation:"]
        width = max((len(entry.neuron) for entry in self.replaced), default=0)
        for entry in self.replaced:
            lines.append(
                f"  {entry.neuron:{width}}  {entry.activation}" + "  (first: its current is held)" * entry.held
            )
        lines.append(f"{len(self.left)} left" + (":" if self.left else ""))
        width = min(max((len(entry.name) for entry in self.left), default=0), 40)
        lines += [f"  {entry.name:{width}}  {entry.reason}" for entry in self.left]
        into = ", ".join(self.readout)
        lines.append(f"summed over time: what goes into {into}" if into else "summed over time: the result")
        if self.fused is not None:
            head, *rest = str(self.fused).splitlines()
            lines += [f"batch norms: {head}", *rest]
        if self.tuning is not None:
            lines.append(f"γ = {self.tuning.gamma:.4g}, tuned: first half / rest {self.tuning.ratio:.4g}")
        return "\n".join(lines)
