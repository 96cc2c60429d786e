"""What was probably meant: the names and values that other libraries give a neuron's options, beside ours.

Asked only where something is refused already, so that no call pays for it. The relations are those of MATH.md sections
1 and 2; docs/guide/coming-from.md has the conventions side by side.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_SURROGATE = (
    "is surrogate here, one of snnfast.surrogate's shapes: SpikingJelly's default is "
    "surrogate=snnfast.surrogate.Sigmoid(), snnTorch's Arctangent()"
)
_TAU = "is tau of LIF here, beta = 1 - 1/tau, so tau = 1/(1 - beta)"
_FROM_0_TO_1 = "has no counterpart here: spikes are zeros and ones"
_STEPS = (
    "is an argument of the call here: layer(current, steps=10) holds a current without time axis; the steps of a "
    "current [T, B, ...] are its first dimension"
)

# Names of SpikingJelly, snnTorch, Norse and torch's recurrent layers. What depends on the value is in _BY_VALUE.
NAMES = {
    "v_threshold": "is threshold here",
    "v_th": "is threshold here",
    "v_reset": "is reset_value here, of reset='hard'; v_reset=None is reset='soft'",
    "v_leak": "is reset_value here, which LIF leaks to",
    "surrogate_function": _SURROGATE,
    "spike_grad": _SURROGATE,
    "surrogate_disable": "has no counterpart here: call under torch.no_grad() where no gradient is wanted",
    "step_mode": "has no counterpart here: layers always do what 'm' does, all steps of [T, B, ...] in one call",
    "backend": "has no counterpart here: the kernels are those of the current's device",
    "store_v_seq": "is return_potential=True of snnfast.functional's functions here",
    "beta": f"{_TAU}, with decay_input=False; a surrogate's height is an option of the surrogate",
    "learn_beta": "is learn_tau of LIF here",
    "decay": f"{_TAU}, where it is the decay per step",
    "alpha": "is gamma here, the sharpness of a surrogate: surrogate=snnfast.surrogate.Sigmoid(gamma=4.0, beta=4.0), "
    "say (docs/guide/options.md has each shape's); the decay of a synaptic current has no counterpart",
    "gamma": "is an option of the surrogate: surrogate=snnfast.surrogate.FastSigmoid(gamma=10.0)",
    "slope": "is gamma here, of the surrogate: surrogate=snnfast.surrogate.FastSigmoid(gamma=10.0)",
    "init_hidden": "is carry_state here; carry_state=False, the default, starts every call at rest",
    "output": "has no counterpart here: layers return spikes; snnfast.functional's functions the last potential too",
    "reset_mechanism": "is reset here: 'subtract' is 'soft', 'zero' is 'hard'",
    "reset_delay": "has no counterpart here: a reset follows its spike at once; compat.snntorch.Leaky has snnTorch's",
    "inhibition": "has no counterpart here: every neuron whose threshold is crossed fires",
    "state_quant": "has no counterpart here",
    "graded_spikes_factor": _FROM_0_TO_1,
    "learn_graded_spikes_factor": _FROM_0_TO_1,
    "batch_first": "is time_dim here: time_dim=1 for [B, T, ...]",
    "tau_mem_inv": "is tau of LIF here, in steps: tau = 1/(dt * tau_mem_inv)",
    **dict.fromkeys(("steps", "num_steps", "time_steps", "T"), _STEPS),
}
# What layers that leak have, in the place of those that do not.
_OF_LIF = ("tau", "decay_input", "learn_tau")


def _v_reset(value: object) -> str | None:
    if value is None:
        return "v_reset=None is reset='soft' here"
    return f"v_reset={value!r} is reset_value={value!r} here, of reset='hard'; v_reset=None is reset='soft'"


def _beta(value: object) -> str | None:
    tau = tau_of_beta(value)
    return None if tau is None else f"beta {_TAU}: beta={value!r} is tau={tau:.6g} with decay_input=False"


def _reset_mechanism(value: object) -> str | None:
    found = of_reset(value)
    return f"reset_mechanism is reset{found.replace(';', ':')}" if found and value is not None else None


def _batch_first(value: object) -> str | None:
    return f"batch_first is time_dim here: batch_first={value!r} is time_dim={int(value)}" if value in (0, 1) else None


_BY_VALUE: dict[str, Callable[[object], str | None]] = {
    "v_reset": _v_reset,
    "beta": _beta,
    "reset_mechanism": _reset_mechanism,
    "batch_first": _batch_first,
}
_RESETS = {
    "subtract": "'subtract' is reset='soft' here",
    "zero": "'zero' is reset='hard' here",
    "none": "a neuron that never resets has no counterpart here; the sum of its currents is snnfast.Readout('sum')",
}

# The shapes of others with their one number alpha: our name, gamma and beta (MATH.md section 2).
_SHAPES: dict[str, tuple[str, Callable[[float], tuple[float, float]]]] = {
    "Sigmoid": ("Sigmoid", lambda alpha: (alpha, alpha)),
    "ATan": ("Arctangent", lambda alpha: (math.pi * alpha / 2, alpha / 2)),
    "PiecewiseQuadratic": ("Triangle", lambda alpha: (alpha, alpha)),
    "PiecewiseExp": ("Exponential", lambda alpha: (alpha, alpha / 2)),
    "SoftSign": ("FastSigmoid", lambda alpha: (alpha, alpha / 2)),
    "SuperSpike": ("FastSigmoid", lambda alpha: (1.0, alpha)),
    "Erf": ("Gaussian", lambda alpha: (alpha, alpha / math.sqrt(math.pi))),
    "atan": ("Arctangent", lambda alpha: (math.pi * alpha / 2, alpha / 2)),
    "fast_sigmoid": ("FastSigmoid", lambda slope: (slope, 1.0)),
}
_ALPHAS = {"ATan": 2.0, "atan": 2.0, "fast_sigmoid": 25.0}  # what an example is given for

# Layers of SpikingJelly (of its older versions too), snnTorch and Norse.
_LAYERS = {
    "IFNode": "IF",
    "MultiStepIFNode": "IF",
    "IFCell": "IF",
    "LIFNode": "LIF",
    "MultiStepLIFNode": "LIF",
    "LIFCell": "LIF",
    "LIFBoxCell": "LIF",
    "ParametricLIFNode": "LIF(learn_tau=True)",
    "MultiStepParametricLIFNode": "LIF(learn_tau=True)",
    "Leaky": "compat.snntorch.Leaky",
    "Synaptic": "compat.snntorch.Synaptic",
    "SeqToANNContainer": "OverTime",
    "reset_net": "reset_state",
    "detach_net": "detach_state",
}


def of_name(name: str, allowed: Iterable[str]) -> str:
    """What to say of a name that the package does not have: ours for another library's, or the nearest."""
    found = _LAYERS.get(name)
    return f"; {name} elsewhere is snnfast.{found} here" if found else nearest(name, allowed)


