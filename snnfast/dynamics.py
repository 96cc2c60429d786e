"""The options of a neuron, checked once and kept together: what it does at every step, whatever runs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict, TypeGuard

import torch
from torch import Tensor

from snnfast._arguments import hints
from snnfast._arguments.checks import LARGEST_FLOAT32, flag, integer, number, number_within
from snnfast._arguments.checks import dense as check_dense
from snnfast.surrogate import SHAPES, FastSigmoid, Surrogate

RESETS = ("hard", "soft")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# The bits of `Dynamics.flags`; the ops hand them to the core.
LEAKY, SOFT, ATTACHED, FIRE_ON_EQUAL, DELAY, INPUT_DECAYS, LATE, LEAK_GIVEN = (1 << bit for bit in range(8))


class SharedOptions(TypedDict, total=False):
    """The options of the neurons as functions, for a type checker: what overloads have in common."""

    threshold: float | Tensor
    reset: str
    reset_value: float
    detach_reset: bool | None
    fire_on_equal: bool
    delay: bool
    time_dim: int
    steps: int | None


class LeakOptions(TypedDict, total=False):
    tau: float | Tensor
    decay_input: bool


@dataclass(frozen=True)
class Dynamics:
    """One neuron's dynamics (MATH.md section 1) and surrogate. Build it with :func:`make_dynamics`.

    ``threshold`` and ``tau`` are 0.0 where the call gives a tensor for them; with ``leak_given``, tau's is λ itself.
    """

    name: str  # of the layer or function, for messages
    threshold: float
    tau: float
    reset_value: float
    flags: int
    surrogate: Any  # one of the shapes; in sf.reference also any callable
    # What every op takes (snnfast.ops.options): threshold, tau, reset value, gamma, beta; flags and the shape's code.
    neuron: tuple[float, float, float, float, float] = field(init=False, repr=False, compare=False)
    kinds: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        s = self.surrogate
        code, gamma, beta = (s.code, s.sharpness, s.beta) if is_shape(s) else (-1, 0.0, 0.0)
        object.__setattr__(self, "neuron", (self.threshold, self.tau, self.reset_value, gamma, beta))
        object.__setattr__(self, "kinds", (self.flags, code))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What is made of the others is made again: networks that version 0.1 pickled whole have other names for it.
        for option in fields(self):
            if option.init:
                object.__setattr__(self, option.name, state[option.name])
        self.__post_init__()

    @property
    def leaky(self) -> bool:
        return bool(self.flags & LEAKY)

    @property
    def soft(self) -> bool:
        return bool(self.flags & SOFT)

    @property
    def attached(self) -> bool:
        return bool(self.flags & ATTACHED)

    @property
    def fire_on_equal(self) -> bool:
        return bool(self.flags & FIRE_ON_EQUAL)

    @property
    def delay(self) -> bool:
        return bool(self.flags & DELAY)

    @property
    def input_decays(self) -> bool:
        return bool(self.flags & INPUT_DECAYS)

    @property
    def late(self) -> bool:
        return bool(self.flags & LATE)

    @property
    def leak_given(self) -> bool:
        return bool(self.flags & LEAK_GIVEN)


def check_threshold(value: float | Tensor) -> float:
    """The threshold's number, 0.0 for a tensor (whose values are not read: that would wait for the device)."""
    if isinstance(value, Tensor):
        return 0.0
    return number_within("threshold", value, least=0, infinite=True, allowed="a number or a tensor")


def check_tau(value: float | Tensor) -> float:
    """The time constant's number, 0.0 for a tensor."""
    if isinstance(value, Tensor):
        return 0.0
    tau = number("tau", value, "a number or a tensor")
    if not tau > 1:
        raise ValueError(f"tau must be greater than 1 step, got {tau}{hints.of_tau(tau)}")
    return tau


def given_tau(value: float | Tensor | None) -> float | Tensor:
    """The tau of neurons that leak. :func:`make_dynamics` would take None for neurons that do not."""
    if value is None:
        raise TypeError("tau must be a number or a tensor, got NoneType")
    return value


