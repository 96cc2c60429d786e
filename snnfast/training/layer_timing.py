"""The neuron layers of a network on their own: the data they meet, whether two agree, how long each takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from snnfast.comparing.timing import clock_for, interleaved
from snnfast.models import DigitsNet

_GRADIENT_TOLERANCE = 1e-5  # of the largest gradient: two orders of float32 additions over the steps
SECONDS = 0.4  # for one measurement of each layer, all implementations together


class MismatchError(RuntimeError):
    """Two implementations that must agree do not; their times are not worth printing."""


@dataclass
class Pass:
    """What one neuron layer met in one training step.

    Its input ``current``, the ``steps`` that was held for (None: it has a time axis), and its spikes' ``gradient``.
    """

    name: str
    current: torch.Tensor
    steps: int | None
    gradient: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class LayerTiming:
    """Median seconds of forward and backward of one layer, by implementation; ``shape`` is the spikes' shape."""

    name: str
    shape: tuple[int, ...]
    held: bool
    seconds: dict[str, float]

    @property
    def shape_in_words(self) -> str:
        """The shape, and whether the input current is held over time."""
        return f"{list(self.shape)}" + (" held" if self.held else "")


def capture(model: DigitsNet, images: torch.Tensor, labels: torch.Tensor) -> list[Pass]:
    """A :class:`Pass` for each neuron layer, from one forward and backward pass of ``model``; no weight changes."""
    passes: list[Pass] = []

    def watch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], spikes: torch.Tensor) -> None:
        seen = Pass(f"neuron {len(passes) + 1}", args[0].detach(), kwargs.get("steps"))
        spikes.register_hook(lambda gradient: setattr(seen, "gradient", gradient.detach()))
        passes.append(seen)

    hooks = [layer.register_forward_hook(watch, with_kwargs=True) for layer in model.neurons()]
    try:
        F.cross_entropy(model(images), labels).backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
    return passes


class LayerClock:
    """Times the layers in ``passes`` through each implementation in ``sides`` (its layers, input side first).

    Raises :class:`MismatchError` when made, before any timing, where spikes are not equal or gradients of the current
    differ by more than 1e-5 of the largest.
    """

    def __init__(self, passes: Sequence[Pass], sides: dict[str, Sequence[nn.Module]], device: torch.device) -> None:
        self._device = device
        self._layers = [
            (seen, {side: layers[index] for side, layers in sides.items()}) for index, seen in enumerate(passes)
        ]
        for seen, implementations in self._layers:
            _check_equal(seen, implementations)
        self._best = [dict.fromkeys(sides, math.inf) for _ in passes]

    def measure(self) -> None:
        """Forward and backward of every layer, implementations in turn; may be called again, at another time.

        A neighbour's load comes in bursts of seconds and stalls threads that wait for each other, so the least of the
        medians counts.
        """
        for (seen, implementations), best in zip(self._layers, self._best, strict=True):
            for side, median in _medians(seen, implementations, self._device).items():
                best[side] = min(best[side], median)

    def timings(self) -> list[LayerTiming]:
        """The least median of the measurements so far, layer by layer."""
        return [
            LayerTiming(seen.name, tuple(seen.gradient.shape), seen.steps is not None, dict(best))
            for (seen, _), best in zip(self._layers, self._best, strict=True)
        ]


def _forward_backward(layer: nn.Module, seen: Pass) -> tuple[torch.Tensor, torch.Tensor]:
    current = seen.current.detach().requires_grad_()
    spikes = layer(current) if seen.steps is None else layer(current, steps=seen.steps)
    (gradient,) = torch.autograd.grad(spikes, current, seen.gradient)
    return spikes, gradient


def _check_equal(seen: Pass, implementations: dict[str, nn.Module]) -> None:
    results = {side: _forward_backward(layer, seen) for side, layer in implementations.items()}
    (first, (spikes, gradient)), *others = results.items()
    for other, (other_spikes, other_gradient) in others:
        if not torch.equal(spikes, other_spikes):
            count = int((spikes != other_spikes).sum())
            raise MismatchError(f"{seen.name}: {count} of {spikes.numel()} spikes differ between {first} and {other}")
        difference, largest = (gradient - other_gradient).abs().max().item(), other_gradient.abs().max().item()
        if not difference <= _GRADIENT_TOLERANCE * largest:
            raise MismatchError(
                f"{seen.name}: gradients of {first} and {other} differ by {difference:.2e} (largest {largest:.2e})"
            )


def _medians(seen: Pass, implementations: dict[str, nn.Module], device: torch.device) -> dict[str, float]:
    sides = {side: partial(_forward_backward, layer, seen) for side, layer in implementations.items()}
    timings = interleaved(sides, clock_for(device), seconds=SECONDS)
    return {side: timing.median for side, timing in timings.items()}