def shape_of(name: str, alpha: object = None) -> str:
    """Our shape beside another library's by its name, "" where it is none of them."""
    if name not in _SHAPES:
        return ""
    ours, numbers = _SHAPES[name]
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        alpha = _ALPHAS.get(name, 4.0)
    gamma, beta = numbers(alpha)
    return f"; {name}({alpha:g}) of other libraries is snnfast.surrogate.{ours}(gamma={gamma:.6g}, beta={beta:.6g})"


def of_surrogate(value: object) -> str:
    """Ours beside a surrogate of another library, "" for what is none of them."""
    # snnTorch's are functions made by one of the shape's name.
    name = value if isinstance(value, str) else getattr(value, "__qualname__", type(value).__name__).partition(".")[0]
    return shape_of(name, getattr(value, "alpha", None))


def tau_of_beta(value: object) -> float | None:
    """The time constant of a decay per step, for what may be one: a number above 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return 1 / (1 - value) if 0 < value < 1 else None


def of_tau(value: float) -> str:
    """What to say of a number that is no time constant: that it may be a decay per step, "" where it is none."""
    tau = tau_of_beta(value)
    if tau is None:
        return ""
    return f"; where {value:g} is the decay per step, beta = 1 - 1/tau, then tau = 1/(1 - beta) = {tau:.6g}"


def of_reset(value: object) -> str:
    """Ours beside another library's value of the reset, "" where it is no such value."""
    if value is None:
        return "; v_reset=None elsewhere is reset='soft' here"
    found = _RESETS.get(value.lower()) if isinstance(value, str) else None
    return "" if found is None else f"; {found}"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """ "; did you mean 'NAME'?" with the name of ``allowed`` that is nearest, "" where none is near."""
    found = difflib.get_close_matches(name, list(allowed), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def of_option(name: str, value: object, allowed: Iterable[str]) -> str:
    """What to say of an option ``name`` that is not among ``allowed``: ours beside it, or the nearest name."""
    allowed = list(allowed)
    said = _BY_VALUE[name](value) if name in _BY_VALUE else None
    if said is None and name in _OF_LIF and name not in allowed:
        said = f"{name} is LIF's: neurons without a leak have none"
    if said is None and name in NAMES:
        said = f"{name} {NAMES[name]}"
    if said is not None:
        return f"; {said}"
    return nearest(name, allowed) or f"; it takes {', '.join(allowed)}"


def own_options(function: Callable[..., Any]) -> list[str]:
    """The names of a function's or class's arguments, in order, without those that take all others."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def refuse(name: str, function: Callable[..., Any], unknown: dict[str, Any], allowed: Iterable[str] = ()) -> TypeError:
    """The error for keyword arguments that ``name``, a layer or function, does not have.

    Args:
        name: as the message calls it.
        function: whose arguments are allowed.
        unknown: the keyword arguments.
        allowed: what is allowed besides.
    """
    known = [*own_options(function), *allowed]
    option, value = next(iter(unknown.items()))
    return TypeError(f"{name} has no argument {option!r}{of_option(option, value, known)}")


def to_tensor(name: str, value: object, tensors: bool = True) -> str:
    """How NumPy's values, and lists, become what is taken, "" for others; a number only where ``tensors`` are not."""
    if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "__array_interface__"):
        if not getattr(value, "ndim", 0):
            return f": convert it, float({name})"
        return f": convert it, torch.from_numpy({name})" if tensors else ""
    if tensors and isinstance(value, list | tuple) and value:
        of_tensors = all(isinstance(part, Tensor) for part in value)
        return f": join them, torch.stack({name})" if of_tensors else f": convert it, torch.tensor({name})"
    return ""


def to_floating(name: str, tensor: Tensor) -> str:
    """How a tensor of another dtype becomes one of floating numbers, "" for what does not."""
    if tensor.dtype == torch.uint8:
        return f": convert it, {name}.float(), or images from 0 to 255 by {name}.float() / 255"
    return "" if tensor.dtype.is_complex or tensor.is_quantized else f": convert it, {name}.float()"
