"""Neurons on batch-normalized currents: autograd around the opaque ops, and statistics over several processes.

Training takes four passes over the current: its moments; normalize, integrate and fire; the sums per channel of the
currents' gradients; and the current's gradient. Nothing is kept but the arguments, tables per channel and, beyond 16
steps, checkpoints of the potential: both backward passes rebuild the potentials.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import Function

from snnfast.autograd.integrate import announce, begin, for_backward, of_asked_for, once_differentiable
from snnfast.autograd.statistics import batch_statistics, runs_alone, tables_of_all, update_running, values_per_channel
from snnfast.dynamics import Dynamics, state_dtype
from snnfast.normalization import BatchNorm, channels_of, check_normalized_call
from snnfast.ops import integrate as ops
from snnfast.ops.normalize import normalization_gradients_op
from snnfast.ops.recording import recording, refuse_to_record, unrecorded
from snnfast.ops.registry import complete, define, gradient_of, library, op

__all__ = ["run_normalized"]


class _NormalizedIntegrate(Function):
    """Forward and backward of the neurons, given the tables. The tables' own gradients are part of the backward."""

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
        moments,
        tables,
        count,
        name,
        numbers,
        norm,
        steps,
        time_dim,
        keep,
    ):
        spikes, v_last, potential, checkpoints = ops.normalized_forward(
            current, v0, threshold, tau, *numbers, steps, time_dim, keep, tables, residual
        )
        ctx.save_for_backward(current, residual, v0, threshold, tau, weight, bias, moments, count, tables, checkpoints)
        ctx.neuron, ctx.numbers, ctx.norm = name, numbers, norm
        ctx.steps, ctx.time_dim, ctx.keep = steps, time_dim, keep
        ctx.set_materialize_grads(False)
        return spikes, v_last, potential

    @staticmethod
    def backward(ctx, grad_spikes, grad_v_last, grad_potential):
        none = (None,) * 16
        grad_v_last, grad_potential = of_asked_for(ctx.keep, grad_v_last, grad_potential)
        if grad_spikes is None and grad_v_last is None and grad_potential is None:
            return none
        numbers, norm, steps, time_dim = ctx.numbers, ctx.norm, ctx.steps, ctx.time_dim
        needs = ctx.needs_input_grad

        def compute(grad_spikes, grad_v_last, grad_potential, *saved):
            current, residual, v0, threshold, tau, weight, bias, moments, count, tables, checkpoints = saved

            def run(wanted, gradient_tables):
                return ops.normalized_backward(
                    grad_spikes,
                    grad_v_last,
                    grad_potential,
                    current,
                    v0,
                    threshold,
                    tau,
                    checkpoints,
                    *numbers,
                    steps,
                    time_dim,
                    wanted,
                    tables,
                    gradient_tables,
                    residual,
                )

            wanted = ops.CURRENT * needs[0] | ops.RESIDUAL * needs[1] | ops.INITIAL * needs[2]
            wanted |= ops.THRESHOLD * needs[3] | ops.TAU * needs[4]
            affine = needs[5] or needs[6]
            gradient_tables = grad_parameters = None
            found = None
            # Where the two differ, one that holds both; each is then rounded once.
            dtypes = {p.dtype for p in (weight, bias) if p is not None} or {tables.dtype}
            dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64
            if norm.batch and needs[0]:
                sums = run(ops.SUMS, None)[5]
                values = current.numel() // max(moments.shape[1], 1)
                gradient_tables, *grad_parameters = normalization_gradients_op(
                    sums, moments, tables, norm.eps, values, dtype
                )
                if count is not None:
                    gradient_tables = tables_of_all(sums, moments, tables, norm, count)
            elif affine:
                found = run(wanted | ops.SUMS, None)
                _, *grad_parameters = normalization_gradients_op(found[5], moments, tables, norm.eps, 1, dtype)
            if found is None and wanted:
                found = run(wanted, gradient_tables)
            found = found or (None,) * 6
            return (
                found[0] if needs[0] else None,
                found[4] if needs[1] else None,
                found[1].to(v0.dtype) if needs[2] else None,
                found[2] if needs[3] else None,
                found[3] if needs[4] else None,
                grad_parameters[0].to(weight.dtype) if needs[5] else None,
                grad_parameters[1].to(bias.dtype) if needs[6] else None,
            )

        tensors = (grad_spikes, grad_v_last, grad_potential, *ctx.saved_tensors)
        return *once_differentiable(ctx.neuron, compute, tensors), *none[7:]


def check_and_begin(
    name: str,
    norm: BatchNorm,
    current: Tensor,
    residual: Tensor | None,
    v0: Tensor | None,
    threshold: Tensor | None,
    tau: Tensor | None,
    steps: int | None,
    time_dim: int,
    channels: int | None,
    per_channel: dict[str, Tensor | None],
) -> int:
    """What every call checks before it runs; the number of values per channel."""
    begin(name, current, v0, threshold, tau, steps, time_dim, residual, per_channel["weight"], per_channel["bias"])
    check_normalized_call(current, residual, steps, time_dim, channels, **per_channel)
    values = values_per_channel(current, steps is not None)
    if norm.batch and values == 1 and runs_alone(norm):
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {current.size()}")
    return values


