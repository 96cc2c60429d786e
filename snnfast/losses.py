"""Losses that train spiking neurons by their potentials: the paper's section 2.3; MATH.md section 8.

All take what ``sf.functional`` returns with ``return_potential=True``: spikes S and potentials U (the charged ones, h),
[T, ...]. Gradients flow through the potentials only; spikes and targets carry none. The losses may be negative: what
vanishes at the optimum is their gradient.

The sum over time is the paper's; over the other dimensions, neurons and batch, ``reduction`` decides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnfast._arguments.checks import dense, integer, number_within, word
from snnfast.dynamics import not_a_tensor

__all__ = [
    "SpikeCountLoss",
    "SpikeTrainLoss",
    "VanRossumLoss",
    "spike_count_loss",
    "spike_train_loss",
    "van_rossum_loss",
]

_REDUCTIONS = ("mean", "sum", "none")


def spike_train_loss(spikes: Tensor, potential: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Equation (3): the energy of the error current, ``Σ_t (S_t − S^gt_t) · U_t``.

    Its gradient raises the potential where a spike is missing and lowers it where one is too many.

    Args:
        spikes: S, [T, ...], zeros and ones.
        potential: U, the spikes' shape, floating.
        target: S^gt, the spikes' shape, zeros and ones.
        reduction: over all dimensions but time: "mean", "sum", or "none".

    Returns:
        A 0-d tensor, or [...] with "none", in the potential's dtype.

    Raises:
        TypeError: an argument that is not a tensor, a potential that is not floating.
        ValueError: shapes that do not fit, no time step, another reduction.
    """
    _check(spikes, potential, target, over_time=True)
    error = _error(spikes, potential, target)
    return _reduce((error * potential).sum(0), reduction)


