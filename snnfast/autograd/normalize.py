"""Neurons on batch-normalized currents: autograd around the opaque ops, and statistics over several processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import Function

from snnfast.autograd.integrate import announce, begin, for_backward, of_asked_for, once_differentiable
from snnfast.autograd.statistics import means_of_all, moments_of_all, runs_alone, tracked_of_all, update_running
from snnfast.dynamics import Dynamics
from snnfast.normalization import Affine, Normalization, channels_of, check_normalized_call
from snnfast.ops.normalize import (
    NORMALIZED_OUTPUTS,
    Kept,
    gradient_sums,
    moments,
    normalized_backward,
    normalized_forward,
)
from snnfast.ops.options import (
    BIAS,
    CHECKPOINTS,
    CURRENT,
    INITIAL,
    RESIDUAL,
    TAU,
    THRESHOLD,
    WEIGHT,
    Gradients,
    NormalizedOptions,
    States,
    normalized_options,
    states_of,
)
from snnfast.ops.recording import recording, refuse_to_record, unrecorded
from snnfast.ops.registry import complete, gradient_of

__all__ = ["run_normalized"]

OF_TENSORS = (CURRENT, RESIDUAL, INITIAL, THRESHOLD, TAU, WEIGHT, BIAS)
"""The bits of the gradients of what the Function is given, in its order."""


class NormalizedIntegrate(Function):
    """The forward op and its gradient, for one process's statistics or, with ``process_group``, several ones'.

    Autograd sees a Function's own arguments only, hence their number; ``mean`` and ``variance`` get no gradient.
    ``move`` is called with what the running statistics move towards, and ahead of what is kept: activation
    checkpointing stops a recomputation there.
    """

    @staticmethod
    def forward(
        ctx,
        current,
        residual,
        v0,
        threshold,
        tau,
        weight,
        bias,
        mean,
        variance,
        name,
        options,
        process_group,
        count,
        move,
    ):
        states, affine = states_of(v0, threshold, tau), Affine(weight, bias, mean, variance)
        found = normalized_forward(current, residual, states, affine, options)
        spikes, v_last, potential, checkpoints, batch_moments, tables, tracked = found
        if move is not None:
            move(tracked)
        ctx.save_for_backward(current, residual, *states, weight, bias, batch_moments, tables, checkpoints, count)
        ctx.neuron, ctx.options, ctx.process_group = name, options, process_group
        ctx.set_materialize_grads(False)
        if tracked is not None:
            ctx.mark_non_differentiable(tracked)
        return spikes, v_last, potential, tracked

    @staticmethod
    def backward(ctx, grad_spikes, grad_v_last, grad_potential, _):
        none = (None,) * 14
        options = ctx.options
        grad_v_last, grad_potential = of_asked_for(options.outputs, grad_v_last, grad_potential)
        if grad_spikes is None and grad_v_last is None and grad_potential is None:
            return none
        needs = ctx.needs_input_grad[:7]
        wanted = sum(bit for bit, needed in zip(OF_TENSORS, needs, strict=True) if needed)
        options = normalized_options(options, outputs=wanted, batch=options.batch)

        def compute(grad_spikes, grad_v_last, grad_potential, *saved):
            current, residual, v0, threshold, tau, weight, bias, batch_moments, tables, checkpoints, count = saved
            sent, states = Gradients(grad_spikes, grad_v_last, grad_potential), states_of(v0, threshold, tau)
            kept = Kept(weight, bias, batch_moments, tables, checkpoints, None, None)
            if count is not None and wanted & CURRENT:
                sums = gradient_sums(sent, current, residual, states, kept, options)
                means = means_of_all(sums, count, ctx.process_group)
                kept = Kept(weight, bias, batch_moments, tables, checkpoints, sums, means)
                batch = normalized_options(options, outputs=wanted, batch=True)
            else:
                batch = options
            found = normalized_backward(sent, current, residual, states, kept, batch)
            grad_current, grad_v0, grad_threshold, grad_tau, grad_residual, grad_weight, grad_bias = found
            grad_v0 = grad_v0.to(v0.dtype) if needs[2] else None
            of_tensors = (grad_current, grad_residual, grad_v0, grad_threshold, grad_tau, grad_weight, grad_bias)
            return tuple(g if needed else None for g, needed in zip(of_tensors, needs, strict=True))

        tensors = (grad_spikes, grad_v_last, grad_potential, *ctx.saved_tensors)
        return *once_differentiable(ctx.neuron, compute, tensors), *none[7:]


@gradient_of("normalized_forward")
def normalized_recorded(
    current: Tensor, residual: Tensor | None, states: States, affine: Affine, options: NormalizedOptions
) -> tuple[Tensor, ...]:
    """The op with its gradient, for networks that were recorded as ops. Moments and tables stay the op's own."""
    kept = normalized_options(options, outputs=options.outputs | CHECKPOINTS, batch=options.batch)
    spikes, v_last, potential, tracked = NormalizedIntegrate.apply(
        current, residual, *states, *affine, "snnfast::normalized_forward", kept, None, None, None
    )
    own: tuple[Tensor | None, ...] = (None, None, None)
    if options.outputs & CHECKPOINTS:  # the Function keeps its own to itself
        with torch.no_grad():
            own = normalized_forward(current, residual, states, affine, options)[3:6]
    return complete((spikes, v_last, potential, *own, tracked), NORMALIZED_OUTPUTS, current)


