"""Spiking neurons over time as differentiable functions: validation, and autograd around the opaque ops.

The autograd Function sits outside the ops, with a plain ``ctx``: cheaper per call than autograd inside them, and
torch.compile traces it. Nothing is kept for backward but the arguments and, beyond 16 steps, checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import ops, packing
from ._backend import check_device
from .dynamics import Dynamics, check_call, make_dynamics
from .surrogate import Surrogate

__all__ = ["integrate_and_fire", "leaky_integrate_and_fire"]


class _Integrate(Function):
    """The forward op and its gradient. Gradients that nobody sends arrive as None, not as zeros."""

    @staticmethod
    def forward(ctx, current, v0, threshold, tau, dynamics, steps, time_dim, keep):
        threshold_value, tau_value, reset_value, flags, *_ = dynamics.numbers
        spikes, v_last, potential, checkpoints = ops.integrate_forward(
            current, v0, threshold, tau, threshold_value, tau_value, reset_value, flags, steps, time_dim, keep
        )
        ctx.save_for_backward(current, v0, threshold, tau, checkpoints)
        ctx.dynamics, ctx.steps, ctx.time_dim = dynamics, steps, time_dim
        ctx.set_materialize_grads(False)
        return spikes, v_last if keep & ops.LAST else None, potential if keep & ops.POTENTIAL else None

    @staticmethod
    def backward(ctx, grad_spikes, grad_v_last, grad_potential):
        current, v0, threshold, tau, checkpoints = ctx.saved_tensors
        if grad_spikes is None and grad_v_last is None and grad_potential is None:
            return (None,) * 8
        _, need_v0, need_threshold, need_tau, *_ = ctx.needs_input_grad
        wanted = ops.INITIAL * need_v0 | ops.THRESHOLD * need_threshold | ops.TAU * need_tau
        tensors = (grad_spikes, grad_v_last, grad_potential, current, v0, threshold, tau, checkpoints)
        # create_graph=True: the gradients must not pass for constants, also where only the current asks for one.
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        compute = _OnceDifferentiable.apply if again else gradients
        grad_current, grad_v0, grad_threshold, grad_tau = compute(
            ctx.dynamics, ctx.steps, ctx.time_dim, wanted, *tensors
        )
        return (
            grad_current if ctx.needs_input_grad[0] else None,
            grad_v0.to(v0.dtype) if need_v0 else None,
            grad_threshold if need_threshold else None,
            grad_tau if need_tau else None,
            None,
            None,
            None,
            None,
        )


def gradients(
    dynamics: Dynamics, steps: int, time_dim: int, wanted: int, *tensors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward op; ``tensors`` in its order."""
    return ops.integrate_backward(*tensors, *dynamics.numbers, steps, time_dim, wanted)


class _OnceDifferentiable(Function):
    """The backward op as a function whose own derivative is refused by name instead of being silently zero."""

    @staticmethod
    def forward(ctx, dynamics, steps, time_dim, wanted, *tensors):
        ctx.name = dynamics.name
        found = gradients(dynamics, steps, time_dim, wanted, *tensors)
        # What was not wanted is a shared empty tensor (ops.nothing), which autograd must not mark.
        bits = (ops.INITIAL, ops.THRESHOLD, ops.TAU)
        return found[0], *(g if wanted & bit else None for g, bit in zip(found[1:], bits, strict=True))

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            f"{ctx.name} has no second derivative: its gradient, a surrogate's, was differentiated again "
            "(a gradient penalty, say)"
        )


def refuse_transforms(name: str, *tensors: Tensor | None) -> None:
    """Raises NotImplementedError inside torch.func transforms and for forward-mode dual tensors."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotImplementedError(f"{name} does not run inside torch.func transforms (vmap, grad, jvp, …)")
    if torch.autograd.forward_ad._current_level >= 0 and any(
        t is not None and torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError(f"{name} has no forward-mode derivative")


def run(
    dynamics: Dynamics,
    current: Tensor,
    v0: Tensor | None,
    threshold: Tensor | None,
    tau: Tensor | None,
    steps: int | None,
    time_dim: int,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks a call and runs it. ``keep``: whether v_last and the potential are wanted; they mean nothing otherwise."""
    check_call(dynamics.name, current, v0, threshold, tau, steps, time_dim)
    check_device(current.device)
    eager = not torch.compiler.is_compiling()
    if eager:
        refuse_transforms(dynamics.name, current, v0, threshold, tau)
    held_steps = 0 if steps is None else steps
    if torch.is_grad_enabled() and (
        current.requires_grad
        or (v0 is not None and v0.requires_grad)
        or (threshold is not None and threshold.requires_grad)
        or (tau is not None and tau.requires_grad)
    ):
        spikes, v_last, potential = _Integrate.apply(
            current, v0, threshold, tau, dynamics, held_steps, time_dim, keep | ops.CHECKPOINTS
        )
    else:
        threshold_value, tau_value, reset_value, flags, *_ = dynamics.numbers
        spikes, v_last, potential, _ = ops.integrate_forward(
            current, v0, threshold, tau, threshold_value, tau_value, reset_value, flags, held_steps, time_dim, keep
        )
    # Not in a compiled region: its code may reuse the spikes' memory unseen, and must not depend on a context.
    if eager and packing.active:
        packing.register(spikes)
    return spikes, v_last, potential