def van_rossum_loss(
    spikes: Tensor,
    potential: Tensor,
    target: Tensor,
    *,
    tau: float = 10.0,
    kernel: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Equation (4): equation (3) of filtered signals, ``Σ_t (α∗(S − S^gt))_t · (α∗U)_t``.

    The convolution is causal, equation (5): ``(α∗X)_t = Σ_{k=0…t} α_k X_{t−k}``. Default: the exponential kernel of
    the van Rossum distance, ``α_k = exp(−k / tau)``.

    Args:
        spikes, potential, target, reduction: as of :func:`spike_train_loss`.
        tau: time constant of the default kernel in steps, > 0 and finite.
        kernel: α instead of the default, [K] with K >= 1, floating; α_k is 0 for k >= K.

    Returns:
        A 0-d tensor, or [...] with "none", in the potential's dtype.

    Raises:
        TypeError, ValueError: as :func:`spike_train_loss`; a tau or kernel that is not allowed.
    """
    _check(spikes, potential, target, over_time=True)
    toeplitz = _causal(_kernel(tau, kernel, potential))
    error = _error(spikes, potential, target)
    filtered = [(toeplitz @ signal.reshape(len(signal), -1)).view_as(signal) for signal in (error, potential)]
    return _reduce((filtered[0] * filtered[1]).sum(0), reduction)


def spike_count_loss(
    spikes: Tensor, potential: Tensor, target: Tensor, *, count: int = 0, reduction: str = "mean"
) -> Tensor:
    """Equation (6): ``(Θ(Y − count) − Y_gt) · Σ_t U_t`` with the number of spikes ``Y = Σ_t S_t``.

    Trains a neuron to emit more than ``count`` spikes where Y_gt is 1, and at most ``count`` where it is 0.

    Args:
        spikes: S, [T, ...], zeros and ones.
        potential: U, the spikes' shape, floating.
        target: Y_gt, [...], zeros and ones (values are not checked, so that nothing waits for a GPU).
        count: the number that Y must exceed, >= 0; Θ(0) = 0.
        reduction: over all dimensions but time: "mean", "sum", or "none".

    Returns:
        A 0-d tensor, or [...] with "none", in the potential's dtype.

    Raises:
        TypeError: an argument that is not a tensor, a potential that is not floating, a count that is not an int.
        ValueError: shapes that do not fit, no time step, a negative count, another reduction.
    """
    _check(spikes, potential, target, over_time=False)
    _check_count(count)
    exceeds = (spikes.detach().to(potential.dtype).sum(0) > count).to(potential.dtype)
    error = exceeds - target.detach().to(potential.dtype)
    return _reduce(error * potential.sum(0), reduction)


class SpikeTrainLoss(nn.Module):
    """:func:`spike_train_loss`, equation (3), as a module: ``loss(spikes, potential, target)``."""

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = _check_reduction(reduction)

    def forward(self, spikes: Tensor, potential: Tensor, target: Tensor) -> Tensor:
        return spike_train_loss(spikes, potential, target, reduction=self.reduction)


class VanRossumLoss(nn.Module):
    """:func:`van_rossum_loss`, equation (4), as a module; a ``kernel`` becomes a buffer."""

    kernel: Tensor | None

    def __init__(self, *, tau: float = 10.0, kernel: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__()
        _kernel(tau, kernel, torch.zeros(1))
        self.tau = tau
        self.register_buffer("kernel", None if kernel is None else kernel.detach().clone())
        self.reduction = _check_reduction(reduction)

    def forward(self, spikes: Tensor, potential: Tensor, target: Tensor) -> Tensor:
        return van_rossum_loss(spikes, potential, target, tau=self.tau, kernel=self.kernel, reduction=self.reduction)


class SpikeCountLoss(nn.Module):
    """:func:`spike_count_loss`, equation (6), as a module: ``loss(spikes, potential, target)``."""

    def __init__(self, *, count: int = 0, reduction: str = "mean") -> None:
        super().__init__()
        self.count = _check_count(count)
        self.reduction = _check_reduction(reduction)

    def forward(self, spikes: Tensor, potential: Tensor, target: Tensor) -> Tensor:
        return spike_count_loss(spikes, potential, target, count=self.count, reduction=self.reduction)


def _check(spikes: Tensor, potential: Tensor, target: Tensor, *, over_time: bool) -> None:
    for name, tensor in (("spikes", spikes), ("potential", potential), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise not_a_tensor(name, tensor)
        dense(name, tensor)
    if not potential.is_floating_point():
        raise TypeError(f"potential must be floating, got {potential.dtype}")
    if spikes.dim() < 1 or len(spikes) == 0:
        raise ValueError(f"spikes must have the shape [T, ...] with at least one step, got {list(spikes.shape)}")
    # Shapes that merely broadcast are most often a mistake, and would be summed without a word.
    if potential.shape != spikes.shape:
        raise ValueError(f"potential must have the spikes' shape, {list(spikes.shape)}, got {list(potential.shape)}")
    wanted = spikes.shape if over_time else spikes.shape[1:]
    if target.shape != wanted:
        raise ValueError(f"target must have the shape {list(wanted)}, got {list(target.shape)}")


def _error(spikes: Tensor, potential: Tensor, target: Tensor) -> Tensor:
    """S − S^gt, without gradients, in the potential's dtype."""
    return spikes.detach().to(potential.dtype) - target.detach().to(potential.dtype)


def _kernel(tau: float, kernel: Tensor | None, potential: Tensor) -> Tensor:
    """α_0 … α_{T−1}, in the potential's dtype and on its device."""
    steps = len(potential)
    if kernel is None:
        number_within("tau", tau, above=0)
        return torch.exp(-torch.arange(steps, dtype=torch.float64) / tau).to(potential)
    if not isinstance(kernel, Tensor) or not kernel.is_floating_point():
        raise TypeError(f"kernel must be a floating tensor, got {getattr(kernel, 'dtype', type(kernel).__name__)}")
    dense("kernel", kernel)
    if kernel.dim() != 1 or len(kernel) == 0:
        raise ValueError(f"kernel must have the shape [K], K at least 1, got {list(kernel.shape)}")
    used = kernel.detach()[:steps].to(potential)
    return torch.cat([used, used.new_zeros(steps - len(used))])


def _causal(kernel: Tensor) -> Tensor:
    """The matrix [T, T] of the causal convolution: row t holds α_{t−s} at s <= t, and 0 after it."""
    steps = torch.arange(len(kernel), device=kernel.device)
    lag = steps[:, None] - steps
    return torch.where(lag >= 0, kernel[lag.clamp(min=0)], kernel.new_zeros(()))


def _check_count(count: int) -> int:
    return integer("count", count, least=0)


def _check_reduction(reduction: str) -> str:
    return word("reduction", reduction, _REDUCTIONS)


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    _check_reduction(reduction)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
