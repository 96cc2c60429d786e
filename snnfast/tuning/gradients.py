"""How large the loss's gradient is at every spiking layer: the paper's figure 3."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.nn import functional as F

from snnfast._arguments.checks import function
from snnfast._plots import plot_over_layers
from snnfast.layers import BatchNormNeuron
from snnfast.tuning.currents import over_time
from snnfast.tuning.trial import (
    Batches,
    Loss,
    SpikingLayer,
    check_batches,
    checked_loss,
    on_trial,
    passes_over,
    reset_states,
)


@dataclass(frozen=True)
class GradientProfile:
    """The mean absolute gradient G_l of the loss with respect to the current entering each spiking layer.

    * ``names``: the layers' names in the model, in the order in which a forward pass reaches them.
    * ``values``: G_l, averaged over the batches; 0.0 where no gradient arrives.
    * ``gammas``: the sharpness of each layer's surrogate when it was measured.
    * ``batches``: how many batches that is the average of.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    gammas: tuple[float, ...]
    batches: int

    @property
    def ratio(self) -> float:
        """The mean of the first ⌊L/2⌋ layers over the mean of the rest (MATH.md section 5).

        Above 1 the gradient explodes on its way to the input, below 1 it vanishes; infinite where only the rest is 0,
        0.0 where the first layers are. Raises ValueError for a single layer.
        """
        half = len(self.values) // 2
        if half == 0:
            raise ValueError(f"the ratio of two halves needs at least 2 spiking layers, got {len(self.values)}")
        first = math.fsum(self.values[:half]) / half if _finite(self.values[:half]) else math.inf
        rest = math.fsum(self.values[half:]) / (len(self.values) - half) if _finite(self.values[half:]) else math.inf
        if first == 0:
            return 0.0
        # Overflow anywhere is an explosion: gradients grow from layer to layer before they overflow.
        return first / rest if 0 < rest < math.inf else math.inf

    @property
    def reached(self) -> tuple[int, int]:
        """How many layers of the first half, and of the rest, :attr:`ratio` rests on, as their gradient is not 0.

        Blocks whose last batch norm begins with weights of 0 have no gradient inside until the first step.
        """
        half = len(self.values) // 2
        return sum(value != 0 for value in self.values[:half]), sum(value != 0 for value in self.values[half:])

    def rests_on(self) -> str:
        """Says in words that a ratio rests on fewer than all layers; empty where it rests on all."""
        first, rest = self.reached
        if first + rest == len(self.values):
            return ""
        half = len(self.values) // 2
        return (
            f"resting on {first} of the first {half} layers and {rest} of the other {len(self.values) - half}; the "
            "gradients of the others are 0"
        )

    def __str__(self) -> str:
        width = max(len("layer"), *(len(name) for name in self.names))
        lines = [f"{'layer':<{width}}  {'gamma':>8}  mean abs. gradient"]
        for name, gamma, value in zip(self.names, self.gammas, self.values, strict=True):
            lines.append(f"{name:<{width}}  {gamma:>8.4g}  {value:.4e}")
        count = f"{self.batches} batch" + ("es" if self.batches > 1 else "")
        lines.append(f"first half / rest: {self.ratio:.4g} ({count})" if len(self.values) > 1 else f"({count})")
        if rests_on := self.rests_on():
            lines.append(rests_on)
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes G over the layer number to ``path``, as :func:`plot_profiles` does for several. Raises ImportError."""
        same = len(set(self.gammas)) == 1
        plot_profiles({f"γ = {self.gammas[0]:.4g}" if same else "γ per layer": self}, path)


def plot_profiles(profiles: Mapping[str, GradientProfile], path: str | os.PathLike[str]) -> None:
    """Writes figure 3 of the paper: G over the layer number, a curve for each profile, on a logarithmic scale.

    Args:
        profiles: a label for each profile (its γ, say).
        path: the picture's file; its ending chooses the format.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: no mapping, no profile, or a file ending that matplotlib does not know.
    """
    # A value of 0 has no place on a logarithmic scale: the curve has a gap there.
    plot_over_layers(
        profiles,
        GradientProfile,
        lambda profile: [value if value > 0 else math.nan for value in profile.values],
        path,
        yscale="log",
        ylabel="mean absolute gradient of the current",
    )


def gradient_profile(model: nn.Module, batches: Batches, loss: Loss = F.cross_entropy) -> GradientProfile:
    """Measures the mean absolute gradient at the current entering every spiking layer (MATH.md section 5, figure 3).

    That current is what the neurons integrate, after normalization and residual, one value per neuron and time step
    also where it is held. The model runs in training mode; each batch's G is a mean over its neurons and steps, and
    all batches count the same. Nothing of the model is changed: see :mod:`snnfast.tuning`.

    Args:
        model: called as ``model(inputs)``; with at least one spiking layer.
        batches: a list or DataLoader of (inputs, targets), iterated once; tensors are moved to the model's device.
        loss: ``loss(outputs, targets)``, one number. Default: cross entropy of logits [B, classes], labels [B].

    Returns:
        The profile of the layers that the forward pass reaches.

    Raises:
        TypeError: not a module; batches that are an iterator (used up after one pass) or not pairs; a loss that is not
            one number.
        ValueError: no spiking layer, none reached, no batch, a loss that is not finite, or no gradient that arrives
            at any layer.
    """
    check_batches(batches)
    function("loss", loss)
    sums: dict[SpikingLayer, float] = {}
    found: dict[SpikingLayer, int] = {}
    count = 0
    arrived = False
    with on_trial(model, training=True) as layers:
        for inputs, targets in passes_over(model, batches):
            reset_states(layers)
            gradients = _gradients_of_batch(model, list(layers), inputs, targets, loss)
            count += 1
            for layer, gradient in gradients.items():
                sums[layer] = sums.get(layer, 0.0) + (gradient or 0.0)
                found[layer] = found.get(layer, 0) + 1
                arrived |= gradient is not None
    if not found:
        raise ValueError("the model's forward pass reaches none of its spiking layers")
    if not arrived:
        raise ValueError(
            "no gradient of the loss arrives at any spiking layer: the loss does not depend on their spikes, or the "
            "model detaches them"
        )
    return GradientProfile(
        names=tuple(layers[layer] for layer in sums),
        values=tuple(total / found[layer] for layer, total in sums.items()),
        gammas=tuple(float(layer.surrogate.gamma) for layer in sums),
        batches=count,
    )


def _gradients_of_batch(
    model: nn.Module, layers: list[SpikingLayer], inputs: Any, targets: Any, loss: Loss
) -> dict[SpikingLayer, float | None]:
    """Per layer reached, in that order, the mean absolute gradient at its current; None where none arrives."""
    # Every probe hangs on this leaf, so that asking for its gradient runs them all, and nothing more than they need.
    anchor = torch.zeros((), device="cpu", requires_grad=True)
    arrived: dict[SpikingLayer, list[Tensor]] = {}
    numbers: dict[SpikingLayer, int] = {}  # of values; a layer called several times in one pass has one mean over all

    def probe(layer: SpikingLayer, current: Tensor) -> Tensor:
        sums = arrived.setdefault(layer, [])
        numbers[layer] = numbers.get(layer, 0) + current.numel()
        # A sum stays on its device: reading it would wait for the GPU in the middle of the backward pass.
        return _Probe.apply(current, anchor, lambda gradient: sums.append(gradient.abs().sum(dtype=torch.float64)))

    with torch.enable_grad(), probed(layers, probe):
        value = checked_loss(loss, model(inputs), targets)
        if value.requires_grad:
            torch.autograd.grad(value.sum(), anchor, allow_unused=True)
    return {layer: sum(map(float, sums)) / max(1, numbers[layer]) if sums else None for layer, sums in arrived.items()}


class _Probe(Function):
    """The identity, whose backward pass shows the gradient to ``record``."""

    @staticmethod
    def forward(ctx, current, anchor, record):
        ctx.record = record
        return current.view_as(current)

    @staticmethod
    def backward(ctx, gradient):
        ctx.record(gradient)
        return gradient if ctx.needs_input_grad[0] else None, torch.zeros((), device="cpu"), None


@contextmanager
def probed(layers: list[SpikingLayer], probe: Callable[[SpikingLayer, Tensor], Tensor]) -> Iterator[None]:
    """Within, ``probe(layer, current)`` stands before every call of a layer, and what it returns goes into the layer.

    ``current`` has a time dimension always: a held one is expanded. Where the layer normalizes it is the residual, a
    zero one if need be, which is added behind the normalization and so has that current's gradient.
    """

    def enter(layer: SpikingLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
        current, steps = given["current"], given.get("steps")
        if not isinstance(layer, BatchNormNeuron):
            return (), {**given, "current": probe(layer, over_time(current, steps, layer.time_dim)), "steps": None}
        residual = given.get("residual")
        if residual is None:
            residual = torch.zeros_like(over_time(current, steps, layer.time_dim))
        elif residual.shape == current.shape:
            residual = over_time(residual, steps, layer.time_dim)
        return (), {**given, "residual": probe(layer, residual)}

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _finite(values: tuple[float, ...]) -> bool:
    return all(map(math.isfinite, values))
