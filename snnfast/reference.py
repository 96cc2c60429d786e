"""The ground truth: the functions of :mod:`snnfast.functional` as a plain loop over time steps in torch.

Written to be read beside MATH.md sections 1 to 3, and to be slow. Tests compare the kernels with it; nothing falls back
to it. It runs on any device, and here ``surrogate`` may also be any callable from d (potential minus threshold) to the
derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Never

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from . import _hints
from .dynamics import Dynamics, check_call, given_tau, make_dynamics, state_dtype
from .surrogate import Surrogate

__all__ = ["integrate_and_fire", "leaky_integrate_and_fire"]

AnySurrogate = Surrogate | Callable[[Tensor], Tensor]


class _Spike(Function):
    """1 where the potential crosses the threshold; the surrogate's derivative backward (equation 8)."""

    @staticmethod
    def forward(ctx, h, threshold, derivative, fire_on_equal):
        ctx.save_for_backward(h, threshold)
        ctx.derivative = derivative
        return (h >= threshold if fire_on_equal else h > threshold).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        h, threshold = ctx.saved_tensors
        slope = ctx.derivative(h - threshold)
        # 0 times anything is 0 here, infinity included.
        grad_h = torch.where(slope == 0, torch.zeros_like(grad), grad * slope)
        return grad_h, (-grad_h).sum_to_size(threshold.shape), None, None


class _Reset(Function):
    """Selects the value after the reset; differentiable in the spike too, as if it were (1 - s) h + s after."""

    @staticmethod
    def forward(ctx, s, h, after):
        fired = s > 0
        ctx.save_for_backward(fired, h, after)
        return torch.where(fired, after, h)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        fired, h, after = ctx.saved_tensors
        zero = torch.zeros_like(grad)
        grad_after = torch.where(fired, grad, zero).sum_to_size(after.shape)
        return grad * (after - h), torch.where(fired, zero, grad), grad_after


class _SoftReset(Function):
    """h - threshold after a spike, else h; differentiable in the spike as h - s threshold is."""

    @staticmethod
    def forward(ctx, s, h, threshold):
        fired = s > 0
        ctx.save_for_backward(fired, threshold)
        return torch.where(fired, h - threshold, h)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        fired, threshold = ctx.saved_tensors
        grad_threshold = torch.where(fired, -grad, torch.zeros_like(grad)).sum_to_size(threshold.shape)
        return grad * -threshold, grad, grad_threshold


