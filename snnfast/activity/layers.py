"""How often the neurons of each spiking layer fire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snnfast._arguments.checks import integer
from snnfast.trial import SpikingLayer, on_trial

__all__ = ["Firing", "LayerActivity", "kept_neurons", "layer_activity"]


@dataclass(frozen=True)
class LayerActivity:
    """What one spiking layer did.

    Attributes:
        name: as in ``model.named_modules()``; a model that is a layer itself by its class. A layer that keeps no state
            and is called several times in one pass stands for as many: the later ones are ``name#2`` and so on.
        kind: the layer's class.
        neurons: per image.
        steps: T of a pass; of a layer with ``carry_state`` over all its calls.
        spikes: of all neurons, over all steps and images.
        rate: spikes per neuron and step, 0 to 1: the mean over neurons, steps and images.
        silent: the share of neurons, 0 to 1, that never fire, whatever the image.
        saturated: the share of neurons, 0 to 1, that fire at every step of every image.
    """

    name: str
    kind: str
    neurons: int
    steps: int
    spikes: int
    rate: float
    silent: float
    saturated: float


@dataclass
class _Row:
    """What is counted of one layer as passes run."""

    name: str
    kind: str
    shape: tuple[int, ...]  # of one image's neurons
    fired: Tensor  # by each neuron so far
    steps: int = 0  # of the pass that runs
    steps_of_pass: int | None = None
    chances: int = 0  # of each neuron to fire: steps and images
    kept: list[list[Tensor]] = field(default_factory=list)  # [T, B, neurons], by pass and call


class Firing:
    """Counts what layers fire, by hooks.

    Args:
        layers: with their names.
        keep: the neurons of which the spikes themselves are kept, by the layer's name.
        mark: called with the spikes of every call.
    """

    def __init__(
        self,
        layers: Mapping[SpikingLayer, str],
        keep: Mapping[str, Sequence[int]] | None = None,
        mark: Callable[[Tensor], None] = lambda spikes: None,
    ) -> None:
        self._layers, self._keep, self._mark = layers, keep or {}, mark
        self._rows: dict[tuple[SpikingLayer, int], _Row] = {}
        self._calls: dict[SpikingLayer, int] = {}
        self._first: _Row | None = None  # reached in the pass that runs
        self.batch = 0  # images of the pass that ran last, by the first layer reached
        self.steps = (0, 0)  # of that layer: in the pass, and in each of its calls
        self.time_dim = 0

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Within, the model is run once. Raises ValueError for what is not as in the passes before."""
        self._calls, self._first = {}, None
        self.batch, self.steps = 0, (0, 0)
        for row in self._rows.values():
            row.steps = 0
            row.kept.append([])
        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.register_forward_hook(self._count).remove)
            yield
        for row in self._rows.values():
            if row.steps and row.steps != (row.steps_of_pass or row.steps):
                raise ValueError(
                    f"sample must be of one number of steps, got {row.steps_of_pass} and {row.steps} at {row.name!r}"
                )
            row.steps_of_pass = row.steps or row.steps_of_pass

    def _count(self, layer: nn.Module, args: tuple[Any, ...], spikes: Tensor) -> None:
        assert isinstance(layer, SpikingLayer)
        self._mark(spikes)
        self._calls[layer] = call = self._calls.get(layer, 0) + 1
        # Of a carried state the calls are one run of the same neurons.
        place = 1 if layer.carry_state else call
        over_time = spikes if layer.time_dim == 0 else spikes.transpose(0, 1)
        if over_time.dim() == 1:  # one neuron of one image
            over_time = over_time.unsqueeze(1)
        steps, batch, *shape = over_time.shape
        row = self._rows.get((layer, place))
        if row is None:
            name = self._layers[layer] + (f"#{place}" if place > 1 else "")
            nothing = torch.zeros(tuple(shape), dtype=torch.int64, device=spikes.device)
            row = self._rows[layer, place] = _Row(name, type(layer).__name__, tuple(shape), nothing, kept=[[]])
        elif row.shape != tuple(shape):
            raise ValueError(f"sample must be of one size, got {list(row.shape)} and {shape} neurons at {row.name!r}")
        row.fired = row.fired + torch.count_nonzero(over_time, dim=(0, 1))
        row.steps += steps
        row.chances += steps * batch
        if row.name in self._keep:
            row.kept[-1].append(self._chosen(row, over_time.reshape(steps, batch, -1)))
        self._first = self._first or row
        if row is self._first:
            self.batch, self.steps, self.time_dim = batch, (row.steps, steps), layer.time_dim

    def _chosen(self, row: _Row, spikes: Tensor) -> Tensor:
        neurons = self._keep[row.name]
        if max(neurons) >= spikes.shape[2]:
            raise ValueError(
                f"rasters must name neurons of the layer, got {max(neurons)} for the {spikes.shape[2]} of {row.name!r}"
            )
        return spikes[:, :, torch.tensor(neurons, device=spikes.device)] != 0

    def layers(self) -> tuple[LayerActivity, ...]:
        """Those that were reached, in that order."""
        return tuple(_activity(row) for row in self._rows.values())

    def rasters(self) -> dict[str, Tensor]:
        """The spikes kept, bool [T, images, neurons] on the CPU. Raises ValueError for a layer that was not reached."""
        rows = {row.name: row for row in self._rows.values()}
        for name in self._keep:
            if name not in rows:
                raise ValueError(f"rasters must name layers that the model reaches, got {name!r}")
        return {
            name: torch.cat([torch.cat(calls).cpu() for calls in rows[name].kept if calls], 1) for name in self._keep
        }


