"""The values that a forward runs on while torch.fx writes down what it does, and what is said of them.

C code, too, asks by way of ``__class__`` whether an object is a tensor, and reads one where it is told so. A stand-in
therefore never says that it is something else. Where the forward's own Python code asks (``isinstance``, ``type``,
``hasattr``, ...), the question is answered in its place, by what the value will be.
"""

from __future__ import annotations

import builtins
import dis
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from snnfast.fusion.modules import time_steps
from snnfast.layers import OverTime

__all__ = ["IN_PLACE", "Questions", "Rest", "StandIn", "Untraceable", "kind_of", "length_of"]

IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
_TENSOR_MODULES = (_BatchNorm, _ConvNd, nn.Linear, nn.Dropout, nn.Identity, nn.Flatten, nn.Unflatten, OverTime)
_ATTRIBUTES = {"shape": torch.Size, "ndim": int, "dtype": torch.dtype, "device": torch.device}
_COUNTS = ("dim", "ndimension", "numel", "nelement")
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg)
_TENSOR_METHODS = (
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "transpose",
    "permute",
    "contiguous",
    "clone",
    "detach",
    "mean",
    "sum",
    "relu",
    "squeeze",
    "unsqueeze",
    "float",
    "expand",
    "repeat",
)


_ARGUMENTS = (
    "LIST_",
    "CALL_INTRINSIC_1",
    "LOAD_",
    "PUSH_NULL",
    "NOP",
    "BUILD_MAP",
    "BUILD_CONST_KEY_MAP",
    "DICT_MERGE",
)  # what a call's arguments are put together with
_isinstance, _hasattr, _getattr, _callable, _len = isinstance, hasattr, getattr, callable, len


class Untraceable(Exception):
    """Why a forward is not understood."""


class StandIn(fx.Proxy):
    """A stand-in for a value of the forward. It tells ``a += b`` from ``a = a + b``: the first writes into a tensor
    that others may hold."""

    tracer: Any  # of trace.py: it has the questions

    @property  # type: ignore[misc]  # object's can be set; a stand-in's is only asked for
    def __class__(self) -> type:
        frame = sys._getframe(1)
        asking = _asking(frame)
        if asking == "MATCH_CLASS":
            raise Untraceable("it matches a value against a class")
        if asking == "__class__" and _is_answered(frame):
            return self.tracer.questions.kind(self)
        return type(self)

    def __getattr__(self, name: str) -> _Attribute:
        if name.startswith("__"):
            raise AttributeError(f"the value of a forward that is traced has no {name}")
        return _Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise Untraceable(f"it sets the attribute {name!r} of a value")
        object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        kind = kind_of(self.node, self.tracer.questions.module)
        if kind is not None and not issubclass(kind, Tensor):
            raise Untraceable(f"it looks up a {kind.__name__} that only a call decides")
        return object.__hash__(self)

    def __str__(self) -> str:
        return _Text(repr(self))

    def __len__(self) -> int:
        length = length_of(self.node, self.tracer.questions.module)
        if length is None:
            raise TypeError("the length of a value is known only when the forward runs")  # list.extend ignores it
        return length

    def __iter__(self) -> Iterator[fx.Proxy]:
        frame = sys._getframe(1)
        instruction = _instruction(frame)
        length = length_of(self.node, self.tracer.questions.module)
        if instruction.opname == "UNPACK_SEQUENCE":
            length = self.node.meta["length"] = instruction.argval  # what it is when it runs, or an error
        if length is not None:
            value: Any = self  # torch.fx adds the operators later
            return (value[i] for i in range(length))
        call = _star_call(frame)
        if call is None or kind_of(self.node, self.tracer.questions.module) is not torch.Size:
            return self.tracer.iter(self)
        rest = Rest(self, frame, call)
        self.tracer.questions.rests.append(rest)
        return iter((rest,))


def _refused(what: str) -> Callable:
    def method(self: StandIn, *_: Any, **__: Any) -> Any:
        raise Untraceable(what)

    return method


for _name in ("__array__", "__array_function__", "__array_ufunc__"):
    setattr(StandIn, _name, _refused("it hands a value to NumPy"))
for _name in ("__copy__", "__deepcopy__", "__reduce_ex__"):
    setattr(StandIn, _name, _refused("it copies a value"))