def run_normalized(
    dynamics: Dynamics,
    norm: BatchNorm,
    current: Tensor,
    residual: Tensor | None,
    v0: Tensor | None,
    threshold: Tensor | None,
    tau: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    momentum: float | Tensor | None,
    steps: int | None,
    time_dim: int,
    keep: int,
    channels: int | None = None,
    batches: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks a call and runs it, as autograd.run does for neurons whose currents are taken as they are.

    ``running``: running mean and variance; what the batch is normalized by where ``norm.batch`` is False, and otherwise
    updated in place where ``momentum`` is given; ``batches`` is then counted up.
    """
    mean, variance = running or (None, None)
    per_channel = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    call = (dynamics.name, norm, current, residual, v0, threshold, tau, steps, time_dim, channels, per_channel)
    recorded = recording(current)
    values = unrecorded(check_and_begin, *call) if recorded else check_and_begin(*call)
    held_steps = 0 if steps is None else steps
    given = (current, residual, v0, threshold, tau, weight, bias)
    statistics = (mean, variance, batches, momentum if norm.batch else None)
    if recorded:
        if norm.batch and not runs_alone(norm):
            refuse_to_record(
                dynamics.name, current, "its statistics are over several processes; record it in evaluation mode"
            )
        *outputs, tracked = normalized_integrate(
            *given, mean, variance, *dynamics.numbers, norm.eps, norm.batch, held_steps, time_dim, keep
        )
        # Without a grad mode of its own: an exported program with one inside can be neither saved nor split.
        update_running(*statistics, tracked, values > 0)
    else:
        with torch.no_grad():
            moments, tables, tracked, count = batch_statistics(
                norm, current, weight, bias, mean, variance, held_steps, time_dim
            )
            # Before the autograd Function: activation checkpointing stops a recomputation there.
            update_running(*statistics, tracked, values > 0 or count is not None)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
            keep |= ops.CHECKPOINTS
            given = for_backward(*given)
        outputs = _NormalizedIntegrate.apply(
            *given, moments, tables, count, dynamics.name, dynamics.numbers, norm, held_steps, time_dim, keep
        )
    announce(outputs[0])
    return tuple(outputs)


# The two, statistics included, as one op with a gradient of its own: for networks recorded as ops

define(
    f"normalized_integrate(Tensor current, Tensor? residual, {ops.STATES}Tensor? weight, Tensor? bias, "
    f"Tensor? running_mean, Tensor? running_var, {ops.NUMBERS}float eps, bool batch, {ops.CALL}int keep) "
    "-> (Tensor spikes, Tensor v_last, Tensor potential, Tensor tracked)"
)


def integrate_normalized(current, residual, v0, threshold, tau, weight, bias, mean, variance, *others):
    """Spikes, where wanted the last and the recorded potentials, and [2, C] for the running statistics."""
    *numbers, eps, batch, steps, time_dim, keep = others
    _, tables, tracked, _ = batch_statistics(
        BatchNorm(eps, batch), current, weight, bias, mean, variance, steps, time_dim
    )
    outputs = ops.normalized_forward(
        current, v0, threshold, tau, *numbers, steps, time_dim, keep & ~ops.CHECKPOINTS, tables, residual
    )
    return *outputs[:3], tracked


@gradient_of("normalized_integrate")
def integrate_normalized_recorded(current, residual, v0, threshold, tau, weight, bias, mean, variance, *others):
    *numbers, eps, batch, steps, time_dim, keep = others
    norm = BatchNorm(eps, batch)
    with torch.no_grad():
        moments, tables, tracked, _ = batch_statistics(norm, current, weight, bias, mean, variance, steps, time_dim)
    outputs = _NormalizedIntegrate.apply(
        current,
        residual,
        v0,
        threshold,
        tau,
        weight,
        bias,
        moments,
        tables,
        None,
        "snnfast::normalized_integrate",
        tuple(numbers),
        norm,
        steps,
        time_dim,
        keep | ops.CHECKPOINTS,
    )
    return complete((*outputs, tracked), ops.SPIKES_AND_STATES, current)


@torch.library.register_fake("snnfast::normalized_integrate", lib=library)
def integrate_normalized_shapes(current, residual, v0, threshold, tau, weight, bias, mean, variance, *others):
    *numbers, _, batch, steps, time_dim, keep = others
    keep &= ~ops.CHECKPOINTS
    outputs = ops.forward_shapes(current, v0, threshold, tau, *numbers, steps, time_dim, keep)
    channels = channels_of(current, steps != 0)
    return *outputs[:3], current.new_empty((2, channels) if batch else 0, dtype=state_dtype(current.dtype))


normalized_integrate = op("normalized_integrate", integrate_normalized, outputs=ops.SPIKES_AND_STATES)
