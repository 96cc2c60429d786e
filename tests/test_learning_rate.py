"""The range test trains on trial, and suggests a rate that trains."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tuning_models import Plain, batches, made

from snnfast import tuning
from snnfast.data import load
from snnfast.models import DigitsNet

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_range_test_suggests_a_rate_that_trains_and_stops_where_the_loss_diverges() -> None:
    model, digits = made(DigitsNet), load("digits").train
    data = [digits[start : start + 64] for start in range(0, 640, 64)]
    found = tuning.lr_range_test(model, data, steps=60, lowest=1e-5)
    assert found.diverged
    assert len(found.rates) == len(found.losses) == len(found.smoothed) < 60
    growth = [b / a for a, b in zip(found.rates, found.rates[1:], strict=False)]
    assert growth == pytest.approx([1e6 ** (1 / 59)] * len(growth))
    assert found.rates[0] == 1e-5
    assert 1e-4 < found.suggestion < 5e-2
    assert f"suggested highest rate {found.suggestion:.3g}" in str(found)

    optimizer = torch.optim.AdamW(model.parameters(), lr=found.suggestion)
    losses = []
    for inputs, targets in data * 3:
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_range_tests_steps_are_those_of_the_optimizer_that_was_asked_for() -> None:
    model, data = made(Plain), batches()
    found = tuning.lr_range_test(
        model, data, lambda parameters: torch.optim.SGD(parameters, lr=9.0), lowest=1e-3, highest=1e-1, steps=5
    )
    assert found.rates == pytest.approx([1e-3, 10**-2.5, 1e-2, 10**-1.5, 1e-1])
    assert not found.diverged
    losses = []
    for rate, (inputs, targets) in zip(found.rates, (data * 2)[:5], strict=True):  # gone through twice
        loss = F.cross_entropy(model(inputs), targets)
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
    assert found.losses == pytest.approx(losses, rel=1e-4)
    assert found.smoothed[0] == pytest.approx(losses[0], rel=1e-4)
    assert found.smoothed[1] == pytest.approx((0.9 * losses[0] + losses[1]) / 1.9, rel=1e-4)


def test_a_range_where_the_loss_never_falls_has_no_suggestion() -> None:
    def upwards(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, maximize=True)

    found = tuning.lr_range_test(made(Plain), batches(1), upwards, lowest=1e-2, highest=1.0, steps=10)
    assert found.suggestion is None
    assert "no suggestion" in str(found)


class Given(nn.Module):
    """A network whose losses are the given ones, whatever is trained."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.losses = iter(losses)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.weight * 0 + next(self.losses)


def suggested(losses: list[float]) -> tuning.LearningRateRange:
    data = [(torch.zeros(1), torch.zeros(1))]
    return tuning.lr_range_test(
        Given(losses), data, loss=lambda outputs, targets: outputs, steps=len(losses), lowest=1e-6, highest=1.0
    )


def test_noise_alone_gives_no_suggestion() -> None:
    generator = torch.Generator().manual_seed(0)
    fooled = 0
    for _ in range(1000):
        noise = 0.2 * torch.randn(100, generator=generator)
        fooled += suggested((2.3 + noise).tolist()).suggestion is not None
    assert fooled < 10  # 1 %
    # A lucky second batch is none either, nor are equal losses.
    assert suggested([2.3, 1.1, *[2.3 + 0.01 * (i % 2) for i in range(98)]]).suggestion is None
    level = suggested([2.3] * 100)
    assert level.suggestion is None
    assert level.reason.startswith("the loss never fell clearly: 2.3 at first, 2.3 where it is lowest, a fall of ")
    assert f"no suggestion: {level.reason}" in str(level)


def test_a_fall_within_noise_is_found_near_its_lowest() -> None:
    generator = torch.Generator().manual_seed(0)
    # Level, then down by one from step 40 to 70, then up: the lowest is at 70, the average lags by some steps.
    shape = [2.3] * 40 + [2.3 - i / 30 for i in range(30)] + [1.3 + 0.2 * i for i in range(30)]
    for _ in range(100):
        noise = 0.2 * torch.randn(100, generator=generator)
        found = suggested((torch.tensor(shape) + noise).tolist())
        assert found.suggestion is not None and found.reason.startswith("the loss fell: 2.")
        assert f"{found.suggestion:.3g}: {found.reason}" in str(found)
        lowest = math.log(found.suggestion * 10 / 1e-6) / math.log(1e6) * 99
        assert 60 <= lowest <= 80


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lowest": 0.0}, ValueError, r"lowest must be finite and above 0, got 0\.0"),
        ({"lowest": 1.0, "highest": 0.1}, ValueError, r"highest must be finite and above 1, got 0\.1"),
        ({"highest": math.inf}, ValueError, "highest must be finite and above 1e-06, got inf"),
        ({"steps": 1}, ValueError, "steps must be at least 2, got 1"),
        ({"smoothing": 1.0}, ValueError, "smoothing must be at least 0 and below 1"),
        ({"divergence": 1.0}, ValueError, "divergence must be above 1"),
        ({"lowest": "small"}, TypeError, "lowest must be a number, got str"),
        ({"optimizer": list}, TypeError, r"must make a torch\.optim\.Optimizer of parameters, got list"),
    ],
)
def test_a_range_test_refuses_options_out_of_range(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tuning.lr_range_test(made(Plain), batches(), **options)


def test_a_range_test_of_a_frozen_model_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        tuning.lr_range_test(made(Plain).requires_grad_(False), batches())
