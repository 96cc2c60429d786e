"""Networks with thresholds from data, and what it means that another has them, for the tests of checkpoints."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

import snnfast as sf
from snnfast import tuning

FEATURES = 4


def currents(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 8, FEATURES, generator=torch.Generator().manual_seed(seed)) * 3


def plain() -> nn.Module:
    torch.manual_seed(0)
    linear = [sf.OverTime(nn.Linear(FEATURES, FEATURES)) for _ in range(3)]
    return nn.Sequential(linear[0], sf.IF(), linear[1], sf.LIF(tau=3.0), linear[2])


def normalized() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        sf.OverTime(nn.Linear(FEATURES, FEATURES)),
        sf.BatchNormIF(FEATURES),
        sf.OverTime(nn.Linear(FEATURES, FEATURES)),
        sf.BatchNormLIF(FEATURES, decay_input=False),
    )


def to_be_fused() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        sf.OverTime(nn.Linear(FEATURES, FEATURES)),
        sf.OverTime(nn.BatchNorm1d(FEATURES)),
        sf.IF(),
        sf.OverTime(nn.Linear(FEATURES, FEATURES)),
        sf.OverTime(nn.BatchNorm1d(FEATURES)),
        sf.LIF(decay_input=False),
    )


def fused() -> nn.Module:
    model = to_be_fused()
    assert len(sf.fuse(model).fused) == 2
    return model


NETWORKS = {"plain": plain, "normalized": normalized, "to be fused": to_be_fused, "fused": fused}
KEYS = {
    "plain": {"1.threshold", "3.threshold"},
    "normalized": {"1.threshold", "3.threshold"},
    "to be fused": {"2.threshold", "5.threshold"},
    "fused": {"2.threshold", "5.threshold"},
}
networks = pytest.mark.parametrize("name", NETWORKS)


def measured(name: str = "plain") -> nn.Module:
    """A network with other weights than a new one's, and thresholds from data."""
    model = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    model(currents(1))  # running statistics
    tuning.normalize_thresholds(model, [(currents(), None)])
    return model.eval()


def through_a_file(value: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def thresholds(model: nn.Module) -> list[Any]:
    return [m.threshold for m in model.modules() if isinstance(m, sf.IF | sf.LIF)]


def assert_the_same(model: nn.Module, other: nn.Module) -> None:
    assert thresholds(model) == thresholds(other)
    assert all(type(threshold) is float for threshold in thresholds(other))
    x = currents(2) * 4
    spikes = model.eval()(x)
    assert spikes.any() and torch.equal(spikes, other.eval()(x))
