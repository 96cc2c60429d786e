"""Running a model once, in evaluation, and following its tensors from layer to layer.

A model is run on its sample rather than on torch.fx's stand-ins, so that forwards that ask for shapes, as those of
snnfast.models do, are followed too. What layers and functions mean in a graph is in ``writing``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["OVER_TIME", "PER_SAMPLE", "READ_OUT", "Handler", "Recorder", "Value", "run"]

OVER_TIME, PER_SAMPLE, READ_OUT = "over time", "per sample", "read out"
"""A tensor's leading dimensions: time and batch; one of samples, be it batch or time and batch merged; a result."""
_READERS = frozenset(
    ("item", "tolist", "numpy", "equal", "allclose", "__bool__", "__float__", "__int__", "__index__", "__contains__")
)


@dataclass(frozen=True)
class Value:
    """What a tensor of the run is in the graph.

    Attributes:
        sources: the nodes whose sum it is, each with the version of it that was read.
        axes: one of the three kinds of leading dimensions.
        held: of PER_SAMPLE, whether it has no time: a current that a neuron holds.
    """

    sources: tuple[tuple[str, int], ...]
    axes: str
    held: bool = False

    @property
    def lead(self) -> int:
        return 2 if self.axes == OVER_TIME else 1


class Handler(Protocol):
    """What meaning the recorder's finds have."""

    def takes(self, module: nn.Module, recorder: Recorder) -> bool:
        """Whether a module is one step of the graph; those that are not are followed into."""

    def module(self, module: nn.Module, args: tuple, kwargs: dict, result: Tensor, recorder: Recorder) -> Value: ...

    def function(self, name: str, args: tuple, kwargs: dict, result: Tensor, recorder: Recorder) -> Value: ...


class Recorder(TorchFunctionMode):
    """Within, calls of a model's modules and torch's functions on tensors that come of the sample are handed on."""

    def __init__(self, model: nn.Module, handler: Handler) -> None:
        super().__init__()
        self.names = {module: name or type(module).__name__ for name, module in model.named_modules()}
        self.path: list[nn.Module] = [model]
        self._handler = handler
        self._values: dict[int, tuple[Tensor, Value]] = {}  # the tensors too, so that no id is used twice
        self._kept: list[Tensor] = []  # of those that are known no longer, for the same reason
        self._inside = False  # of a module that is one step

    def know(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = (tensor, value)

    def value(self, tensor: Any) -> Value | None:
        return self._values.get(id(tensor), (None, None))[1]

    def _forget_views(self, written: Tensor) -> None:
        """What was written into in place is no longer what its other views were made of."""
        place = written.untyped_storage().data_ptr()
        for key, (tensor, _) in list(self._values.items()):
            if tensor.untyped_storage().data_ptr() == place:
                del self._values[key]
                self._kept.append(tensor)

    def refuse(self, what: str) -> NoReturn:
        where = self.path[-1]
        raise NotImplementedError(f"to_nir: {what}, in {self.names[where]!r} ({type(where).__name__})")

    @contextmanager
    def running(self) -> Iterator[None]:
        """nn.Module's call goes through the recorder, as torch.fx has it."""
        call = nn.Module.__call__

        def recorded(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._call(module, call, args, kwargs)

        nn.Module.__call__ = recorded  # type: ignore[method-assign]
        try:
            with self:
                yield
        finally:
            nn.Module.__call__ = call  # type: ignore[method-assign]

    def _call(self, module: nn.Module, call: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        if self._inside or module not in self.names:
            return call(module, *args, **kwargs)
        self.path.append(module)
        try:
            known = any(self.value(a) is not None for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
            if not known or not self._handler.takes(module, self):
                return call(module, *args, **kwargs)
            self._inside = True
            try:
                result = call(module, *args, **kwargs)
            finally:
                self._inside = False
            self.know(result, self._handler.module(module, args, kwargs, result, self))
            return result
        finally:
            self.path.pop()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._inside or not any(isinstance(a, Tensor) and self.value(a) for a in tree_leaves((args, kwargs))):
            return result
        name = func.__name__
        if name == "__get__":  # of an attribute
            name = getattr(func.__self__, "__name__", name)
        if name in _READERS:
            self.refuse(f"what the model does depends on values of its tensors ({name})")
        found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not found:
            return result  # a shape, a dtype
        if not isinstance(result, Tensor):
            self.refuse(f"{name} has no node in NIR")
        value = self._handler.function(name, args, kwargs, result, self)
        if name.startswith("__i") or (name.endswith("_") and not name.endswith("__")):
            self._forget_views(result)
        self.know(result, value)
        return result


def run(
    model: nn.Module, call: Callable[..., Any], sample: Tensor, value: Value, handler: Handler
) -> tuple[Value, tuple[int, ...]]:
    """What a model's result is in the graph, whose input ``value`` is what the sample is, and one sample's shape."""
    recorder = Recorder(model, handler)
    recorder.know(sample, value)
    with torch.no_grad(), recorder.running():
        result = call(sample)
    found = recorder.value(result)
    if found is None:
        got = type(result).__name__ if not isinstance(result, Tensor) else "one that does not come of the sample"
        raise NotImplementedError(f"to_nir: the model must return one tensor, got {got}")
    return found, tuple(result.shape[found.lead :])
