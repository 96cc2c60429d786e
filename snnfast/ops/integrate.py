"""The neurons over all steps, forward and backward: ``snnfast::integrate_forward`` and ``integrate_backward``.

Both are opaque to torch.compile. They mutate nothing and return a fixed number of tensors; one that was not asked for
is empty (None, where the op is called past the dispatcher). A call goes through an autograd Function outside of the ops
(snnfast.autograd.integrate); what records a network as its ops records ``integrate_forward``, which has that gradient
itself and takes the surrogate for it alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnfast.backends import core
from snnfast.dynamics import LEAK_GIVEN, state_dtype
from snnfast.ops.layout import spikes_like
from snnfast.ops.options import (
    CHECKPOINTS,
    CURRENT,
    INITIAL,
    LAST,
    POTENTIAL,
    RESIDUAL,
    SCHEMAS,
    TAU,
    THRESHOLD,
    Gradients,
    NormalizedOptions,
    Options,
    States,
)
from snnfast.ops.registry import op
from snnfast.ops.step import Step, core_surrogate, prepare

__all__ = [
    "CHECKPOINT_INTERVAL",
    "FORWARD_OUTPUTS",
    "backward_call",
    "forward_shapes",
    "gradient_shapes",
    "integrate_backward",
    "integrate_forward",
    "run_backward",
    "run_forward",
]

CHECKPOINT_INTERVAL: int = core.checkpoint_interval

FORWARD_OUTPUTS = ("current", "state", "state", "state")
"""Whose dtype spikes, v_last, potential and checkpoints have."""


Found = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""The gradients of current, v0, threshold, tau and residual, None where they were not wanted."""


