"""Autograd around the opaque ops.

The autograd Function sits outside the ops, with a plain ``ctx``: cheaper per call than autograd inside them, and
torch.compile traces it. Nothing is kept for backward but the arguments and, beyond 16 steps, checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import Function
from torch.compiler import is_dynamo_compiling

from snnfast.backends import check_device
from snnfast.dynamics import Dynamics, check_call
from snnfast.memory import packing
from snnfast.ops import integrate as ops
from snnfast.ops.recording import recording, unrecorded
from snnfast.ops.registry import WithoutDerivative, any_batched, complete, gradient_of

__all__ = ["announce", "begin", "once_differentiable", "run"]


class _Integrate(Function):
    """The forward op and its gradient. Gradients that nobody sends arrive as None, not as zeros.

    ``name`` and ``numbers`` are those of the Dynamics, which itself torch 2.6 cannot trace as an argument.
    """

    @staticmethod
    def forward(ctx, current, v0, threshold, tau, name, numbers, steps, time_dim, keep):
        spikes, v_last, potential, checkpoints = ops.integrate_forward(
            current, v0, threshold, tau, *numbers, steps, time_dim, keep
        )
        ctx.save_for_backward(current, v0, threshold, tau, checkpoints)
        ctx.neuron, ctx.numbers, ctx.steps, ctx.time_dim, ctx.keep = name, numbers, steps, time_dim, keep
        ctx.set_materialize_grads(False)
        return spikes, v_last, potential

    @staticmethod
    def backward(ctx, grad_spikes, grad_v_last, grad_potential):
        current, v0, threshold, tau, checkpoints = ctx.saved_tensors
        if grad_v_last is not None or grad_potential is not None:
            grad_v_last, grad_potential = of_asked_for(ctx.keep, grad_v_last, grad_potential)
        if grad_spikes is None and grad_v_last is None and grad_potential is None:
            return (None,) * 9
        _, need_v0, need_threshold, need_tau, *_ = ctx.needs_input_grad
        wanted = ops.INITIAL * need_v0 | ops.THRESHOLD * need_threshold | ops.TAU * need_tau
        numbers, steps, time_dim = ctx.numbers, ctx.steps, ctx.time_dim

        def compute(*tensors):
            found = ops.integrate_backward(*tensors, *numbers, steps, time_dim, wanted)
            return (
                found[0] if ctx.needs_input_grad[0] else None,
                found[1].to(v0.dtype) if need_v0 else None,
                found[2] if need_threshold else None,
                found[3] if need_tau else None,
            )

        tensors = (grad_spikes, grad_v_last, grad_potential, current, v0, threshold, tau, checkpoints)
        return *once_differentiable(ctx.neuron, compute, tensors), None, None, None, None, None


def of_asked_for(keep: int, grad_v_last: Tensor | None, grad_potential: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of the outputs that were asked for; the others are empty and may get an empty gradient."""
    return grad_v_last if keep & ops.LAST else None, grad_potential if keep & ops.POTENTIAL else None


@gradient_of("integrate_forward")
def integrate_recorded(current, v0, threshold, tau, *others):
    """The op with its gradient, for networks that were recorded as ops."""
    *numbers, steps, time_dim, keep = others
    outputs = _Integrate.apply(
        current,
        v0,
        threshold,
        tau,
        "snnfast::integrate_forward",
        tuple(numbers),
        steps,
        time_dim,
        keep | ops.CHECKPOINTS,
    )
    checkpoints = None
    if keep & ops.CHECKPOINTS:  # the Function keeps its own to itself
        with torch.no_grad():
            checkpoints = ops.integrate_forward(current, v0, threshold, tau, *others)[3]
    return complete((*outputs, checkpoints), ops.SPIKES_AND_STATES, current)


def once_differentiable(name: str, compute: Callable[..., Any], tensors: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    """``compute(*tensors)``, whose results are gradients. Under create_graph=True they must not pass for constants."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        if any_batched(tensors):  # vmap would lose the refusal below
            raise NotImplementedError(
                f"{name} has no second derivative: it was asked for gradients of batched gradients "
                "(create_graph=True with is_grads_batched=True, vectorize=True or vmap)"
            )
        return WithoutDerivative.apply(
            f"{name} has no second derivative: its gradient, a surrogate's, was differentiated again (a gradient "
            "penalty, say)",
            compute,
            *tensors,
        )
    return compute(*tensors)


def refuse_transforms(name: str, *tensors: Tensor | None) -> None:
    """Raises NotImplementedError inside torch.func transforms and for forward-mode dual tensors."""
    if torch._C._are_functorch_transforms_active():  # torch.compile traces this question, too
        raise NotImplementedError(f"{name} does not run inside torch.func transforms (vmap, grad, jvp, …)")
    if forward_ad._current_level >= 0 and (
        torch.compiler.is_compiling()  # whether a tensor is dual cannot be traced
        or any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    ):
        raise NotImplementedError(f"{name} has no forward-mode derivative")


def begin(
    name: str,
    current: Tensor,
    v0: Tensor | None,
    threshold: Tensor | None,
    tau: Tensor | None,
    steps: int | None,
    time_dim: int,
    *others: Tensor | None,
) -> None:
    """What every call checks before it runs. ``others``: further tensors that gradients may be asked for."""
    check_call(name, current, v0, threshold, tau, steps, time_dim)
    check_device(current.device)
    refuse_transforms(name, current, v0, threshold, tau, *others)


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
    recorded = recording(current)
    given = (dynamics.name, current, v0, threshold, tau, steps, time_dim)
    unrecorded(begin, *given) if recorded else begin(*given)
    held_steps = 0 if steps is None else steps
    if (not recorded and torch.is_grad_enabled()) and (
        current.requires_grad
        or (v0 is not None and v0.requires_grad)
        or (threshold is not None and threshold.requires_grad)
        or (tau is not None and tau.requires_grad)
    ):
        if v0 is not None or threshold is not None or tau is not None:
            current, v0, threshold, tau = for_backward(current, v0, threshold, tau)
        spikes, v_last, potential = _Integrate.apply(
            current, v0, threshold, tau, dynamics.name, dynamics.numbers, held_steps, time_dim, keep | ops.CHECKPOINTS
        )
    else:
        spikes, v_last, potential, _ = ops.integrate_forward(
            current, v0, threshold, tau, *dynamics.numbers, held_steps, time_dim, keep
        )
    announce(spikes)
    return spikes, v_last, potential


def for_backward(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors as autograd may keep them: a copy of what was made in inference mode."""
    if torch.compiler.is_compiling():
        return tensors
    return tuple([t.clone() if t is not None and t.is_inference() else t for t in tensors])


def announce(spikes: Tensor) -> None:
    """Makes spikes known to an active pack_spikes context.

    Not in a compiled region: its code may reuse the spikes' memory unseen, and must not depend on a context.
    """
    if not is_dynamo_compiling() and packing.active:
        packing.register(spikes)
