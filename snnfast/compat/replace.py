"""The neurons of other libraries in a network that exists already: layers here in their place."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

from torch import nn

from snnfast._arguments.checks import flag
from snnfast.compat.foreign import Refused

__all__ = ["LeftNeuron", "ReplaceReport", "Replaced", "replace_neurons"]

_LIBRARIES = ("spikingjelly", "norse", "sinabs")
"""Each has a module of its own beside this one, with ``of_library(module)`` and ``adopt(module)``."""


class Replaced(NamedTuple):
    """A neuron that is a layer of this package now.

    Attributes:
        name: in the network, as before.
        was: the class it had, with the library's name.
        now: ``IF`` or ``LIF``, of which the layer is an instance.
    """

    name: str
    was: str
    now: str


class LeftNeuron(NamedTuple):
    """A neuron that was left as it is, and why."""

    name: str
    was: str
    reason: str


@dataclass(frozen=True)
class ReplaceReport:
    """What snnfast.replace_neurons did and what it left, and why. ``str(report)`` is a table.

    Attributes:
        replaced: one entry for each neuron that is a layer here now, in the network's order.
        left: one entry, with the reason, for each other one.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[LeftNeuron, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} replaced" + (":" if self.replaced else "")]
        width = max((len(entry.name) for entry in self.replaced), default=0)
        lines += [f"  {entry.name:{width}}  {entry.was} -> {entry.now}" for entry in self.replaced]
        lines.append(f"{len(self.left)} left" + (":" if self.left else ""))
        width = min(max((len(entry.name) for entry in self.left), default=0), 40)
        lines += [f"  {entry.name:{width}}  {entry.reason}" for entry in self.left]
        return "\n".join(lines)


def replace_neurons(model: nn.Module, strict: bool = False) -> ReplaceReport:
    """Puts layers of this package in the place of the neurons of another library, in place.

    Each of them is an instance of :class:`snnfast.IF` or :class:`snnfast.LIF` with the dynamics of the neuron it stands
    for, and of that neuron's class as well: code that asks for the class, ``functional.reset_net``, ``set_step_mode``,
    monitors, ``apply`` and copies go on working. Parameters, states, hooks and the keys of the state dict stay the same
    objects and names. What :func:`snnfast.fuse` and the rest of this package do with IF and LIF they do with these.

    Spikes are the library's, but where its rounding and ours part: a potential within rounding of the threshold. A
    potential is kept in float32 (float64 for float64 currents) whatever the currents' dtype, where the library keeps it
    in the currents'.

    Covered: SpikingJelly 2.0 and 0.0.0.0.14, ``IFNode``, ``LIFNode``, ``ParametricLIFNode`` of ``activation_based`` (in
    multi-step and single-step mode) and of ``clock_driven`` with their ``MultiStep`` forms, whatever their backend;
    with every surrogate that has a shape in :mod:`snnfast.surrogate`. ``v_seq`` is kept with ``store_v_seq=True``.

    Args:
        model: any network that holds such neurons; on any device.
        strict: whether a neuron that cannot be matched exactly is an error.

    Returns:
        What was replaced, and what was left and why.

    Raises:
        TypeError: the model is not an nn.Module, or strict not a bool.
        ValueError: the model is itself a neuron, which has no network to be replaced in; with ``strict``, neurons that
            cannot be matched, before anything is replaced.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    flag("strict", strict)
    libraries = [importlib.import_module(f"snnfast.compat.{name}") for name in _LIBRARIES if name in sys.modules]
    layers: dict[int, nn.Module] = {}
    replaced: list[Replaced] = []
    left: list[LeftNeuron] = []
    for name, module in model.named_modules():
        library = _library_of(module, libraries)
        seen = [*(entry.name for entry in replaced), *(entry.name for entry in left)]
        if library is None or any(name.startswith(f"{outer}.") for outer in seen):
            continue
        if module is model:
            raise ValueError(
                f"model is itself a neuron ({type(module).__name__}), which cannot be replaced in place: "
                "give the network that holds it, or torch.nn.Sequential(neuron)"
            )
        was = f"{type(module).__module__.partition('.')[0]}.{type(module).__name__}"
        try:
            layers[id(module)] = layer = library.adopt(module)
        except Refused as reason:
            left.append(LeftNeuron(name, was, f"{name!r} {reason}"))
        else:
            replaced.append(Replaced(name, was, _kind(layer)))
    if strict and left:
        raise ValueError("neurons without an equal here:\n" + "\n".join(f"  {entry.reason}" for entry in left))
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if id(child) in layers:
                module._modules[name] = layers[id(child)]
    return ReplaceReport(tuple(replaced), tuple(left))


def _library_of(module: nn.Module, libraries: list[ModuleType]) -> ModuleType | None:
    return next((library for library in libraries if library.of_library(module)), None)


def _kind(layer: nn.Module) -> str:
    return next(kind.__name__ for kind in type(layer).__mro__ if kind.__module__ == "snnfast.layers.neuron")