def _in_place(name: str) -> Any:
    target = getattr(operator, name)

    def method(self: StandIn, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in IN_PLACE:
    setattr(StandIn, f"__{_name}__", _in_place(_name))


class _Attribute(StandIn, fx.proxy.Attribute):
    @property
    def node(self) -> fx.Node:  # type: ignore[override]  # as in fx.proxy.Attribute
        # Only when it is used: a method's call becomes one node. getattr itself is exchanged in the meantime.
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", _getattr, (self.root, self.attr), {}).node
        return self._node


class Rest(StandIn):
    """All the sizes of a shape in ``f(a, *shape)``, for this one call alone: their number is not known."""

    def __init__(self, shape: StandIn, frame: FrameType, call: int) -> None:
        super().__init__(shape.node, shape.tracer)
        self.__dict__.update(frame=frame, call=call)

    def spend(self) -> fx.Node:
        """The shape, where torch's own code makes a node of that call."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.frame and not _is_answered(frame):
            frame = frame.f_back
        rests = self.tracer.questions.rests
        if (
            frame is None
            or frame is not self.frame
            or frame.f_lasti != self.call
            or all(rest is not self for rest in rests)
        ):
            raise Untraceable("it takes apart a shape whose length is not known")
        rests[:] = [rest for rest in rests if rest is not self]
        return self.node


class _Text(str):
    """A value as text: to print it changes nothing, to decide by it would."""

    __slots__ = ()


for _name in (
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__hash__",
    "__contains__",
    "__getitem__",
    *(name for name in dir(str) if not name.startswith("__")),
):
    setattr(_Text, _name, _refused("it decides by a value's text"))


class Questions:
    """What a forward asks of the kinds of its values.

    Attributes:
        module: the module whose forward it is.
        otherwise: answers the other way where the answer is an assumption, to see what that changes.
        assumed: whether one was.
        rests: what was handed to a call with a star and not arrived yet.
    """

    def __init__(self, module: nn.Module, otherwise: bool) -> None:
        self.module = module
        self.otherwise = otherwise
        self.assumed = False
        self.rests: list[Rest] = []

    def answer(self, value: fx.Proxy, ask: Callable[[type], bool]) -> bool:
        kind = kind_of(value.node, self.module)
        if kind is not None:
            return ask(kind)
        self.assumed = True
        return ask(Tensor) is not self.otherwise

    def kind(self, value: fx.Proxy) -> type:
        kind = kind_of(value.node, self.module)
        if kind is None:
            self.assumed = True
            kind = object if self.otherwise else Tensor
        return kind

    @contextmanager
    def answered(self, namespaces: list[dict[str, Any]]) -> Iterator[None]:
        """Answers while a forward is traced.

        Args:
            namespaces: the globals of the methods that may ask for a type.
        """
        asked = self._type()
        exchanged = [(vars(builtins), name, function) for name, function in self._builtins().items()]
        exchanged += [(space, "type", asked) for space in namespaces if "type" not in space]
        before = [(space, name, space.get(name)) for space, name, _ in exchanged]
        try:
            for space, name, function in exchanged:
                space[name] = function
            yield
        finally:
            for space, name, original in before:
                if original is None:
                    del space[name]
                else:
                    space[name] = original

    def _builtins(self) -> dict[str, Callable]:
        def asked(value: Any) -> bool:
            return issubclass(type(value), fx.Proxy) and _is_answered(sys._getframe(2))

        def isinstance_(value: Any, kinds: Any, /) -> bool:
            if not asked(value):
                return _isinstance(value, kinds)
            return self.answer(value, lambda kind: issubclass(kind, kinds))

        def hasattr_(value: Any, name: str, /) -> bool:
            if not asked(value):
                return _hasattr(value, name)
            return self.answer(value, lambda kind: _hasattr(kind, name))

        def getattr_(value: Any, name: str, /, *default: Any) -> Any:
            if default and asked(value) and not self.answer(value, lambda kind: _hasattr(kind, name)):
                return default[0]
            return _getattr(value, name, *default)

        def callable_(value: Any, /) -> bool:
            if not asked(value):
                return _callable(value)
            return self.answer(value, lambda kind: any("__call__" in base.__dict__ for base in kind.__mro__))

        def len_(value: Any, /) -> Any:
            if not asked(value):
                return _len(value)
            return value.tracer.create_proxy("call_function", _len, (value,), {})

        return {f.__name__.rstrip("_"): f for f in (isinstance_, hasattr_, getattr_, callable_, len_)}

    def _type(self) -> type:
        class Asked(type):
            def __call__(cls, *arguments: Any, **options: Any) -> Any:
                if len(arguments) == 1 and issubclass(type(arguments[0]), fx.Proxy):
                    return self.kind(arguments[0])
                return type(*arguments, **options)

            def __instancecheck__(cls, value: Any) -> bool:
                return isinstance(value, type)

            def __subclasscheck__(cls, kind: type) -> bool:
                return issubclass(kind, type)

        return Asked("type", (type,), {})


def _is_answered(frame: FrameType) -> bool:
    """Whether a frame's questions are the forward's: not torch's own, whose answers lead to C code."""
    name = frame.f_globals.get("__name__") or ""
    if frame.f_code is torch.is_tensor.__code__:
        return True
    return name.partition(".")[0] != "torch" and not name.startswith("snnfast.fusion")


def _instruction(frame: FrameType) -> dis.Instruction:
    return next(i for i in dis.get_instructions(frame.f_code) if i.offset == frame.f_lasti)


def _asking(frame: FrameType) -> str:
    """What a frame that reads ``__class__`` is at, as far as that matters."""
    operation = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    if operation in ("LOAD_ATTR", "LOAD_METHOD"):
        return str(_instruction(frame).argval)
    return operation


def _star_call(frame: FrameType) -> int | None:
    """Where the call is in the code that a frame unpacks arguments for, if nothing else can come of them."""
    instructions = [i for i in dis.get_instructions(frame.f_code) if i.offset >= frame.f_lasti]
    if instructions[0].opname not in ("LIST_EXTEND", "CALL_FUNCTION_EX"):
        return None
    for instruction in instructions:
        if instruction.opname == "CALL_FUNCTION_EX":
            return instruction.offset
        if not instruction.opname.startswith(_ARGUMENTS):
            return None
    return None


def kind_of(node: fx.Node, module: nn.Module) -> type | None:
    """The type that a node's value will have, where that is certain."""
    if "kind" not in node.meta:
        node.meta["kind"] = _find_kind(node, module)
    return node.meta["kind"]


def _find_kind(node: fx.Node, module: nn.Module) -> type | None:
    def kinds(args: tuple) -> list[type | None]:
        return [kind_of(a, module) if isinstance(a, fx.Node) else type(a) for a in args]

    match node.op:
        case "get_attr":
            return type(_attribute(module, str(node.target)))
        case "placeholder":
            return {"*": tuple, "**": dict}.get(str(node.target)[: str(node.target).count("*")])
        case "call_module":
            return Tensor if isinstance(module.get_submodule(str(node.target)), _TENSOR_MODULES) else None
        case "call_method" if node.target == "size":
            return torch.Size if len(node.args) + len(node.kwargs) == 1 else int
        case "call_method" if node.target in _COUNTS:
            return int
        case "call_method" if node.target in _TENSOR_METHODS:
            return _tensor_among(kinds(node.args[:1]))
        case "call_function" if node.target is _getattr and node.args[1] in _ATTRIBUTES:
            return _ATTRIBUTES[str(node.args[1])]
        case "call_function" if node.target is operator.getitem and kinds(node.args[:1]) == [torch.Size]:
            return torch.Size if isinstance(node.args[1], slice) else int
        case "call_function" if node.target in (_len, time_steps):
            return int
        case "call_function" if node.target in _ARITHMETIC:
            found = kinds(node.args)
            return _tensor_among(found) or (int if all(kind is int for kind in found) else None)
    return None


def _attribute(module: nn.Module, path: str) -> Any:
    """A module's attribute itself; while it is traced, torch.fx gives stand-ins for parameters and buffers."""
    *children, name = path.split(".")
    holder: Any = module
    for child in children:
        holder = holder._modules[child]
    return next(names[name] for names in (holder.__dict__, holder._parameters, holder._buffers) if name in names)


def _tensor_among(kinds: list[type | None]) -> type | None:
    return Tensor if any(kind is not None and issubclass(kind, Tensor) for kind in kinds) else None


def length_of(node: fx.Node, module: nn.Module) -> int | None:
    """The number of dimensions in ``x.shape[a:b]`` where a and b say it; a shorter shape is an error when it runs."""
    if node.target is not operator.getitem or kind_of(node, module) is not torch.Size:
        return None
    part = node.args[1]
    if not isinstance(part, slice) or part.step is not None:
        return None
    start, stop = part.start, part.stop
    if start is None or (type(start) is int and start >= 0):
        return max(stop - (start or 0), 0) if type(stop) is int and stop >= 0 else None
    if type(start) is int and (stop is None or (type(stop) is int and stop < 0)):
        return max((stop or 0) - start, 0)
    return None
