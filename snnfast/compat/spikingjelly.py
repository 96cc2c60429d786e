"""SpikingJelly's neurons on the kernels here: of each class a layer that is SpikingJelly's node and IF or LIF as well.

A layer takes over what a node is: its parameters, states, hooks, attributes. What the library asks of a node it answers
with the library's own code (``reset``, ``step_mode``, states that move with the module, monitors); what it computes is
the kernel's, in single-step mode one step of it. For SpikingJelly 2.0 and 0.0.0.0.14, ``activation_based`` and
``clock_driven``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnfast import surrogate
from snnfast.autograd import integrate
from snnfast.compat.foreign import ForeignNeuron, Refused, adopted, shape_like, value_of
from snnfast.layers.base import Layer, as_leaf
from snnfast.layers.neuron import _OPTIONS, IF, LIF
from snnfast.ops.options import LAST, POTENTIAL, states_of
from snnfast.surrogate import Surrogate

__all__ = ["adopt", "of_library", "without_cupy"]

_ROOMS = ("spikingjelly.activation_based.neuron", "spikingjelly.clock_driven.neuron")
_LEAKY = {"LIFNode", "ParametricLIFNode", "MultiStepLIFNode", "MultiStepParametricLIFNode"}
_KNOWN = {"IFNode", "MultiStepIFNode", *_LEAKY}


_SURROGATES: dict[str, Callable[[float], Surrogate]] = {
    "Sigmoid": lambda alpha: surrogate.Sigmoid(gamma=alpha, beta=alpha),
    "ATan": lambda alpha: surrogate.Arctangent(gamma=math.pi * alpha / 2, beta=alpha / 2),
    "SoftSign": lambda alpha: surrogate.FastSigmoid(gamma=alpha, beta=alpha / 2),
    "SuperSpike": lambda alpha: surrogate.FastSigmoid(gamma=1.0, beta=alpha),
    "PiecewiseQuadratic": lambda alpha: surrogate.Triangle(gamma=alpha, beta=alpha),
    "PiecewiseExp": lambda alpha: surrogate.Exponential(gamma=alpha, beta=alpha / 2),
    "Erf": lambda alpha: surrogate.Gaussian(gamma=alpha, beta=alpha / math.sqrt(math.pi)),
    "Rect": lambda alpha: surrogate.Rectangle(gamma=2 * alpha, beta=alpha),
}


def surrogate_of(function: Any) -> Surrogate:
    """The shape that has the derivative of one of the library's surrogate functions; raises :class:`Refused`.

    The library's formulas are not the same in all versions: what is found by name is compared with the function itself.
    """
    known = type(function).__name__ if type(function).__module__.startswith("spikingjelly.") else ""
    alpha = getattr(function, "alpha", None)
    found: list[Surrogate] = []
    if known in _SURROGATES and isinstance(alpha, (int, float)):
        found = [_SURROGATES[known](float(alpha))]
    elif known == "PiecewiseLeakyReLU" and function.c == 0:
        found = [surrogate.Rectangle(gamma=1 / function.w, beta=height / function.w) for height in (0.5, 1.0)]
    return shape_like(found, lambda d: function.spiking_function(d, **_parameters_of(function)), repr(function))


def _parameters_of(function: Any) -> dict[str, Any]:
    return {name: getattr(function, name) for name in ("alpha", "w", "c") if hasattr(function, name)}


class Node(ForeignNeuron):
    """What the layers of this module add to IF or LIF and to the library's class, which stand behind it.

    Its own way from a name to an attribute: the neuron's options are those of IF and LIF, everything else is the
    library's. ``v_threshold``, ``v_reset`` and ``surrogate_function`` may be set as before; so may the options here.
    """

    _multi_step: bool | None = None
    """Whether a call is of all steps; None: as ``step_mode`` says."""

    _keeps_shape = False
    """Whether a state of another batch's shape is an error; it is forgotten otherwise."""

    # The library's, whatever class stands behind.
    v: Any
    v_seq: Any
    step_mode: str
    surrogate_function: Any

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            super().__setattr__(name, value)
            return
        if name == "surrogate_function":
            try:
                self.surrogate = surrogate_of(value)
            except Refused as reason:
                raise ValueError(f"{type(self).__name__} {reason}") from None
        super(Layer, self).__setattr__(name, value)

    @property
    def v_threshold(self) -> Any:
        """The library's name for ``threshold``."""
        return self.threshold

    @v_threshold.setter
    def v_threshold(self, value: Any) -> None:
        self.threshold = value

    @property
    def v_reset(self) -> float | None:
        """The library's name for ``reset_value``, and for a soft reset, which is None."""
        return None if self.reset == "soft" else self.reset_value

    @v_reset.setter
    def v_reset(self, value: float | None) -> None:
        if value is None:
            self.reset_value, self.reset = 0.0, "soft"
        else:
            self.reset, self.reset_value = "hard", value

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Any:  # type: ignore[override]
        """All steps of ``x`` [T, B, ...], or one [B, ...], as ``step_mode`` (or the library's class) says."""
        if isinstance(x, fx.Proxy):
            return as_leaf(self, x, *arguments, **named)
        if not getattr(self.surrogate_function, "spiking", True):
            # The library's, which then gives the surrogate itself in the place of spikes.
            return super(Layer, self).forward(x, *arguments, **named)  # type: ignore[misc]
        if self._takes_all_steps():
            spikes, potential = self._steps(x)
            self.v_seq = None if potential is None else self._after_reset(potential, spikes)
            return spikes
        spikes, potential = self._steps(x[None])
        if potential is not None and hasattr(self, "_append_v_seq"):
            library: Any = self
            library._append_v_seq(self.v)
        return spikes[0]

    def _takes_all_steps(self) -> bool:
        return self.step_mode == "m" if self._multi_step is None else self._multi_step

    def _steps(self, current: Tensor) -> tuple[Tensor, Tensor | None]:
        """Spikes of all steps, and the potentials before the reset where they are wanted; the state goes on."""
        recorded = bool(self.__dict__.get("_store_v_seq", False))
        states = states_of(self._before(current), *self._tables())
        outputs = LAST | POTENTIAL * recorded
        spikes, self.v, potential = integrate.run(self._dynamics, current, states, None, 0, outputs)
        return spikes, potential if recorded else None

    def _before(self, current: Tensor) -> Tensor | None:
        """The potential before the first step; None at rest."""
        v, rest = self.v, self.v_reset or 0.0
        if not isinstance(v, Tensor):
            if v is None or v == rest:
                return None
            v = torch.full(current.shape[1:], float(v), device=current.device)
        if v.shape != current.shape[1:] and not self._keeps_shape:
            return None
        if v.is_inference() and not torch.is_inference_mode_enabled() and not torch.compiler.is_compiling():
            v = v.clone()  # backward may not keep an inference tensor
        return v.to(current.device)

    @property
    def state(self) -> Tensor | None:
        """The carried potential, ``v``; None at rest."""
        return self.v if isinstance(self.v, Tensor) else None

    def reset_state(self) -> None:
        """The library's ``reset()``."""
        super(Layer, self).reset()  # type: ignore[misc]

    def detach_state(self) -> None:
        """The library's ``detach()``."""
        super(Layer, self).detach()  # type: ignore[misc]

    def _replicate_for_data_parallel(self) -> Any:
        return super(Layer, self)._replicate_for_data_parallel()

    def __getstate__(self) -> dict[str, Any]:
        # States in the middle of a graph can be neither copied nor pickled; their values can.
        state = nn.Module.__getstate__(self)
        state["_memories"] = {name: value_of(value) for name, value in state["_memories"].items()}
        if "v_seq" in state:
            state["v_seq"] = value_of(state["v_seq"])
        return state

    def _why_not_fused(self) -> str | None:
        if not self._takes_all_steps():
            return "takes one step a call"
        if self.__dict__.get("_store_v_seq", False):
            return "keeps its potentials (store_v_seq)"
        return None

    def extra_repr(self) -> str:
        mode = "" if self._multi_step is not None else f", step_mode={self.step_mode!r}"
        return super().extra_repr() + mode


