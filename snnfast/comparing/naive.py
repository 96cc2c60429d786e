"""Spiking neurons as a plain loop over time: what a user without a fused kernel writes, written well.

The loop walks `current.unbind(time_dim)` and stacks once at the end. (An indexed loop, `current[t]`, has a backward
that grows with the square of T and would flatter whatever it is compared with.) The semantics and the rounding are
those of the fused layers, so the spikes are equal bit for bit: every operation is a torch operation of its own, rounded
on its own, in the order h = ((leak*v) + (gain*x)) + drive, with factors of 1 and terms of 0 left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snnfast import IF, LIF
from snnfast.surrogate import FastSigmoid, Surrogate

__all__ = ["NaiveIF", "NaiveLIF"]


class _Fire(torch.autograd.Function):
    """spikes = fired as numbers; their derivative with respect to h is the surrogate of d = h - threshold."""

    @staticmethod
    def forward(ctx, h: Tensor, fired: Tensor, threshold: float, derivative: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(h)
        ctx.threshold, ctx.derivative = threshold, derivative
        return fired.to(h.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (h,) = ctx.saved_tensors
        return grad * ctx.derivative(h - ctx.threshold), None, None, None


class _AttachedHardReset(torch.autograd.Function):
    """v = reset_value where fired, h elsewhere; the spikes receive a gradient too."""

    @staticmethod
    def forward(ctx, h: Tensor, spikes: Tensor, fired: Tensor, reset_value: float) -> Tensor:
        ctx.save_for_backward(h, fired)
        ctx.reset_value = reset_value
        return torch.where(fired, reset_value, h)

    @staticmethod
    def backward(ctx, grad: Tensor):
        h, fired = ctx.saved_tensors
        return torch.where(fired, 0.0, grad), grad * (ctx.reset_value - h), None, None


def _check(layer: type[IF | LIF], **options: Any) -> None:
    """Raises what the fused layer raises of these options; TypeError for a tensor among them."""
    for name, value in options.items():
        if isinstance(value, Tensor):
            raise TypeError(f"{name} must be a number in the plain loop, got a tensor")
    layer(**options)


class NaiveIF(nn.Module):
    """Integrate-and-fire neurons, one torch operation after another, one time step after another.

    The options are those of `snnfast.IF` with a number as threshold; spikes equal the fused layer's exactly.

    Args:
        threshold: firing threshold, a float.
        reset: "hard" (to `reset_value`) or "soft" (subtract the threshold).
        reset_value: potential after a hard reset and at the start; 0 with the soft reset.
        surrogate: an object of `snnfast.surrogate`; None is FastSigmoid(gamma=10.0, beta=1.0).
        detach_reset: whether the reset passes no gradient to the spikes; None is True for hard, False for soft.
        fire_on_equal: fire where h >= threshold rather than h > threshold.
        time_dim: the axis of time, 0 or 1.

    Raises what `snnfast.IF` raises of these.

    Shapes: forward([T, B, ...]) -> [T, B, ...] ([B, T, ...] with time_dim=1); forward([B, ...], steps=T) holds the
    current for T steps. Any floating dtype; the state of half types is float32.
    """

    def __init__(
        self,
        threshold: float = 1.0,
        *,
        reset: str = "hard",
        reset_value: float = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool | None = None,
        fire_on_equal: bool = False,
        time_dim: int = 0,
    ) -> None:
        super().__init__()
        _check(
            IF,
            threshold=threshold,
            reset=reset,
            reset_value=reset_value,
            surrogate=surrogate,
            detach_reset=detach_reset,
            fire_on_equal=fire_on_equal,
            time_dim=time_dim,
        )
        self.threshold = float(threshold)
        self.reset = reset
        self.reset_value = float(reset_value)
        self.surrogate = FastSigmoid() if surrogate is None else surrogate
        self.detach_reset = reset == "hard" if detach_reset is None else detach_reset
        self.fire_on_equal = fire_on_equal
        self.time_dim = time_dim

    def extra_repr(self) -> str:
        return (
            f"threshold={self.threshold}, reset={self.reset!r}, reset_value={self.reset_value}, "
            f"surrogate={self.surrogate!r}, detach_reset={self.detach_reset}, "
            f"fire_on_equal={self.fire_on_equal}, time_dim={self.time_dim}"
        )

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """h = v + x, for potentials and currents of one time step, [B, ...] in the state's dtype."""
        return v + x

    def after_reset(self, h: Tensor, fired: Tensor, spikes: Tensor) -> Tensor:
        """The potential after the reset, [B, ...]; `fired` is bool, `spikes` the same as differentiable numbers."""
        if self.reset == "hard":
            if self.detach_reset:
                return torch.where(fired, self.reset_value, h)
            return _AttachedHardReset.apply(h, spikes, fired, self.reset_value)
        if math.isinf(self.threshold):  # nothing fires, and inf * 0 would be NaN
            return h
        # threshold * spikes is exact, so one pass with alpha rounds once, as h - threshold does
        return torch.sub(h, spikes.detach() if self.detach_reset else spikes, alpha=self.threshold)

    def forward(self, current: Tensor, steps: int | None = None) -> Tensor:
        """Spikes for a current [T, B, ...], or for one current [B, ...] held for `steps` steps."""
        state = torch.float64 if current.dtype == torch.float64 else torch.float32
        # held: the same tensor at each step, no [T, ...] copy of it
        inputs = current.unbind(self.time_dim) if steps is None else [current.to(state)] * steps
        v = None
        spikes = []
        for x in inputs:
            x = x.to(state)
            if v is None:
                v = torch.full_like(x, self.reset_value)
            h = self.charge(v, x)
            fired = h >= self.threshold if self.fire_on_equal else h > self.threshold
            s = _Fire.apply(h, fired, self.threshold, self.surrogate.derivative)
            v = self.after_reset(h, fired, s)
            spikes.append(s.to(current.dtype))
        return torch.stack(spikes, self.time_dim)


class NaiveLIF(NaiveIF):
    """Leaky integrate-and-fire neurons as a plain loop; the options are those of `snnfast.LIF`, with numbers.

    h = leak*v + gain*x + drive, leak = 1 - 1/tau, gain = 1/tau (1 without `decay_input`), drive = rest/tau, where the
    rest is `reset_value` for the hard reset and 0 for the soft one.
    """

    def __init__(
        self,
        tau: float = 2.0,
        threshold: float = 1.0,
        *,
        decay_input: bool = True,
        reset: str = "hard",
        reset_value: float = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool | None = None,
        fire_on_equal: bool = False,
        time_dim: int = 0,
    ) -> None:
        super().__init__(
            threshold,
            reset=reset,
            reset_value=reset_value,
            surrogate=surrogate,
            detach_reset=detach_reset,
            fire_on_equal=fire_on_equal,
            time_dim=time_dim,
        )
        _check(LIF, tau=tau, decay_input=decay_input)
        self.tau = float(tau)
        self.decay_input = decay_input
        # in double, rounded once where they meet a tensor
        self.leak = 1.0 - 1.0 / self.tau
        self.gain = 1.0 / self.tau if decay_input else 1.0
        self.drive = self.reset_value / self.tau

    def extra_repr(self) -> str:
        return f"tau={self.tau}, decay_input={self.decay_input}, {super().extra_repr()}"

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """h = (leak*v + gain*x) + drive, each operation rounded on its own."""
        h = v * self.leak + (x if self.gain == 1.0 else x * self.gain)
        return h if self.drive == 0.0 else h + self.drive
