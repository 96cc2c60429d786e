"""A threshold becomes the largest current of its layer, one layer after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tuning_models import STEPS, Plain, Residual, batches, made

import snnfast as sf
from snnfast import models, tuning

THRESHOLDS: dict[str, Callable[[], Any]] = {
    "numbers": lambda: 0.5,
    "one tensor": lambda: torch.tensor(0.5),
    "per channel": lambda: torch.full((12,), 0.5),
}


@pytest.mark.parametrize("kind", THRESHOLDS)
def test_thresholds_are_the_largest_currents_with_the_earlier_layers_already_set(kind: str) -> None:
    model, data = made(lambda: Plain(threshold=THRESHOLDS[kind]())), batches()
    data.append((data[0][0] / 4, data[0][1]))  # the largest currents are not the last batch's
    if kind == "per channel":  # one of them learned
        model.first = sf.IF(THRESHOLDS[kind](), reset="soft", learn_threshold=True)
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    found = tuning.normalize_thresholds(model, data)

    first = max(model.enter(inputs).max().item() for inputs, _ in data)
    second = -math.inf
    for inputs, _ in data:
        spikes, _ = sf.functional.integrate_and_fire(model.enter(inputs), threshold=first, reset="soft", steps=STEPS)
        second = max(second, model.hidden(spikes).max().item())
    assert found == {"first": first, "second": second}
    assert model.unused.threshold == 1.0
    for layer, expected in ((model.first, first), (model.second, second)):
        threshold = torch.as_tensor(layer.threshold)
        assert torch.equal(threshold, torch.full_like(threshold, expected))
        assert isinstance(layer.threshold, float) == (kind == "numbers")
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    # The neurons use it: a current that is held at its largest value fires at the second step, not at the first.
    assert model.first(torch.full((1, 12), first), steps=2)[:, 0, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("time_dim", [0, 1])
def test_a_normalizing_layers_current_is_that_behind_normalization_and_residual_too(time_dim: int) -> None:
    fused, apart = (made(lambda fused=fused: Residual(fused, time_dim)) for fused in (True, False))
    for model in (fused, apart):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | sf.BatchNormIF):
                nn.init.constant_(module.running_mean, 0.1)
                nn.init.constant_(module.running_var, 0.5)
    ours, plain = (list(tuning.normalize_thresholds(model, batches()).values()) for model in (fused, apart))
    assert len(ours) == 4
    assert ours == pytest.approx(plain, rel=1e-5)


def test_a_residual_current_counts_without_a_normalization_too() -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = models.ResidualIF()

        def forward(self, currents: Tensor) -> Tensor:
            return self.neuron(currents, residual=2 * currents)

    assert tuning.normalize_thresholds(Shortcut(), [(torch.arange(1.0, 5.0)[:, None, None], None)]) == {"neuron": 12.0}


def test_a_layer_that_is_called_chunk_by_chunk_gets_the_largest_current_of_all_chunks() -> None:
    class Chunks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = sf.IF(carry_state=True), sf.IF(carry_state=True)

        def forward(self, currents: Tensor) -> Tensor:
            return torch.cat([self.second(3 * self.first(chunk) - 1) for chunk in currents.split(2)])

    growing = torch.arange(1.0, 7.0)[:, None, None]
    assert tuning.normalize_thresholds(Chunks(), [(growing, None)]) == {"first": 6.0, "second": 2.0}


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_a_layer_whose_largest_current_can_be_no_threshold_is_named(value: float) -> None:
    what = "not positive" if value <= 0 else "not finite"
    model = made(Plain)
    with torch.no_grad():
        model.hidden.module.weight.zero_()
        model.hidden.module.bias.fill_(value)
    with pytest.raises(ValueError, match=f"layer 'second': its largest input current is {value:.6g}, {what}"):
        tuning.normalize_thresholds(model, batches())
    assert model.first.threshold == 0.5  # set before, and put back


@pytest.mark.parametrize("function", [tuning.gradient_profile, tuning.normalize_thresholds])
def test_a_forward_pass_that_reaches_no_layer_is_refused(function) -> None:
    class Around(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.enter(inputs)

    with pytest.raises(ValueError, match="reaches none of its spiking layers"):
        function(made(Around), batches())
