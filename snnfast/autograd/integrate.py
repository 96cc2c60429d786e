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
from snnfast.ops.integrate import FORWARD_OUTPUTS, integrate_backward, integrate_forward
from snnfast.ops.options import (
    CHECKPOINTS,
    CURRENT,
    INITIAL,
    LAST,
    POTENTIAL,
    TAU,
    THRESHOLD,
    Gradients,
    Options,
    States,
    states_of,
)
from snnfast.ops.recording import recording, unrecorded
from snnfast.ops.registry import WithoutDerivative, any_batched, complete, gradient_of

__all__ = ["announce", "begin", "for_backward", "listeners", "of_asked_for", "once_differentiable", "run"]

listeners: list[Callable[[Tensor], None]] = []
"""Called with the spikes of every layer as they leave it. snnfast.memory.packing listens while a context is open."""


class Integrate(Function):
    """The forward op and its gradient. Gradients that nobody sends arrive as None, not as zeros.

    ``name`` is that of the layer or function, for messages. The Dynamics itself torch 2.6 cannot trace as an argument.
    """

    @staticmethod
    def forward(ctx, current, v0, threshold, tau, name, options):
        states = states_of(v0, threshold, tau)
        spikes, v_last, potential, checkpoints = integrate_forward(current, states, options)
        ctx.save_for_backward(current, v0, threshold, tau, checkpoints)
        ctx.neuron, ctx.options = name, options
        ctx.set_materialize_grads(False)
        return spikes, v_last, potential

    @staticmethod
    def backward(ctx, grad_spikes, grad_v_last, grad_potential):
        neuron, kinds, steps, time_dim, outputs = ctx.options
        if grad_v_last is not None or grad_potential is not None:
            grad_v_last, grad_potential = of_asked_for(outputs, grad_v_last, grad_potential)
        if grad_spikes is None and grad_v_last is None and grad_potential is None:
            return (None,) * 6
        need_current, need_v0, need_threshold, need_tau, _, _ = ctx.needs_input_grad
        wanted = CURRENT | INITIAL * need_v0 | THRESHOLD * need_threshold | TAU * need_tau
        options = Options(neuron, kinds, steps, time_dim, wanted)

        def compute(grad_spikes, grad_v_last, grad_potential, current, v0, threshold, tau, checkpoints):
            sent, states = Gradients(grad_spikes, grad_v_last, grad_potential), states_of(v0, threshold, tau)
            found = integrate_backward(sent, current, states, checkpoints, options)
            grad_current, grad_v0, grad_threshold, grad_tau = found
            return (
                grad_current if need_current else None,
                grad_v0.to(v0.dtype) if need_v0 else None,
                grad_threshold if need_threshold else None,
                grad_tau if need_tau else None,
            )

        tensors = (grad_spikes, grad_v_last, grad_potential, *ctx.saved_tensors)
        return *once_differentiable(ctx.neuron, compute, tensors), None, None


def of_asked_for(
    outputs: int, grad_v_last: Tensor | None, grad_potential: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the outputs that were asked for; the others are empty and may get an empty gradient."""
    return grad_v_last if outputs & LAST else None, grad_potential if outputs & POTENTIAL else None


@gradient_of("integrate_forward")
def integrate_recorded(current: Tensor, states: States, options: Options) -> tuple[Tensor, ...]:
    """The op with its gradient, for networks that were recorded as ops."""
    kept = options._replace(outputs=options.outputs | CHECKPOINTS)
    outputs = Integrate.apply(current, *states, "snnfast::integrate_forward", kept)
    checkpoints = None
    if options.outputs & CHECKPOINTS:  # the Function keeps its own to itself
        with torch.no_grad():
            checkpoints = integrate_forward(current, states, options)[3]
    return complete((*outputs, checkpoints), FORWARD_OUTPUTS, current)


def once_differentiable(name: str, compute: Callable[..., Any], tensors: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    """``compute(*tensors)``, whose results are gradients. They must not pass for constants under create_graph=True, nor
    where a later layer's forward-mode derivative came with a gradient."""
    refuse_duals(f"{name}'s backward pass", *tensors)
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
    refuse_duals(name, *tensors)


def refuse_duals(name: str, *tensors: Tensor | None) -> None:
    """Raises NotImplementedError for forward-mode dual tensors."""
    if forward_ad._current_level >= 0 and (
        torch.compiler.is_compiling()  # whether a tensor is dual cannot be traced
        or any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    ):
        raise NotImplementedError(f"{name} has no forward-mode derivative")


def begin(name: str, current: Tensor, states: States, steps: int | None, time_dim: int, *others: Tensor | None) -> None:
    """What every call checks before it runs. ``others``: further tensors that gradients may be asked for."""
    check_call(name, current, *states, steps, time_dim)
    if not current.is_cpu:
        check_device(current.device)
    refuse_transforms(name, current, *states, *others)


def run(
    dynamics: Dynamics, current: Tensor, states: States, steps: int | None, time_dim: int, outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks a call and runs it. ``outputs``: LAST and POTENTIAL, where wanted; they mean nothing otherwise."""
    recorded = recording(current)
    given = (dynamics.name, current, states, steps, time_dim)
    unrecorded(begin, *given) if recorded else begin(*given)
    v0, threshold, tau = states
    if (not recorded and torch.is_grad_enabled()) and (
        current.requires_grad
        or (v0 is not None and v0.requires_grad)
        or (threshold is not None and threshold.requires_grad)
        or (tau is not None and tau.requires_grad)
    ):
        if v0 is not None or threshold is not None or tau is not None:
            current, v0, threshold, tau = for_backward(current, v0, threshold, tau)
        options = Options(dynamics.neuron, dynamics.kinds, steps, time_dim, outputs | CHECKPOINTS)
        spikes, v_last, potential = Integrate.apply(current, v0, threshold, tau, dynamics.name, options)
    else:
        options = Options(dynamics.neuron, dynamics.kinds, steps, time_dim, outputs)
        spikes, v_last, potential, _ = integrate_forward(current, states, options)
    announce(spikes)
    return spikes, v_last, potential


def for_backward(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors as autograd may keep them: a copy of what was made in inference mode."""
    if torch.compiler.is_compiling():
        return tensors
    return tuple([t.clone() if t is not None and t.is_inference() else t for t in tensors])


def announce(spikes: Tensor) -> None:
    """Makes spikes known to who listens.

    Not in a compiled region: its code may reuse the spikes' memory unseen, and must not depend on a context.
    """
    if not is_dynamo_compiling() and listeners:
        for listener in listeners:
            listener(spikes)
