"""How many spikes are behind each number of a tensor that was made of spikes by linear operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["SpikeCounts"]

# What moves or chooses numbers, and so does the same to the counts. Max pooling of spikes is such a choice.
_CHOOSES = {
    *("expand", "permute", "transpose", "t", "numpy_T", "squeeze", "unsqueeze", "slice", "select", "narrow", "unfold"),
    *("index", "index_select", "gather", "split", "split_with_sizes", "chunk", "unbind", "cat", "stack", "repeat"),
    *("roll", "flip", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "relu", "amax"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d", "im2col", "pixel_shuffle", "pixel_unshuffle"),
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool2d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "channel_shuffle", "native_channel_shuffle"),
}
_RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten"}
_COPIES = {"clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous"}
_PRODUCTS = {"mm", "bmm"}
_OTHER_PRODUCTS = {
    *("addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "linear", "matmul", "einsum", "convolution", "_convolution"),
    *("_trilinear", "mkldnn_rnn_layer", "_cudnn_rnn", "lstm", "gru", "_native_multi_head_attention"),
    "_transformer_encoder_layer_fwd",
}


class SpikeCounts(TorchDispatchMode):
    """Within it the spikes that layers made are followed, through what is linear in them, to what they enter.

    Pooling, sums and means over time, reshapes, scaling by a number, sums of spikes and their products keep track of
    how many spikes each number stands for; anything else (a batch norm, a bias) makes numbers that are no spikes.

    Attributes:
        unknown: matrix products and convolutions outside of ``inside`` ones, by torch's name for the operation.
        inside: how many layers that are counted on their own are running.
    """

    def __init__(self) -> None:
        super().__init__()
        # None: the tensor is its own counts. (Its own key as value would keep it alive.)
        self._counts = WeakTensorKeyDictionary()
        self.unknown: Counter[str] = Counter()
        self.inside = 0

    def mark(self, spikes: Tensor) -> None:
        """``spikes``, zeros and ones, are what is followed from here on."""
        self._counts[spikes] = None

    def of(self, tensor: Tensor) -> Tensor | None:
        """The spikes behind each number; the tensor itself where it is zeros and ones; None where it is no spikes."""
        if tensor in self._counts:
            counts = self._counts[tensor]
            return tensor if counts is None else counts
        # A neuron of another library, or a sample of events. All zeros say nothing.
        if tensor.numel() and ((tensor == 0) | (tensor == 1)).all() and tensor.any():
            return tensor
        return None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if not self.inside and (name in _PRODUCTS | _OTHER_PRODUCTS or "scaled_dot_product" in name):
            self.unknown[name] += 1
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        followed = any(tensor in self._counts for tensor in given)
        mutates = func._schema.is_mutable
        # What is written to may be its own counts: they are found before.
        made = self._made(name.removesuffix("_"), func, given, args, kwargs) if followed and mutates else None
        result = func(*args, **kwargs)
        if not followed:
            return result
        if mutates:
            for tensor in given:
                self._counts.pop(tensor, None)
        else:
            made = self._made(name, func, given, args, kwargs, result)
        self._note(result, made)
        return result

    def _note(self, result: Any, made: Any) -> None:
        if isinstance(result, tuple | list) and isinstance(made, tuple | list):
            for one, counts in zip(result, made, strict=True):
                self._note(one, counts)
        elif isinstance(result, Tensor) and isinstance(made, Tensor) and result.shape == made.shape:
            self._counts[result] = None if made is result else made

    def _made(self, name: str, func: Any, given: list[Tensor], args: Any, kwargs: Any, result: Any = None) -> Any:
        """The counts of an operation's result, or results; None where it is no spikes. ``result``: unless in place."""
        if name in _COPIES or name in _RESHAPES or name in _CHOOSES:
            return self._moved(name, func, given, args, kwargs, result)
        if name in _SUMS:
            counts = self._own(args[0])
            return None if counts is None else _SUMS[name](counts.double(), *args[1:], **_known(kwargs))
        if name in ("add", "sub", "mul", "div", *_PRODUCTS):
            return self._combined(name, args)
        return None

    def _own(self, tensor: Any) -> Tensor | None:
        return self.of(tensor) if isinstance(tensor, Tensor) else None

    def _moved(self, name: str, func: Any, given: list[Tensor], args: Any, kwargs: Any, result: Any) -> Any:
        numbers = [tensor for tensor in given if tensor.is_floating_point() or tensor in self._counts]  # no indices
        if result is None or (name == "constant_pad_nd" and args[2:] and args[2] != 0):
            return None
        if all(tensor in self._counts and self._counts[tensor] is None for tensor in numbers):
            return _values(name, result)  # raw spikes stay spikes
        found = {id(tensor): self.of(tensor) for tensor in numbers}
        if any(counts is None for counts in found.values()):
            return None
        if name in _COPIES:
            return found[id(numbers[0])].to(result.device)  # type: ignore[union-attr]  # none is None
        if name in _RESHAPES:
            return found[id(numbers[0])].reshape(result.shape)  # type: ignore[union-attr]

        def counted(leaf: Any) -> Any:
            counts = found.get(id(leaf))
            return leaf if counts is None else counts.double()

        return _values(name, func(*tree_map(counted, args), **tree_map(counted, kwargs)))

    def _combined(self, name: str, args: Any) -> Tensor | None:
        first, second = args[0], args[1]
        if name in ("mul", "div"):
            for one, factor in ((first, second), (second, first)):
                if isinstance(one, Tensor) and one in self._counts and _is_number(factor):
                    counts = self.of(one)
                    return counts.clone() if counts is one else counts  # it may be written to
        one, other = self._own(first), self._own(second)
        if one is None or other is None or name == "div":
            return None
        # A number added to spikes, a bias of 1 say, is no spike of its own.
        if name in ("add", "sub") and one.shape != other.shape:
            return None
        one, other = one.double(), other.double()
        if name in _PRODUCTS:
            return one @ other
        return one * other if name == "mul" else one + other


