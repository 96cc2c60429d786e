"""Which batch norms follow a linear map and nothing else, and how they become part of it.

That a convolution's output goes to one batch norm, as it is and nowhere else, is seen while the network runs: forwards
with control flow, which no graph shows, are understood too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snnfast.layers import BatchNormIF, BatchNormLIF, BatchNormNeuron, OverTime
from snnfast.streams.carriers import NormalizedBefore

__all__ = ["Fold", "Watch", "fold", "replace"]

_LINEAR_MAPS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_DTYPES = (torch.float32, torch.float64)
"""Half precision would round the folded weights once more than it rounds the batch norm."""


class Fold(NamedTuple):
    """A linear map and the batch norm, or fused layer, that its output goes to alone, by their names."""

    linear: str
    norm: str


@dataclass
class _Made:
    """What a linear map made. It is kept, so that no other tensor gets its memory while this is watched."""

    linear: str
    output: Tensor
    channel_dim: int
    norms: list[str] = field(default_factory=list)
    elsewhere: bool = False


class Watch(TorchDispatchMode):
    """Within it a network's run is watched, for :meth:`folds`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = {module: name for name, module in network.named_modules() if _is_foldable(module)}
        self._made: dict[int, _Made] = {}
        self._calls: Counter[str] = Counter()
        self._inside = 0  # a batch norm, whose own operations are none of the forward's

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self._names:
                if isinstance(module, _LINEAR_MAPS):
                    handles = [module.register_forward_hook(self._leave_linear)]
                else:
                    handles = [
                        module.register_forward_pre_hook(self._enter_norm, with_kwargs=True),
                        module.register_forward_hook(self._leave_norm),
                    ]
                for handle in handles:
                    stack.callback(handle.remove)
            stack.enter_context(self)
            yield

    def folds(self, result: Tensor) -> list[Fold]:
        """What may be folded. ``result`` is the network's."""
        self._used(result)
        return [
            Fold(made.linear, made.norms[0])
            for made in self._made.values()
            if len(made.norms) == 1
            and not made.elsewhere
            and self._calls[made.linear] == self._calls[made.norms[0]] == 1
        ]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._inside and not _is_view(func):
            self._used((args, kwargs))
        return result

    def _used(self, values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                made = self._made.get(value.untyped_storage().data_ptr())
                if made is not None:
                    made.elsewhere = True

    def _leave_linear(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._calls[self._names[module]] += 1
        channel_dim = output.dim() - 1 if isinstance(module, nn.Linear) else 1
        self._made[output.untyped_storage().data_ptr()] = _Made(self._names[module], output, channel_dim)

    def _enter_norm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = self._names[module]
        self._inside += 1
        self._calls[name] += 1
        given = [*args, *kwargs.values()]
        self._used(given[1:])
        made = self._made.get(given[0].untyped_storage().data_ptr())
        if made is not None:
            held = isinstance(module, BatchNormNeuron) and (kwargs.get("steps") is not None or len(args) > 2)
            channel_dim = 2 if isinstance(module, BatchNormNeuron) and not held else 1
            made.norms.append(name)
            made.elsewhere |= not _same_channels(made.output, made.channel_dim, given[0], channel_dim)

    def _leave_norm(self, *_: Any) -> None:
        self._inside -= 1


def _is_view(func: Any) -> bool:
    """Whether an operation makes a view of what it is given."""
    aliased = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
    return bool(aliased) and not any(alias.is_write for alias in aliased)


def _same_channels(output: Tensor, output_dim: int, given: Tensor, given_dim: int) -> bool:
    """Whether a view of a whole, dense output has its channels in the dimension ``given_dim``.

    The index of an element in a dimension of a dense tensor is its place in memory over the stride, modulo the size.
    """
    if given.dim() <= given_dim or given.numel() != output.numel():
        return False
    channels = output.shape[output_dim]
    same = given.shape[given_dim] == channels
    return same and (channels == 1 or given.stride(given_dim) == output.stride(output_dim))


def _is_foldable(module: nn.Module) -> bool:
    """Whether a module is a linear map or normalizes by its running statistics, and is nothing more than its class."""
    kind = type(module)
    if "forward" in vars(module) or any(getattr(module, hooks) for hooks in _HOOKS):
        return False
    if parametrize.is_parametrized(module):
        return False
    if kind in _LINEAR_MAPS:
        weight: Any = module.weight
        return type(weight) is nn.Parameter and weight.dtype in _DTYPES
    normalizes = kind in (*_NORMS, BatchNormIF, BatchNormLIF) or "only_normalizes" in vars(kind)
    return normalizes and isinstance(module, _BatchNorm) and module.running_mean is not None


def fold(network: nn.Module, pairs: list[Fold]) -> nn.Module:
    """The network, whose batch norms are put into the linear maps before them."""
    for pair in pairs:
        linear, norm = network.get_submodule(pair.linear), network.get_submodule(pair.norm)
        _scale(linear, norm)
        network = replace(network, norm, NormalizedBefore(norm) if isinstance(norm, BatchNormNeuron) else nn.Identity())
    for module in list(network.modules()):
        if type(module) is OverTime and type(module.module) is nn.Identity:
            network = replace(network, module, module.module)
    return network


@torch.no_grad()
def _scale(linear: Any, norm: Any) -> None:
    """Gives a linear map what a batch norm in evaluation does, computed in float64 and rounded once."""

    def exact(values: Tensor | None, otherwise: float) -> Tensor:
        return torch.full_like(mean, otherwise) if values is None else values.double()

    mean, weight = norm.running_mean.double(), linear.weight
    factor = exact(norm.weight, 1.0) / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = (exact(linear.bias, 0.0) - mean) * factor + exact(norm.bias, 0.0)
    scaled = weight.double() * factor.view([-1] + [1] * (weight.dim() - 1))
    for name, values in (("weight", scaled), ("bias", bias)):
        setattr(linear, name, nn.Parameter(values.to(weight.dtype), requires_grad=False))


def replace(network: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """The network with another module wherever one was; the other module itself, if that was the whole network."""
    for parent in network.modules():
        for name, child in parent._modules.items():
            if child is old and parent is not new:
                parent._modules[name] = new
    return new.train(old.training) if network is old else network
