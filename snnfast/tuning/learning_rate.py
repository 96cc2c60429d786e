"""The learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnfast._arguments.checks import function, integer, number_within
from snnfast.tuning.trial import Batches, Loss, check_batches, checked_loss, on_trial, passes_over, reset_states

_BELOW_BEST = 10.0  # the suggestion's distance from the rate with the lowest smoothed loss, which is near divergence

_CLEAR = 5.0
"""Standard errors by which the smoothed loss must fall. Of a loss that is noise about a level, the lowest of a hundred
smoothed values lies 2 to 3 below it."""

_LEAST = 1e-3
"""The share of its first level by which a loss without scatter must fall."""

_FIRST = 10
"""Steps that the loss's first level is the mean of; a fifth of them where there are fewer than five times as many."""


@dataclass(frozen=True)
class LearningRateRange:
    """What :func:`lr_range_test` saw, step by step, until the loss diverged or the steps were done.

    * ``rates``: the learning rate of each step.
    * ``losses``: the loss of each step's batch, before the step.
    * ``smoothed``: their exponential moving average, corrected for its start.
    * ``suggestion``: a tenth of the rate at which ``smoothed`` is lowest, as the highest rate of a schedule; None where
      it nowhere falls below the loss's first level by clearly more than the losses scatter: a minimum of noise is no
      reason for a rate. The first steps, whose mean that level is, count for no minimum.
    * ``diverged``: whether the test ended early because the loss grew too large.
    * ``reason``: in words, by how much the loss fell, or why there is no suggestion.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    diverged: bool
    reason: str = ""

    def __str__(self) -> str:
        lowest = min(range(len(self.smoothed)), key=self.smoothed.__getitem__)
        end = "where the loss diverged" if self.diverged else "without divergence"
        lines = [
            f"{len(self.rates)} steps at learning rates from {self.rates[0]:.3g} to {self.rates[-1]:.3g}, {end}",
            f"smoothed loss {self.smoothed[0]:.4g} at first, lowest {self.smoothed[lowest]:.4g} at "
            f"{self.rates[lowest]:.3g}",
        ]
        if self.suggestion is None:
            lines.append(f"no suggestion: {self.reason}")
        else:
            lines.append(f"suggested highest rate {self.suggestion:.3g}: {self.reason}")
        return "\n".join(lines)


MOST_RATES = 10**6
"""Each is a training step."""


def _adamw(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, weight_decay=0.01)  # the paper's section 3.1


def lr_range_test(
    model: nn.Module,
    batches: Batches,
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] = _adamw,
    loss: Loss = F.cross_entropy,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.9,
    divergence: float = 4.0,
) -> LearningRateRange:
    """Trains on trial at a rate that grows exponentially, and suggests the highest rate of a schedule.

    Smith's range test, by which the paper chooses its rates (section 3.1). The model runs in training mode; afterwards
    its weights and all else are as before: see :mod:`snnfast.tuning`.

    Args:
        model: with at least one parameter that requires a gradient; spiking or, like an ANN twin, not.
        batches: a list or DataLoader of (inputs, targets), gone through again and again until the steps are done.
        optimizer: makes an optimizer of ``model.parameters()``. Default: AdamW with weight decay 0.01. All its
            parameter groups get the test's rate.
        loss: ``loss(outputs, targets)``, one number.
        lowest, highest: the first and the last rate.
        steps: how many rates.
        smoothing: the share of the past in the moving average of the loss, at least 0 and below 1.
        divergence: the test ends where the smoothed loss exceeds its lowest value by this factor, or is not finite.

    Returns:
        Rates, losses and the suggestion.

    Raises:
        TypeError: not a module; batches that are an iterator or not pairs; a loss that is not one number; what the
            factory returns is no optimizer.
        ValueError: an option out of range; no batch; a first loss that is not finite; nothing to train.
    """
    check_batches(batches)
    function("optimizer", optimizer)
    function("loss", loss)
    _check_options(lowest, highest, steps, smoothing, divergence)
    rates, losses, smoothed = [], [], []
    average, diverged = 0.0, False
    with on_trial(model, training=True, spiking=False) as layers, torch.enable_grad():
        # A state that the user's gradients left behind would be the first step's.
        model.zero_grad(set_to_none=True)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
        trial = optimizer(model.parameters())
        if not isinstance(trial, torch.optim.Optimizer):
            raise TypeError(f"optimizer must make a torch.optim.Optimizer of parameters, got {type(trial).__name__}")
        for step, (inputs, targets) in zip(range(steps), _again_and_again(model, batches), strict=False):
            rate = lowest * (highest / lowest) ** (step / (steps - 1))
            _set_rate(trial, rate)
            reset_states(layers)
            trial.zero_grad()
            outputs = model(inputs)
            # Later on a loss that is not finite is how the test ends.
            value = checked_loss(loss, outputs, targets, finite=step == 0)
            if not value.requires_grad:
                raise ValueError("the loss does not depend on any parameter that requires a gradient")
            here = value.item()
            average = smoothing * average + (1 - smoothing) * here
            rates.append(rate)
            losses.append(here)
            smoothed.append(average / (1 - smoothing ** (step + 1)))
            if not math.isfinite(here) or smoothed[-1] > divergence * max(min(smoothed), 0.0) > 0:
                diverged = True
                break
            value.sum().backward()
            trial.step()
    at, reason = _lowest(losses, smoothed, smoothing)
    suggestion = None if at is None else rates[at] / _BELOW_BEST
    return LearningRateRange(tuple(rates), tuple(losses), tuple(smoothed), suggestion, diverged, reason)


def _lowest(losses: Sequence[float], smoothed: Sequence[float], smoothing: float) -> tuple[int | None, str]:
    """Where the smoothed loss is lowest after the first steps, None where that is no minimum to rely on; and why.

    The scatter of a loss is taken from its changes from step to step, which a slow fall adds little to. Of independent
    noise of variance s² an exponential average has (1 - smoothing) / (1 + smoothing) · s², and the mean of n values
    s² / n.
    """
    first = max(1, min(_FIRST, len(losses) // 5))
    finite = [value if math.isfinite(value) else math.inf for value in smoothed]
    at = min(range(first, len(finite)), key=finite.__getitem__, default=0)
    if at == 0:
        return None, f"the loss was not finite, or too large, after {len(losses)} step(s)"
    level = math.fsum(losses[:first]) / first
    changes = [(after - before) ** 2 for before, after in pairwise(losses[: at + 1])]
    variance = math.fsum(changes) / (2 * len(changes))
    error = math.sqrt(variance * ((1 - smoothing) / (1 + smoothing) + 1 / first))
    fall = level - finite[at]
    seen = (
        f"{level:.4g} at first, {finite[at]:.4g} where it is lowest, a fall of {fall:.2g} with an error of {error:.2g}"
    )
    if fall > max(_CLEAR * error, _LEAST * abs(level)):
        return at, f"the loss fell: {seen}"
    return None, f"the loss never fell clearly: {seen}, as the losses scatter"


def _again_and_again(model: nn.Module, batches: Batches) -> Iterator[tuple[Any, Any]]:
    while True:
        yield from passes_over(model, batches)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # an optimizer that is captured in a CUDA graph reads it from there
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _check_options(lowest: float, highest: float, steps: int, smoothing: float, divergence: float) -> None:
    number_within("lowest", lowest, above=0)
    number_within("highest", highest, above=lowest)
    integer("steps", steps, least=2, most=MOST_RATES)
    number_within("smoothing", smoothing, least=0, below=1)
    number_within("divergence", divergence, above=1, infinite=True)
