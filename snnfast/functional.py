"""Neurons as functions: every argument given, initial potential in, final potential out, no state kept."""

from __future__ import annotations

from typing import Any, Literal, Never, Unpack, overload

from torch import Tensor, fx

from snnfast._arguments import hints
from snnfast._arguments.checks import flag
from snnfast.autograd.integrate import run
from snnfast.autograd.normalize import run_normalized
from snnfast.dynamics import LeakOptions, SharedOptions, given_tau, make_dynamics
from snnfast.normalization import Affine, Normalization, check_eps, check_momentum, resolve_group
from snnfast.ops.options import LAST, POTENTIAL, states_of
from snnfast.surrogate import Surrogate

__all__ = ["batch_norm_integrate_and_fire", "integrate_and_fire", "leaky_integrate_and_fire"]


# One node each of a torch.fx graph, called as snnfast.functional.…
for _name in __all__:
    fx.wrap(_name)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hints.of_name(name, __all__)}", name=name)


def _as_tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


# What the overloads take, for a type checker; the functions themselves list it, with defaults.


class NeuronOptions(SharedOptions, total=False):
    surrogate: Surrogate | None


class LeakyNeuronOptions(NeuronOptions, LeakOptions, total=False):
    pass


class BatchNormOptions(NeuronOptions, total=False):
    tau: float | Tensor | None
    decay_input: bool
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float
    eps: float
    process_group: Any


