"""The two operations as torch sees them: schemas, shapes for the compiler, and the calls of the compiled core.

``snnfast::integrate_forward`` and ``snnfast::integrate_backward`` are opaque to torch.compile and know no autograd
(functional.py wraps them). They mutate nothing and return a fixed number of tensors; one that was not asked for is
empty. Registered with ``Library.define`` and ``impl``, which cost less per call than ``custom_op``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import _backend
from ._backend import core
from ._layout import Plan, plan, spikes_like
from .dynamics import ATTACHED, DELAY, FIRE_ON_EQUAL, INPUT_DECAYS, LEAKY, SOFT, state_dtype

CHECKPOINT_INTERVAL: int = core.checkpoint_interval
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

# Bits of `keep` (forward) and `wanted` (backward): the optional outputs.
LAST, POTENTIAL, CHECKPOINTS = 1, 2, 4
INITIAL, THRESHOLD, TAU = 1, 2, 4

library = torch.library.Library("snnfast", "DEF")
library.define(
    "integrate_forward(Tensor current, Tensor? v0, Tensor? threshold, Tensor? tau, float threshold_value, "
    "float tau_value, float reset_value, int flags, SymInt steps, int time_dim, int keep) "
    "-> (Tensor spikes, Tensor v_last, Tensor potential, Tensor checkpoints)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "integrate_backward(Tensor? grad_spikes, Tensor? grad_v_last, Tensor? grad_potential, Tensor current, Tensor? v0, "
    "Tensor? threshold, Tensor? tau, Tensor checkpoints, float threshold_value, float tau_value, float reset_value, "
    "int flags, int shape, float gamma, float beta, SymInt steps, int time_dim, int wanted) "
    "-> (Tensor grad_current, Tensor grad_v0, Tensor grad_threshold, Tensor grad_tau)",
    tags=(torch.Tag.pt2_compliant_tag,),
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
            inverse = tau.double().reciprocal()
            tables[1] = (1 - inverse).to(dtype)
            if flags & INPUT_DECAYS:
                tables[2] = inverse.to(dtype)
            if reset_value and not flags & SOFT:
                tables[3] = (reset_value * inverse).to(dtype)
        # A single value stands for all channels; the others then set their number.
        self.channels = max((t.numel() for t in tables if t is not None), default=1)
        self.kept = [None if t is None else t.expand(self.channels).contiguous() for t in tables]
        self.addresses = tuple(0 if t is None else t.data_ptr() for t in self.kept)


NO_TABLES = (0, 0, 0, 0)


@lru_cache(maxsize=256)
def nothing(output: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The empty tensor that stands for an output nobody asked for: one for ever, since making one costs a microsecond.

    Outputs of one call are different tensors, and none may be one that only inference mode can use.
    """
    with torch.inference_mode(False):
        return torch.empty(0, dtype=dtype, device=device)


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
    steps: int,
    time_dim: int,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    state = state_dtype(current.dtype)
    tables = None
    if threshold is not None or tau is not None:
        tables = Tables(threshold, tau, reset_value, flags, state)
    p = plan(current.shape, current.stride(), steps, time_dim, tables.channels if tables else 1)
    empty_strided, device, dtype = torch.empty_strided, current.device, current.dtype

    spikes = empty_strided(p.shape, p.run_strides, dtype=dtype, device=device)
    last = potential = checkpoints = None
    if keep & LAST:
        last = empty_strided(p.state_shape, p.state_strides, dtype=state, device=device)
    if keep & POTENTIAL:
        potential = empty_strided(p.shape, p.run_strides, dtype=state, device=device)
    if keep & CHECKPOINTS and p.steps > CHECKPOINT_INTERVAL:
        checkpoints = torch.empty(
            (p.steps - 1) // CHECKPOINT_INTERVAL * p.neurons, dtype=state, device=device
        )
    if p.neurons:
        x = current
        if p.copy_current:
            x = laid_out(current, *((p.state_shape, p.state_strides) if steps else (p.shape, p.run_strides)), dtype)
        start = None if v0 is None else as_state(v0, p, state)
        target, where = _backend.target(current)
        target.forward(
            where,
            DTYPE_CODES[dtype],
            p.layout,
            core_dynamics(threshold_value, tau_value, reset_value, flags),
            tables.addresses if tables else NO_TABLES,
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
    return (
        spikes,
        nothing(1, state, device) if last is None else last,
        nothing(2, state, device) if potential is None else potential,
        nothing(3, state, device) if checkpoints is None else checkpoints,
    )


def backward(
    grad_spikes: Tensor | None,
    grad_v_last: Tensor | None,
    grad_potential: Tensor | None,
    current: Tensor,
    v0: Tensor | None,
    threshold: Tensor | None,
    tau: Tensor | None,
    checkpoints: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    state = state_dtype(current.dtype)
    tables = None
    if threshold is not None or tau is not None:
        tables = Tables(threshold, tau, reset_value, flags, state)
    p = plan(
        current.shape,
        current.stride(),
        steps,
        time_dim,
        tables.channels if tables else 1,
        None if grad_spikes is None else grad_spikes.stride(),
        None if grad_potential is None else grad_potential.stride(),
    )
    empty_strided, device, dtype = torch.empty_strided, current.device, current.dtype

    if steps:
        grad_current = empty_strided(p.state_shape, p.state_strides, dtype=dtype, device=device)
    else:
        grad_current = empty_strided(p.shape, p.run_strides, dtype=dtype, device=device)
    grad_v0 = sum_threshold = sum_tau = None
    if wanted & INITIAL:
        grad_v0 = empty_strided(p.state_shape, p.state_strides, dtype=state, device=device)
    if wanted & THRESHOLD:
        sum_threshold = torch.empty(p.neurons, dtype=state, device=device)
    if wanted & TAU:
        sum_tau = torch.empty(p.neurons, dtype=state, device=device)
    target, where = _backend.target(current)
    if p.neurons:
        x = current
        if p.copy_current:
            x = laid_out(current, *((p.state_shape, p.state_strides) if steps else (p.shape, p.run_strides)), dtype)
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
            shape,
            gamma,
            beta,
            x.data_ptr(),
            0 if start is None else start.data_ptr(),
            checkpoints.data_ptr(),
            0 if grad_spikes is None else grad_spikes.data_ptr(),
            0 if grad_last is None else grad_last.data_ptr(),
            0 if grad_potential is None else grad_potential.data_ptr(),
            grad_current.data_ptr(),
            0 if grad_v0 is None else grad_v0.data_ptr(),
            0 if sum_threshold is None else sum_threshold.data_ptr(),
            0 if sum_tau is None else sum_tau.data_ptr(),
        )
    if not steps and p.run_strides != p.strides:
        grad_current = laid_out(grad_current, p.shape, p.strides, dtype)

    def summed(values: Tensor, table: Tensor) -> Tensor:
        """[neurons] to the shape of the table, in float64."""
        if not p.neurons:
            return torch.zeros(table.shape, dtype=torch.float64, device=device)
        before, channels, after = p.sum_sizes if table.numel() > 1 else (1, 1, p.neurons)
        sums = torch.empty(channels, dtype=torch.float64, device=device)
        size = target.channel_sum_workspace(before, channels, after) if where.on_device else 0
        workspace = torch.empty(size, dtype=torch.float64, device=device)
        target.channel_sum(
            where, DTYPE_CODES[state], before, channels, after, values.data_ptr(), sums.data_ptr(), workspace.data_ptr()
        )
        return sums.view(table.shape)

    grad_threshold = grad_tau = None
    if sum_threshold is not None and threshold is not None:
        grad_threshold = summed(sum_threshold, threshold).to(threshold.dtype)
    if sum_tau is not None and tau is not None:
        grad_tau = (summed(sum_tau, tau) / tau.double().square()).to(tau.dtype)
    return (
        grad_current,
        nothing(1, state, device) if grad_v0 is None else grad_v0,
        nothing(2, state, device) if grad_threshold is None else grad_threshold,
        nothing(3, state, device) if grad_tau is None else grad_tau,
    )


@torch.library.register_fake("snnfast::integrate_forward", lib=library)
def forward_shapes(
    current, v0, threshold, tau, threshold_value, tau_value, reset_value, flags, steps, time_dim, keep
):  # fmt: skip
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


@torch.library.register_fake("snnfast::integrate_backward", lib=library)
def backward_shapes(
    grad_spikes, grad_v_last, grad_potential, current, v0, threshold, tau, checkpoints, threshold_value, tau_value,
    reset_value, flags, shape, gamma, beta, steps, time_dim, wanted
):  # fmt: skip
    state = state_dtype(current.dtype)
    grad_v0 = current.new_empty(0, dtype=state)
    if wanted & INITIAL:
        grad_v0 = torch.empty_like(spikes_like(current, steps, time_dim).select(time_dim, 0), dtype=state)

    def table_gradient(table, bit):
        if table is None or not wanted & bit:
            return current.new_empty(0, dtype=state)
        return torch.empty_like(table, memory_format=torch.contiguous_format)

    return (
        torch.empty_like(current),
        grad_v0,
        table_gradient(threshold, THRESHOLD),
        table_gradient(tau, TAU),
    )


for key in ("CPU", "CUDA"):
    library.impl("integrate_forward", forward, key)
    library.impl("integrate_backward", backward, key)
for name in ("integrate_forward", "integrate_backward"):
    # No autograd of their own. Torch's stand-in for that would mark the outputs, the shared empty ones included.
    library.impl(name, torch.library.fallthrough_kernel, "Autograd")

integrate_forward = torch.ops.snnfast.integrate_forward.default
integrate_backward = torch.ops.snnfast.integrate_backward.default
