"""What snnfast.fuse learns of a module's own forward.

torch.fx runs a forward once on stand-ins and writes down what it does. What that would miss — randomness, attributes
that are set, grad and autocast modes, Python values that are read — is watched here, so that a forward is either
understood or named as one that is not.
"""

from __future__ import annotations

import contextlib
import copy
import dis
import inspect
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnfast.fusion.modules import fit_residual, join_sizes, laid_out, time_steps
from snnfast.fusion.randomness import restore, states_of_generators
from snnfast.fusion.values import Questions, Rest, StandIn, Untraceable

__all__ = ["Forward", "Untraceable", "trace_forward"]

_STANDARD = frozenset(nn.Module().__dict__) - {"training"}
# Where C code would look for numbers, sequences, arrays or types, in some versions of torch, and what earlier fusing
# wrote, or snnfast.to_spiking: written down as is.
_RECORDED = (
    torch.tensor,
    torch.as_tensor,
    torch.asarray,
    torch.zeros,
    torch.ones,
    torch.empty,
    torch.full,
    torch.eye,
    torch.arange,
    torch.linspace,
    torch.logspace,
    torch.rand,
    torch.randn,
    torch.randint,
    torch.randperm,
    torch.tril_indices,
    torch.triu_indices,
    torch.reshape,
    torch.tile,
    torch.roll,
    torch.broadcast_to,
    torch.broadcast_shapes,
    torch.permute,
    torch.repeat_interleave,
    torch.avg_pool1d,
    torch.finfo,
    torch.iinfo,
    fit_residual,
    join_sizes,
    laid_out,
    time_steps,
)
_SINGLE = (torch.dtype, torch.layout, torch.memory_format)  # of each value there is one object
_TAKE_SIZES = (
    "view",
    "reshape",
    "expand",
    "repeat",
    "new_zeros",
    "new_ones",
    "new_empty",
    "zeros",
    "ones",
    "empty",
    "rand",
    "randn",
)


def _modes() -> tuple:
    modes: list = [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch._C._len_torch_function_stack(),
    ]  # torch.device as a context, for one
    for device in ("cpu", "cuda"):
        modes += [torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
    # Activation checkpointing without reentry; torch has no public name for it.
    saved_tensor_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if saved_tensor_hooks is not None:
        modes.append(saved_tensor_hooks(True))
    return tuple(modes)


class _Tracer(fx.Tracer):
    """Every child is a leaf; parameters and buffers stay names."""

    proxy_buffer_attributes = True

    def __init__(self, questions: Questions) -> None:
        super().__init__(autowrap_functions=_RECORDED)
        self._autowrap_search += [torch, nn.functional]
        self.questions = questions
        self._modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return StandIn(node, self)

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *more: Any, **options: Any) -> fx.Proxy:
        if any(type(a) is Rest for a in args):
            first = 1 if kind == "call_method" else 0
            if (target if first else getattr(target, "__name__", "")) not in _TAKE_SIZES:
                raise Untraceable("it takes apart a shape whose length is not known")
            sizes = [StandIn(a.spend(), self) if type(a) is Rest else a for a in args[first:]]
            joined = sizes[0] if len(sizes) == 1 else super().create_proxy("call_function", join_sizes, (*sizes,), {})
            args = (*args[:first], joined)
        return super().create_proxy(kind, target, args, kwargs, *more, **options)

    def create_arg(self, a: Any) -> Any:
        if type(a) is Rest:
            raise Untraceable("it takes apart a shape whose length is not known")
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        # A graph keeps no context managers.
        if _modes() != self._modes:
            raise Untraceable("a part of it runs under a grad, autocast or device mode or checkpointing of its own")
        return super().create_node(*args, **kwargs)


@dataclass
class Forward:
    """One module's forward as a graph.

    Attributes:
        graph: the graph; children are called by their names in the module.
        fixed: attributes whose present values decided what the graph is.
        training_matters: the graph holds for the present training mode only.
    """

    graph: fx.Graph
    fixed: frozenset[str]
    training_matters: bool


@dataclass
class _Trace:
    graph: fx.Graph
    live: frozenset[str]
    read: frozenset[str]
    assumed: bool


