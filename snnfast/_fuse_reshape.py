"""Which nodes of a graph make [T, B, C, ...] of a batch norm's [T·B, C, ...], and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

__all__ = ["splits_batch"]

_RANKS = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}  # nn.BatchNorm1d takes two ranks


def splits_batch(node: fx.Node, value: fx.Node, site: Any) -> bool:
    """Whether the node splits dimension 0 of the value in two and leaves the others; False where that is not certain.

    Args:
        node: a node that uses the value.
        value: the batch norm's output, or the sum with it, of the same shape.
        site: the batch norm's call.
    """
    if node.op == "call_module":
        module = site.unit.module.get_submodule(node.target)
        return (
            type(module) is nn.Unflatten
            and module.dim == 0
            and len(module.unflattened_size) == 2
            and isinstance(module.unflattened_size[0], int)
        )
    name = node.target if node.op == "call_method" else {
        torch.unflatten: "unflatten", torch.reshape: "reshape", torch.Tensor.unflatten: "unflatten",
    }.get(node.target)  # fmt: skip
    if not node.args or node.args[0] is not value:
        return False
    if name == "unflatten":
        arguments = dict(zip(("dim", "sizes"), node.args[1:], strict=False)) | node.kwargs
        return arguments.get("dim") == 0 and _is_pair(arguments.get("sizes"))
    if name in ("view", "reshape") and not node.kwargs:
        sizes = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = tuple(sizes[0])
        return _are_shape(sizes, value, site)
    if name in ("view_as", "reshape_as") and not node.kwargs:
        return node.args[1] is _before_flatten(site)
    return False


def _is_pair(sizes: Any) -> bool:
    if isinstance(sizes, (tuple, list)):
        return len(sizes) == 2
    # x.shape[:2]
    return (
        isinstance(sizes, fx.Node)
        and getattr(sizes.target, "__name__", "") == "getitem"
        and sizes.args[1] in (slice(None, 2), slice(0, 2))
        and _shape_of(sizes.args[0]) is not None
    )


def _are_shape(sizes: tuple, value: fx.Node, site: Any) -> bool:
    """Whether sizes are (any, any, then dimensions 1, 2, ... of the value)."""
    source = _before_flatten(site)
    if len(sizes) == 1:
        return source is not None and _shape_of(sizes[0]) is source
    rank = _RANKS.get(type(site.batch_norm))
    if len(sizes) - 1 != rank:
        return False
    same_shape = {value, site.node} | (set(site.node.all_input_nodes) if not site.holders else set())
    for i, size in enumerate(sizes[2:], start=1):
        if i == 1 and isinstance(size, int):
            # A -1 may be anything where the sizes before it are wrong.
            if size != site.batch_norm.num_features:
                return False
            continue
        dimension = _dimension(size)
        if dimension is None:
            return False
        tensor, index = dimension
        if not ((tensor in same_shape and index == i) or (tensor is source and source is not None and index == i + 1)):
            return False
    return True


def _before_flatten(site: Any) -> fx.Node | None:
    """x, where the batch norm is called with x.flatten(0, 1)."""
    node = site.node.all_input_nodes[0]
    if site.holders or node.target not in ("flatten", torch.flatten):
        return None
    arguments = dict(zip(("input", "start_dim", "end_dim"), node.args, strict=False)) | node.kwargs
    return arguments["input"] if (arguments.get("start_dim", 0), arguments.get("end_dim", -1)) == (0, 1) else None


def _shape_of(node: Any) -> fx.Node | None:
    """x, where the node is x.shape or x.size()."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is getattr and node.args[1] == "shape":
        return node.args[0]
    if node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs:
        return node.args[0]
    return None


def _dimension(node: Any) -> tuple[fx.Node, int] | None:
    """(x, i), where the node is x.shape[i], x.size()[i] or x.size(i)."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return node.args[0], node.args[1]
    if getattr(node.target, "__name__", "") == "getitem" and isinstance(node.args[1], int):
        tensor = _shape_of(node.args[0])
        return None if tensor is None else (tensor, node.args[1])
    return None
