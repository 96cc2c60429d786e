"""Neurons on batch-normalized currents: autograd around the opaque ops, and statistics over several processes.

Training takes four passes over the current: its moments; normalize, integrate and fire; the sums per channel of the
currents' gradients; and the current's gradient. Nothing is kept but the arguments, tables per channel and, beyond 16
steps, checkpoints of the potential: both backward passes rebuild the potentials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import ops
from ._checks import number
from ._dispatch import complete, define, gradient_of, library, op
from ._tracing import recording, refuse_to_record, unrecorded
from .autograd import announce, begin, for_backward, of_asked_for, once_differentiable
from .dynamics import DTYPES, Dynamics, check_dense, check_dtype, not_a_tensor, state_dtype
from .normalization_ops import (
    batch_norm_tables_op,
    channels_of,
    normalization_gradients_op,
    normalization_tables_op,
)

__all__ = ["BatchNorm", "check_momentum", "run_normalized"]

@dataclass(frozen=True)
class BatchNorm:
    """The options of a normalization, in the terms of torch.nn.functional.batch_norm.

    ``batch``: normalize by the batch's own statistics, and let the gradient pass through them.
    """

    eps: float
    batch: bool
    process_group: Any = None  # None: this process alone

    @classmethod
    def make(cls, eps: float, batch: bool, process_group: Any = None) -> BatchNorm:
        """Checks the options; TypeError or ValueError naming the one that is wrong."""
        return cls(check_eps(eps), batch, resolve_group(process_group) if batch else None)


def check_eps(eps: float) -> float:
    value = number("eps", eps)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"eps must be finite and not negative, got {value}")
    return value


def check_momentum(momentum: float) -> float:
    value = number("momentum", momentum)
    if not 0 <= value <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {value}")
    return value


WORLD_ONCE_INITIALISED = "world, once initialised"
"""The process group of layers that nn.SyncBatchNorm.convert_sync_batchnorm converted, as lenient as torch's own."""


def resolve_group(group: Any) -> Any:
    """The process group of a name or a group; ValueError without torch.distributed, TypeError for anything else."""
    if group is None:
        return None
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        if isinstance(group, str) and group == WORLD_ONCE_INITIALISED:
            return None
        raise ValueError(
            f"process_group is {group!r}, but torch.distributed is not initialised: call "
            "torch.distributed.init_process_group first, or leave process_group out"
        )
    if isinstance(group, str) and group in ("world", WORLD_ONCE_INITIALISED):
        return distributed.group.WORLD
    if not isinstance(group, distributed.ProcessGroup):
        error = ValueError if isinstance(group, str) else TypeError
        raise error(f"process_group must be a torch.distributed process group or 'world', got {group!r}")
    return group


class _NormalizedIntegrate(Function):
    """Forward and backward of the neurons, given the tables. The tables' own gradients are part of the backward."""

    @staticmethod
    def forward(
        ctx, current, residual, v0, threshold, tau, weight, bias, moments, tables, count, name, numbers, norm, steps,
        time_dim, keep
    ):  # fmt: skip
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
                    grad_spikes, grad_v_last, grad_potential, current, v0, threshold, tau, checkpoints,
                    *numbers, steps, time_dim, wanted, tables, gradient_tables, residual,
                )  # fmt: skip

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
                _, *grad_parameters = normalization_gradients_op(
                    found[5], moments, tables, norm.eps, 1, dtype
                )
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


def tables_of_all(sums: Tensor, moments: Tensor, tables: Tensor, norm: BatchNorm, count: Tensor) -> Tensor:
    """The tables for the gradient through statistics of several processes: of the sums over all of them.

    The parameters' gradients are of this process's own sums (as with nn.SyncBatchNorm: DistributedDataParallel averages
    parameters' gradients itself).
    """
    shared = sums.clone()
    torch.distributed.all_reduce(shared, group=norm.process_group)
    return normalization_gradients_op(shared / count, moments, tables, norm.eps, 1, tables.dtype)[0]


