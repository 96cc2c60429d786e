"""What the tests of pack_spikes share: networks, results with and without it, and that nothing is left behind."""

from __future__ import annotations

import gc
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast as sf
from snnfast.autograd.integrate import listeners
from snnfast.memory import packing

T, B, C, H = 4, 3, 8, 6


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    gc.collect()
    assert not listeners and packing._open_contexts == 0
    assert len(packing._spikes) == 0


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def currents(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return normal(T, B, C, H, H, dtype=dtype, seed=seed).requires_grad_()


class Calls(TorchDispatchMode):
    """How often each operation of snnfast ran."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "snnfast" in str(func):
            self.of[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


def compare(forward, *leaves: torch.Tensor) -> sf.pack_spikes:
    """Runs ``forward()`` with and without packing; output and gradients must have the same bits."""
    found = []
    packed = sf.pack_spikes()
    for context in (None, packed):
        torch.manual_seed(0)
        if context is None:
            y = forward()
        else:
            with context:
                y = forward()
        sent = normal(*y.shape, seed=9).to(y)
        found.append([y.detach(), *torch.autograd.grad(y, leaves, sent)])
    for plain, ours in zip(*found, strict=True):
        assert plain.dtype == ours.dtype and torch.equal(plain, ours)
    return packed


WEIGHTS = {"conv": normal(5, C, 3, 3, seed=1), "columns": normal(H, 7, seed=2), "channels": normal(C, 2, seed=3)}


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = self.block(channels), self.block(channels)
        self.neuron, self.last = sf.IF(), sf.IF(reset="soft")

    @staticmethod
    def block(channels: int) -> nn.Module:
        return sf.OverTime(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        )

    def forward(self, s):
        return self.last(s + self.second(self.neuron(self.first(s))))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        sf.OverTime(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))),
        sf.IF(),
        Residual(8),
        sf.OverTime(nn.MaxPool2d(2)),
        Residual(8),
        sf.OverTime(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 4, 5))),
        sf.Readout("mean"),
    )
