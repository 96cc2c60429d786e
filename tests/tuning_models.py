"""Small models and data for the tests of snnfast.tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import snnfast as sf

STEPS = 6


class Plain(nn.Module):
    """linear – IF, held – linear – LIF – linear, summed; and a layer that the forward pass does not reach."""

    def __init__(self, features: int = 12, threshold: Any = 0.5) -> None:
        super().__init__()
        self.unused = sf.IF()
        self.second = sf.LIF(tau=3.0, threshold=threshold)  # not in the order in which they run
        self.first = sf.IF(threshold=threshold, reset="soft")
        self.enter = nn.Linear(5, features)
        self.hidden = sf.OverTime(nn.Linear(features, features))
        self.leave = sf.OverTime(nn.Linear(features, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        spikes = self.first(self.enter(inputs), steps=STEPS)
        return self.leave(self.second(self.hidden(spikes))).sum(0)


class Everything(nn.Module):
    """What has a state to be disturbed: batch norms, dropout, carried states, a learned threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = sf.OverTime(nn.Linear(5, 12))
        self.first = sf.BatchNormIF(12, threshold=0.6, carry_state=True)
        self.hidden = sf.OverTime(nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 12), nn.BatchNorm1d(12)))
        self.second = sf.LIF(threshold=torch.full((12,), 0.5), carry_state=True)
        self.third = sf.BatchNormLIF(12, threshold=0.3, learn_threshold=True)
        nn.init.ones_(self.third.bias)
        self.leave = sf.OverTime(nn.Linear(12, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.expand(STEPS, *inputs.shape)
        spikes = self.second(self.hidden(self.first(self.enter(inputs))))
        return self.leave(self.third(spikes, residual=spikes)).sum(0)


def batches(count: int = 3, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(7)
    return [(torch.randn(size, 5, generator=random), torch.randint(3, (size,), generator=random)) for _ in range(count)]


def images(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(8)
    return [(torch.rand(8, 3, 8, 8, generator=random), torch.randint(10, (8,), generator=random)) for _ in range(count)]


def made(model: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model()


class Residual(nn.Module):
    """Normalizing layers with all sorts of residuals, through the fused layers or through torch's and IF."""

    def __init__(self, fused: bool, time_dim: int) -> None:
        super().__init__()
        self.fused, self.time_dim = fused, time_dim
        self.enter, self.hidden, self.leave = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.neurons = nn.ModuleList(
            (sf.BatchNormIF if fused else sf.IF)(*[12] * fused, time_dim=time_dim, threshold=0.4) for _ in range(4)
        )
        self.norms = nn.ModuleList(nn.Identity() if fused else nn.BatchNorm1d(12) for _ in range(4))

    def neuron(self, at: int, current: Tensor, residual: Tensor | None, steps: int | None) -> Tensor:
        if self.fused:
            return self.neurons[at](current, residual=residual, steps=steps)

        def over_time(x: Tensor) -> Tensor:
            return x.unsqueeze(self.time_dim).expand(*x.shape[: self.time_dim], STEPS, *x.shape[self.time_dim :])

        if steps is not None:
            residual = over_time(residual) if residual is not None and residual.dim() == 2 else residual
            current = over_time(current)
        current = self.norms[at](current.flatten(0, 1)).unflatten(0, current.shape[:2])
        return self.neurons[at](current if residual is None else current + residual)

    def forward(self, inputs: Tensor) -> Tensor:
        held = self.enter(inputs)
        spikes = self.neuron(0, held, None, STEPS)
        spikes = self.neuron(1, held, spikes, STEPS)  # a residual over time on a held current
        spikes = self.neuron(2, self.hidden(held), held, STEPS)
        spikes = self.neuron(3, self.hidden(spikes), spikes, None)
        return self.leave(spikes).sum(self.time_dim)


def neurons(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, sf.IF | sf.LIF)]
