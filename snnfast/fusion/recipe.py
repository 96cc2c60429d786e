"""How a module gets another forward: a class of its own, made of a recipe that can be pickled."""

from __future__ import annotations

import functools
import importlib
import itertools
import linecache
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import fx, nn

__all__ = ["give_forward", "may_get_forward"]

_numbers = itertools.count()


@dataclass(frozen=True)
class _Global:
    """A module that generated code names; modules themselves cannot be pickled."""

    name: str


@dataclass(frozen=True)
class _Recipe:
    """A class whose forward is generated code, as values that can be pickled."""

    base: type
    source: str
    names: tuple[tuple[str, Any], ...]
    fixed: frozenset[str]


def give_forward(module: nn.Module, graph: fx.Graph, fixed: frozenset[str]) -> None:
    """Makes the module run the graph: its class becomes a subclass of the one it had. The object stays the same."""
    code = graph.python_code("self")
    used = set(re.findall(r"\w+", code.src))
    names = tuple(
        (name, _Global(value.__name__) if isinstance(value, ModuleType) else value)
        for name, value in sorted(code.globals.items())
        if name in used
    )
    base, earlier = type(module), _earlier(type(module))
    if earlier is not None:
        base, fixed = earlier.base, fixed | earlier.fixed
    module.__class__ = _class_of(_Recipe(base, code.src.strip() + "\n", names, fixed))


def may_get_forward(module: nn.Module) -> str | None:
    """Why a module cannot be given another forward, if so."""
    if _earlier(type(module)) is not None:
        return None
    for name in ("__reduce__", "__reduce_ex__", "__deepcopy__", "__copy__"):
        if getattr(type(module), name, None) is not getattr(nn.Module, name, None):
            return f"its class defines {name}"
    return None


def _earlier(kind: type) -> _Recipe | None:
    return kind.__dict__.get("_snnfast_recipe")


def _class_of(recipe: _Recipe) -> type:
    try:
        return _fused_class(recipe)
    except TypeError as error:  # code that names an unhashable object
        if "unhashable" not in str(error):
            raise
        return _fused_class.__wrapped__(recipe)


@functools.cache
def _fused_class(recipe: _Recipe) -> type:
    """One class per recipe: equal blocks share it, so that torch.compile compiles them once."""
    base: Any = recipe.base
    fixed = recipe.fixed
    # The source is registered so that tracebacks and inspect.getsource show it.
    file = f"<snnfast.fuse {base.__qualname__} {next(_numbers)}>"
    linecache.cache[file] = (len(recipe.source), None, recipe.source.splitlines(keepends=True), file)
    namespace = {
        name: importlib.import_module(value.name) if isinstance(value, _Global) else value
        for name, value in recipe.names
    }
    exec(compile(recipe.source, file, "exec"), namespace)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name in fixed:
            present = getattr(self, name)
            if value is not present and not (type(value) is type(present) and value == present):
                raise AttributeError(
                    f"{name} cannot be {value!r}: the forward that snnfast.fuse wrote holds for "
                    f"{name}={present!r}; set it before fusing"
                )
        base.__setattr__(self, name, value)

    def __reduce_ex__(self: Any, protocol: int) -> tuple:
        return _restore_module, (recipe,), self.__getstate__()

    members = {
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "__qualname__": f"Fused{base.__name__}",
        "__reduce_ex__": __reduce_ex__,
        "_snnfast_recipe": recipe,
        "forward": namespace["forward"],
    }
    if fixed:
        members["__setattr__"] = __setattr__
    return type(f"Fused{base.__name__}", (base,), members)


def _restore_module(recipe: _Recipe) -> nn.Module:
    return object.__new__(_class_of(recipe))
