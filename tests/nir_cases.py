"""What the tests of graphs of NIR share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="module")
def nir():
    return pytest.importorskip("nir", reason="nir is not installed (pip install '.[nir]')")


@pytest.fixture
def seeded():
    torch.manual_seed(0)


def dense(neuron: nn.Module, *after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), neuron, *after)


def busy(spikes: Tensor) -> bool:
    return 0.02 < spikes.count_nonzero() / spikes.numel() < 0.9