def is_shape(value: object) -> TypeGuard[Surrogate]:
    """Whether the kernels know a surrogate. They do not know subclasses, whose derivative may be any."""
    return SHAPES.get(type(value).__name__) is type(value)


def check_surrogate(value: object, *, custom: bool, name: str) -> Surrogate | Callable[[Tensor], Tensor]:
    if value is None:
        return FastSigmoid()
    if is_shape(value):
        return value
    if isinstance(value, type) and issubclass(value, Surrogate):
        raise TypeError(f"surrogate must be an instance, got the class {value.__name__}: write {value.__name__}()")
    if callable(value) or (isinstance(value, Surrogate) and type(value).derivative is not Surrogate.derivative):
        if custom:
            return value
        what = getattr(value, "__name__", type(value).__name__)
        raise TypeError(
            f"surrogate: {name} runs compiled kernels and cannot call {what!r}; allowed are the shapes of "
            f"snnfast.surrogate (a custom callable runs in snnfast.reference only){hints.of_surrogate(value)}"
        )
    raise TypeError(
        f"surrogate must be one of the shapes of snnfast.surrogate, got {value!r}{hints.of_surrogate(value)}"
    )


def make_dynamics(
    name: str,
    *,
    threshold: float | Tensor = 1.0,
    tau: float | Tensor | None = None,
    decay_input: bool = True,
    reset: str = "hard",
    reset_value: float = 0.0,
    surrogate: object = None,
    detach_reset: bool | None = None,
    fire_on_equal: bool = False,
    delay: bool = False,
    late: bool = False,
    leak_given: bool = False,
    custom_surrogate: bool = False,
) -> Dynamics:
    """Checks the options and packs them. ``tau=None`` is a neuron without leak.

    Two options are those of snnTorch's neurons alone (snnfast.compat): ``late``, the soft reset that comes with the
    next charge and is detached, and ``leak_given``, a tensor of factors λ in the place of one of time constants.

    Raises:
        TypeError: an option of the wrong type, or a custom surrogate where kernels run.
        ValueError: an option out of its range.
    """
    if not isinstance(reset, str) or reset not in RESETS:
        raise ValueError(f"reset must be one of {', '.join(map(repr, RESETS))}, got {reset!r}{hints.of_reset(reset)}")
    soft = reset == "soft"
    value = number_within("reset_value", reset_value, least=-LARGEST_FLOAT32, most=LARGEST_FLOAT32)
    if soft and value != 0:
        raise ValueError(f"reset_value must be 0 with reset='soft', which subtracts the threshold; got {value}")
    # The paper's rule: "we take the gradient of spikes to be zero" at a hard reset; a soft one is differentiated.
    attached = soft if detach_reset is None else not flag("detach_reset", detach_reset)
    limit = check_threshold(threshold)
    # An infinite threshold is reached by nothing, an infinite potential included: infinity minus itself is NaN.
    fire_on_equal = flag("fire_on_equal", fire_on_equal) and limit != math.inf
    flags = (
        LEAKY * (tau is not None)
        | SOFT * soft
        | ATTACHED * attached
        | FIRE_ON_EQUAL * fire_on_equal
        | DELAY * flag("delay", delay)
        | INPUT_DECAYS * (flag("decay_input", decay_input) and tau is not None)
        | LATE * late
        | LEAK_GIVEN * leak_given
    )
    return Dynamics(
        name=name,
        threshold=limit,
        tau=0.0 if tau is None else check_tau(tau),
        reset_value=value,
        flags=flags,
        surrogate=check_surrogate(surrogate, custom=custom_surrogate, name=name),
    )


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a neuron computes and keeps its potential in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_time_dim(time_dim: object) -> None:
    # A symbolic number stands for an int while torch.compile traces (whose torch 2.6 knows no `int | SymInt`).
    if isinstance(time_dim, bool) or not isinstance(time_dim, (int, torch.SymInt)) or time_dim not in (0, 1):
        raise ValueError(f"time_dim must be 0 or 1, got {time_dim!r}")