def _values(name: str, result: Any) -> Any:
    """Of a pooling that also returns indices, the values."""
    return (result[0], None) if isinstance(result, tuple) and "max_pool" in name else result


def _known(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "dtype"}


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.numel() == 1


def _summed(counts: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return counts.sum() if dim is None else counts.sum(dim, keepdim)


def _pooled(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pooled(counts: Tensor, size: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, *_: Any) -> Tensor:
        return pool(counts, size, stride or size, padding, ceil, True, 1)

    return pooled


def _pooled_in_line(counts: Tensor, size: Any, stride: Any = (), padding: Any = 0, *rest: Any) -> Tensor:
    def flat(value: Any, other: int) -> tuple[int, int]:
        return other, value[0] if isinstance(value, list | tuple) else value

    sizes, strides, paddings = flat(size, 1), flat(stride or size, 1), flat(padding, 0)
    return F.avg_pool2d(counts.unsqueeze(-2), sizes, strides, paddings, any(rest[:1]), True, 1).squeeze(-2)


def _pooled_to(counts: Tensor, sizes: Any) -> Tensor:
    """Sums over the windows of an adaptive average pool, which may differ in size and overlap."""
    for dim, size in zip(range(-len(sizes), 0), sizes, strict=True):
        length = counts.shape[dim]
        windows = [(at * length // size, -(-(at + 1) * length // size)) for at in range(size)]
        counts = torch.stack([counts.narrow(dim, a, b - a).sum(dim) for a, b in windows], dim)
    return counts


_SUMS: dict[str, Callable[..., Tensor]] = {
    "sum": _summed,
    "mean": _summed,
    "avg_pool1d": _pooled_in_line,
    "avg_pool2d": _pooled(F.avg_pool2d),
    "avg_pool3d": _pooled(F.avg_pool3d),
    "_adaptive_avg_pool2d": _pooled_to,
    "_adaptive_avg_pool3d": _pooled_to,
}
"""What adds spikes up, by the numbers of a window or over dimensions, whatever it divides by."""