def moments_of_all(moments: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor]:
    """The moments of every process's batch together, and their number of values per channel (a 0-d float64 tensor)."""
    mine = torch.cat([moments.flatten(), moments.new_full((1,), float(count))])
    gathered = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, mine, group=group)
    everyone = torch.stack(gathered)
    counts = everyone[:, -1]
    present = (counts > 0)[:, None]  # an empty batch has no moments
    means, variances = (half.where(present, 0.0) for half in everyone[:, :-1].chunk(2, 1))
    total = counts.sum()
    share = (counts / total.clamp(min=1))[:, None]
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    return torch.stack([mean, variance]), total


def tracked_of_all(moments: Tensor, count: Tensor, mean: Tensor | None, variance: Tensor | None) -> Tensor:
    """What running statistics move towards, [2, C]: the mean and the unbiased variance of every process's batch.

    ``mean``, ``variance``: the running statistics, which stay where no process has values.
    """
    tracked = torch.stack([moments[0], moments[1] * (count / (count - 1).clamp(min=1))])
    return tracked if mean is None else tracked.where(count > 0, torch.stack([mean, variance]).to(tracked))


def track(mean: Tensor, variance: Tensor, found: Tensor, momentum: float | Tensor) -> None:
    """Moves running statistics towards what a batch had, [2, C].

    As nn.BatchNorm does: lerp would take the difference of two infinities. Each product is rounded on its own, so that
    compiled code gives the same. A momentum that is a tensor is the share of a cumulative mean, taken exactly.
    """
    exact = isinstance(momentum, Tensor)
    share = (found.double() if exact else found) * momentum
    for running, part in ((mean, share[0]), (variance, share[1])):
        if exact:
            running.copy_(running.double() * (1 - momentum) + part)
        elif momentum == 1:
            running.copy_(part)  # whatever was before
        else:
            running.mul_(1 - momentum).add_(part)


def check_normalized_call(
    current: Tensor,
    residual: Tensor | None,
    steps: int | None,
    time_dim: int,
    channels: int | None,
    **per_channel: Tensor | None,
) -> None:
    """Checks what a call is given beyond what a plain one is, reading shapes, dtypes and devices only.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """
    held = steps is not None
    if current.dim() < (2 if held else 3) or (channels is not None and channels_of(current, held) != channels):
        raise wrong_channels(current, held, time_dim, channels)
    found = channels_of(current, held)
    for name, value in per_channel.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise not_a_tensor(name, value)
        if value.dtype not in DTYPES:
            check_dtype(name, value)
        check_dense(name, value)
        if value.shape != (found,):
            raise ValueError(f"{name} must have the shape [{found}], one value per channel, got {list(value.shape)}")
        if value.device != current.device:
            raise ValueError(f"{name} is on {value.device}, current on {current.device}; both must be on one device")
    if residual is not None:
        check_residual(residual, current, steps, time_dim)


def wrong_channels(current: Tensor, held: bool, time_dim: int, channels: int | None) -> ValueError:
    """What to say of a current whose channels are not where a normalization looks for them."""
    shape = list(current.shape)
    axes = "[B, C, ...]" if held else "[T, B, C, ...]" if time_dim == 0 else "[B, T, C, ...]"
    short = len(shape) < (2 if held else 3)
    what = "a channel dimension" if short else f"{channels} channels (num_features)"
    got = shape if short else f"{channels_of(current, held)} in {shape}"
    meant = ""
    if not held and ((short and len(shape) == 2) or (channels is not None and shape[1:2] == [channels])):
        meant = "; [B, C, ...] without time axis is held by steps=T, as in layer(current, steps=10)"
    elif held and shape[2:3] == [channels]:
        meant = "; steps=T is for a current without time axis: leave it out for [T, B, C, ...]"
    elif shape[-1] == channels:
        meant = f"; the channels seem to be the last dimension: current.movedim(-1, {1 if held else 2})"
    return ValueError(f"current must have {what}, as {axes}, to be normalized; got {got}{meant}")


