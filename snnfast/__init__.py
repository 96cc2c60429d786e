"""Spiking neurons for PyTorch whose whole life in time is one kernel, forward and backward.

``snnfast.IF`` and ``snnfast.LIF`` are drop-in layers: currents [T, B, ...] in, spikes of the same shape out. The
mathematics is that of *Training Deep Spiking Neural Networks* (Ledinauskas et al. 2020, arXiv 2006.04436).
"""

from importlib import import_module
from typing import Any

from . import functional, reference, surrogate
from ._backend import build_info
from ._version import __version__
from .batch_norm import BatchNormIF, BatchNormLIF
from .layers import IF, LIF, OverTime, Readout

__all__ = [
    "IF",
    "LIF",
    "BatchNormIF",
    "BatchNormLIF",
    "OverTime",
    "Readout",
    "__version__",
    "build_info",
    "functional",
    "reference",
    "surrogate",
]

_LAZY = ("benchmarks", "data", "models", "training", "tuning")  # scikit-learn and the like: no need of the layers


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
