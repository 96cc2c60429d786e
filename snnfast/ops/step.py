"""A step of training or inference, prepared once for all the passes over its currents: how they lie in memory, what a
kernel can read of what was given, the coefficients, and the backend."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from snnfast import backends
from snnfast.backends import DTYPE_CODES, Backend, core
from snnfast.dynamics import ATTACHED, DELAY, FIRE_ON_EQUAL, INPUT_DECAYS, LATE, LEAK_GIVEN, LEAKY, SOFT, state_dtype
from snnfast.ops.layout import Plan, plan
from snnfast.ops.options import Gradients, NormalizedOptions, Options, States

__all__ = ["NO_GRADIENTS", "Step", "channel_sums", "core_surrogate", "laid_out", "prepare"]

NO_GRADIENTS = Gradients(None, None, None)


@lru_cache(maxsize=1024)
def core_dynamics(threshold: float, tau: float, reset_value: float, flags: int) -> core.Dynamics:
    """core.Dynamics of the numbers, with the coefficients of the charge (MATH.md section 1)."""
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
        late=bool(flags & LATE),
    )


@lru_cache(maxsize=256)
def core_surrogate(shape: int, gamma: float, beta: float) -> core.Surrogate:
    return core.Surrogate(shape=shape, gamma=gamma, beta=beta)


def channels_of_tables(threshold: Tensor | None, tau: Tensor | None) -> int:
    """How many values the tables have: one stands for all channels, the other then sets their number."""
    lengths = [t.numel() for t in (threshold, tau) if t is not None]
    return max(lengths) if all(lengths) else 0


def coefficients_of(
    threshold: Tensor | None,
    tau: Tensor | None,
    options: Options | NormalizedOptions,
    channels: int,
    dtype: torch.dtype,
) -> core.ChannelCoefficients:
    """Thresholds and time constants (or the leak's factors) given as tensors, as what the core reads."""

    def table(values: Tensor) -> Tensor:
        return values.to(dtype).expand(channels).contiguous()

    leak = gain = drive = None
    flags, reset_value = options.kinds[0], options.neuron[2]
    if tau is not None and flags & LEAK_GIVEN:
        leak = table(tau)
    elif tau is not None:
        wide = tau.double()
        inverse = wide.reciprocal()
        leak = table(1 - inverse)
        if flags & INPUT_DECAYS:
            gain = table(inverse)
        if reset_value and not flags & SOFT:
            # A number divided by a tensor would be the number times its reciprocal, rounded twice.
            drive = table(torch.full_like(wide, reset_value) / wide)
    return core.ChannelCoefficients(
        threshold=None if threshold is None else table(threshold), leak=leak, gain=gain, drive=drive
    )


def laid_out(tensor: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The copy of a tensor that no kernel can read as it is. The one place where snnfast copies what it is given."""
    return torch.empty_strided(shape, strides, dtype=dtype, device=tensor.device).copy_(tensor)


@dataclass(slots=True, eq=False)
class Step:
    """What every pass over the same currents shares. All tensors can be read by a kernel."""

    plan: Plan
    backend: Backend
    dtype: torch.dtype  # of currents and spikes
    state: torch.dtype
    dynamics: core.Dynamics
    coefficients: core.ChannelCoefficients | None
    current: Tensor
    residual: Tensor | None
    initial: Tensor | None
    gradients: Gradients

    @property
    def code(self) -> int:
        """The dtype's, for the core."""
        return DTYPE_CODES[self.dtype]

    def empty(self, held: bool = False, state: bool = False) -> Tensor:
        """A tensor to be written by a kernel: with time or, where what it belongs to is held, without."""
        p = self.plan
        shape, strides = (p.state_shape, p.state_strides) if held else (p.shape, p.run_strides)
        if state:
            return torch.empty_strided(shape, strides, dtype=self.state, device=self.current.device)
        return self.current.new_empty_strided(shape, strides)

    def per_neuron(self, *arrays: int) -> Tensor:
        return torch.empty(*arrays, self.plan.neurons, dtype=self.state, device=self.current.device)

    def given_back(self, written: Tensor, held: bool = False) -> Tensor:
        """What a kernel wrote, in the memory format that the user gets."""
        p = self.plan
        if held or p.run_strides == p.strides:
            return written
        return laid_out(written, p.shape, p.strides, written.dtype)

    def sums(self) -> tuple[Tensor, Tensor]:
        """[2, C] in float64, for a pass that sums per channel, and the memory that it needs meanwhile."""
        device = self.current.device
        sums = torch.empty(2, self.plan.sum_sizes[1], dtype=torch.float64, device=device)
        if not self.plan.neurons:
            return sums.zero_(), sums
        size = self.backend.sums_workspace(self.code, self.plan.layout)
        return sums, torch.empty(size, dtype=torch.uint8, device=device)

    def table_gradient(self, values: Tensor, table: Tensor) -> Tensor:
        """[neurons] summed to the shape of a threshold or tau, in float64."""
        if not self.plan.neurons:
            return torch.zeros(table.shape, dtype=torch.float64, device=values.device)
        sizes = self.plan.sum_sizes if table.numel() > 1 else (1, 1, self.plan.neurons)
        return channel_sums(values.unsqueeze(0), sizes, self.backend).view(table.shape)


def prepare(
    current: Tensor,
    residual: Tensor | None,
    states: States,
    options: Options | NormalizedOptions,
    channels: int | None = None,
    gradients: Gradients = NO_GRADIENTS,
) -> Step:
    """Plans a call and makes everything that it is given readable, copying only what no kernel can read.

    Args:
        channels: of the normalization; None without one.
        gradients: what a backward pass is sent.
    """
    state, dtype = state_dtype(current.dtype), current.dtype
    v0, threshold, tau = states
    grad_spikes, grad_last, grad_potential = gradients
    tables = threshold is not None or tau is not None
    if channels is None:
        channels = channels_of_tables(threshold, tau) if tables else 1
    held = options.steps is not None
    residual_held = residual is not None and held and residual.dim() == current.dim()
    p = plan(
        current.shape,
        current.stride(),
        options.steps,
        options.time_dim,
        channels,
        (
            None if grad_spikes is None else grad_spikes.stride(),
            None if grad_potential is None else grad_potential.stride(),
            None if residual is None else residual.stride(),
        ),
        residual_held,
    )
    if p.neurons:
        if p.copy_current:
            current = with_or_without_time(current, p, held, dtype)
        if residual is not None and p.copy_residual:
            residual = with_or_without_time(residual, p, residual_held, dtype)
        if p.copy_grad_spikes or p.copy_grad_potential or grad_last is not None:
            gradients = readable_gradients(gradients, p, dtype, state)
        v0 = None if v0 is None else as_state(v0, p, state)
    threshold_value, tau_value, reset_value, _, _ = options.neuron
    return Step(
        plan=p,
        backend=backends.of(current),
        dtype=dtype,
        state=state,
        dynamics=core_dynamics(threshold_value, tau_value, reset_value, options.kinds[0]),
        coefficients=coefficients_of(threshold, tau, options, channels, state) if tables else None,
        current=current,
        residual=residual,
        initial=v0,
        gradients=gradients,
    )


def with_or_without_time(tensor: Tensor, p: Plan, held: bool, dtype: torch.dtype) -> Tensor:
    return laid_out(tensor, *((p.state_shape, p.state_strides) if held else (p.shape, p.run_strides)), dtype)


def as_state(tensor: Tensor, p: Plan, dtype: torch.dtype) -> Tensor:
    """A tensor without time, dense in the plan's memory order and in the state's dtype; copied only if it is not."""
    tensor = tensor.detach()
    if tensor.dtype == dtype and tensor.stride() == p.state_strides:
        return tensor
    return laid_out(tensor, p.state_shape, p.state_strides, dtype)


def readable_gradients(gradients: Gradients, p: Plan, dtype: torch.dtype, state: torch.dtype) -> Gradients:
    spikes, v_last, potential = gradients
    if spikes is not None and p.copy_grad_spikes:
        spikes = laid_out(spikes, p.shape, p.run_strides, dtype)
    if potential is not None and p.copy_grad_potential:
        potential = laid_out(potential, p.shape, p.run_strides, state)
    return Gradients(spikes, None if v_last is None else as_state(v_last, p, state), potential)


def channel_sums(values: Tensor, sizes: tuple[int, int, int], backend: Backend) -> Tensor:
    """Sums per channel of [arrays, neurons], in float64: [arrays, channels].

    ``sizes``: before, channels and after, the neurons being laid out as [before, channels, after].
    """
    before, channels, after = sizes
    arrays = values.shape[0]
    sums = torch.empty(arrays, channels, dtype=torch.float64, device=values.device)
    size = backend.channel_sum_workspace(arrays, before, channels, after)
    backend.channel_sum(
        core.ChannelSumCall(
            dtype=DTYPE_CODES[values.dtype],
            arrays=arrays,
            before=before,
            channels=channels,
            after=after,
            values=values,
            sums=sums,
            workspace=torch.empty(size, dtype=torch.float64, device=values.device) if size else None,
        )
    )
    return sums
