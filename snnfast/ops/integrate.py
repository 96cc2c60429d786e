"""The operations as torch sees them: schemas, shapes for the compiler, and the calls of the compiled core.

``snnfast::integrate_forward`` and ``snnfast::integrate_backward`` run the neurons; the same with ``normalized_`` ahead
run them on normalized currents, with what lies between the passes in normalize.py. All are opaque to
torch.compile. They mutate nothing and return a fixed number of tensors; one that was not asked for is empty. How they
are registered and called is in registry.py.

A call goes through an autograd Function outside of the ops (snnfast.autograd). What records a network as its
ops (torch.export, torch.jit.trace) records ops that have that gradient themselves: ``integrate_forward``, which takes
the surrogate for it alone, and ``normalized_integrate``. Differentiating any other is an error by name.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from snnfast import backends
from snnfast.backends import core
from snnfast.dynamics import ATTACHED, DELAY, FIRE_ON_EQUAL, INPUT_DECAYS, LEAKY, SOFT, state_dtype
from snnfast.ops.layout import Plan, plan, spikes_like
from snnfast.ops.registry import define, library, op

CHECKPOINT_INTERVAL: int = core.checkpoint_interval
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

# Bits of `keep` (forward) and `wanted` (backward): the optional outputs.
LAST, POTENTIAL, CHECKPOINTS = 1, 2, 4
INITIAL, THRESHOLD, TAU, CURRENT, RESIDUAL, SUMS = 1, 2, 4, 8, 16, 32

NUMBERS = "float threshold_value, float tau_value, float reset_value, int flags, int shape, float gamma, float beta, "
CALL = "SymInt steps, int time_dim, "
STATES = "Tensor? v0, Tensor? threshold, Tensor? tau, "
GRADIENTS = "Tensor? grad_spikes, Tensor? grad_v_last, Tensor? grad_potential, Tensor current, "
OUTPUTS = "(Tensor spikes, Tensor v_last, Tensor potential, Tensor checkpoints)"

define(f"integrate_forward(Tensor current, {STATES}{NUMBERS}{CALL}int keep) -> {OUTPUTS}")
define(
    f"integrate_backward({GRADIENTS}{STATES}Tensor? checkpoints, {NUMBERS}{CALL}int wanted) "
    "-> (Tensor grad_current, Tensor grad_v0, Tensor grad_threshold, Tensor grad_tau)"
)
define(
    f"normalized_forward(Tensor current, {STATES}{NUMBERS}{CALL}int keep, Tensor tables, Tensor? residual) -> {OUTPUTS}"
)
define(
    f"normalized_backward({GRADIENTS}{STATES}Tensor? checkpoints, {NUMBERS}{CALL}int wanted, "
    "Tensor tables, Tensor? gradient_tables, Tensor? residual) "
    "-> (Tensor grad_current, Tensor grad_v0, Tensor grad_threshold, Tensor grad_tau, Tensor grad_residual, "
    "Tensor sums)"
)


@lru_cache(maxsize=1024)
def core_dynamics(threshold: float, tau: float, reset_value: float, flags: int) -> Any:
    """λ, κ, ρ are computed from τ in float64 and rounded once, in the core, to the state's dtype."""
    leak, gain, drive = 1.0, 1.0, 0.0
    rest = 0.0 if flags & SOFT else reset_value
    if tau:
        leak = 1.0 - 1.0 / tau
        gain = 1.0 / tau if flags & INPUT_DECAYS else 1.0
        drive = rest / tau
    return core.Dynamics(
        leak=leak,
        gain=gain,
        drive=drive,
        threshold=threshold,
        reset_value=reset_value,
        leaky=bool(flags & LEAKY),
        soft=bool(flags & SOFT),
        attached=bool(flags & ATTACHED),
        fire_on_equal=bool(flags & FIRE_ON_EQUAL),
        delay=bool(flags & DELAY),
        input_decays=bool(flags & INPUT_DECAYS),
    )


