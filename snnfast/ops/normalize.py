"""Neurons on batch-normalized currents, forward and backward, statistics included: ``snnfast::normalized_forward`` and
``normalized_backward``; and their parts for statistics over several processes: ``moments`` and ``gradient_sums``.

Training takes four passes over the current: its moments; normalize, integrate and fire; the sums per channel of the
currents' gradients; and the current's gradient. Nothing is kept but the arguments, tables per channel and, beyond 16
steps, checkpoints of the potential: both backward passes rebuild the potentials, unless the first can leave the
gradients of the normalized currents, unrounded, where those of the currents go.

Moments are [2, C] in float64: mean and biased variance of every channel over time, batch and space. Tables, [3, C] in
the state's dtype, are what the kernels normalize by (csrc/math/normalization.h).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snnfast import backends
from snnfast.backends import DTYPE_CODES, core
from snnfast.dynamics import state_dtype
from snnfast.normalization import Affine, channels_of
from snnfast.ops.integrate import (
    FORWARD_OUTPUTS,
    backward_call,
    forward_shapes,
    gradient_shapes,
    run_backward,
    run_forward,
    write_gradients,
    written_gradients,
)
from snnfast.ops.options import (
    BIAS,
    CHECKPOINTS,
    CURRENT,
    NO_STATES,
    SCHEMAS,
    WEIGHT,
    Gradients,
    NormalizedOptions,
    States,
)
from snnfast.ops.registry import op
from snnfast.ops.step import Step, prepare

__all__ = [
    "NORMALIZED_OUTPUTS",
    "Kept",
    "Normalized",
    "gradient_sums",
    "moments",
    "normalized_backward",
    "normalized_forward",
]


class Normalized(NamedTuple):
    """What a forward pass gives."""

    spikes: Tensor
    v_last: Tensor | None
    potential: Tensor | None
    checkpoints: Tensor | None
    moments: Tensor | None
    tables: Tensor | None
    tracked: Tensor | None  # [2, C]: mean and unbiased variance, for the running statistics


NORMALIZED_OUTPUTS = (*FORWARD_OUTPUTS, "float64", "state", "state")


class Kept(NamedTuple):
    """What a backward pass is given of the forward pass and, of several processes, between its own two passes."""

    weight: Tensor | None
    bias: Tensor | None
    moments: Tensor
    tables: Tensor
    checkpoints: Tensor | None
    sums: Tensor | None = None  # [2, C]: of this process's gradients; None: they are summed here
    means: Tensor | None = None  # [2, C]: of all processes' gradients


def as_read(weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None, int]:
    """Parameters as the core reads them, and their dtype's code: as given where both have one dtype."""
    given = [t if t is None or t.is_contiguous() else t.contiguous() for t in (weight, bias)]
    dtypes = {t.dtype for t in given if t is not None}
    if len(dtypes) > 1:
        given = [None if t is None else t.to(torch.float64) for t in given]
        dtypes = {torch.float64}
    return given[0], given[1], DTYPE_CODES[dtypes.pop()] if dtypes else 0


