"""What a forward's graph tells of its tensors' dimensions, and which nodes make [T, B, C, ...] of [T·B, C, ...].

A dimension is written as the product of its factors, so that two are the same where they are written the same: "x.0"
is what x has for dimension 0, "=8" a number.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from snnfast.fusion.modules import FusedNeuron, FusedOverTime, fit_residual, join_sizes, laid_out
from snnfast.fusion.values import kind_of
from snnfast.layers import Neuron, OverTime

__all__ = ["Shapes"]

Dimension = tuple[str, ...]
_RANKS = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}  # nn.BatchNorm1d takes two ranks
_SAME_SHAPE = (_BatchNorm, Neuron, FusedNeuron, nn.Identity, nn.ReLU, nn.Dropout)
_BY_SAMPLE = (_ConvNd, _AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, nn.Linear, nn.Flatten)
_SAME_SHAPE_METHODS = ("contiguous", "clone", "detach", "float", "double", "relu")
_FUNCTIONS: dict[Any, str] = {
    torch.flatten: "flatten",
    torch.unflatten: "unflatten",
    torch.Tensor.unflatten: "unflatten",
    torch.reshape: "reshape",
    torch.transpose: "transpose",
    torch.swapaxes: "swapaxes",
    torch.permute: "permute",
    laid_out: "contiguous",
    torch.clone: "clone",
    torch.relu: "relu",
    nn.functional.relu: "relu",
}
_POOLS = re.compile(r"_?(adaptive_)?(avg|max)_pool\dd")
_BINARY = ("add", "sub", "mul", "truediv", "iadd", "isub", "imul", "itruediv")
_FUSED_OPTIONS = {"fused", "residual"}  # with which fused layers and the neurons in them are called
_LAYOUT = ("contiguous", "transpose", "swapaxes", "permute", "flatten")
_CHANGE_SHAPE = (
    "resize_",
    "resize_as_",
    "squeeze_",
    "unsqueeze_",
    "transpose_",
    "swapaxes_",
    "swapdims_",
    "t_",
    "set_",
    "as_strided_",
)


class Tail(NamedTuple):
    """All dimensions of a tensor from one on."""

    tensor: Any
    first: int


class Shapes:
    """The dimensions of the tensors of a unit's forward.

    Attributes:
        known: the dimensions whose numbers the modules say that take them.
    """

    def __init__(self, unit: Any) -> None:
        self.module, graph = unit.module, unit.forward.graph
        self.certain = all(node.target not in _CHANGE_SHAPE for node in graph.nodes)
        self._dimensions: dict[tuple[fx.Node, int], Dimension] = {}
        self.known: dict[Dimension, int] = {}
        for node in graph.nodes:
            for i in range(5):
                self.dimension(node, i)  # in the graph's order, so that none has far to go back
            if node.op == "call_module" and len(node.args) == 1 and isinstance(node.args[0], fx.Node):
                module = self.module.get_submodule(str(node.target))
                while isinstance(module, nn.Sequential) and len(module):
                    module = module[0]
                if isinstance(module, (_ConvNd, _BatchNorm)) and not isinstance(module, Neuron):
                    number = module.in_channels if isinstance(module, _ConvNd) else module.num_features
                    self.known[self.dimension(node.args[0], 1)] = number

    # What a tensor has ----------------------------------------------------------------------------------------------

    def dimension(self, node: Any, i: int) -> Dimension:
        """Dimension i >= 0 of a tensor."""
        if (node, i) not in self._dimensions:
            self._dimensions[node, i] = self._find(node, i) or (f"{node}.{i}",)
        return self._dimensions[node, i]

    def _find(self, node: fx.Node, i: int) -> Dimension | None:
        value: Any = node.args[0] if node.args else None
        if not self.certain or not (isinstance(value, fx.Node) or method(node) == "elementwise"):
            return None
        if node.target is operator.getitem and value.target is fit_residual:
            return self.dimension(value.args[1], i)
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            return of_module(module, functools.partial(self.dimension, value), i) if alone(node) else None
        match method(node):
            case "elementwise":
                values = [operand for operand in node.args if isinstance(operand, fx.Node)]
                found = {self.dimension(v, i) for v in values if kind_of(v, self.module) not in (int, float)}
                return found.pop() if len(found) == 1 else None
            case "pool" if i < 2:
                return self.dimension(value, i)
            case "reshape" | "view" if (sizes := sizes_of(node)) is not None:
                count = len(sizes)
                if isinstance(sizes[-1], Tail) and i >= count - 1:
                    return self.dimension(sizes[-1].tensor, sizes[-1].first + i - count + 1)
                return self.size(sizes[i]) if i < count else None
            case "unflatten" if (sizes := sizes_of(node)) is not None:
                return self.size(sizes[i]) if i < 2 else self.dimension(value, i - 1)
            case "flatten" if flattened(node) == (0, 1):
                first = product(self.dimension(value, 0), self.dimension(value, 1))
                return self.dimension(value, i + 1) if i else first
        source = self.source(node, i)
        return None if source is None else self.dimension(value, source)

    def source(self, node: fx.Node, i: int) -> int | None:
        """Which dimension of its input a node has for its dimension i, where it only puts them in another order."""
        rest: list[Any] = [*node.args[1:], *node.kwargs.values()]
        match method(node):
            case name if name in _SAME_SHAPE_METHODS:
                return i
            case "flatten" if i < flattened(node)[0]:
                return i
            case "transpose" | "swapaxes" if len(rest) == 2 and all(type(d) is int for d in rest):
                one, other = (self._counted(node.args[0], d) for d in rest)
                return None if one is None or other is None else {one: other, other: one}.get(i, i)
            case "permute":
                order = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
                known = i < len(order) and type(order[i]) is int
                return self._counted(node.args[0], order[i]) if known else None
        return None

    def _counted(self, value: Any, d: int) -> int | None:
        """A dimension counted from the front."""
        rank = self.rank(value)
        return d if d >= 0 else None if rank is None else rank + d

    def rank(self, node: Any) -> int | None:
        """The number of a tensor's dimensions, where a batch norm, a reshape or the unpacking of its shape says it."""
        more = 0  # dimensions than the tensor has that node has come to be
        while isinstance(node, fx.Node):
            for user in node.users:
                if shape_of(user) is node and "length" in user.meta:
                    return user.meta["length"] + more
            value: Any = node.args[0] if node.args else None
            sizes = sizes_of(node)
            if node.op == "call_module":
                last = self.module.get_submodule(str(node.target))
                while isinstance(last, nn.Sequential) and len(last):
                    last = last[-1]
                if type(last) in _RANKS:
                    return _RANKS[type(last)] + more
                if not isinstance(last, (*_SAME_SHAPE, _ConvNd, nn.Linear)) or not alone(node):
                    return None
            elif method(node) in ("reshape", "view"):
                return None if sizes is None or isinstance(sizes[-1], Tail) else len(sizes) + more
            elif method(node) == "unflatten" and sizes is not None:
                more += 1
            elif flattened(node) == (0, 1):
                more -= 1
            elif method(node) not in (*_SAME_SHAPE_METHODS, "transpose", "swapaxes", "permute"):
                return None
            node = value
        return None

    def size(self, value: Any) -> Dimension | None:
        """What a number in a shape is, or (x, i) for dimension i of x; None for -1."""
        if isinstance(value, int):
            return None if value < 0 else (f"={value}",)
        if isinstance(value, Tail):
            return self.dimension(value.tensor, value.first)
        if isinstance(value, tuple):
            return self.dimension(*value)
        if not isinstance(value, fx.Node):
            return None
        if value.op == "get_attr":
            number = getattr(self.module, str(value.target), None)
            return (f"={number}",) if type(number) is int else None
        if value.target is operator.mul:
            factors: Any = value.args
            return product(*map(self.size, factors))
        found = index_of(value)
        return (str(value),) if found is None else self.dimension(*found)

    def number(self, dimension: Dimension | None) -> int | None:
        """The dimension as a number, where it is one."""
        if dimension is None:
            return None
        written = int(dimension[0][1:]) if len(dimension) == 1 and dimension[0][0] == "=" else None
        return self.known.get(dimension, written)

    # What splits one ------------------------------------------------------------------------------------------------

    def splits(self, node: fx.Node, value: fx.Node, site: Any) -> bool:
        """Whether the node splits dimension 0 of the value in two and leaves the others; False if that is not certain.

        Args:
            node: a node that uses the value.
            value: the batch norm's output, or the sum with it, of the same shape.
            site: the batch norm's call.
        """
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            return (
                type(module) is nn.Unflatten
                and module.dim == 0
                and len(module.unflattened_size) == 2
                and isinstance(module.unflattened_size[0], int)
            )
        if not node.args or node.args[0] is not value or not self.certain:
            return False
        name, source = method(node), before_flatten(site)
        if name in ("view_as", "reshape_as"):
            return source is not None and node.args[1:] == (source,)
        if name in ("view", "reshape") and len(node.args) == 2 and shape_of(node.args[1]) is not None:
            return shape_of(node.args[1]) is source
        sizes = sizes_of(node)
        if name == "unflatten" or sizes is None:
            return name == "unflatten" and sizes is not None
        if len(sizes) < 3:
            return False
        # Two of the three leave nothing else for the third, whether or not it is written as -1.
        output = site.node
        batch = self._is_batch(sizes, output)
        channels = self.number(self.size(sizes[2])) == site.batch_norm.num_features
        return batch + channels + self._is_space(sizes, output) >= 2

    def _is_space(self, sizes: tuple, value: fx.Node) -> bool:
        rank, *last = (len(sizes) - 1, *sizes[3:])
        if isinstance(sizes[-1], Tail):
            if self.tail(sizes[-1]) != self.tail(Tail(value, rank - 1)):
                return False
            last = last[:-1]
        elif rank != self.rank(value):
            return False
        return all(self.size(size) == self.dimension(value, i) for i, size in enumerate(last, start=2))

    def tail(self, tail: Tail) -> Tail:
        """The dimensions from one on as those of the tensor that they come from."""
        while self.certain and tail.tensor.args and isinstance(tail.tensor.args[0], fx.Node):
            node, first = tail
            value: Any = node.args[0]
            sizes = sizes_of(node)
            if node.op == "call_module":
                module = self.module.get_submodule(str(node.target))
                kept = isinstance(module, _ConvNd) and keeps_size(module) and first > 1
                if not (kept or isinstance(module, _SAME_SHAPE)) or not alone(node):
                    return tail
                tail = Tail(value, first)
            elif method(node) in _SAME_SHAPE_METHODS:
                tail = Tail(value, first)
            elif flattened(node) == (0, 1) and first > 0:
                tail = Tail(value, first + 1)
            elif sizes and isinstance(sizes[-1], Tail) and first >= len(sizes) - 1:
                tail = Tail(sizes[-1].tensor, sizes[-1].first + first - len(sizes) + 1)
            else:
                return tail
        return tail

    def _is_batch(self, sizes: tuple, value: Any) -> bool:
        both = product(*map(self.size, sizes[:2]))
        return both is not None and both == self.dimension(value, 0)

    def splits_samples(self, node: fx.Node, value: Any) -> Any:
        """T and B, where the node makes [T, B, ...] of [T·B, ...] and may rearrange what is in a sample."""
        sizes = sizes_of(node)
        if not node.args or node.args[0] is not value or not self.certain or sizes is None:
            return None
        if method(node) == "unflatten":
            return node.kwargs.get("sizes", node.args[-1])
        return sizes[:2] if len(sizes) > 2 and self._is_batch(sizes, value) else None

    def keeps_first(self, node: fx.Node, value: fx.Node, count: int) -> bool:
        """Whether the node only rearranges the dimensions after the first ones."""
        if not node.args or node.args[0] is not value or not self.certain or method(node) not in _LAYOUT:
            return False
        return all(self.source(node, i) == i for i in range(count))