class Tables:
    """Thresholds and time constants given as tensors, as the arrays of coefficients that the core reads."""

    __slots__ = ("addresses", "channels", "kept")

    def __init__(
        self, threshold: Tensor | None, tau: Tensor | None, reset_value: float, flags: int, dtype: torch.dtype
    ) -> None:
        tables: list[Tensor | None] = [None, None, None, None]  # threshold, leak, gain, drive
        if threshold is not None:
            tables[0] = threshold.to(dtype)
        if tau is not None:
            wide = tau.double()
            inverse = wide.reciprocal()
            tables[1] = (1 - inverse).to(dtype)
            if flags & INPUT_DECAYS:
                tables[2] = inverse.to(dtype)
            if reset_value and not flags & SOFT:
                # A number divided by a tensor would be the number times its reciprocal, rounded twice.
                tables[3] = (torch.full_like(wide, reset_value) / wide).to(dtype)
        # A single value stands for all channels; the others then set their number.
        lengths = [t.numel() for t in tables if t is not None]
        self.channels = max(lengths) if all(lengths) else 0
        self.kept = tables
        self.spread(self.channels)

    def spread(self, channels: int) -> None:
        """Makes every table as long as there are channels."""
        self.channels = channels
        self.kept = [None if t is None else t.expand(channels).contiguous() for t in self.kept]
        self.addresses = tuple(0 if t is None else t.data_ptr() for t in self.kept)


NO_TABLES = (0, 0, 0, 0)


