"""Norse's neurons on the kernels here: layers that take and return states as Norse's do.

``IAF`` and ``LIF``, and ``Lift`` of their cells and of ``LIFBoxCell``. The synaptic current of ``LIF`` is a filter of
its input, i_t = a i_{t-1} + x_t with a = 1 - dt/tau_syn: a leaky neuron that never fires, on the same kernels.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnfast import surrogate
from snnfast.autograd import integrate
from snnfast.compat.foreign import ForeignNeuron, Refused, adopted, shape_like
from snnfast.dynamics import Dynamics, make_dynamics
from snnfast.layers.base import as_leaf
from snnfast.layers.neuron import IF, LIF
from snnfast.ops.options import LAST, POTENTIAL, states_of
from snnfast.surrogate import Surrogate

__all__ = ["adopt", "of_library"]

_MODULE = "norse.torch.module"
_NEURONS = {"IAF": (f"{_MODULE}.iaf", "IF"), "LIF": (f"{_MODULE}.lif", "LIF")}
_CELLS = {
    "IAFCell": (f"{_MODULE}.iaf", "IF"),
    "LIFCell": (f"{_MODULE}.lif", "LIF"),
    "LIFBoxCell": (f"{_MODULE}.lif_box", "LIF"),
}
_STATES = {
    "IAF": "norse.torch.functional.iaf.IAFFeedForwardState",
    "LIF": "norse.torch.functional.lif.LIFFeedForwardState",
    "LIFBox": "norse.torch.functional.lif_box.LIFBoxFeedForwardState",
}


class Sequence(ForeignNeuron):
    """What these layers add to IF or LIF: Norse's call.

    Attributes:
        synapse: the filter of the input; None: there is none.
        state_kind: key of the library's class of states.
    """

    synapse: Dynamics | None
    state_kind: str

    def forward(self, input_tensor: Tensor, state: Any = None) -> Any:
        """Spikes of all steps of ``input_tensor`` [T, B, ...] and, as a tuple with them, the states after the last."""
        if isinstance(input_tensor, fx.Proxy):
            return as_leaf(self, input_tensor, state)
        if isinstance(input_tensor, tuple):  # as Lift takes both
            input_tensor, state = input_tensor
        after: dict[str, Tensor] = {}
        current = input_tensor
        if self.synapse is not None:
            kept = 1 - 1 / self.synapse.tau
            before = None if state is None else self._fitted(state.i, current) / kept
            _, last, current = integrate.run(
                self.synapse, current, states_of(before, None, None), None, 0, LAST | POTENTIAL
            )
            after["i"] = last * kept
        v0 = None if state is None else self._fitted(state.v, current)
        spikes, v_last, _ = integrate.run(self._dynamics, current, states_of(v0, None, None), None, 0, LAST)
        room, _, name = _STATES[self.state_kind].rpartition(".")
        return spikes, getattr(importlib.import_module(room), name)(v=v_last, **after)

    @staticmethod
    def _fitted(state: Any, current: Tensor) -> Tensor:
        """A state, which may be a number for all neurons."""
        return torch.as_tensor(state, device=current.device).expand(current.shape[1:])

    def _why_not_fused(self) -> str:
        return "returns its states"


def of_library(module: nn.Module) -> bool:
    """Whether a module is a neuron of the library, one of its cells, or lifts one over time."""
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("norse.")]
    if isinstance(module, Sequence) or not kinds:
        return False
    lifted = getattr(module, "lifted_module", None)
    return (lifted is not None and of_library(lifted)) or any(kind.__name__ in _BASES for kind in kinds)


_BASES = ("SNN", "SNNRecurrent", "SNNCell", "SNNRecurrentCell")


def adopt(module: Any) -> Sequence:
    """The layer that takes a neuron's place; raises :class:`Refused`."""
    lifted = getattr(module, "lifted_module", None)
    neuron = module if lifted is None else lifted
    kind = type(neuron)
    known = _NEURONS if lifted is None else _CELLS
    name = kind.__name__
    if lifted is None and name in _CELLS:
        raise Refused("takes one step a call: norse.torch.Lift makes a neuron over time of it")
    if name not in known or kind.__module__ != known[name][0]:
        raise Refused(f"is {name}, whose dynamics are its own")
    if getattr(neuron, "record_states", False):
        raise Refused("records its states")
    family = name.removesuffix("Cell")
    numbers = _numbers(neuron, family)
    options: dict[str, Any] = {
        "threshold": numbers["v_th"],
        "reset_value": numbers["v_reset"],
        "detach_reset": False,
        "surrogate": _surrogate(neuron.p.method, neuron.p.alpha),
    }
    synapse = None
    if family != "IAF":
        if numbers["v_leak"] != numbers["v_reset"]:
            raise Refused(f"leaks to {numbers['v_leak']:g} and is reset to {numbers['v_reset']:g}")
        options["tau"] = _time_constant("membrane", neuron.dt * numbers["tau_mem_inv"])
    if family == "LIF":
        tau = _time_constant("synapse", neuron.dt * numbers["tau_syn_inv"])
        synapse = make_dynamics("LIF", threshold=math.inf, tau=tau, decay_input=False)
    layer = adopted(Sequence, IF if family == "IAF" else LIF, module, options)
    layer.__dict__.update(synapse=synapse, state_kind=family)
    return layer


def _numbers(neuron: Any, family: str) -> dict[str, float]:
    """The library's parameters that are numbers; raises :class:`Refused` where one is learned, or of each neuron."""
    names = ("v_th", "v_reset") if family == "IAF" else ("v_th", "v_reset", "v_leak", "tau_mem_inv")
    if family == "LIF":
        names = (*names, "tau_syn_inv")
    found = {}
    for name in names:
        value = torch.as_tensor(getattr(neuron.p, name))
        # Not requires_grad: a call of the library's IAF sets that of its default reset value.
        if isinstance(value, nn.Parameter) or value.numel() != 1:
            raise Refused(f"has a {name} that is learned or not one number")
        found[name] = value.item()
    return found


def _time_constant(what: str, share: float) -> float:
    if not 0 < share < 1:
        raise Refused(f"has a {what} that loses {share:g} of its value in a step, which must be between 0 and 1")
    return 1 / share


def _surrogate(method: str, alpha: Any) -> Surrogate:
    threshold = importlib.import_module("norse.torch.functional.threshold").threshold
    sharpness = float(alpha)
    # Its SuperSpike says that it has a sharpness and has none, in 1.1.
    candidates: dict[str, list[Surrogate]] = {
        "super": [surrogate.FastSigmoid(gamma=1.0), surrogate.FastSigmoid(gamma=sharpness)],
        "triangle": [surrogate.Triangle(gamma=1.0, beta=sharpness)],
    }
    return shape_like(
        candidates.get(method, []), lambda d: threshold(d, method, torch.as_tensor(sharpness)), repr(method)
    )