def alone(node: fx.Node) -> bool:
    """Whether a module is called with one tensor, and at most what fused layers take besides."""
    return len(node.args) == 1 and set(node.kwargs) <= _FUSED_OPTIONS


def of_module(module: nn.Module, of: Callable[[int], Dimension | None], i: int) -> Dimension | None:
    """Dimension i of what a module makes of a tensor with such dimensions."""
    if isinstance(module, nn.Sequential):
        for child in module:
            of = functools.partial(of_module, child, of)
        return of(i)
    if type(module) in (OverTime, FusedOverTime):
        return of(i) if i < 2 else None
    if i == 1 and isinstance(module, _ConvNd):
        return (f"={module.out_channels}",)
    if i == 1 and isinstance(module, _BatchNorm) and not isinstance(module, Neuron):  # those have [T, B, C, ...]
        return (f"={module.num_features}",)
    same = isinstance(module, _SAME_SHAPE) or (isinstance(module, _BY_SAMPLE) and i == 0)
    return of(i) if same or (isinstance(module, _ConvNd) and keeps_size(module)) else None


def keeps_size(conv: _ConvNd) -> bool:
    """Whether a convolution's output is as large as its input."""
    if conv.transposed or any(stride != 1 for stride in conv.stride) or conv.padding == "valid":
        return False
    paddings: Any = conv.padding
    return conv.padding == "same" or all(
        2 * padding == dilation * (kernel - 1)
        for padding, dilation, kernel in zip(paddings, conv.dilation, conv.kernel_size, strict=True)
    )