def not_a_tensor(what: str, value: object) -> TypeError:
    return TypeError(f"{what} must be a tensor, got {type(value).__name__}{hints.to_tensor(what, value)}")


def check_dtype(what: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{what} must be float32, float64, float16 or bfloat16, got {tensor.dtype}{hints.to_floating(what, tensor)}"
        )


def check_call(
    name: str,
    current: Tensor,
    v0: Tensor | None,
    threshold: Tensor | None,
    tau: Tensor | None,
    steps: int | None,
    time_dim: int,
) -> None:
    """Checks what a call is given, reading shapes, dtypes and devices only.

    Raises:
        TypeError: not a tensor, or a dtype that is not allowed.
        ValueError: a shape, device, number of steps or time_dim that is not allowed.
        RuntimeError: a device that snnfast has no kernels for.
    """
    if not isinstance(current, Tensor):
        raise not_a_tensor("current", current)
    if current.dtype not in DTYPES:
        check_dtype("current", current)
    check_dense("current", current)
    check_time_dim(time_dim)
    if steps is None:
        if current.dim() <= time_dim:
            what = "[T, B, ...]" if time_dim == 0 else "[B, T, ...]"
            raise ValueError(
                f"current must have the shape {what} (time_dim={time_dim}), got {list(current.shape)}; a current "
                "without time axis, [B, ...], is held by steps=T"
            )
        if current.shape[time_dim] == 0:
            raise ValueError(f"current has 0 time steps in dimension {time_dim} of {list(current.shape)}; at least 1")
    else:
        if isinstance(steps, Tensor):
            raise TypeError(
                "steps must be an int, got Tensor; a potential to start from is v0 of snnfast.functional's functions, "
                "or carried by a layer with carry_state=True"
            )
        integer("steps", steps, least=1)
        if current.dim() == 0:
            raise ValueError("current held over steps must have the shape [B, ...], got a 0-d tensor")
    if v0 is None and threshold is None and tau is None:
        return
    sizes = list(current.shape)  # [B, ...]
    if steps is None:
        sizes = [*sizes[:time_dim], *sizes[time_dim + 1 :]]
    for what, table in (("threshold", threshold), ("tau", tau)):
        if table is not None:
            check_table(what, table, current, sizes)
    if v0 is not None:
        if not isinstance(v0, Tensor):
            raise not_a_tensor("v0", v0)
        if v0.dtype not in DTYPES:
            check_dtype("v0", v0)
        check_dense("v0", v0)
        if list(v0.shape) != sizes:
            raise ValueError(
                f"v0 must have the shape of one step, {sizes}, got {list(v0.shape)}"
                + (" (a carried state: call reset_state() before a batch of another shape)" if "IF" in name else "")
            )
        if v0.device != current.device:
            raise ValueError(f"v0 is on {v0.device}, current on {current.device}; both must be on one device")


def check_table(what: str, table: Tensor, current: Tensor, sizes: list[int]) -> None:
    """A threshold or tau given as a tensor: one element, 0-d or 1-d, or one value per channel."""
    check_dtype(what, table)
    check_dense(what, table)
    if table.device != current.device:
        raise ValueError(f"{what} is on {table.device}, current on {current.device}; both must be on one device")
    shape = table.shape
    if len(shape) == 0 or (len(shape) == 1 and shape[0] == 1):
        return
    if len(shape) == 1 and len(sizes) < 2:
        raise ValueError(f"{what} per channel needs a channel dimension after time and batch; one step is {sizes}")
    if len(shape) > 1 or shape[0] != sizes[1]:
        channels = sizes[1] if len(sizes) > 1 else 1
        raise ValueError(
            f"{what} must be a number, a tensor of one element (0-d or 1-d) or a 1-d tensor of length {channels} (the "
            f"channels), got shape {list(shape)}"
        )
