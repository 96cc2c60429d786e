"""Which axes a tensor has, by the modules that take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnfast._arguments import hints
from snnfast._arguments.checks import dense


@dataclass(frozen=True)
class Axes:
    """What a kind of module takes: how many dimensions, batch included, and the names of those behind the batch."""

    least: int
    most: int | None
    names: str

    def fit(self, dims: int) -> bool:
        return self.least <= dims and (self.most is None or dims <= self.most)


# By the method that takes the tensor, so that a subclass with a method of its own is none of them. One dimension fewer
# would be read as a single sample, with steps and batch as its channels.
_AXES: dict[Callable[..., Any], Axes] = {
    nn.Conv1d.forward: Axes(3, 3, "C, L"),
    nn.Conv2d.forward: Axes(4, 4, "C, H, W"),
    nn.Conv3d.forward: Axes(5, 5, "C, D, H, W"),
    nn.ConvTranspose1d.forward: Axes(3, 3, "C, L"),
    nn.ConvTranspose2d.forward: Axes(4, 4, "C, H, W"),
    nn.ConvTranspose3d.forward: Axes(5, 5, "C, D, H, W"),
    nn.BatchNorm1d._check_input_dim: Axes(2, 3, "C, ..."),
    nn.BatchNorm2d._check_input_dim: Axes(4, 4, "C, H, W"),
    nn.BatchNorm3d._check_input_dim: Axes(5, 5, "C, D, H, W"),
    nn.InstanceNorm1d._check_input_dim: Axes(3, 3, "C, L"),
    nn.InstanceNorm2d._check_input_dim: Axes(4, 4, "C, H, W"),
    nn.InstanceNorm3d._check_input_dim: Axes(5, 5, "C, D, H, W"),
    nn.Linear.forward: Axes(2, None, "..., features"),
}


def axes_of(module: nn.Module) -> Axes | None:
    """What a module takes, None where that is not known."""
    kind = type(module)
    return _AXES.get(getattr(kind, "_check_input_dim", kind.forward))


def first_layer(module: nn.Module) -> nn.Module:
    """The layer of a module that its input reaches first, as far as nn.Sequential tells."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[0]
    return module


def check_over_time(module: nn.Module, over_time: object) -> None:
    """Raises TypeError or ValueError for what cannot be [T, B, ...] of what ``module`` takes."""
    if not isinstance(over_time, Tensor):
        remedy = hints.to_tensor("x", over_time)
        raise TypeError(f"OverTime needs a tensor [T, B, ...], got {type(over_time).__name__}{remedy}")
    dense("OverTime's input", over_time)
    if over_time.dim() < 2:
        raise ValueError(f"OverTime needs [T, B, ...], got shape {list(over_time.shape)}")
    if torch.compiler.is_compiling():
        return
    layer = first_layer(module)
    axes = axes_of(layer)
    if axes is None:
        return
    name = f"OverTime({type(layer).__name__})"
    if not axes.fit(over_time.dim() - 1):
        meant = ""
        if axes.fit(over_time.dim()):
            meant = (
                f"; this looks like [B, {axes.names}], without time axis: call the {type(layer).__name__} itself, and "
                "the neurons behind it with steps=T, or give it one, x.expand(T, *x.shape)"
            )
        raise ValueError(f"{name} needs [T, B, {axes.names}], got shape {list(over_time.shape)}{meant}")
    if not (over_time.is_floating_point() or over_time.is_complex()):
        remedy = hints.to_floating("x", over_time)
        raise TypeError(f"{name} needs floating numbers, got {over_time.dtype}{remedy}")


def wrong_result(module: nn.Module, merged: Tensor, result: object) -> Exception:
    """The error for a result that is not one entry for each step of each sample."""
    needs = f"OverTime({type(module).__name__}) needs a result [T·B, ...] for its {merged.shape[0]} steps and samples"
    if not isinstance(result, Tensor):
        return TypeError(f"{needs}, got {type(result).__name__}")
    return ValueError(
        f"{needs}, got shape {list(result.shape)} of an input {list(merged.shape)}: it must keep the batch, its "
        "first dimension"
    )


_BEHIND_BATCH = {1: ("C",), 2: ("C", "L"), 3: ("C", "H", "W"), 4: ("C", "D", "H", "W")}


def named(shape: Sequence[int], time_dim: int | None) -> str:
    """A shape with its axes' names, as snnfast's layers read it: "T=10, B=32, C=3, H=8, W=8".

    ``time_dim``: 0 or 1; None where there is no time axis.
    """
    front = {None: ("B",), 0: ("T", "B"), 1: ("B", "T")}[time_dim]
    behind = len(shape) - len(front)
    names = (*front, *_BEHIND_BATCH.get(behind, tuple(f"d{n}" for n in range(1, behind + 1))))
    return ", ".join(f"{name}={size}" for name, size in zip(names, shape, strict=False))