def product(*dimensions: Dimension | None) -> Dimension | None:
    factors = [factor for dimension in dimensions for factor in dimension or ("",)]
    return None if "" in factors else tuple(sorted(factors))


def method(node: fx.Node) -> str:
    """What a node does, as the name of a tensor's method, "pool" or "elementwise"; "" for anything else."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    name = getattr(node.target, "__name__", "")
    return _FUNCTIONS.get(node.target, "pool" if _POOLS.fullmatch(name) else "elementwise" if name in _BINARY else "")


def flattened(node: fx.Node) -> tuple:
    """The first and the last dimension that a node flattens."""
    if method(node) != "flatten":
        return (0, None)
    arguments: dict[str, Any] = dict(zip(("input", "start_dim", "end_dim"), node.args, strict=False)) | node.kwargs
    first, last = arguments.get("start_dim", 0), arguments.get("end_dim", -1)
    return (first, last) if type(first) is int and first >= 0 and type(last) is int else (0, None)


def sizes_of(node: fx.Node) -> tuple | None:
    """The sizes that a view or reshape writes out, or the two of an unflatten of dimension 0."""
    name = method(node)
    if name == "unflatten":
        arguments: dict[str, Any] = dict(zip(("dim", "sizes"), node.args[1:], strict=False)) | node.kwargs
        both: Any = arguments.get("sizes")
        if arguments.get("dim") != 0:
            return None
        if isinstance(both, (tuple, list)):
            return tuple(both) if len(both) == 2 else None
        # x.shape[:2]
        part = isinstance(both, fx.Node) and both.target is operator.getitem and both.args[1]
        source = shape_of(both.args[0]) if part in (slice(None, 2), slice(0, 2)) else None
        return None if source is None else ((source, 0), (source, 1))
    if name not in ("view", "reshape") or node.kwargs:
        return None
    sizes: Any = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    if not sizes:
        return None
    if len(sizes) == 1 and isinstance(sizes[0], fx.Node) and sizes[0].target is join_sizes:
        *sizes, last = sizes[0].args
        tail = tail_of(last)
        sizes = (*sizes, last if tail is None else tail)
        if tail is not None and all(isinstance(size, (int, fx.Node)) and tail_of(size) is None for size in sizes[:-1]):
            return sizes
    if all(isinstance(size, int) or (isinstance(size, fx.Node) and shape_of(size) is None) for size in sizes):
        return tuple(sizes)
    return None


def before_flatten(site: Any) -> Any:
    """x, where the batch norm is called with x.flatten(0, 1)."""
    node = site.node.all_input_nodes[0]
    return node.args[0] if not site.holders and flattened(node) == (0, 1) else None


def shape_of(node: Any) -> Any:
    """x, where the node is x.shape or x.size()."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is getattr and node.args[1] == "shape":
        return node.args[0]
    if node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs:
        return node.args[0]
    return None


def tail_of(node: Any) -> Tail | None:
    """x from a on, where the node is x.shape or x.shape[a:] with a >= 0."""
    first = 0
    if isinstance(node, fx.Node) and node.target is operator.getitem and isinstance(node.args[1], slice):
        part: Any
        node, part = node.args
        first = part.start or 0
        if part.stop is not None or part.step is not None or type(first) is not int or first < 0:
            return None
    tensor = shape_of(node)
    return None if tensor is None else Tail(tensor, first)


def index_of(node: fx.Node) -> tuple[fx.Node, int] | None:
    """(x, i), where the node is x.shape[i], x.shape[a:][i], x.size()[i] or x.size(i), with i >= 0."""
    holder: Any
    index: Any
    tensor: Any
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        tensor, index = node.args
    elif node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        holder, index = node.args
        part = holder.args[1] if holder.target is operator.getitem else None
        if isinstance(part, slice):  # x.shape[a:][i]
            start = part.start or 0
            if part.step is not None or type(start) is not int or start < 0 or type(index) is not int or index < 0:
                return None
            holder, index = holder.args[0], start + index
        tensor = shape_of(holder)
    else:
        return None
    return (tensor, index) if tensor is not None and type(index) is int and index >= 0 else None
