"""Sinabs' neurons on the kernels here: ``IAF``, ``LIF`` and their ``Squeeze`` forms, with one spike a step at most.

Currents are [B, T, ...], or [B·T, ...] for the ``Squeeze`` forms. The potential is the buffer ``v_mem``, which goes on
from call to call, threshold and time constants are the library's parameters.
"""

from __future__ import annotations

import copy
import importlib
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnfast import surrogate
from snnfast.autograd import integrate
from snnfast.compat.foreign import ForeignNeuron, Refused, adopted, shape_like, value_of
from snnfast.layers.base import Layer, as_leaf
from snnfast.layers.neuron import IF, LIF
from snnfast.ops.options import LAST, POTENTIAL, states_of
from snnfast.surrogate import Surrogate

__all__ = ["adopt", "of_library"]

_KNOWN = ("IAF", "LIF", "IAFSqueeze", "LIFSqueeze")


class Stateful(ForeignNeuron):
    """What these layers add to IF or LIF: the library's states, parameters and call."""

    v_mem: Tensor
    spike_threshold: Tensor
    surrogate_grad_fn: Any
    record_states: bool

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("threshold", "tau"):
            own = {"threshold": "spike_threshold", "tau": "tau_mem"}[name]
            raise AttributeError(f"{name} is the library's {own} in {type(self).__name__}: set that")
        if name == "surrogate":
            super().__setattr__(name, value)
        else:
            super(Layer, self).__setattr__(name, value)

    def forward(self, input_data: Tensor) -> Tensor:  # type: ignore[override]
        """Spikes of all steps of [B, T, ...]; of [B·T, ...] for a ``Squeeze`` form."""
        if isinstance(input_data, fx.Proxy):
            return as_leaf(self, input_data)
        squeeze: Any = getattr(self, "squeeze_forward", None)
        if squeeze is not None:
            return squeeze(input_data, self._steps)
        return self._steps(input_data)

    def _steps(self, current: Tensor) -> Tensor:
        module: Any = self  # the library's methods
        shape = (current.shape[0], *current.shape[2:])
        if not module.is_state_initialised():
            module.init_state_with_shape(shape)
        if not module.state_has_shape(shape):
            if module.has_trailing_dimension(shape[1:]):
                module.handle_state_batch_size_mismatch(shape[0])
            else:
                module.init_state_with_shape(shape)
        outputs = LAST | POTENTIAL * self.record_states
        states = states_of(self.v_mem, *self._tables())
        spikes, self.v_mem, potential = integrate.run(self._dynamics, current, states, None, 1, outputs)
        self.recordings = {"v_mem": self._after_reset(potential, spikes)} if self.record_states else {}
        self.firing_rate = spikes.mean()
        return spikes

    @property
    def threshold(self) -> Tensor:  # type: ignore[override]
        """The library's ``spike_threshold``."""
        return self.spike_threshold.reshape(())

    @property
    def tau(self) -> Tensor | None:
        """The time constant in steps, of the library's decay: 1/(1 - alpha); None without a leak."""
        return 1 / (1 - self.alpha_mem_calculated).reshape(()) if isinstance(self, LIF) else None  # type: ignore[attr-defined]

    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        return self.threshold, self.tau

    @property
    def state(self) -> Tensor | None:
        """The carried potential, ``v_mem``; None before the first call."""
        return self.v_mem if self.v_mem.numel() else None

    def reset_state(self) -> None:
        """The library's ``reset_states()``."""
        self.reset_states()  # type: ignore[operator]

    def detach_state(self) -> None:
        """Keeps the potential's values and cuts its graph."""
        self.v_mem = self.v_mem.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # The library's makes a new layer by its constructor.
        make, bases, state = self.__reduce_ex__(4)
        memo[id(self)] = other = make(*bases)
        other.__setstate__(copy.deepcopy(state, memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        # States in the middle of a graph can be neither copied nor pickled; their values can.
        state = nn.Module.__getstate__(self)
        state["_buffers"] = {name: value_of(value) for name, value in state["_buffers"].items()}
        for name in ("firing_rate", "recordings"):
            state.pop(name, None)
        return state

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._fit_surrogate()

    def _fit_surrogate(self) -> None:
        """The library's surrogate is as wide as the threshold is high, which is a parameter."""
        threshold = self.spike_threshold.detach()
        if not threshold.is_meta:
            self.surrogate = _surrogate(self.surrogate_grad_fn, threshold)

    def _why_not_fused(self) -> str:
        return "keeps its threshold and its states under names of its own"


def of_library(module: nn.Module) -> bool:
    """Whether a module is a neuron of the library, or of a class made from one."""
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("sinabs.layers.")]
    return any(kind.__name__ == "StatefulLayer" for kind in kinds) and not isinstance(module, Stateful)


def adopt(module: Any) -> Stateful:
    """The layer that takes a neuron's place; raises :class:`Refused`."""
    name = type(module).__name__
    if name not in _KNOWN or not type(module).__module__.startswith("sinabs.layers."):
        raise Refused(f"is {name}, whose dynamics are its own")
    activation = importlib.import_module("sinabs.activation")
    if module.spike_fn is not activation.SingleSpike:
        raise Refused("may fire several times in a step (spike_fn is not SingleSpike)")
    if getattr(module, "tau_syn", None) is not None or getattr(module, "alpha_syn", None) is not None:
        raise Refused("has a synaptic current (tau_syn)")
    if module.min_v_mem is not None:
        raise Refused("has a lowest potential (min_v_mem)")
    threshold = module.spike_threshold
    if threshold.numel() != 1 or threshold.requires_grad:
        raise Refused("has a spike_threshold that is learned or not one number")
    plain = IF if name.startswith("IAF") else LIF
    options: dict[str, Any] = {
        **_reset(module.reset_fn, activation, threshold.item()),
        "threshold": threshold.detach().reshape(()),
        "surrogate": _surrogate(module.surrogate_grad_fn, threshold.detach()),
        "fire_on_equal": True,
        "time_dim": 1,
        "carry_state": True,
    }
    if plain is LIF:
        alpha = module.alpha_mem_calculated.detach()
        if alpha.numel() != 1 or not 0 < alpha.item() < 1:
            raise Refused("has a decay of the potential that is not one number between 0 and 1")
        options |= {"tau": torch.as_tensor(1 / (1 - alpha.item())), "decay_input": module.norm_input}
    layer = adopted(Stateful, plain, module, options)
    layer.__dict__["_started"] = {}
    return layer


def _reset(reset: Any, activation: Any, threshold: float) -> dict[str, Any]:
    if isinstance(reset, activation.MembraneSubtract) and reset.subtract_value in (None, threshold):
        return {"reset": "soft", "detach_reset": False}
    # The library adds a reset value to every potential, at every step.
    if isinstance(reset, activation.MembraneReset) and reset.reset_value == 0:
        return {"reset": "hard", "detach_reset": True}
    raise Refused(f"has a reset, {reset}, that is none of the kernels'")


def _surrogate(function: Any, threshold: Tensor) -> Surrogate:
    at, name = threshold.item(), type(function).__name__
    candidates: list[Surrogate] = []
    if name == "SingleExponential":
        width = at * function.grad_width
        candidates = [surrogate.Exponential(gamma=1 / width, beta=function.grad_scale / width)]
    elif name == "Gaussian" and function.mu == 0:
        height = function.grad_scale / (function.sigma * math.sqrt(2 * math.pi))
        candidates = [surrogate.Gaussian(gamma=1 / (function.sigma * math.sqrt(2)), beta=height)]
    spike = importlib.import_module("sinabs.activation").SingleSpike
    return shape_like(candidates, lambda d: spike.apply(d + threshold, threshold, function), repr(function))
