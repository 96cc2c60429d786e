"""The surrogate's sharpness at which gradients neither explode nor vanish."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import nn
from torch.nn import functional as F

from snnfast._arguments.checks import function, integer, number_within
from snnfast.tuning.gradients import GradientProfile, gradient_profile
from snnfast.tuning.trial import Batches, Loss, SpikingLayer, check_batches, on_trial

_WIDEN = 4.0  # the factor by which the bracket grows
_SMALLEST, _LARGEST = 1e-4, 1e6  # beyond, every potential met is on the surrogate's top, or none is


@dataclass(frozen=True)
class GammaSearch:
    """What :func:`tune_gamma` did.

    * ``gamma``, ``ratio``: the sharpness that it set, and the ratio there.
    * ``gammas``, ``ratios``: every evaluation, in order.
    * ``profile``: the gradients at ``gamma``; its ``reached`` says on how many layers of each half ``ratio`` rests.
    """

    gamma: float
    ratio: float
    gammas: tuple[float, ...]
    ratios: tuple[float, ...]
    profile: GradientProfile

    def __str__(self) -> str:
        lines = [f"{'evaluation':>10}  {'gamma':>10}  first half / rest"]
        for place, (gamma, ratio) in enumerate(zip(self.gammas, self.ratios, strict=True), 1):
            lines.append(f"{place:>10}  {gamma:>10.4g}  {ratio:.4g}" + (" (set)" if gamma == self.gamma else ""))
        if rests_on := self.profile.rests_on():
            lines.append(rests_on)
        return "\n".join(lines)


def tune_gamma(
    model: nn.Module,
    batches: Batches,
    loss: Loss = F.cross_entropy,
    *,
    start: float = 10.0,
    tolerance: float = 0.05,
    max_evaluations: int = 25,
) -> GammaSearch:
    """Sets one γ on every spiking layer, so that the first half's gradient is as large as the rest's.

    The paper's section 2.5 in the terms of MATH.md section 5: bisection of log γ on log(ratio) = 0 with the ratio of
    :func:`gradient_profile`, from a bracket that the search widens itself. A first half of exactly 0 counts as
    vanished, an overflow as exploded. Give several batches: the ratio of one is noisy.

    Args:
        model: with at least two spiking layers that its forward pass reaches. It runs in training mode.
        batches: a list or DataLoader of (inputs, targets), iterated once per evaluation.
        loss: ``loss(outputs, targets)``, one number.
        start: the γ where the search begins.
        tolerance: how far from 1 the ratio may be in the end.
        max_evaluations: of the ratio. Where none is within the tolerance (a ratio that jumps, as a rectangular
            surrogate's does on little data), the γ with the ratio closest to 1 is set, with a RuntimeWarning.

    Where no gradient arrives at some layers, ``str()`` of the result says on how many the ratio rests.

    Returns:
        The trace. Each layer's surrogate is replaced by one of the same shape and β; all else, everything if this
        raises, is as it was: see :mod:`snnfast.tuning`.

    Raises:
        TypeError, ValueError: what :func:`gradient_profile` raises; fewer than two layers; an option out of range; a
            ratio that stays on one side of 1 for every γ, or no gradient at all.
    """
    check_batches(batches)
    function("loss", loss)
    number_within("start", start, least=_SMALLEST, most=_LARGEST)
    number_within("tolerance", tolerance, above=0)
    integer("max_evaluations", max_evaluations, least=1)

    evaluated: dict[float, GradientProfile] = {}
    with on_trial(model, training=True) as layers:
        if len(layers) < 2:
            raise ValueError(f"tuning γ compares two halves of a network: at least 2 spiking layers, got {len(layers)}")

        def ratio_at(gamma: float) -> float:
            set_gamma(layers, gamma)
            evaluated[gamma] = gradient_profile(model, batches, loss)
            return evaluated[gamma].ratio

        bracketed = _search(ratio_at, float(start), tolerance, max_evaluations)
    best = min(evaluated, key=lambda gamma: abs(_log(evaluated[gamma].ratio)))
    ratio = evaluated[best].ratio
    if not any(any(profile.values) for profile in evaluated.values()):
        raise ValueError(f"no gradient arrives at any spiking layer, at no γ down to {min(evaluated):.3g}")
    if not bracketed:
        raise ValueError(_one_sided(evaluated, ratio))
    if abs(ratio - 1) > tolerance:
        warnings.warn(
            f"after {len(evaluated)} evaluations the ratio closest to 1 is {ratio:.4g}, at γ = {best:.4g}: it is set",
            RuntimeWarning,
            stacklevel=2,
        )
    set_gamma(layers, best)
    return GammaSearch(best, ratio, tuple(evaluated), tuple(_ratios(evaluated)), evaluated[best])


def _search(ratio_at: Callable[[float], float], start: float, tolerance: float, max_evaluations: int) -> bool:
    """Evaluates γ after γ until the ratio is within the tolerance or the evaluations are spent.

    Returns False where γ left its range before, with the ratio still on the side of 1 where it began.
    """
    # γ at which the gradient explodes, and vanishes: the ratio falls as γ grows.
    low: float | None = None
    high: float | None = None
    gamma = start
    for _ in range(max_evaluations):
        ratio = ratio_at(gamma)
        if abs(ratio - 1) <= tolerance:
            break
        if ratio > 1:
            low = gamma
        else:
            high = gamma
        if low is not None and high is not None:
            gamma = math.sqrt(low * high)
            if gamma in (low, high):  # neighbouring numbers: the ratio jumps between them
                break
        else:
            gamma = gamma * _WIDEN if high is None else gamma / _WIDEN
        if not _SMALLEST <= gamma <= _LARGEST:
            return False
    return True


def set_gamma(layers: Iterable[SpikingLayer], gamma: float) -> None:
    """Gives every layer's surrogate the sharpness ``gamma``; its shape and height stay."""
    for layer in layers:
        layer.surrogate = replace(layer.surrogate, gamma=gamma)


def _ratios(evaluated: dict[float, GradientProfile]) -> list[float]:
    return [profile.ratio for profile in evaluated.values()]


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0 else -math.inf


def _one_sided(evaluated: dict[float, GradientProfile], ratio: float) -> str:
    what, remedy = ("explodes", "smaller") if ratio > 1 else ("vanishes", "larger")
    return (
        f"no γ from {min(evaluated):.3g} to {max(evaluated):.3g} balances the gradients: at all of them the gradient "
        f"{what} (ratios {min(_ratios(evaluated)):.3g} to {max(_ratios(evaluated)):.3g}); initial weights that are "
        f"{remedy}, or batch normalization, change that"
    )
