"""Small networks whose activity the tests count."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import snnfast as sf


def currents(*shape: int, share: float = 0.4, seed: int = 0) -> Tensor:
    """0 and 2: a neuron at threshold 1 with the hard reset fires where it is 2, and nowhere else."""
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * (torch.rand(*shape, generator=generator) < share)


class OwnLoop(nn.Module):
    """A loop over time of one's own, around layers that carry their state."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.neuron, self.second = nn.Linear(4, 5), sf.IF(carry_state=True), nn.Linear(5, 3)

    def forward(self, current: Tensor) -> Tensor:
        return sum(self.second(self.neuron(self.first(step)[None])[0]) for step in current)


class Shared(nn.Module):
    """One layer without state, in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron, self.linear = sf.IF(), nn.Linear(4, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, current: Tensor) -> Tensor:
        return self.neuron(self.linear(self.neuron(current)))


def tiny() -> nn.Sequential:
    torch.manual_seed(3)
    block = [sf.OverTime(nn.Conv2d(2, 3, 3, padding=1)), sf.BatchNormIF(3)]
    return nn.Sequential(*block, sf.OverTime(nn.Sequential(nn.Flatten(), nn.Linear(48, 5))), sf.LIF(), sf.Readout())


SAMPLE = 2 * torch.rand(4, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
