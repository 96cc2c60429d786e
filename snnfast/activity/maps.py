"""What the linear maps of a network compute: synaptic operations on spikes, multiply-accumulates on other numbers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnfast.activity.counts import SpikeCounts
from snnfast.activity.layers import Firing

__all__ = ["Map", "MapActivity", "Operations", "synaptic_operations"]

Map = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
_CONVOLUTIONS = {nn.Conv1d: (1, F.conv1d), nn.Conv2d: (2, F.conv2d), nn.Conv3d: (3, F.conv3d)}


@dataclass(frozen=True)
class MapActivity:
    """What one linear map computed, over all images.

    Attributes:
        name: as in ``model.named_modules()``.
        kind: the module's class.
        spiking: whether spikes enter it.
        spikes: how many enter: each one once for every place at which it does, and so once for each window of a pool
            in between; of a sum over time those of all steps.
        synaptic_operations: the sum of those spikes' fan-outs. That of a spike that enters a convolution is the number
            of outputs whose windows it is in, fewer at the border: padding is no synapse.
        multiply_accumulates: where other numbers enter: outputs times inputs of each, padding included. 0 otherwise.
        twin_multiply_accumulates: the same of the ANN twin, which has no time axis, whatever enters.
    """

    name: str
    kind: str
    spiking: bool
    spikes: int
    synaptic_operations: int
    multiply_accumulates: int
    twin_multiply_accumulates: int


@dataclass
class _Row:
    """What is counted of one map. Tensors stay on their device until the end."""

    spikes: list[Tensor] = field(default_factory=list)
    operations: list[Tensor] = field(default_factory=list)
    macs: int = 0
    twin: int = 0


class Operations:
    """Counts what linear maps compute, by hooks.

    Args:
        names: of the model's modules.
        counts: entered while the model runs.
        firing: which knows the steps and the batch of each pass.
    """

    def __init__(self, names: Mapping[nn.Module, str], counts: SpikeCounts, firing: Firing) -> None:
        self._names = {module: name for module, name in names.items() if isinstance(module, Map)}
        self._counts, self._firing = counts, firing
        self._rows: dict[Map, _Row] = {}
        self._of_pass: list[tuple[Map, tuple[int, ...], int]] = []  # the axes in front, multiply-accumulates

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Within, the model is run once, inside of the firing's own pass."""
        self._of_pass = []
        with ExitStack() as stack:
            for module in self._names:
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
            yield
        self._add_twin()

    def _enter(self, *_: Any) -> None:
        self._counts.inside += 1

    def _leave(self, module: Map, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        given = next(iter(inspect.signature(module.forward).bind(*args, **kwargs).arguments.values()))
        row = self._rows.setdefault(module, _Row())
        macs = output.numel() * _fan_in(module)
        counts = self._counts.of(given)
        if counts is None:
            row.macs += macs
        else:
            row.spikes.append(counts.sum(dtype=torch.float64))
            row.operations.append(synaptic_operations(module, counts))
        in_front = given.shape[: given.dim() - 1 - _spatial(module)[0]]
        self._of_pass.append((module, tuple(in_front), macs))
        self._counts.inside -= 1

    def _add_twin(self) -> None:
        """Adds what the ANN twin would compute for the pass that ended: each map at one step."""
        firing, seen = self._firing, set()
        total, of_call = firing.steps
        for module, in_front, macs in self._of_pass:
            # Where a loop calls the layers step by step, it calls the maps between them so, too.
            if total != of_call and module in seen:
                continue
            seen.add(module)
            steps = next((t for t in (total, of_call) if _over_time(in_front, t, firing.batch, firing.time_dim)), 1)
            self._rows[module].twin += macs // steps

    def maps(self) -> tuple[MapActivity, ...]:
        """Those that were reached, in that order."""
        return tuple(
            MapActivity(
                name=self._names[module],
                kind=type(module).__name__,
                spiking=bool(row.operations),
                spikes=round(sum(map(float, row.spikes))),
                synaptic_operations=round(sum(map(float, row.operations))),
                multiply_accumulates=row.macs,
                twin_multiply_accumulates=row.twin,
            )
            for module, row in self._rows.items()
        )


def _over_time(in_front: tuple[int, ...], steps: int, batch: int, time_dim: int) -> bool:
    """Whether the axes in front of a map's input are steps and batch, or both in one."""
    both = (steps, batch) if time_dim == 0 else (batch, steps)
    return steps > 1 and (in_front[:2] == both or in_front[:1] == (steps * batch,))


def _fan_in(module: Map) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.in_channels // module.groups * prod(module.kernel_size)


def _spatial(module: Map) -> tuple[int, Any]:
    """How many dimensions behind the channels a map takes, and torch's function for it where there are any."""
    return next((found for kind, found in _CONVOLUTIONS.items() if isinstance(module, kind)), (0, None))


def synaptic_operations(module: Map, counts: Tensor) -> Tensor:
    """The fan-outs of all spikes that enter a map together, a float64 tensor of one number.

    ``counts``: the spikes behind each number of the map's input.
    """
    if isinstance(module, nn.Linear):
        return counts.sum(dtype=torch.float64) * module.out_features
    dims, convolve = _spatial(module)
    # All channels have the same windows, and all groups as many outputs for each: one map of sums is enough.
    places = counts.sum(dim=tuple(range(counts.dim() - dims)), dtype=torch.float64)[None, None]
    padding = module.padding
    if module.padding_mode != "zeros":  # as torch's convolutions pad by themselves: these are synapses
        places = F.pad(places, module._reversed_padding_repeated_twice, module.padding_mode)
        padding = (0,) * dims
    ones = torch.ones(1, 1, *module.kernel_size, dtype=torch.float64, device=counts.device)
    reached = convolve(places, ones, None, module.stride, padding, module.dilation)
    return reached.sum() * (module.out_channels // module.groups)