def trace_forward(module: nn.Module) -> Forward:
    """The forward of a module with its children as leaves; Untraceable says why there is none."""
    if "forward" in module.__dict__:
        raise Untraceable("its forward was replaced on the object")
    if _catches(getattr(inspect.unwrap(type(module).forward), "__code__", None)):
        raise Untraceable("it catches errors, of which a stand-in may raise others than a tensor")
    randomness = states_of_generators(module)
    try:
        training = _trace(module, training=True)
        evaluation = _trace(module, training=False)
        if _skeleton(training) != _skeleton(evaluation):
            raise Untraceable("it does different things in training and in evaluation")
        # A number that its own mode decides is followed; what its children's modes decide a graph cannot ask.
        for own, trace in ((True, training), (False, evaluation)):
            if _calls(trace) != _calls(_trace(module, training=own, children=not own)):
                raise Untraceable("what it does depends on whether a module in it is in training or in evaluation")
        if _calls(training) != _calls(_trace(module, training=True, other_numbers=True)):
            raise Untraceable("what it does depends on a number of a module in it, which may be set later")
        for mode, entered in (("gradients", torch.no_grad()), ("autocast", torch.autocast("cpu", torch.bfloat16))):
            with entered:
                if _calls(training) != _calls(_trace(module, training=True)):
                    raise Untraceable(f"what it does depends on {mode} being on")
        if training.assumed and not _same_otherwise(module, training):
            raise Untraceable("what it does depends on the type of a value, which is not certain")
        # A stand-in is never None: `if shortcut is not None` has to be tried.
        for argument, value, required in _switches(module):
            try:
                given = _trace(module, training=True, arguments={argument: value})
            except Exception:
                if required:
                    continue  # it does not take that value
                raise
            if _calls(training, {argument: value}) != _calls(given):
                raise Untraceable(f"what it does depends on the argument {argument!r}")
        if any(_compares_identity(code) for code in _codes(type(module))):
            raise Untraceable("it asks by `is` whether two values are the same object, which a stand-in is not")
        # Numbers as names rather than values: `self.steps` may change after fusing. Or its mode alone, where a number
        # decides what is done.
        live = _with_names(module, training, "all") or _with_names(module, training, "training")
    except Untraceable:
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0].partition(". ")[0]
        raise Untraceable(f"{type(error).__name__}: {text}") from error
    finally:
        drawn = restore(randomness)
    if drawn:
        raise Untraceable("it draws random numbers that a graph would freeze")
    if live is not None:
        return Forward(live.graph, live.read, False)
    return Forward(training.graph, training.read - {"training"}, "training" in training.read)


def _with_names(module: nn.Module, training: _Trace, names: str) -> _Trace | None:
    """The forward with names for its module's numbers, or its mode alone, where it is the same one then."""
    try:
        live = _trace(module, live=names, training=module.training)
    except Exception:
        return None
    return live if _skeleton(live) == _skeleton(training) else None


def _catches(code: Any) -> bool:
    """Whether code, or a function within it, goes on after an error."""
    if not isinstance(code, CodeType):
        return False
    names = [instruction.opname for instruction in dis.get_instructions(code)]
    any_error = ("PUSH_EXC_INFO", "POP_TOP") in itertools.pairwise(names)  # except without a class
    return (
        any_error
        or not {"CHECK_EXC_MATCH", "CHECK_EG_MATCH"}.isdisjoint(names)
        or "suppress" in code.co_names
        or any(map(_catches, code.co_consts))
    )


def _codes(kind: type) -> list[CodeType]:
    """The code of a class's forward, and of its methods that are named there."""
    codes, names = [], ["forward"]
    for name in names:
        own = name == "forward" or not hasattr(nn.Module, name)
        found: Any = getattr(kind, name, None)
        method = inspect.unwrap(found) if own else None
        if isinstance(method, FunctionType):
            codes.append(method.__code__)
            names += [n for n in method.__code__.co_names if n not in names]
    return codes


def _compares_identity(code: CodeType) -> bool:
    """Whether code compares values with ``is``: with a flag, a dtype, another variable; or an optional one with None.

    That is the one question that nothing can answer for a value. Arguments that may be None are tried instead.
    """
    if any(isinstance(c, CodeType) and _compares_identity(c) for c in code.co_consts):
        return True
    instructions = list(dis.get_instructions(code))
    for before, instruction in itertools.pairwise(instructions):
        if instruction.opname == "IS_OP" and (
            before.opname.startswith("LOAD_FAST")
            or isinstance(before.argval, bool)
            or (before.opname == "LOAD_ATTR" and type(getattr(torch, before.argval, None)) in _SINGLE)
        ):
            return True
    optional = code.co_flags & inspect.CO_VARKEYWORDS and not {"get", "pop"}.isdisjoint(code.co_names)
    return bool(optional) and any(i.opname == "IS_OP" or i.opname.endswith("_NONE") for i in instructions)


def _namespaces(kind: type) -> list[dict[str, Any]]:
    """The globals of a class's own methods."""
    methods = [value for base in kind.__mro__ for value in vars(base).values() if isinstance(value, FunctionType)]
    methods = [method for method in methods if (method.__module__ or "").partition(".")[0] != "torch"]
    return list({id(space): space for space in (inspect.unwrap(method).__globals__ for method in methods)}.values())


def _switches(module: nn.Module) -> list[tuple[str, Any, bool]]:
    """Arguments that a forward may decide by without asking a tensor, with values to try, and whether they have no
    default: such may be None as well, but for the first, the forward's input."""
    switches: list[tuple[str, Any, bool]] = []
    for i, p in enumerate(inspect.signature(type(module).forward).parameters.values()):
        required = p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        if p.default is None or (required and i > 1):
            switches.append((p.name, None, required))
        elif isinstance(p.default, bool):
            switches += [(p.name, value, False) for value in (False, True)]
    return switches