def loop(
    dynamics: Dynamics,
    current: Tensor,
    v0: Tensor | None,
    threshold: Tensor | float,
    tau: Tensor | float | None,
    steps: int | None,
    time_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop itself. ``threshold`` and ``tau`` are numbers or tensors that broadcast against one step."""
    state = state_dtype(current.dtype)
    currents = current.unbind(time_dim) if steps is None else (current,) * steps
    device = current.device
    theta = torch.as_tensor(threshold, device=device).to(state)
    rest = 0.0 if dynamics.soft else dynamics.reset_value
    leak = gain = drive = None
    if tau is not None:
        # λ, κ, ρ: in float64, rounded once. (A number divided by a tensor is a product in torch, rounded twice.)
        wide = torch.as_tensor(tau, dtype=torch.float64, device=device)
        inverse = 1.0 / wide
        leak = (1.0 - inverse).to(state)
        gain = inverse.to(state) if dynamics.input_decays else None
        drive = (torch.full_like(wide, rest) / wide).to(state) if rest else None
    derivative = getattr(dynamics.surrogate, "derivative", dynamics.surrogate)
    after = torch.full((), dynamics.reset_value, dtype=state, device=device)

    v = torch.full_like(currents[0], rest, dtype=state) if v0 is None else v0.to(state)
    spikes, potentials = [], []
    for x in currents:
        x = x.to(state)
        h = (leak * v if leak is not None else v) + (gain * x if gain is not None else x)
        if drive is not None:
            h = h + drive
        s = _Spike.apply(h, theta, derivative, dynamics.fire_on_equal)
        seen_by_reset = s if dynamics.attached else s.detach()
        v = _SoftReset.apply(seen_by_reset, h, theta) if dynamics.soft else _Reset.apply(seen_by_reset, h, after)
        spikes.append(s)
        potentials.append(h)
    if dynamics.delay:
        spikes = [torch.zeros_like(spikes[0]), *spikes[:-1]]
    return torch.stack(spikes, time_dim).to(current.dtype), v, torch.stack(potentials, time_dim)


def per_channel(table: Tensor | float, current: Tensor, steps: int | None) -> Tensor | float:
    """A 1-d table with dimensions of size 1 after it, so that it broadcasts over one step [B, C, ...]."""
    if not isinstance(table, Tensor) or table.dim() == 0:
        return table
    trailing = current.dim() - (2 if steps is not None else 3)
    return table.view(-1, *(1,) * trailing)


def check_and_loop(
    dynamics: Dynamics,
    current: Tensor,
    v0: Tensor | None,
    threshold: Tensor | float,
    tau: Tensor | float | None,
    steps: int | None,
    time_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop, for arguments as the user gives them; tau=None has no leak."""
    tables = [t if isinstance(t, Tensor) else None for t in (threshold, tau)]
    check_call("reference", current, v0, tables[0], tables[1], steps, time_dim)
    spread = [None if t is None else per_channel(t, current, steps) for t in (threshold, tau)]
    return loop(dynamics, current, v0, *spread, steps, time_dim)


def integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    threshold: float | Tensor = 1.0,
    reset: str = "hard",
    reset_value: float = 0.0,
    surrogate: AnySurrogate | None = None,
    detach_reset: bool | None = None,
    fire_on_equal: bool = False,
    delay: bool = False,
    time_dim: int = 0,
    steps: int | None = None,
    return_potential: bool = False,
    **unknown: Never,
) -> tuple[Tensor, ...]:
    """:func:`snnfast.functional.integrate_and_fire` as a loop; also takes a callable surrogate."""
    if unknown:
        raise _hints.refuse("integrate_and_fire", integrate_and_fire, unknown)
    dynamics = make_dynamics(
        "reference",
        threshold=threshold,
        reset=reset,
        reset_value=reset_value,
        surrogate=surrogate,
        detach_reset=detach_reset,
        fire_on_equal=fire_on_equal,
        delay=delay,
        custom_surrogate=True,
    )
    outputs = check_and_loop(dynamics, current, v0, threshold, None, steps, time_dim)
    return outputs if return_potential else outputs[:2]


def leaky_integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    tau: float | Tensor = 2.0,
    decay_input: bool = True,
    threshold: float | Tensor = 1.0,
    reset: str = "hard",
    reset_value: float = 0.0,
    surrogate: AnySurrogate | None = None,
    detach_reset: bool | None = None,
    fire_on_equal: bool = False,
    delay: bool = False,
    time_dim: int = 0,
    steps: int | None = None,
    return_potential: bool = False,
    **unknown: Never,
) -> tuple[Tensor, ...]:
    """:func:`snnfast.functional.leaky_integrate_and_fire` as a loop; also takes a callable surrogate."""
    if unknown:
        raise _hints.refuse("leaky_integrate_and_fire", leaky_integrate_and_fire, unknown)
    dynamics = make_dynamics(
        "reference",
        threshold=threshold,
        tau=given_tau(tau),
        decay_input=decay_input,
        reset=reset,
        reset_value=reset_value,
        surrogate=surrogate,
        detach_reset=detach_reset,
        fire_on_equal=fire_on_equal,
        delay=delay,
        custom_surrogate=True,
    )
    outputs = check_and_loop(dynamics, current, v0, threshold, tau, steps, time_dim)
    return outputs if return_potential else outputs[:2]
