"""What a graph becomes: layers, and the module that calls them in the order of the edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from snnfast.layers import IF, Neuron, Readout

__all__ = ["NIRNetwork", "PerNeuron", "Scale", "Step", "Threshold"]


class PerNeuron(nn.Module):
    """Neurons of maps whose thresholds or time constants differ within a channel: each is a channel of its own."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, current: Tensor, steps: int | None = None) -> Tensor:
        """Spikes of currents [T, B, ...], or of a [B, ...] current held for ``steps``."""
        lead = 2 if steps is None else 1
        return self.neuron(current.flatten(lead), steps).unflatten(2, current.shape[lead:])


class Threshold(nn.Module):
    """NIR's Threshold: 1 where [B, ...] is above the threshold, else 0: one step of a neuron, with its surrogate."""

    def __init__(self, neuron: IF | PerNeuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, potential: Tensor) -> Tensor:
        return self.neuron(potential[None])[0]


class Scale(nn.Module):
    """NIR's Scale: a factor, for all neurons or for each."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, value: Tensor) -> Tensor:
        return value * self.scale

    def extra_repr(self) -> str:
        return f"{self.scale.item():g}" if self.scale.dim() == 0 else f"of shape {list(self.scale.shape)}"


@dataclass(frozen=True)
class Step:
    """One node: its name, the key of its layer (None: a sum alone), and the nodes whose sum it takes."""

    name: str
    key: str | None
    sources: tuple[str, ...]


class NIRNetwork(nn.Module):
    """A network of a NIR graph, as :func:`snnfast.from_nir` makes it.

    ``network(current)`` takes currents [T, B, ...] ([B, T, ...] with time_dim=1) and gives the output node's value at
    every step, or the readout of it where the graph has one. ``network(current, steps=T)`` holds a [B, ...] current:
    what precedes the first neurons is computed once.

    Attributes:
        layers: by the names of the nodes, with "_" for what no module's name may have.
        steps: the nodes in the order of their calls.
        input_shape: of one sample at one step, as the graph says it.
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, nn.Module]],
        steps: Sequence[Step],
        readout: Readout | None,
        input_shape: tuple[int, ...],
        time_dim: int,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(dict(layers))
        self.readout = readout
        self.steps = tuple(steps)
        self.input_shape = input_shape
        self.time_dim = time_dim
        last = {source: step.name for step in self.steps for source in step.sources}
        self._done = {step.name: [source for source, at in last.items() if at == step.name] for step in self.steps}

    def forward(self, current: Tensor, steps: int | None = None) -> Tensor:
        """The output at every step; see the class.

        Raises:
            ValueError: a current that lacks the time axis.
        """
        if steps is None and current.dim() == len(self.input_shape) + 1:
            raise ValueError(
                f"current must be {'[B, T' if self.time_dim else '[T, B'}, ...], where one step of a sample is "
                f"{list(self.input_shape)}, got {list(current.shape)}; a current without time is held by steps=T"
            )
        values = {"": (current, steps is None)}
        for step in self.steps:
            value, over_time = self._sum([values[source] for source in step.sources])
            if step.key is not None:
                value, over_time = self._call(self.layers[step.key], value, over_time, steps)
            for source in self._done[step.name]:
                del values[source]
            values[step.name] = (value, over_time)
        value, over_time = values[self.steps[-1].name]
        if not over_time:
            assert steps is not None
            value = value.unsqueeze(self.time_dim).expand(
                *value.shape[: self.time_dim], steps, *value.shape[self.time_dim :]
            )
        return value if self.readout is None else self.readout(value)

    def _sum(self, values: Sequence[tuple[Tensor, bool]]) -> tuple[Tensor, bool]:
        over_time = any(found for _, found in values)
        tensors = [value.unsqueeze(self.time_dim) if over_time and not found else value for value, found in values]
        total = tensors[0]
        for tensor in tensors[1:]:
            total = total + tensor
        return total, over_time

    @staticmethod
    def _call(layer: nn.Module, value: Tensor, over_time: bool, steps: int | None) -> tuple[Tensor, bool]:
        if isinstance(layer, Neuron | PerNeuron):
            return layer(value, None if over_time else steps), True
        if not over_time:
            return layer(value), False
        return layer(value.flatten(0, 1)).unflatten(0, value.shape[:2]), True
