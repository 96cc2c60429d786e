"""What stands in a stream for layers that keep more than a potential from step to step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snnfast.layers import IF, LIF, BatchNormNeuron, Neuron, OverTime, Readout
from snnfast.layers.base import Carries

__all__ = ["Delayed", "NormalizedBefore", "OneStepOverTime", "RunningReadout"]


class RunningReadout(Carries):
    """A Readout of all steps since the sequence began, those of this call included.

    The sum is kept in float64, in which 2^53 spikes can be counted; float32 would stop at 2^24.
    """

    def __init__(self, readout: Readout) -> None:
        super().__init__()
        self.mode, self.time_dim = readout.mode, readout.time_dim
        self._state: tuple[Tensor, int] | None = None

    def forward(self, over_time: Tensor) -> Tensor:
        floating = over_time.is_floating_point()
        total = over_time.sum(self.time_dim, dtype=torch.float64 if floating else None)
        steps = over_time.shape[self.time_dim]
        if self._state is not None:
            before, count = self._state
            total, steps = before.to(total.device) + total, count + steps
        self._state = total, steps
        result = total if self.mode == "sum" else total / steps
        return result.to(over_time.dtype) if floating else result

    def extra_repr(self) -> str:
        return repr(self.mode) + (f", time_dim={self.time_dim}" if self.time_dim else "")


class Delayed(Carries):
    """A neuron whose spikes leave one step later: the last step's wait here for the next call.

    Args:
        neuron: with delay=True, which this takes over.
    """

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        neuron.delay = False
        self.neuron = neuron
        self._state: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        spikes, time_dim = self.neuron(*args, **kwargs), self.neuron.time_dim
        last = spikes.narrow(time_dim, spikes.shape[time_dim] - 1, 1)
        waiting = torch.zeros_like(last) if self._state is None else self._state.to(last)
        self._state = last
        if spikes.shape[time_dim] == 1:
            return waiting
        return torch.cat([waiting, spikes.narrow(time_dim, 0, spikes.shape[time_dim] - 1)], time_dim)


class NormalizedBefore(nn.Module):
    """A BatchNormIF or BatchNormLIF whose normalization is in the weights of the layer before it: what remains."""

    def __init__(self, layer: BatchNormNeuron) -> None:
        super().__init__()
        assert isinstance(layer, Neuron)
        kind: Any = LIF if isinstance(layer, LIF) else IF
        self.neuron: Neuron = kind(**layer._options(), time_dim=layer.time_dim)

    def forward(self, current: Tensor, residual: Tensor | None = None, steps: int | None = None) -> Tensor:
        if residual is not None:
            if steps is not None and residual.dim() > current.dim():  # of every step, for a current that is held
                current, steps = current.unsqueeze(self.neuron.time_dim), None
            current = current + residual
        return self.neuron(current, steps)


class OneStepOverTime(OverTime):
    """An OverTime that takes the time axis of a single step away, and gives it back, for less than merging axes costs.

    Its input was tried when the stream was made.
    """

    def forward(self, over_time: Tensor) -> Tensor:
        steps, batch = over_time.shape[:2]
        if steps == 1:
            return self.module(over_time.select(0, 0)).unsqueeze(0)
        if batch == 1:
            return self.module(over_time.select(1, 0)).unsqueeze(1)
        return super().forward(over_time)