class LearnedLeak(Node):
    """Of nodes that learn their time constant: sigmoid(w) is 1/tau, so that ``w`` is ``tau_logit``."""

    w: nn.Parameter

    def _why_not_fused(self) -> str | None:
        return super()._why_not_fused() or "learns its time constant under a name of its own, w"

    @property
    def tau_logit(self) -> Tensor:
        """The library's ``w``."""
        return self.w


_OWN = {*_OPTIONS, "threshold", "tau", "decay_input", "time_dim", "carry_state", "training"}


@contextmanager
def without_cupy() -> Iterator[None]:
    """Lets nodes of SpikingJelly 0.0.0.0.14 be made with ``backend="cupy"`` where CuPy is not installed.

    For code that makes its network so: ``with without_cupy(): network = spikformer()``, then
    :func:`snnfast.replace_neurons`. A node that is not replaced cannot run so.
    """
    with ExitStack() as stack:
        for room, name in _BACKEND_CHECKS:
            with suppress(ImportError):
                module = importlib.import_module(room)
                check = getattr(module, name, None)
                if check is not None:
                    stack.enter_context(_accepting_cupy(module, name, check))
        yield


_BACKEND_CHECKS = (
    ("spikingjelly.clock_driven.neuron", "check_backend"),
    ("spikingjelly.activation_based.base", "check_backend_library"),
)


