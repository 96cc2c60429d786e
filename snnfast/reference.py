"""The ground truth: the functions of :mod:`snnfast.functional` as a plain loop over time steps in torch.

Written to be read beside MATH.md sections 1 to 3, and to be slow. Tests compare the kernels with it; nothing falls back
to it. It runs on any device, and here ``surrogate`` may also be any callable from d (potential minus threshold) to the
derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Never, Unpack, overload

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from snnfast._arguments import hints
from snnfast._arguments.checks import flag
from snnfast.dynamics import Dynamics, LeakOptions, SharedOptions, check_call, given_tau, make_dynamics, state_dtype
from snnfast.surrogate import Surrogate

__all__ = ["integrate_and_fire", "leaky_integrate_and_fire"]

AnySurrogate = Surrogate | Callable[[Tensor], Tensor]


class NeuronOptions(SharedOptions, total=False):
    """What the overloads take, for a type checker."""

    surrogate: AnySurrogate | None


class LeakyNeuronOptions(NeuronOptions, LeakOptions, total=False):
    pass


def product(factor: Tensor, other: Tensor) -> Tensor:
    """factor * other, and 0 where the factor is, whatever the other one (MATH.md section 3: no infinity times 0)."""
    return torch.where(factor == 0, torch.zeros_like(factor), factor * other)


class _PerNeuron(Function):
    """A threshold or tau as every neuron has it. Gradients are summed over neurons in float64, and divided once."""

    @staticmethod
    def forward(ctx, table, size, dtype, divisor):
        ctx.shape, ctx.dtype, ctx.divisor = table.shape, table.dtype, divisor
        return table.to(dtype).expand(size).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return (grad.double().sum_to_size(ctx.shape) / ctx.divisor).to(ctx.dtype), None, None, None


class _Charge(Function):
    """h = leak v + gain x + drive, for a tau whose gradient, times tau², is the sum of delta (v - rest - [decay] x)."""

    @staticmethod
    def forward(ctx, v, x, tau, leak, gain, drive, rest):
        ctx.save_for_backward(v, x, leak, gain)
        ctx.rest = rest
        h = leak * v + (x if gain is None else gain * x)
        return h if drive is None else h + drive

    @staticmethod
    @once_differentiable
    def backward(ctx, delta):
        v, x, leak, gain = ctx.saved_tensors
        pulled = v - ctx.rest if gain is None else v - ctx.rest - x
        return leak * delta, delta if gain is None else gain * delta, product(delta, pulled), *(None,) * 4


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
        grad_h = product(ctx.derivative(h - threshold), grad)
        return grad_h, -grad_h, None, None


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
        return product(grad, after - h), torch.where(fired, torch.zeros_like(grad), grad), None


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
        grad_threshold = torch.where(fired, -grad, torch.zeros_like(grad))
        return product(grad, -threshold), grad, grad_threshold


def _as_table(value: Tensor | float, device: torch.device) -> Tensor:
    """A number keeps its digits: torch would round it to the default dtype."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device=device)


def loop(
    dynamics: Dynamics,
    current: Tensor,
    v0: Tensor | None,
    threshold: Tensor | float,
    tau: Tensor | float | None,
    steps: int | None,
    time_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop itself. ``threshold`` and ``tau`` are numbers or tensors that broadcast against one step.

    ``tau`` is λ where the dynamics have it given.
    """
    state = state_dtype(current.dtype)
    wide = current.to(state)
    currents = wide.unbind(time_dim) if steps is None else (wide,) * steps
    device, size = current.device, currents[0].shape
    theta = _PerNeuron.apply(_as_table(threshold, device), size, state, 1.0)
    rest = 0.0 if dynamics.soft else dynamics.reset_value
    leak = gain = drive = each_tau = None
    if tau is not None and dynamics.leak_given:
        tau = _as_table(tau, device)
        leak, each_tau = tau.detach().to(state), _PerNeuron.apply(tau, size, state, 1.0)
    elif tau is not None:
        # λ, κ, ρ: in float64, rounded once. (A number divided by a tensor is a product in torch, rounded twice.)
        tau = _as_table(tau, device)
        exact = tau.detach().double()
        inverse = 1.0 / exact
        leak = (1.0 - inverse).to(state)
        gain = inverse.to(state) if dynamics.input_decays else None
        drive = (torch.full_like(exact, rest) / exact).to(state) if rest else None
        each_tau = _PerNeuron.apply(tau, size, state, exact.square())
    derivative = getattr(dynamics.surrogate, "derivative", dynamics.surrogate)
    after = torch.full((), dynamics.reset_value, dtype=state, device=device)

    v = torch.full_like(currents[0], rest) if v0 is None else v0.to(state)
    spikes, potentials = [], []
    for x in currents:
        h = v + x if leak is None else _Charge.apply(v, x, each_tau, leak, gain, drive, rest)
        if dynamics.late:  # the reset of the potential that crossed, after the leak
            h = _SoftReset.apply((v >= theta if dynamics.fire_on_equal else v > theta).to(state), h, theta)
        s = _Spike.apply(h, theta, derivative, dynamics.fire_on_equal)
        seen_by_reset = s if dynamics.attached else s.detach()
        if dynamics.late:
            v = h
        else:
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
    if len(table) == 1:
        return table.squeeze()
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
    spread = None if tau is None else per_channel(tau, current, steps)
    return loop(dynamics, current, v0, per_channel(threshold, current, steps), spread, steps, time_dim)


@overload
def integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    return_potential: Literal[False] = False,
    **options: Unpack[NeuronOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def integrate_and_fire(
    current: Tensor, v0: Tensor | None = None, *, return_potential: Literal[True], **options: Unpack[NeuronOptions]
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def integrate_and_fire(
    current: Tensor, v0: Tensor | None = None, *, return_potential: bool, **options: Unpack[NeuronOptions]
) -> tuple[Tensor, ...]: ...
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
        raise hints.refuse("integrate_and_fire", integrate_and_fire, unknown)
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
    flag("return_potential", return_potential)
    outputs = check_and_loop(dynamics, current, v0, threshold, None, steps, time_dim)
    return outputs if return_potential else outputs[:2]


@overload
def leaky_integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    return_potential: Literal[False] = False,
    **options: Unpack[LeakyNeuronOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def leaky_integrate_and_fire(
    current: Tensor, v0: Tensor | None = None, *, return_potential: Literal[True], **options: Unpack[LeakyNeuronOptions]
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def leaky_integrate_and_fire(
    current: Tensor, v0: Tensor | None = None, *, return_potential: bool, **options: Unpack[LeakyNeuronOptions]
) -> tuple[Tensor, ...]: ...
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
        raise hints.refuse("leaky_integrate_and_fire", leaky_integrate_and_fire, unknown)
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
    flag("return_potential", return_potential)
    outputs = check_and_loop(dynamics, current, v0, threshold, tau, steps, time_dim)
    return outputs if return_potential else outputs[:2]
