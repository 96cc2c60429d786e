"""Two small layers that let ordinary networks run over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from snnfast._arguments import hints
from snnfast._arguments.axes import check_over_time, wrong_result
from snnfast.dynamics import check_dense, check_time_dim
from snnfast.layers.base import Layer, as_leaf

__all__ = ["OverTime", "Readout"]


class Readout(Layer):
    """Currents or spikes over time to logits: [T, B, ...] → [B, ...] (the paper's section 2.1).

    Args:
        mode: "sum" (a neuron with an infinite threshold) or "mean".
        time_dim: the time dimension, 0 or 1.

    Raises:
        TypeError: the input is not a tensor.
        ValueError: another mode or time_dim, or an input without that dimension.
    """

    mode: str
    time_dim: int

    if TYPE_CHECKING:

        def __call__(self, over_time: Tensor) -> Tensor: ...

    def __init__(self, mode: str = "sum", *, time_dim: int = 0) -> None:
        super().__init__()
        self.mode = mode
        self.time_dim = time_dim

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "mode" and (not isinstance(value, str) or value not in ("sum", "mean")):
            raise ValueError(f"mode must be 'sum' or 'mean', got {value!r}")
        if name == "time_dim":
            check_time_dim(value)
        super().__setattr__(name, value)

    def forward(self, over_time: Tensor) -> Tensor:
        if isinstance(over_time, fx.Proxy):
            return as_leaf(self, over_time)
        if not isinstance(over_time, Tensor):
            raise TypeError(
                f"Readout needs a tensor [T, B, ...], got {type(over_time).__name__}{hints.to_tensor('x', over_time)}"
            )
        check_dense("Readout's input", over_time)
        if over_time.dim() <= self.time_dim:
            axes = "[T, B, ...]" if self.time_dim == 0 else "[B, T, ...]"
            raise ValueError(
                f"Readout needs {axes}, with a time dimension {self.time_dim}, got shape {list(over_time.shape)}"
            )
        return over_time.sum(self.time_dim) if self.mode == "sum" else over_time.mean(self.time_dim)

    def extra_repr(self) -> str:
        return repr(self.mode) + (f", time_dim={self.time_dim}" if self.time_dim else "")


class OverTime(Layer):
    """Applies a stateless module to all time steps at once: [T, B, ...] is seen as [T·B, ...].

    The module must treat its batch dimension as such (nn.Conv2d, nn.Linear, pooling; nn.BatchNorm2d then takes its
    statistics over time and batch, as the paper does). Time and batch are merged without a copy where memory allows.
    Its state dict has the module's under ``module.``; loading takes keys without that too, those of the same network
    without time.

    Args:
        module: any module of one tensor.

    Raises:
        TypeError: the module is not an nn.Module, or the input or the result not a tensor, or the input not of numbers
            that the first layer takes.
        ValueError: the input has fewer than two dimensions, or others than the module's first layer (a convolution, a
            batch or instance norm, nn.Linear) takes with time and batch in front; or the result has not one entry for
            each step of each sample.
    """

    module: nn.Module

    if TYPE_CHECKING:

        def __call__(self, over_time: Tensor) -> Tensor: ...

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "module" and not isinstance(value, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(value).__name__}")
        super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Keys of a network in which nothing is around the module: of an ANN, or another library's.
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key[len(prefix) :]
            own = name.startswith("module.") and _has(self.module, name.removeprefix("module."))
            if not own and _has(self.module, name):
                state_dict[f"{prefix}module.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, over_time: Tensor) -> Tensor:
        if isinstance(over_time, fx.Proxy):
            return as_leaf(self, over_time)
        check_over_time(self.module, over_time)
        merged = over_time.flatten(0, 1)
        result = self.module(merged)
        # Sizes are tensors while torch.jit.trace records: it would write the comparison down as a constant.
        kept = isinstance(result, Tensor) and (torch.jit.is_tracing() or result.shape[:1] == merged.shape[:1])
        if not kept:
            raise wrong_result(self.module, merged, result)
        return result.unflatten(0, over_time.shape[:2])


def _has(module: nn.Module | None, name: str) -> bool:
    """Whether a module's state dict may have a key."""
    *path, last = name.split(".")
    for part in path:
        module = None if module is None else module._modules.get(part)
    if module is None:
        return False
    return last in module._parameters or last in module._buffers or last in getattr(module, "_numbers", ())
