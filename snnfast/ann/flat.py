"""The whole forward of a network as one graph, in which only the layers of torch.nn are calls."""

from __future__ import annotations

import operator
import os
import traceback
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

import snnfast
from snnfast.fusion.match import describe, is_container
from snnfast.fusion.trace import Untraceable, trace_forward
from snnfast.fusion.values import IN_PLACE
from snnfast.layers.base import Layer

__all__ = ["Flat", "flatten", "owner", "without_writing"]

_TOOLS = tuple(os.path.dirname(str(module.__file__)) for module in (torch, snnfast))
_LAYERS = ("torch.nn.", "torch.ao.nn.")


@dataclass
class Flat:
    """A network's forward.

    Attributes:
        graph: it takes one value; modules and attributes are called by their names in the network.
        opened: ids of the modules whose forwards became part of the graph.
        closed: modules that cannot be traced and were left as calls, by name with the reason.
    """

    module: nn.Module
    graph: fx.Graph = field(default_factory=fx.Graph)
    opened: set[int] = field(default_factory=set)
    closed: dict[str, str] = field(default_factory=dict)

    def called(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it does."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None


def flatten(module: nn.Module) -> Flat:
    """The forward of a network of one argument; ValueError names the module that cannot be followed, and where."""
    if _is_layer(module):
        raise ValueError(f"ann must be a network with layers in it, got a {type(module).__name__}")
    flat = Flat(module)
    value = flat.graph.placeholder("images")
    flat.graph.output(_inlined(flat, module, "", (value,), {}))
    return flat


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_LAYERS) and not isinstance(module, nn.Sequential)


def owner(node: fx.Node) -> str:
    """The name of the module whose forward a node is of."""
    return node.meta.get("owner", "")


def _inlined(flat: Flat, module: nn.Module, name: str, args: tuple, kwargs: dict) -> Any:
    """What a module gives, its forward written into the graph."""
    if isinstance(module, Layer):
        raise ValueError(f"ann must have no layers of snnfast, got {describe(module, name)}: it is spiking already")
    if _is_layer(module):
        return _call(flat, name, args, kwargs)
    if is_container(module) and "forward" not in module.__dict__ and len(args) == 1 and not kwargs:
        flat.opened.add(id(module))
        (value,) = args
        for child_name, child in module._modules.items():
            assert child is not None  # a container has no empty places
            value = _inlined(flat, child, _path(name, child_name), (value,), {})
        return value
    try:
        forward = trace_forward(module)
        if forward.training_matters:
            raise Untraceable("it reads `training`, and does other things by it than a graph can")
    except Untraceable as reason:
        if name and not any(module.children()) and not _names_relu(type(module).forward.__code__):
            flat.closed[name] = f"its forward cannot be traced ({reason}): called as it is, on each step's values"
            return _call(flat, name, args, kwargs)
        raise ValueError(
            f"ann cannot be followed: the forward of {describe(module, name)} cannot be traced: {reason}"
            + _where(reason)
        ) from reason
    flat.opened.add(id(module))
    return _copied(flat, module, name, forward.graph, args, kwargs)


def _copied(flat: Flat, module: nn.Module, name: str, graph: fx.Graph, args: tuple, kwargs: dict) -> Any:
    """A forward's graph copied into the network's, for the arguments that it is called with."""
    given, rest = list(args), dict(kwargs)
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        new_args, new_kwargs = (fx.map_arg(part, values.__getitem__) for part in (node.args, node.kwargs))
        if node.op == "placeholder":
            parameter = str(node.target)
            if parameter.startswith("*") or not (given or parameter in rest or node.args):
                raise ValueError(f"ann cannot be followed: {describe(module, name)} takes {parameter!r}")
            values[node] = given.pop(0) if given else rest.pop(parameter) if parameter in rest else node.args[0]
        elif node.op == "call_module":
            child = str(node.target)
            values[node] = _inlined(flat, module.get_submodule(child), _path(name, child), new_args, new_kwargs)
        elif node.op == "output":
            return new_args[0]
        else:
            target = _path(name, str(node.target)) if node.op == "get_attr" else node.target
            values[node] = flat.graph.create_node(node.op, target, new_args, new_kwargs)
            values[node].meta["owner"] = name
    raise AssertionError("a graph ends in its output")


def _call(flat: Flat, name: str, args: tuple, kwargs: dict) -> fx.Node:
    node = flat.graph.create_node("call_module", name, args, kwargs)
    node.meta["owner"] = name.rpartition(".")[0]
    return node


def _path(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _names_relu(code: Any) -> bool:
    """Whether code names a ReLU, of which a neuron would have to be made."""
    if not isinstance(code, CodeType):
        return False
    return any("relu" in name.lower() for name in code.co_names) or any(map(_names_relu, code.co_consts))


def _where(error: BaseException) -> str:
    """The line of the user's code that an error came from, in words."""
    cause = error.__cause__ or error
    frames = [f for f in traceback.extract_tb(cause.__traceback__) if not f.filename.startswith((*_TOOLS, "<"))]
    return f" ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""


def without_writing(flat: Flat) -> None:
    """Makes every operation that writes into its input give a new tensor, which all that comes later reads instead.

    A view of what was written into is not followed: that the graph still computes the same has to be seen.
    """
    order = {node: at for at, node in enumerate(flat.graph.nodes)}
    for node in flat.graph.nodes:
        if not _writes(flat, node):
            continue
        written = node.all_input_nodes[0]
        if node.args and isinstance(node.args[0], fx.Node):
            written = node.args[0]
        for user in list(written.users):
            if order[user] > order[node]:
                user.replace_input_with(written, node)
    for module in flat.module.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]  # as nn.ReLU has it
    flat.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))


def _writes(flat: Flat, node: fx.Node) -> bool:
    """Whether a node writes into its first input; it does no longer."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module":
        return getattr(flat.called(node), "inplace", False) is True
    if node.op == "call_function" and name in IN_PLACE:
        node.target = getattr(operator, {"iand": "and_", "ior": "or_"}.get(name, name[1:]))
        return True
    if node.op == "call_method" and name.endswith("_") and not name.endswith("__"):
        node.target = name[:-1]
        return True
    if node.op != "call_function":
        return False
    if name.endswith("_") and hasattr(torch, name[:-1]):
        node.target = getattr(torch, name[:-1])
        return True
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    return False