def _as_tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


def integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    threshold: float | Tensor = 1.0,
    reset: str = "hard",
    reset_value: float = 0.0,
    surrogate: Surrogate | None = None,
    detach_reset: bool | None = None,
    fire_on_equal: bool = False,
    delay: bool = False,
    time_dim: int = 0,
    steps: int | None = None,
    return_potential: bool = False,
) -> tuple[Tensor, ...]:
    """Integrate-and-fire neurons over all time steps (the paper's equations 1 and 2; backward: 8 and 9).

    For every neuron, with v the potential between steps::

        h_t = v_{t-1} + x_t          s_t = h_t > threshold
        v_t = reset_value where s_t else h_t        (reset="hard")
        v_t = h_t - threshold where s_t else h_t    (reset="soft")

    Args:
        current: x, [T, B, ...] (or [B, T, ...] with ``time_dim=1``), float32, float64, float16 or bfloat16; with
            ``steps=T`` a [B, ...] current held for T steps, of which no [T, ...] copy is made.
        v0: initial potential, shaped like one step; converted to the state's dtype. Default: reset_value with the hard
            reset, 0 with the soft one.
        threshold: a number >= 0, a 0-d tensor, or one value per channel (1-d, along the dimension after time and
            batch). A tensor's values are not checked.
        reset: "hard" or "soft".
        reset_value: potential after a spike with the hard reset; must be 0 with the soft one.
        surrogate: a shape from :mod:`snnfast.surrogate`; default ``FastSigmoid(gamma=10.0, beta=1.0)``.
        detach_reset: whether the gradient ignores the reset. Default, the paper's rule: True for the hard reset,
            False for the soft one.
        fire_on_equal: fire at h >= threshold (as SpikingJelly does) instead of >.
        delay: emit every spike one step later; the first step emits none, the last step's spike is lost.
        time_dim: 0 or 1.
        steps: number of steps that the current is held for.
        return_potential: also return h, the charged potentials before the reset.

    Returns:
        ``(spikes, v_last)`` or ``(spikes, v_last, potential)``. Spikes: zeros and ones, with the current's shape, dtype
        and memory format ([T, B, ...] or [B, T, ...] where it was held). v_last: [B, ...], the potential after the
        last step. potential: shaped like the spikes. Both in the state's dtype: float64 for float64 currents, else
        float32. All are differentiable once.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: a device without kernels.
        NotImplementedError: inside torch.func transforms or forward-mode differentiation; and from backward, when a
            second derivative is asked for.
    """
    dynamics = make_dynamics(
        "integrate_and_fire",
        threshold=threshold,
        reset=reset,
        reset_value=reset_value,
        surrogate=surrogate,
        detach_reset=detach_reset,
        fire_on_equal=fire_on_equal,
        delay=delay,
    )
    keep = ops.LAST | ops.POTENTIAL * bool(return_potential)
    outputs = run(dynamics, current, v0, _as_tensor(threshold), None, steps, time_dim, keep)
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
    surrogate: Surrogate | None = None,
    detach_reset: bool | None = None,
    fire_on_equal: bool = False,
    delay: bool = False,
    time_dim: int = 0,
    steps: int | None = None,
    return_potential: bool = False,
) -> tuple[Tensor, ...]:
    """Leaky integrate-and-fire neurons over all time steps.

    As :func:`integrate_and_fire`, charging with a leak towards the rest value r (reset_value with the hard reset, 0
    with the soft one)::

        h_t = (1 - 1/tau) v_{t-1} + x_t / tau + r / tau       (decay_input=True)
        h_t = (1 - 1/tau) v_{t-1} + x_t + r / tau             (decay_input=False)

    Args:
        tau: time constant in steps: a number > 1, a 0-d tensor, or one value per channel. A tensor's values are not
            checked.
        decay_input: whether the current is divided by tau too.

    The other arguments, the returned tensors and the errors are those of :func:`integrate_and_fire`.
    """
    dynamics = make_dynamics(
        "leaky_integrate_and_fire",
        threshold=threshold,
        tau=tau,
        decay_input=decay_input,
        reset=reset,
        reset_value=reset_value,
        surrogate=surrogate,
        detach_reset=detach_reset,
        fire_on_equal=fire_on_equal,
        delay=delay,
    )
    keep = ops.LAST | ops.POTENTIAL * bool(return_potential)
    outputs = run(dynamics, current, v0, _as_tensor(threshold), _as_tensor(tau), steps, time_dim, keep)
    return outputs if return_potential else outputs[:2]