def check_residual(residual: Tensor, current: Tensor, steps: int | None, time_dim: int) -> None:
    """A residual has the output's shape, or the current's where that is held; its dtype and device."""
    if not isinstance(residual, Tensor):
        raise not_a_tensor("residual", residual)
    check_dense("residual", residual)
    if residual.dtype != current.dtype:
        raise TypeError(f"residual must have the current's dtype, {current.dtype}, got {residual.dtype}")
    if residual.device != current.device:
        raise ValueError(f"residual is on {residual.device}, current on {current.device}; both must be on one device")
    allowed = [current.shape]
    if steps is not None:
        allowed.append((*current.shape[:time_dim], steps, *current.shape[time_dim:]))
    # Shapes of as many dimensions only: while a network is exported, comparing others would restrict their sizes.
    if not any(residual.dim() == len(shape) and tuple(residual.shape) == tuple(shape) for shape in allowed):
        raise ValueError(
            f"residual must have the shape {' or '.join(str(list(shape)) for shape in allowed)}, "
            f"got {list(residual.shape)}"
        )


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


def values_per_channel(current: Tensor, held: bool) -> int:
    return current.numel() // max(channels_of(current, held), 1)


def batch_statistics(
    norm: BatchNorm,
    current: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    steps: int,
    time_dim: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """What the currents are normalized by: moments, the tables made of them, what the running statistics move towards
    (None in evaluation) and the number of values of all processes (None for one process alone)."""
    state = state_dtype(current.dtype)
    if not norm.batch:
        moments = torch.stack([mean, variance]).double()
        return moments, normalization_tables_op(moments, weight, bias, norm.eps, state), None, None
    moments, tables, tracked = batch_norm_tables_op(current, weight, bias, norm.eps, steps, time_dim)
    if runs_alone(norm):
        return moments, tables, tracked, None
    moments, count = moments_of_all(moments, values_per_channel(current, steps > 0), norm.process_group)
    tables = normalization_tables_op(moments, weight, bias, norm.eps, state)
    return moments, tables, tracked_of_all(moments, count, mean, variance), count


def runs_alone(norm: BatchNorm) -> bool:
    return norm.process_group is None or torch.distributed.get_world_size(norm.process_group) == 1


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


def update_running(
    mean: Tensor | None,
    variance: Tensor | None,
    batches: Tensor | None,
    momentum: float | Tensor | None,
    tracked: Tensor | None,
    present: bool,
) -> None:
    """Counts a batch, and moves the running statistics towards its own where it had values (``present``)."""
    if momentum is None:
        return
    if batches is not None:
        batches.add_(1)
    if mean is not None and present:
        track(mean, variance, tracked, momentum)


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
        moments, tables, tracked, _ = batch_statistics(
            norm, current, weight, bias, mean, variance, steps, time_dim
        )
    outputs = _NormalizedIntegrate.apply(
        current, residual, v0, threshold, tau, weight, bias, moments, tables, None, "snnfast::normalized_integrate",
        tuple(numbers), norm, steps, time_dim, keep | ops.CHECKPOINTS,
    )  # fmt: skip
    return complete((*outputs, tracked), ops.SPIKES_AND_STATES, current)


@torch.library.register_fake("snnfast::normalized_integrate", lib=library)
def integrate_normalized_shapes(current, residual, v0, threshold, tau, weight, bias, mean, variance, *others):
    *numbers, _, batch, steps, time_dim, keep = others
    keep &= ~ops.CHECKPOINTS
    outputs = ops.forward_shapes(current, v0, threshold, tau, *numbers, steps, time_dim, keep)
    channels = channels_of(current, steps != 0)
    return *outputs[:3], current.new_empty((2, channels) if batch else 0, dtype=state_dtype(current.dtype))


normalized_integrate = op("normalized_integrate", integrate_normalized, outputs=ops.SPIKES_AND_STATES)