def check_and_begin(
    name: str,
    normalization: Normalization,
    current: Tensor,
    residual: Tensor | None,
    states: States,
    steps: int | None,
    time_dim: int,
) -> int:
    """What every call checks before it runs; the number of values per channel."""
    weight, bias, mean, variance = normalization.affine
    begin(name, current, states, steps, time_dim, residual, *normalization.affine)
    per_channel = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    check_normalized_call(current, residual, steps, time_dim, normalization.channels, **per_channel)
    values = current.numel() // max(channels_of(current, steps is not None), 1)
    if normalization.batch and values == 1 and runs_alone(normalization):
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {current.size()}")
    return values


def run_normalized(
    dynamics: Dynamics,
    normalization: Normalization,
    current: Tensor,
    residual: Tensor | None,
    states: States,
    steps: int | None,
    time_dim: int,
    outputs: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks a call and runs it, as :func:`snnfast.autograd.integrate.run` does for currents taken as they are."""
    recorded = recording(current)
    call = (dynamics.name, normalization, current, residual, states, steps, time_dim)
    values = unrecorded(check_and_begin, *call) if recorded else check_and_begin(*call)
    eps, batch = normalization.eps, normalization.batch
    options = NormalizedOptions(dynamics.neuron, dynamics.kinds, steps, time_dim, outputs, eps, batch)
    if batch and not runs_alone(normalization):
        if recorded:
            refuse_to_record(
                dynamics.name, current, "its statistics are over several processes; record it in evaluation mode"
            )
        return run_with_statistics_of_all(dynamics.name, normalization, current, residual, states, options, values)

    def move(tracked: Tensor) -> None:
        update_running(normalization, tracked, values > 0)

    weight, bias, *_ = normalization.affine
    given = (current, residual, *states, weight, bias)
    if not recorded and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return with_gradients(dynamics.name, normalization, given, options, None, move)
    found = normalized_forward(current, residual, states, normalization.affine, options)
    if batch:
        # Without a grad mode of its own: an exported program with one inside can be neither saved nor split.
        move(found[6])
    announce(found[0])
    return found[0], found[1], found[2]


def with_gradients(
    name: str,
    normalization: Normalization,
    given: tuple[Tensor | None, ...],
    options: NormalizedOptions,
    count: Tensor | None,
    move: Callable[[Tensor], None] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a call whose gradients are wanted. ``count``: values per channel of all processes, of several."""
    options = normalized_options(options, outputs=options.outputs | CHECKPOINTS, batch=options.batch)
    affine, group = normalization.affine, normalization.process_group
    compiling = torch.compiler.is_compiling()  # which does not trace what a Function changes
    inside = move if options.batch and not compiling else None
    spikes, v_last, potential, tracked = NormalizedIntegrate.apply(
        *for_backward(*given), affine.mean, affine.variance, name, options, group, count, inside
    )
    if move is not None and options.batch and compiling:
        move(tracked)
    announce(spikes)
    return spikes, v_last, potential


def run_with_statistics_of_all(
    name: str,
    normalization: Normalization,
    current: Tensor,
    residual: Tensor | None,
    states: States,
    options: NormalizedOptions,
    values: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch's call whose statistics are over several processes: given to the op, as in evaluation."""
    weight, bias, mean, variance = normalization.affine
    with torch.no_grad():
        own = moments(current, options)
        found, count = moments_of_all(own, values, normalization.process_group)
        # Before the autograd Function: activation checkpointing stops a recomputation there.
        update_running(normalization, tracked_of_all(found, count, mean, variance), True)
    of_all = normalization.with_statistics(found[0], found[1])
    options = normalized_options(options, outputs=options.outputs, batch=False)
    given = (current, residual, *states, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return with_gradients(name, of_all, given, options, count, None)
    outputs = normalized_forward(current, residual, states, of_all.affine, options)
    announce(outputs[0])
    return outputs[0], outputs[1], outputs[2]