def laid_out(tensor: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The copy of a tensor that no kernel can read as it is. The one place where snnfast copies what it is given."""
    return torch.empty_strided(shape, strides, dtype=dtype, device=tensor.device).copy_(tensor)


def as_state(tensor: Tensor, p: Plan, dtype: torch.dtype) -> Tensor:
    """A tensor without time, dense in the plan's memory order and in the state's dtype; copied only if it is not."""
    tensor = tensor.detach()
    if tensor.dtype == dtype and tensor.stride() == p.state_strides:
        return tensor
    return laid_out(tensor, p.state_shape, p.state_strides, dtype)


def forward(
    current: Tensor,
    v0: Tensor | None,
    threshold: Tensor | None,
    tau: Tensor | None,
    threshold_value: float,
    tau_value: float,
    reset_value: float,
    flags: int,
    shape: int,
    gamma: float,
    beta: float,
    steps: int,
    time_dim: int,
    keep: int,
    normalization: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Spikes, and where wanted the last potential, the recorded potentials and the checkpoints.

    The surrogate (shape, gamma and beta) is for the op's gradient.
    """
    state = state_dtype(current.dtype)
    tables = None
    if threshold is not None or tau is not None:
        tables = Tables(threshold, tau, reset_value, flags, state)
    if normalization is None:
        p = plan(current.shape, current.stride(), steps, time_dim, tables.channels if tables else 1)
    else:
        channels = normalization.shape[1]
        if tables:
            tables.spread(channels)
        p = plan(
            current.shape,
            current.stride(),
            steps,
            time_dim,
            channels,
            None,
            None,
            *residual_layout(current, residual, steps),
        )
    empty_strided, device, dtype = torch.empty_strided, current.device, current.dtype

    spikes = empty_strided(p.shape, p.run_strides, dtype=dtype, device=device)
    last = potential = checkpoints = None
    if keep & LAST:
        last = empty_strided(p.state_shape, p.state_strides, dtype=state, device=device)
    if keep & POTENTIAL:
        potential = empty_strided(p.shape, p.run_strides, dtype=state, device=device)
    if keep & CHECKPOINTS and p.steps > CHECKPOINT_INTERVAL:
        checkpoints = torch.empty((p.steps - 1) // CHECKPOINT_INTERVAL * p.neurons, dtype=state, device=device)
    if p.neurons:
        x = as_current(current, p, steps > 0, p.copy_current)
        r = None if residual is None else as_current(residual, p, residual.dim() < len(p.shape), p.copy_residual)
        start = None if v0 is None else as_state(v0, p, state)
        target, where = backends.target(current)
        target.forward(
            where,
            DTYPE_CODES[dtype],
            p.layout,
            core_dynamics(threshold_value, tau_value, reset_value, flags),
            tables.addresses if tables else NO_TABLES,
            0 if normalization is None else normalization.data_ptr(),
            0 if r is None else r.data_ptr(),
            x.data_ptr(),
            0 if start is None else start.data_ptr(),
            spikes.data_ptr(),
            0 if last is None else last.data_ptr(),
            0 if potential is None else potential.data_ptr(),
            0 if checkpoints is None else checkpoints.data_ptr(),
        )
    if p.run_strides != p.strides:
        spikes = laid_out(spikes, p.shape, p.strides, dtype)
        if potential is not None:
            potential = laid_out(potential, p.shape, p.strides, state)
    return spikes, last, potential, checkpoints


def residual_layout(current: Tensor, residual: Tensor | None, steps: int) -> tuple[tuple[int, ...] | None, bool]:
    """What `plan` asks of a residual: its strides, and whether it is held, having no time axis."""
    if residual is None:
        return None, False
    return residual.stride(), steps > 0 and residual.dim() == current.dim()


def as_current(tensor: Tensor, p: Plan, held: bool, copy: bool) -> Tensor:
    """A current or a residual as a kernel can read it."""
    if not copy:
        return tensor
    shape, strides = (p.state_shape, p.state_strides) if held else (p.shape, p.run_strides)
    return laid_out(tensor, shape, strides, tensor.dtype)


def run_backward(
    grad_spikes: Tensor | None,
    grad_v_last: Tensor | None,
    grad_potential: Tensor | None,
    current: Tensor,
    v0: Tensor | None,
    threshold: Tensor | None,
    tau: Tensor | None,
    checkpoints: Tensor | None,
    threshold_value: float,
    tau_value: float,
    reset_value: float,
    flags: int,
    shape: int,
    gamma: float,
    beta: float,
    steps: int,
    time_dim: int,
    wanted: int,
    normalization: Tensor | None = None,
    gradient_tables: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """The backward pass: what is wanted of the gradients of current, v0, threshold, tau and residual, and of the [2, C]
    sums per channel."""
    state = state_dtype(current.dtype)
    tables = None
    if threshold is not None or tau is not None:
        tables = Tables(threshold, tau, reset_value, flags, state)
    channels = tables.channels if tables else 1
    if normalization is not None:
        channels = normalization.shape[1]
        if tables:
            tables.spread(channels)
    p = plan(
        current.shape,
        current.stride(),
        steps,
        time_dim,
        channels,
        None if grad_spikes is None else grad_spikes.stride(),
        None if grad_potential is None else grad_potential.stride(),
        *residual_layout(current, residual, steps),
    )
    empty_strided, device, dtype = torch.empty_strided, current.device, current.dtype

    def empty_gradient(held: bool) -> Tensor:
        if held:
            return empty_strided(p.state_shape, p.state_strides, dtype=dtype, device=device)
        return empty_strided(p.shape, p.run_strides, dtype=dtype, device=device)

    residual_held = residual is not None and residual.dim() < len(p.shape)
    grad_current = empty_gradient(steps > 0) if wanted & CURRENT else None
    grad_residual = empty_gradient(residual_held) if wanted & RESIDUAL else None
    grad_v0 = sum_threshold = sum_tau = neuron_sums = None
    if wanted & INITIAL:
        grad_v0 = empty_strided(p.state_shape, p.state_strides, dtype=state, device=device)
    if wanted & THRESHOLD:
        sum_threshold = torch.empty(p.neurons, dtype=state, device=device)
    if wanted & TAU:
        sum_tau = torch.empty(p.neurons, dtype=state, device=device)
    if wanted & SUMS:
        neuron_sums = torch.empty(2, p.neurons, dtype=state, device=device)
    target, where = backends.target(current)
    if p.neurons:
        x = as_current(current, p, steps > 0, p.copy_current)
        r = None if residual is None else as_current(residual, p, residual_held, p.copy_residual)
        if p.copy_grad_spikes and grad_spikes is not None:
            grad_spikes = laid_out(grad_spikes, p.shape, p.run_strides, dtype)
        if p.copy_grad_potential and grad_potential is not None:
            grad_potential = laid_out(grad_potential, p.shape, p.run_strides, state)
        start = None if v0 is None else as_state(v0, p, state)
        grad_last = None if grad_v_last is None else as_state(grad_v_last, p, state)
        target.backward(
            where,
            DTYPE_CODES[dtype],
            p.layout,
            core_dynamics(threshold_value, tau_value, reset_value, flags),
            tables.addresses if tables else NO_TABLES,
            0 if normalization is None else normalization.data_ptr(),
            0 if gradient_tables is None else gradient_tables.data_ptr(),
            0 if r is None else r.data_ptr(),
            shape,
            gamma,
            beta,
            x.data_ptr(),
            0 if start is None else start.data_ptr(),
            0 if checkpoints is None else checkpoints.data_ptr(),
            0 if grad_spikes is None else grad_spikes.data_ptr(),
            0 if grad_last is None else grad_last.data_ptr(),
            0 if grad_potential is None else grad_potential.data_ptr(),
            0 if grad_current is None else grad_current.data_ptr(),
            0 if grad_residual is None else grad_residual.data_ptr(),
            0 if grad_v0 is None else grad_v0.data_ptr(),
            0 if sum_threshold is None else sum_threshold.data_ptr(),
            0 if sum_tau is None else sum_tau.data_ptr(),
            0 if neuron_sums is None else neuron_sums.data_ptr(),
        )
    if p.run_strides != p.strides:
        if grad_current is not None and not steps:
            grad_current = laid_out(grad_current, p.shape, p.strides, dtype)
        if grad_residual is not None and not residual_held:
            grad_residual = laid_out(grad_residual, p.shape, p.strides, dtype)

    def summed(values: Tensor, table: Tensor) -> Tensor:
        """[neurons] to the shape of the table, in float64."""
        if not p.neurons:
            return torch.zeros(table.shape, dtype=torch.float64, device=device)
        sizes = p.sum_sizes if table.numel() > 1 else (1, 1, p.neurons)
        return channel_sums(values, sizes, target, where).view(table.shape)

    grad_threshold = grad_tau = sums = None
    if sum_threshold is not None and threshold is not None:
        grad_threshold = summed(sum_threshold, threshold).to(threshold.dtype)
    if sum_tau is not None and tau is not None:
        grad_tau = (summed(sum_tau, tau) / tau.double().square()).to(tau.dtype)
    if neuron_sums is not None:
        if p.neurons:
            sums = channel_sums(neuron_sums, p.sum_sizes, target, where)
        else:
            sums = torch.zeros(2, channels, dtype=torch.float64, device=device)
    return grad_current, grad_v0, grad_threshold, grad_tau, grad_residual, sums


def channel_sums(values: Tensor, sizes: tuple[int, int, int], target: Any, where: Any) -> Tensor:
    """Sums per channel of [neurons] or [arrays, neurons], in float64: [channels] or [arrays, channels].

    ``sizes``: before, channels and after, the neurons being laid out as [before, channels, after].
    """
    arrays = values.shape[0] if values.dim() == 2 else 1
    before, channels, after = sizes
    shape = (*values.shape[:-1], channels)
    sums = torch.empty(shape, dtype=torch.float64, device=values.device)
    size = target.channel_sum_workspace(arrays, before, channels, after) if where.on_device else 0
    workspace = torch.empty(size, dtype=torch.float64, device=values.device)
    target.channel_sum(
        where,
        DTYPE_CODES[values.dtype],
        arrays,
        before,
        channels,
        after,
        values.data_ptr(),
        sums.data_ptr(),
        workspace.data_ptr(),
    )
    return sums


def backward(*arguments: Any) -> tuple[Tensor | None, ...]:
    """The backward pass of neurons whose currents are taken as they are."""
    *others, wanted = arguments
    return run_backward(*others, wanted | CURRENT)[:4]


@torch.library.register_fake("snnfast::integrate_forward", lib=library)
def forward_shapes(
    current,
    v0,
    threshold,
    tau,
    threshold_value,
    tau_value,
    reset_value,
    flags,
    shape,
    gamma,
    beta,
    steps,
    time_dim,
    keep,
    tables=None,
    residual=None,
):
    state = state_dtype(current.dtype)
    spikes = spikes_like(current, steps, time_dim)
    one_step = torch.empty_like(spikes.select(time_dim, 0), dtype=state)
    kept = (spikes.shape[time_dim] - 1) // CHECKPOINT_INTERVAL if keep & CHECKPOINTS else 0
    return (
        spikes,
        one_step if keep & LAST else current.new_empty(0, dtype=state),
        torch.empty_like(spikes, dtype=state) if keep & POTENTIAL else current.new_empty(0, dtype=state),
        current.new_empty(kept * one_step.numel(), dtype=state),
    )


@torch.library.register_fake("snnfast::normalized_backward", lib=library)
def backward_shapes(
    grad_spikes,
    grad_v_last,
    grad_potential,
    current,
    v0,
    threshold,
    tau,
    checkpoints,
    threshold_value,
    tau_value,
    reset_value,
    flags,
    shape,
    gamma,
    beta,
    steps,
    time_dim,
    wanted,
    tables=None,
    gradient_tables=None,
    residual=None,
):
    state = state_dtype(current.dtype)
    spikes = spikes_like(current, steps, time_dim)
    one_step = spikes.select(time_dim, 0)

    def gradient(bit, like, dtype=None):
        """An empty tensor for what is not wanted; otherwise one like the given, as dense as torch makes it."""
        return torch.empty_like(like, dtype=dtype or like.dtype) if wanted & bit else current.new_empty(0, dtype=state)

    def table_gradient(table, bit):
        if table is None or not wanted & bit:
            return current.new_empty(0, dtype=state)
        return torch.empty_like(table, memory_format=torch.contiguous_format)

    held_residual = residual is not None and residual.dim() < spikes.dim()
    channels = 1 if tables is None else tables.shape[1]
    return (
        gradient(CURRENT, current) if wanted & CURRENT else current.new_empty(0),
        gradient(INITIAL, one_step, state),
        table_gradient(threshold, THRESHOLD),
        table_gradient(tau, TAU),
        torch.empty_like(one_step if held_residual else spikes) if wanted & RESIDUAL else current.new_empty(0),
        current.new_empty((2, channels) if wanted & SUMS else 0, dtype=torch.float64),
    )


@torch.library.register_fake("snnfast::integrate_backward", lib=library)
def plain_backward_shapes(*arguments):
    *others, wanted = arguments
    return backward_shapes(*others, wanted | CURRENT)[:4]


torch.library.register_fake("snnfast::normalized_forward", forward_shapes, lib=library)

# Whose dtype the outputs have, in order.
SPIKES_AND_STATES = ("current", "state", "state", "state")
integrate_forward = op("integrate_forward", forward, outputs=SPIKES_AND_STATES)
integrate_backward = op("integrate_backward", backward, 3, outputs=SPIKES_AND_STATES)
normalized_forward = op("normalized_forward", forward, outputs=SPIKES_AND_STATES)
normalized_backward = op("normalized_backward", run_backward, 3, outputs=(*SPIKES_AND_STATES, "current", "sums"))