def _same_otherwise(module: nn.Module, trace: _Trace) -> bool:
    """Whether the forward does the same, or says that it cannot, where its values are not the tensors assumed."""
    try:
        other = _trace(module, training=True, otherwise=True)
    except Exception as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is None or isinstance(error, Untraceable):
            return False
        code = last.tb_frame.f_code
        said = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
        return said and not code.co_filename.startswith(os.path.dirname(torch.__file__))
    return other.graph.python_code("self").src == trace.graph.python_code("self").src


@contextlib.contextmanager
def _inner_modules(module: nn.Module, training: bool, other_numbers: bool) -> Iterator[None]:
    """The modules in a module in a mode and, if asked, with other floating numbers, such as a threshold."""
    changed = []
    try:
        for child in module.modules():
            if child is module:
                continue
            own = child.__dict__
            for name, value in list(own.items()):
                if name == "training" or (other_numbers and type(value) is float):
                    changed.append((own, name, value))
                    own[name] = training if name == "training" else 0.25 if value == 0.5 else 0.5
        yield
    finally:
        for own, name, value in changed:
            own[name] = value


def _trace(
    module: nn.Module,
    *,
    live: str = "",
    training: bool,
    children: bool | None = None,
    other_numbers: bool = False,
    arguments: dict[str, Any] | None = None,
    otherwise: bool = False,
) -> _Trace:
    questions = Questions(module, otherwise)
    tracer = _Tracer(questions)
    base = type(module)
    read: set[str] = set()
    named: set[str] = set()
    recording = False

    def __getattribute__(self: Any, name: str) -> Any:
        value = base.__getattribute__(self, name)
        if not recording or name in _STANDARD or name.startswith("__"):
            return value
        if (name != "training" and hasattr(nn.Module, name)) or callable(value):
            return value
        if isinstance(value, (nn.Module, Tensor, fx.Proxy)):
            return value
        if name in self.__dict__ and ((live and name == "training") or (live == "all" and type(value) in (int, float))):
            named.add(name)
            return tracer.create_proxy("get_attr", name, (), {})
        read.add(name)
        return value

    # A shell of the module takes what the forward may set, so that the module itself stays as it is.
    shell_type = type(base.__name__, (base,), {"__getattribute__": __getattribute__, "__module__": base.__module__})
    shell: Any = object.__new__(shell_type)
    for name, value in module.__dict__.items():
        shell.__dict__[name] = copy.copy(value) if isinstance(value, (list, dict, set)) else value
    shell.__dict__["training"] = training
    with _inner_modules(module, training if children is None else children, other_numbers):
        recording = True
        try:
            with questions.answered(_namespaces(base)):
                graph = tracer.trace(shell, arguments)
        finally:
            recording = False
    if questions.rests:
        raise Untraceable("it takes apart a shape whose length is not known")
    for node in graph.nodes:
        node.meta.pop("is_wrapped", None)  # code made of it would tell torch.fx to wrap names that it does not have
    for name, value in shell.__dict__.items():
        if name == "training":
            continue
        if name.startswith("_tensor_constant"):
            raise Untraceable("it makes a tensor that a graph would freeze")
        before = module.__dict__.get(name, shell)
        if value is not before and not (type(value) is type(before) and _same_items(value, before)):
            raise Untraceable(
                f"it sets or changes the attribute {name!r}"
                if name not in _STANDARD
                else "it registers parameters, buffers or modules"
            )
    return _Trace(graph, frozenset(named), frozenset(read), questions.assumed)


def _same_items(value: Any, before: Any) -> bool:
    """Whether a copied container still holds the same objects (== on tensors would not do)."""
    if isinstance(value, dict):
        return list(value) == list(before) and all(value[key] is before[key] for key in value)
    if isinstance(value, list):
        return len(value) == len(before) and all(a is b for a, b in zip(value, before, strict=True))
    return isinstance(value, set) and value == before


def _skeleton(trace: _Trace) -> list:
    """What is called in which order, without what one trace only has: the arithmetic of numbers that are names, and
    the checks of arguments that are given."""
    return [(node.op, node.target) for node in _steps(trace)]


def _calls(trace: _Trace, given: dict[str, Any] | None = None) -> list:
    """What is called in which order, and with what: of traces without names for numbers.

    Args:
        given: arguments of the forward, and the values that stand for them in the trace that this is compared with.
    """
    values = given or {}
    steps = _steps(trace)
    order = {node: f"%{i}" for i, node in enumerate(steps)}

    def name(node: fx.Node) -> Any:
        if node.op == "placeholder" and node.target in values:
            return values[str(node.target)]
        return order.get(node, f"%{node.target}")

    return [(n.op, n.target, repr(fx.map_arg(n.args, name)), repr(fx.map_arg(n.kwargs, name))) for n in steps]


def _steps(trace: _Trace) -> list[fx.Node]:
    numbers: set[fx.Node] = set()
    steps = []
    for node in trace.graph.nodes:
        inputs = node.all_input_nodes
        checked = bool(node.users) and all("_assert" in getattr(user.target, "__name__", "") for user in node.users)
        if node.op == "placeholder" or checked or "_assert" in getattr(node.target, "__name__", ""):
            continue
        if (node.op == "get_attr" and node.target in trace.live) or (inputs and all(n in numbers for n in inputs)):
            numbers.add(node)
        else:
            steps.append(node)
    return steps
