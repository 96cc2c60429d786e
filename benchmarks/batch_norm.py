"""Neurons behind torch's batch norm, as two layers: what the fused layer replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

BATCH_STATISTICS = "batch statistics are summed in another order"


def over_time(module: Callable[[Tensor], Tensor], current: Tensor) -> Tensor:
    """A module without time, applied to [T, B, ...] as [T * B, ...]."""
    return module(current.flatten(0, 1)).unflatten(0, current.shape[:2])


class _BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d that takes the currents of linear layers, [B, C], too."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""


class BatchNormAnd(nn.Module):
    """Batch norm over time and batch, plus a residual current, then a neuron layer; called as `snnfast.BatchNormIF`.

    Shapes: forward([T, B, C, ...], residual=None) -> [T, B, C, ...]; with steps=T a held current [B, C, ...].
    """

    def __init__(self, num_features: int, neuron: Callable[..., Tensor]) -> None:
        super().__init__()
        self.norm: nn.Module = _BatchNorm(num_features)
        self.neuron = neuron

    def forward(self, current: Tensor, residual: Tensor | None = None, steps: int | None = None) -> Tensor:
        current = over_time(self.norm, current) if steps is None else self.norm(current)
        current = current if residual is None else current + residual
        return self.neuron(current) if steps is None else self.neuron(current, steps=steps)


def with_batch_norm(make: Callable[..., Any], num_features: int, **options: Any) -> BatchNormAnd:
    return BatchNormAnd(num_features, make(**options))