def statistics(step: Step, values: int, affine: Affine, options: NormalizedOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of a batch, tables made of them, and [2, C] mean and unbiased variance for the running statistics."""
    channels, device = step.plan.sum_sizes[1], step.current.device
    if values == 0:
        # No values have no moments, and the kernels must not look for a first one. Any finite ones do: the parameters'
        # gradients are sums of nothing times these.
        found = torch.ones(2, channels, dtype=torch.float64, device=device)
        return found, tables_of(found, affine, options.eps, step.state), found.to(step.state, copy=True)
    found = torch.empty(2, channels, dtype=torch.float64, device=device)
    tables = torch.empty(3, channels, dtype=step.state, device=device)
    tracked = torch.empty(2, channels, dtype=step.state, device=device)
    sums, workspace = step.sums()
    weight, bias, parameter_dtype = as_read(affine.weight, affine.bias)
    step.backend.moments(
        core.MomentsCall(dtype=step.code, layout=step.plan.layout, current=step.current, sums=sums, workspace=workspace)
    )
    step.backend.statistics(
        core.StatisticsCall(
            dtype=step.code,
            layout=step.plan.layout,
            current=step.current,
            count=values / channels,
            sums=sums,
            eps=options.eps,
            parameter_dtype=parameter_dtype,
            weight=weight,
            bias=bias,
            moments=found,
            tables=tables,
            tracked=tracked,
        )
    )
    return found, tables, tracked


def tables_of(found: Tensor, affine: Affine, eps: float, dtype: torch.dtype) -> Tensor:
    """Tables made of given moments."""
    channels = found.shape[1]
    tables = torch.empty(3, channels, dtype=dtype, device=found.device)
    if channels:
        weight, bias, parameter_dtype = as_read(affine.weight, affine.bias)
        backends.of(found).normalization(
            core.NormalizationCall(
                dtype=DTYPE_CODES[dtype],
                channels=channels,
                eps=eps,
                moments=found,
                parameter_dtype=parameter_dtype,
                weight=weight,
                bias=bias,
                tables=tables,
            )
        )
    return tables


def forward(
    current: Tensor, residual: Tensor | None, states: States, affine: Affine, options: NormalizedOptions
) -> Normalized:
    channels, tracked = channels_of(current, options.steps is not None), None
    step = prepare(current, residual, states, options, channels)
    if options.batch:
        found, tables, tracked = statistics(step, current.numel(), affine, options)
    else:
        assert affine.mean is not None and affine.variance is not None
        found = torch.stack([affine.mean, affine.variance]).double()
        tables = tables_of(found, affine, options.eps, step.state)
    outputs = run_forward(step, options.outputs, tables)
    if not options.outputs & CHECKPOINTS:  # nothing is kept for backward
        return Normalized(*outputs, None, None, tracked)
    return Normalized(*outputs, found, tables, tracked)


def parameter_gradients(
    sums: Tensor, count: int, kept: Kept, options: NormalizedOptions, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """[2, C] for the gradient through the batch's statistics, and the gradients of weight and bias."""
    channels, device = kept.moments.shape[1], kept.tables.device
    through_statistics = torch.empty(2, channels, dtype=kept.tables.dtype, device=device)
    grad_weight = torch.empty(channels, dtype=dtype, device=device)
    grad_bias = torch.empty(channels, dtype=dtype, device=device)
    if channels:
        backends.of(kept.moments).normalization_gradients(
            core.NormalizationGradientsCall(
                dtype=DTYPE_CODES[kept.tables.dtype],
                channels=channels,
                eps=options.eps,
                count=float(count),
                sums=sums,
                moments=kept.moments,
                tables=kept.tables,
                through_statistics=through_statistics,
                parameter_dtype=DTYPE_CODES[dtype],
                grad_weight=grad_weight,
                grad_bias=grad_bias,
            )
        )
    return through_statistics, grad_weight, grad_bias


def backward(
    gradients: Gradients,
    current: Tensor,
    residual: Tensor | None,
    states: States,
    kept: Kept,
    options: NormalizedOptions,
) -> tuple[Tensor | None, ...]:
    """The gradients of current, v0, threshold, tau, residual, weight and bias."""
    wanted = options.outputs
    step = prepare(current, residual, states, options, kept.tables.shape[1], gradients)
    call = backward_call(step, options, kept.checkpoints, kept.tables)
    # Where the two differ, one that holds both; each is then rounded once.
    dtypes = {p.dtype for p in (kept.weight, kept.bias) if p is not None} or {kept.tables.dtype}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64
    found = grad_weight = grad_bias = None
    through_batch = options.batch and wanted & CURRENT
    values = current.numel() // max(kept.tables.shape[1], 1)
    if through_batch and kept.sums is None and defers(step, options):
        call.sums, call.workspace = sums, _ = step.sums()
        call.deferred = True
        write_gradients(step, call, options)
        call.sums = call.workspace = None
        call.through_statistics, grad_weight, grad_bias = parameter_gradients(sums, values, kept, options, dtype)
        gradient_through(step, call)
        found = written_gradients(step, call, states, options)
    elif through_batch:
        # The current's gradient needs sums over all that came before: a pass of its own.
        sums = kept.sums if kept.sums is not None else sums_of_gradients(step, call)
        call.through_statistics, grad_weight, grad_bias = parameter_gradients(sums, values, kept, options, dtype)
        if kept.means is not None:
            call.through_statistics, _, _ = parameter_gradients(kept.means, 1, kept, options, kept.tables.dtype)
    elif wanted & (WEIGHT | BIAS):
        call.sums, call.workspace = step.sums()
    if found is None and (wanted & ~(WEIGHT | BIAS) or call.sums is not None):
        found = run_backward(step, call, states, options)
    if call.sums is not None:
        _, grad_weight, grad_bias = parameter_gradients(call.sums, 1, kept, options, dtype)
    return (
        *(found or (None,) * 5),
        grad_weight.to(kept.weight.dtype)
        if wanted & WEIGHT and grad_weight is not None and kept.weight is not None
        else None,
        grad_bias.to(kept.bias.dtype) if wanted & BIAS and grad_bias is not None and kept.bias is not None else None,
    )


def defers(step: Step, options: NormalizedOptions) -> bool:
    """Whether one walk over the steps does for both passes: dL/dI is left, unrounded, where dL/dx goes."""
    return isinstance(step.backend, core.Cpu) and step.dtype == step.state and options.steps is None


def gradient_through(step: Step, call: core.BackwardCall) -> None:
    """Makes dL/dx of the dL/dI that a deferred backward pass left."""
    if step.plan.neurons:
        assert isinstance(step.backend, core.Cpu) and call.grad_current is not None
        assert call.normalization is not None and call.through_statistics is not None
        step.backend.gradient_through(
            core.GradientThroughCall(
                dtype=step.code,
                layout=step.plan.layout,
                normalization=call.normalization,
                through_statistics=call.through_statistics,
                current=step.current,
                gradient=call.grad_current,
            )
        )


def sums_of_gradients(step: Step, call: core.BackwardCall) -> Tensor:
    """[2, C] sums of dL/dI and of dL/dI * (x - mean): a backward pass that keeps nothing else."""
    sums, workspace = step.sums()
    if step.plan.neurons:
        call.sums, call.workspace = sums, workspace
        step.backend.backward(call)
        call.sums = call.workspace = None
    return sums


def forward_results(
    current: Tensor, residual: Tensor | None, states: States, affine: Affine, options: NormalizedOptions
) -> Normalized:
    state, channels = state_dtype(current.dtype), channels_of(current, options.steps is not None)
    kept = options.outputs & CHECKPOINTS
    return Normalized(
        *forward_shapes(current, states, options),
        current.new_empty((2, channels) if kept else 0, dtype=torch.float64),
        current.new_empty((3, channels) if kept else 0, dtype=state),
        current.new_empty((2, channels) if options.batch else 0, dtype=state),
    )


def backward_results(
    gradients: Gradients,
    current: Tensor,
    residual: Tensor | None,
    states: States,
    kept: Kept,
    options: NormalizedOptions,
) -> tuple[Tensor | None, ...]:
    weight, bias, *_ = kept
    of_parameters = [
        current.new_empty(0) if like is None or not options.outputs & bit else torch.empty_like(like)
        for like, bit in ((weight, WEIGHT), (bias, BIAS))
    ]
    return *gradient_shapes(current, residual, states, options), *of_parameters


def batch_moments(current: Tensor, options: NormalizedOptions) -> Tensor:
    """[2, C] moments of this process's batch."""
    channels = channels_of(current, options.steps is not None)
    step = prepare(current, None, NO_STATES, options, channels)
    return statistics(step, current.numel(), Affine(None, None, None, None), options)[0]


def batch_moments_shape(current: Tensor, options: NormalizedOptions) -> Tensor:
    return current.new_empty((2, channels_of(current, options.steps is not None)), dtype=torch.float64)


def sums(
    gradients: Gradients,
    current: Tensor,
    residual: Tensor | None,
    states: States,
    kept: Kept,
    options: NormalizedOptions,
) -> Tensor:
    step = prepare(current, residual, states, options, kept.tables.shape[1], gradients)
    return sums_of_gradients(step, backward_call(step, options, kept.checkpoints, kept.tables))


def sums_shape(
    gradients: Gradients,
    current: Tensor,
    residual: Tensor | None,
    states: States,
    kept: Kept,
    options: NormalizedOptions,
) -> Tensor:
    return torch.empty_like(kept.moments)


SCHEMAS_HERE = {
    Affine: "Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var",
    Kept: "Tensor? weight, Tensor? bias, Tensor moments, Tensor tables, Tensor? checkpoints, Tensor? sums, "
    "Tensor? means",
}
FORWARD = f"Tensor current, Tensor? residual, {SCHEMAS[States]}, {SCHEMAS_HERE[Affine]}, {SCHEMAS[NormalizedOptions]}"
BACKWARD = (
    f"{SCHEMAS[Gradients]}, Tensor current, Tensor? residual, {SCHEMAS[States]}, {SCHEMAS_HERE[Kept]}, "
    f"{SCHEMAS[NormalizedOptions]}"
)

normalized_forward = op(
    f"normalized_forward({FORWARD}) -> (Tensor spikes, Tensor v_last, Tensor potential, Tensor checkpoints, "
    "Tensor moments, Tensor tables, Tensor tracked)",
    forward,
    forward_results,
    groups=(None, None, States, Affine, NormalizedOptions),
    outputs=NORMALIZED_OUTPUTS,
)
normalized_backward = op(
    f"normalized_backward({BACKWARD}) -> (Tensor grad_current, Tensor grad_v0, Tensor grad_threshold, Tensor grad_tau, "
    "Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)",
    backward,
    backward_results,
    groups=(Gradients, None, None, States, Kept, NormalizedOptions),
    outputs=("current", "state", "state", "state", "current", "current", "current"),
    of_gradients=True,
)
moments = op(
    f"moments(Tensor current, {SCHEMAS[NormalizedOptions]}) -> Tensor",
    batch_moments,
    batch_moments_shape,
    groups=(None, NormalizedOptions),
)
gradient_sums = op(
    f"gradient_sums({BACKWARD}) -> Tensor",
    sums,
    sums_shape,
    groups=(Gradients, None, None, States, Kept, NormalizedOptions),
    of_gradients=True,
)
