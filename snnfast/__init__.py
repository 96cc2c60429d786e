"""Spiking neurons for PyTorch whose whole life in time is one kernel, forward and backward.

``snnfast.IF`` and ``snnfast.LIF`` are drop-in layers: currents [T, B, ...] in, spikes of the same shape out. The
mathematics is that of *Training Deep Spiking Neural Networks* (Ledinauskas et al. 2020, arXiv 2006.04436).
"""

from importlib import import_module
from typing import Any

from snnfast import _formerly, functional, reference, surrogate  # noqa: F401
from snnfast._arguments import hints as _hints
from snnfast._version import __version__
from snnfast.activity.report import ActivityReport, activity_report
from snnfast.ann.apply import to_spiking
from snnfast.ann.network import SpikingNetwork
from snnfast.ann.report import SpikingReport
from snnfast.backends import build_info
from snnfast.check import CheckReport, check
from snnfast.compat.replace import ReplaceReport, replace_neurons
from snnfast.compat.weights import WeightsReport, load_weights
from snnfast.exchange.nir import from_nir, to_nir
from snnfast.fusion.apply import FuseReport, fuse
from snnfast.layers import IF, LIF, BatchNormIF, BatchNormLIF, OverTime, Readout, detach_state, reset_state
from snnfast.memory.packing import pack_spikes
from snnfast.memory.report import memory_report
from snnfast.streams.stream import Stream, streaming

__all__ = [
    "IF",
    "LIF",
    "ActivityReport",
    "BatchNormIF",
    "BatchNormLIF",
    "CheckReport",
    "FuseReport",
    "OverTime",
    "Readout",
    "ReplaceReport",
    "SpikingNetwork",
    "SpikingReport",
    "Stream",
    "WeightsReport",
    "__version__",
    "activity_report",
    "build_info",
    "check",
    "detach_state",
    "from_nir",
    "functional",
    "fuse",
    "load_weights",
    "memory_report",
    "pack_spikes",
    "reference",
    "replace_neurons",
    "reset_state",
    "streaming",
    "surrogate",
    "to_nir",
    "to_spiking",
]

# They bring scikit-learn and others; the layers need none of that.
_LAZY = ("benchmarks", "convert", "data", "losses", "models", "training", "tuning")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    hint = _hints.of_name(name, [*__all__, *_LAZY])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}", name=name)


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*own, *__all__, *_LAZY})