@contextmanager
def _accepting_cupy(module: ModuleType, name: str, check: Callable[[str], None]) -> Iterator[None]:
    setattr(module, name, lambda backend: None if backend == "cupy" else check(backend))
    try:
        yield
    finally:
        setattr(module, name, check)


def of_library(module: nn.Module) -> bool:
    """Whether a module is a neuron of the library, or of a class made from one."""
    return any(kind.__module__.startswith(_ROOMS) for kind in type(module).__mro__) and not isinstance(module, Node)


def adopt(node: Any) -> Node:
    """The layer that takes a node's place; raises :class:`Refused`."""
    kind = type(node)
    if kind.__name__ not in _KNOWN or not kind.__module__.startswith(_ROOMS):
        raise Refused(f"is {kind.__name__}, whose dynamics are its own")
    if getattr(node, "backend", "torch") not in ("torch", "cupy"):
        raise Refused(f"runs on the backend {node.backend!r}")
    if getattr(node, "_neuron_precision", None) is not None:
        raise Refused(f"has a precision of its own, {node._neuron_precision}")
    plain, learned = LIF if kind.__name__ in _LEAKY else IF, "Parametric" in kind.__name__
    options: dict[str, Any] = {
        "threshold": node.v_threshold,
        "reset": "soft" if node.v_reset is None else "hard",
        "reset_value": node.v_reset or 0.0,
        "surrogate": surrogate_of(node.surrogate_function),
        "detach_reset": node.detach_reset,
        "fire_on_equal": True,
        "carry_state": True,
    }
    if plain is LIF:
        leak = {"tau": 2.0, "learn_tau": True} if learned else {"tau": node.tau}
        options |= {"decay_input": node.decay_input, **leak}
    layer = adopted(LearnedLeak if learned else Node, plain, node, options, _REPLACED)
    clock_driven = "clock_driven" in kind.__module__
    layer.__dict__.update(
        _multi_step=kind.__name__.startswith("MultiStep") if clock_driven else None,
        _keeps_shape=not hasattr(kind, "materialize_states"),
    )
    for memory in ("v_threshold", "v_reset"):  # clock_driven keeps them among the states
        for states in ("_memories", "_memories_rv"):
            layer.__dict__[states].pop(memory, None)
    return layer


_REPLACED = ("v_threshold", "v_reset", "tau", "decay_input", "detach_reset")