@overload
def integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    return_potential: Literal[False] = False,
    **options: Unpack[NeuronOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def integrate_and_fire(
    current: Tensor, v0: Tensor | None = None, *, return_potential: Literal[True], **options: Unpack[NeuronOptions]
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def integrate_and_fire(
    current: Tensor, v0: Tensor | None = None, *, return_potential: bool, **options: Unpack[NeuronOptions]
) -> tuple[Tensor, ...]: ...
def integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    threshold: float | Tensor = 1.0,
    reset: str = "hard",
    reset_value: float = 0.0,
    surrogate: Surrogate | None = None,
    detach_reset: bool | None = None,
    fire_on_equal: bool = False,
    delay: bool = False,
    time_dim: int = 0,
    steps: int | None = None,
    return_potential: bool = False,
    **unknown: Never,
) -> tuple[Tensor, ...]:
    """Integrate-and-fire neurons over all time steps (the paper's equations 1 and 2; backward: 8 and 9).

    For every neuron, with v the potential between steps::

        h_t = v_{t-1} + x_t          s_t = h_t > threshold
        v_t = reset_value where s_t else h_t        (reset="hard")
        v_t = h_t - threshold where s_t else h_t    (reset="soft")

    Args:
        current: x, [T, B, ...] (or [B, T, ...] with ``time_dim=1``), float32, float64, float16 or bfloat16; with
            ``steps=T`` a [B, ...] current held for T steps, of which no [T, ...] copy is made.
        v0: initial potential, shaped like one step; converted to the state's dtype. Default: reset_value with the hard
            reset, 0 with the soft one.
        threshold: a number >= 0, a tensor of one element, or one value per channel (1-d, along the dimension after
            time and batch). A tensor's values are not checked.
        reset: "hard" or "soft".
        reset_value: potential after a spike with the hard reset; must be 0 with the soft one.
        surrogate: a shape from :mod:`snnfast.surrogate`; default ``FastSigmoid(gamma=10.0, beta=1.0)``.
        detach_reset: whether the gradient ignores the reset. Default, the paper's rule: True for the hard reset,
            False for the soft one.
        fire_on_equal: fire at h >= threshold (as SpikingJelly does) instead of >.
        delay: emit every spike one step later; the first step emits none, the last step's spike is lost.
        time_dim: 0 or 1.
        steps: number of steps that the current is held for.
        return_potential: also return h, the charged potentials before the reset.

    Returns:
        ``(spikes, v_last)`` or ``(spikes, v_last, potential)``. Spikes: zeros and ones, with the current's shape, dtype
        and memory format ([T, B, ...] or [B, T, ...] where it was held). v_last: [B, ...], the potential after the
        last step. potential: shaped like the spikes. Both in the state's dtype: float64 for float64 currents, else
        float32. All are differentiable once.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: a device without kernels.
        NotImplementedError: inside torch.func transforms or forward-mode differentiation; and from backward, when a
            second derivative is asked for.
    """
    if unknown:
        raise hints.refuse("integrate_and_fire", integrate_and_fire, unknown)
    dynamics = make_dynamics(
        "integrate_and_fire",
        threshold=threshold,
        reset=reset,
        reset_value=reset_value,
        surrogate=surrogate,
        detach_reset=detach_reset,
        fire_on_equal=fire_on_equal,
        delay=delay,
    )
    wanted = LAST | POTENTIAL * flag("return_potential", return_potential)
    outputs = run(dynamics, current, states_of(v0, _as_tensor(threshold), None), steps, time_dim, wanted)
    return outputs if return_potential else outputs[:2]


@overload
def leaky_integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    return_potential: Literal[False] = False,
    **options: Unpack[LeakyNeuronOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def leaky_integrate_and_fire(
    current: Tensor, v0: Tensor | None = None, *, return_potential: Literal[True], **options: Unpack[LeakyNeuronOptions]
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def leaky_integrate_and_fire(
    current: Tensor, v0: Tensor | None = None, *, return_potential: bool, **options: Unpack[LeakyNeuronOptions]
) -> tuple[Tensor, ...]: ...
def leaky_integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    tau: float | Tensor = 2.0,
    decay_input: bool = True,
    threshold: float | Tensor = 1.0,
    reset: str = "hard",
    reset_value: float = 0.0,
    surrogate: Surrogate | None = None,
    detach_reset: bool | None = None,
    fire_on_equal: bool = False,
    delay: bool = False,
    time_dim: int = 0,
    steps: int | None = None,
    return_potential: bool = False,
    **unknown: Never,
) -> tuple[Tensor, ...]:
    """Leaky integrate-and-fire neurons over all time steps.

    As :func:`integrate_and_fire`, charging with a leak towards the rest value r (reset_value with the hard reset, 0
    with the soft one)::

        h_t = (1 - 1/tau) v_{t-1} + x_t / tau + r / tau       (decay_input=True)
        h_t = (1 - 1/tau) v_{t-1} + x_t + r / tau             (decay_input=False)

    Args:
        tau: time constant in steps: a number > 1, a tensor of one element, or one value per channel. A tensor's values
            are not checked.
        decay_input: whether the current is divided by tau too.

    The other arguments, the returned tensors and the errors are those of :func:`integrate_and_fire`.
    """
    if unknown:
        raise hints.refuse("leaky_integrate_and_fire", leaky_integrate_and_fire, unknown)
    dynamics = make_dynamics(
        "leaky_integrate_and_fire",
        threshold=threshold,
        tau=given_tau(tau),
        decay_input=decay_input,
        reset=reset,
        reset_value=reset_value,
        surrogate=surrogate,
        detach_reset=detach_reset,
        fire_on_equal=fire_on_equal,
        delay=delay,
    )
    wanted = LAST | POTENTIAL * flag("return_potential", return_potential)
    outputs = run(dynamics, current, states_of(v0, _as_tensor(threshold), _as_tensor(tau)), steps, time_dim, wanted)
    return outputs if return_potential else outputs[:2]


@overload
def batch_norm_integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    return_potential: Literal[False] = False,
    **options: Unpack[BatchNormOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def batch_norm_integrate_and_fire(
    current: Tensor, v0: Tensor | None = None, *, return_potential: Literal[True], **options: Unpack[BatchNormOptions]
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def batch_norm_integrate_and_fire(
    current: Tensor, v0: Tensor | None = None, *, return_potential: bool, **options: Unpack[BatchNormOptions]
) -> tuple[Tensor, ...]: ...
def batch_norm_integrate_and_fire(
    current: Tensor,
    v0: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
    tau: float | Tensor | None = None,
    decay_input: bool = True,
    threshold: float | Tensor = 1.0,
    reset: str = "hard",
    reset_value: float = 0.0,
    surrogate: Surrogate | None = None,
    detach_reset: bool | None = None,
    fire_on_equal: bool = False,
    delay: bool = False,
    time_dim: int = 0,
    steps: int | None = None,
    return_potential: bool = False,
    **unknown: Never,
) -> tuple[Tensor, ...]:
    """Batch normalization of the currents (the paper's section 2.6) and the neurons that integrate them, in one.

    For every channel, over time, batch and space, mean μ and biased variance σ²; the neurons integrate::

        I = (x - μ) * weight / sqrt(σ² + eps) + bias  (+ residual)

    as :func:`integrate_and_fire` does, or with ``tau`` as :func:`leaky_integrate_and_fire`. The arithmetic is MATH.md's
    section 4; nothing as large as the current is kept for backward but the current, the residual, and, beyond 16
    steps, the potential of every 16th.

    Args:
        current: x, [T, B, C, ...] ([B, T, C, ...] with ``time_dim=1``); with ``steps=T`` a [B, C, ...] current held
            for T steps, whose statistics are over its own values.
        v0: initial potential, shaped like one step.
        residual: a current that is added after the normalization: the output's shape (where the current is held, the
            current's shape too), the current's dtype and device.
        weight, bias: [C], floating; None is 1 and 0.
        running_mean, running_var: [C], floating: in training updated in place, with the unbiased variance; in
            evaluation what is normalized by. None in training: nothing is tracked.
        training: normalize by the batch's own statistics.
        momentum: of the running statistics, in [0, 1].
        eps: added to the variance, not negative.
        process_group: statistics over all processes of this torch.distributed group, or "world".
        tau: None for neurons without leak, otherwise as in :func:`leaky_integrate_and_fire`.

    The other arguments and what is returned are those of :func:`integrate_and_fire`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range; the message names it. In
            training also where a channel has one value only.
        RuntimeError: a device without kernels.
        NotImplementedError: as :func:`integrate_and_fire`.
    """
    if unknown:
        raise hints.refuse("batch_norm_integrate_and_fire", batch_norm_integrate_and_fire, unknown)
    dynamics = make_dynamics(
        "batch_norm_integrate_and_fire",
        threshold=threshold,
        tau=tau,
        decay_input=decay_input,
        reset=reset,
        reset_value=reset_value,
        surrogate=surrogate,
        detach_reset=detach_reset,
        fire_on_equal=fire_on_equal,
        delay=delay,
    )
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must be given both or neither")
    if not flag("training", training) and running_mean is None:
        raise ValueError("running_mean and running_var must be given where training=False")
    normalization = Normalization(
        check_eps(eps),
        training,
        Affine(weight, bias, running_mean, running_var),
        resolve_group(process_group) if training else None,
        check_momentum(momentum),
    )
    states = states_of(v0, _as_tensor(threshold), _as_tensor(tau))
    wanted = LAST | POTENTIAL * flag("return_potential", return_potential)
    outputs = run_normalized(dynamics, normalization, current, residual, states, steps, time_dim, wanted)
    return outputs if return_potential else outputs[:2]
