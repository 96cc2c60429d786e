"""Neurons behind torch's batch norm, as two layers: what the fused layer replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

BATCH_STATISTICS = "batch statistics are summed in another order"


def over_time(module: Callable[[Tensor], Tensor], current: Tensor) -> Tensor:
    """A module without time, applied to [T, B, ...] as [T * B, ...]."""
    return module(current.flatten(0, 1)).unflatten(0, current.shape[:2])


class BatchNormAnd(nn.Module):
    """nn.BatchNorm2d over time and batch, plus a residual current, then a neuron layer.

    Shapes: forward([T, B, C, H, W], residual=None) -> [T, B, C, H, W].
    """

    def __init__(self, num_features: int, neuron: Callable[..., Tensor]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_features)
        self.neuron = neuron

    def forward(self, current: Tensor, residual: Tensor | None = None) -> Tensor:
        current = over_time(self.norm, current)
        return self.neuron(current if residual is None else current + residual)


def with_batch_norm(make: Callable[..., Any], num_features: int, **options: Any) -> BatchNormAnd:
    return BatchNormAnd(num_features, make(**options))