def run_forward(
    step: Step, outputs: int, normalization: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Spikes, and where wanted the last potential, the recorded potentials and the checkpoints."""
    p = step.plan
    spikes = step.empty()
    last = step.empty(held=True, state=True) if outputs & LAST else None
    potential = step.empty(state=True) if outputs & POTENTIAL else None
    checkpoints = None
    if outputs & CHECKPOINTS and p.steps > CHECKPOINT_INTERVAL:
        kept = (p.steps - 1) // CHECKPOINT_INTERVAL
        checkpoints = torch.empty(kept * p.neurons, dtype=step.state, device=spikes.device)
    if p.neurons:
        step.backend.forward(
            core.ForwardCall(
                dtype=step.code,
                layout=p.layout,
                dynamics=step.dynamics,
                coefficients=step.coefficients,
                normalization=normalization,
                residual=step.residual,
                current=step.current,
                initial=step.initial,
                spikes=spikes,
                last=last,
                potential=potential,
                checkpoints=checkpoints,
            )
        )
    if p.run_strides != p.strides:
        spikes = step.given_back(spikes)
        potential = None if potential is None else step.given_back(potential)
    return spikes, last, potential, checkpoints


def backward_call(
    step: Step,
    options: Options | NormalizedOptions,
    checkpoints: Tensor | None,
    normalization: Tensor | None,
    through_statistics: Tensor | None = None,
) -> core.BackwardCall:
    """A backward pass that nothing is wanted of yet."""
    _, _, _, gamma, beta = options.neuron
    grad_spikes, grad_last, grad_potential = step.gradients
    return core.BackwardCall(
        dtype=step.code,
        layout=step.plan.layout,
        dynamics=step.dynamics,
        coefficients=step.coefficients,
        surrogate=core_surrogate(options.kinds[1], gamma, beta),
        normalization=normalization,
        through_statistics=through_statistics,
        residual=step.residual,
        current=step.current,
        initial=step.initial,
        checkpoints=checkpoints,
        grad_spikes=grad_spikes,
        grad_last=grad_last,
        grad_potential=grad_potential,
        grad_current=None,
        grad_residual=None,
        grad_initial=None,
        grad_threshold=None,
        grad_tau=None,
        sums=None,
        workspace=None,
        deferred=False,
    )


def run_backward(step: Step, call: core.BackwardCall, states: States, options: Options | NormalizedOptions) -> Found:
    """Runs a backward pass for the gradients that ``options.outputs`` asks for."""
    write_gradients(step, call, options)
    return written_gradients(step, call, states, options)


def write_gradients(step: Step, call: core.BackwardCall, options: Options | NormalizedOptions) -> None:
    """The kernel's part of :func:`run_backward`."""
    wanted, held = options.outputs, options.steps is not None
    residual_held = step.residual is not None and step.residual.dim() < len(step.plan.shape)
    if wanted & CURRENT:
        call.grad_current = step.empty(held)
    if wanted & RESIDUAL:
        call.grad_residual = step.empty(residual_held)
    if wanted & INITIAL:
        call.grad_initial = step.empty(held=True, state=True)
    if wanted & THRESHOLD:
        call.grad_threshold = step.per_neuron()
    if wanted & TAU:
        call.grad_tau = step.per_neuron()
    if step.plan.neurons:
        step.backend.backward(call)


def written_gradients(
    step: Step, call: core.BackwardCall, states: States, options: Options | NormalizedOptions
) -> Found:
    """What a kernel wrote, as the user gets it."""
    held = options.steps is not None
    residual_held = step.residual is not None and step.residual.dim() < len(step.plan.shape)
    _, threshold, tau = states
    grad_current, grad_residual = call.grad_current, call.grad_residual
    grad_threshold = grad_tau = None
    if step.plan.run_strides != step.plan.strides:
        grad_current = None if grad_current is None else step.given_back(grad_current, held)
        grad_residual = None if grad_residual is None else step.given_back(grad_residual, residual_held)
    if call.grad_threshold is not None and threshold is not None:
        grad_threshold = step.table_gradient(call.grad_threshold, threshold).to(threshold.dtype)
    if call.grad_tau is not None and tau is not None:
        grad_tau = step.table_gradient(call.grad_tau, tau)
        if not options.kinds[0] & LEAK_GIVEN:
            grad_tau = grad_tau / tau.double().square()
        grad_tau = grad_tau.to(tau.dtype)
    return grad_current, call.grad_initial, grad_threshold, grad_tau, grad_residual


def with_current(options: Options) -> Options:
    return options if options.outputs & CURRENT else options._replace(outputs=options.outputs | CURRENT)


def forward(
    current: Tensor, states: States, options: Options
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    return run_forward(prepare(current, None, states, options), options.outputs)


def backward(
    gradients: Gradients, current: Tensor, states: States, checkpoints: Tensor | None, options: Options
) -> tuple[Tensor | None, ...]:
    """The gradients of current (always: no kernel leaves it out), v0, threshold and tau."""
    options = with_current(options)
    step = prepare(current, None, states, options, gradients=gradients)
    call = backward_call(step, options, checkpoints, None)
    grad_current, grad_v0, grad_threshold, grad_tau, _ = run_backward(step, call, states, options)
    return grad_current, grad_v0, grad_threshold, grad_tau


def forward_shapes(
    current: Tensor, states: States, options: Options | NormalizedOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    state, outputs = state_dtype(current.dtype), options.outputs
    spikes = spikes_like(current, options.steps, options.time_dim)
    one_step = torch.empty_like(spikes.select(options.time_dim, 0), dtype=state)
    kept = (spikes.shape[options.time_dim] - 1) // CHECKPOINT_INTERVAL if outputs & CHECKPOINTS else 0
    return (
        spikes,
        one_step if outputs & LAST else current.new_empty(0, dtype=state),
        torch.empty_like(spikes, dtype=state) if outputs & POTENTIAL else current.new_empty(0, dtype=state),
        current.new_empty(kept * one_step.numel(), dtype=state),
    )


def gradient_shapes(
    current: Tensor, residual: Tensor | None, states: States, options: Options | NormalizedOptions
) -> Found:
    state, wanted = state_dtype(current.dtype), options.outputs
    spikes = spikes_like(current, options.steps, options.time_dim)
    one_step = spikes.select(options.time_dim, 0)
    _, threshold, tau = states

    def table_gradient(table: Tensor | None, bit: int) -> Tensor:
        if table is None or not wanted & bit:
            return current.new_empty(0, dtype=state)
        return torch.empty_like(table, memory_format=torch.contiguous_format)

    residual_held = residual is not None and residual.dim() < spikes.dim()
    return (
        torch.empty_like(current) if wanted & CURRENT else current.new_empty(0),
        torch.empty_like(one_step, dtype=state) if wanted & INITIAL else current.new_empty(0, dtype=state),
        table_gradient(threshold, THRESHOLD),
        table_gradient(tau, TAU),
        torch.empty_like(one_step if residual_held else spikes) if wanted & RESIDUAL else current.new_empty(0),
    )


def backward_shapes(
    gradients: Gradients, current: Tensor, states: States, checkpoints: Tensor | None, options: Options
) -> tuple[Tensor | None, ...]:
    return gradient_shapes(current, None, states, with_current(options))[:4]


integrate_forward = op(
    f"integrate_forward(Tensor current, {SCHEMAS[States]}, {SCHEMAS[Options]}) "
    "-> (Tensor spikes, Tensor v_last, Tensor potential, Tensor checkpoints)",
    forward,
    forward_shapes,
    groups=(None, States, Options),
    outputs=FORWARD_OUTPUTS,
)
integrate_backward = op(
    f"integrate_backward({SCHEMAS[Gradients]}, Tensor current, {SCHEMAS[States]}, Tensor? checkpoints, "
    f"{SCHEMAS[Options]}) -> (Tensor grad_current, Tensor grad_v0, Tensor grad_threshold, Tensor grad_tau)",
    backward,
    backward_shapes,
    groups=(Gradients, None, States, None, Options),
    outputs=("current", "state", "state", "state"),
    of_gradients=True,
)