def _activity(row: _Row) -> LayerActivity:
    neurons = row.fired.numel()
    spikes = int(row.fired.sum())
    return LayerActivity(
        name=row.name,
        kind=row.kind,
        neurons=neurons,
        steps=row.steps_of_pass or 0,
        spikes=spikes,
        rate=spikes / max(1, neurons * row.chances),
        silent=int((row.fired == 0).sum()) / max(1, neurons),
        saturated=int((row.fired == row.chances).sum()) / max(1, neurons),
    )


def kept_neurons(rasters: object, layers: Mapping[SpikingLayer, str]) -> dict[str, list[int]]:
    """Which neurons are asked for, by the layer's name. Raises TypeError or ValueError for what is none."""
    if rasters is None:
        return {}
    if not isinstance(rasters, Mapping):
        raise TypeError(f"rasters must be a mapping of layer names to neurons, got {type(rasters).__name__}")
    kept = {}
    for name, neurons in rasters.items():
        # The second call of a layer has its own name.
        if not isinstance(name, str) or name.partition("#")[0] not in layers.values():
            raise ValueError(f"rasters must name spiking layers, {', '.join(layers.values())}, got {name!r}")
        kept[name] = indices(f"rasters[{name!r}]", neurons)
    return kept


def indices(name: str, neurons: object) -> list[int]:
    """Neurons of a layer, counted from 0 in the order of memory of one image; TypeError or ValueError for others."""
    if isinstance(neurons, str) or not hasattr(neurons, "__iter__"):
        raise TypeError(f"{name} must be the numbers of neurons, got {type(neurons).__name__}")
    found = [integer(name, neuron.item() if isinstance(neuron, Tensor) else neuron, least=0) for neuron in neurons]
    if not found:
        raise ValueError(f"{name} must be at least one neuron, got none")
    return found


def layer_activity(model: nn.Module, *args: Any) -> tuple[LayerActivity, ...]:
    """What the spiking layers that ``model(*args)`` reaches do, in evaluation mode; nothing of the model is changed.

    A model without spiking layers has none, and is not run.
    """
    with on_trial(model, training=False, spiking=False) as layers, torch.no_grad():
        firing = Firing(layers)
        if layers:
            with firing.one_pass():
                model(*args)
        return firing.layers()
