"""What of SpikingJelly's own layers runs over all steps at once, by name: the library need not be there."""

from __future__ import annotations

from torch import nn

__all__ = ["batches_steps", "normalizes_steps"]

_BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")


def normalizes_steps(module: nn.Module) -> bool:
    """Whether a batch norm takes [T, B, C, ...], with statistics over time and batch: one of the library's in
    multi-step mode."""
    kind = type(module)
    return _of_library(kind) and kind.__name__ in _BATCH_NORMS and getattr(module, "step_mode", "") == "m"


def batches_steps(module: nn.Module) -> bool:
    """Whether a container passes [T, B, ...] through its children as [T·B, ...]: a SeqToANNContainer."""
    kind = type(module)
    return _of_library(kind) and kind.__name__ == "SeqToANNContainer" and len(module._modules) > 0


def _of_library(kind: type) -> bool:
    return kind.__module__.startswith("spikingjelly.")
