"""Whether a network's steps, one by one, make what the whole sequence makes; and where they do not, which module."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from snnfast._errors import one_line
from snnfast.layers import Neuron
from snnfast.layers.base import Carries
from snnfast.streams.folding import Fold, Watch

if TYPE_CHECKING:
    from snnfast.streams.stream import Stream

__all__ = ["STEPS_HELD", "Trial"]

STEPS_HELD = 4
"""That a sample without time axis is held for."""
_CLOSE = 1e-9
"""How far float64 results may be apart, relative to the largest."""


class Trial:
    """A run of a network on a whole sample, in float64, that streams are compared with.

    Attributes:
        held: whether the network holds its input, which has no time axis.
        over_time: whether its result has a time axis; otherwise it is one of all steps together.
        folds: the batch norms that can be folded.
    """

    def __init__(self, network: nn.Module, sample: Tensor, time_dim: int) -> None:
        self.network, self.sample, self.time_dim = network, sample, time_dim
        self.held = False
        watch = Watch(network)
        with ExitStack() as stack:
            for module in network.modules():
                if isinstance(module, Neuron):
                    handle = module.register_forward_pre_hook(self._note_held, with_kwargs=True)
                    stack.callback(handle.remove)
            with watch.watching():
                self.result = self._whole(sample)
        self.folds: list[Fold] = watch.folds(self.result)
        self.steps = STEPS_HELD if self.held else sample.shape[time_dim]
        if self.held:
            if "steps" not in inspect.signature(network.forward).parameters:
                raise ValueError(
                    f"the forward of {type(network).__name__} holds a current for a number of steps of its own: give "
                    "it an argument steps, as the networks of snnfast.models have, which a stream sets"
                )
            self.result = self._whole(sample, steps=STEPS_HELD)
        elif self.steps < 2:
            raise ValueError(f"sample must have at least 2 steps, to compare steps with the whole, got {self.steps}")
        self.over_time = self._is_over_time()

    def _note_held(self, neuron: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(neuron.forward).bind(*args, **kwargs).arguments
        self.held = self.held or given.get("steps") is not None

    def _whole(self, sample: Tensor, **steps: int) -> Tensor:
        for module in self.network.modules():
            if isinstance(module, Neuron):
                module.reset_state()
        result = self.network(sample, **steps)
        if not isinstance(result, Tensor):
            raise TypeError(
                f"model must return a tensor, {type(self.network).__name__} returns {type(result).__name__}"
            )
        return result

    def _is_over_time(self) -> bool:
        """Whether the result has an axis of as many as there are steps, and of one fewer where there is one fewer."""
        shape, dim = self.result.shape, self.time_dim
        if len(shape) <= dim or shape[dim] != self.steps:
            return False
        with _of_fewer_steps(f"{self.steps - 1} steps"):
            if self.held:
                fewer = self._whole(self.sample, steps=self.steps - 1)
            else:
                fewer = self._whole(self.sample.narrow(dim, 0, self.steps - 1))
        return fewer.shape == (*shape[:dim], self.steps - 1, *shape[dim + 1 :])

    def check(self, stream: Stream) -> None:
        """Raises ValueError, with what is to blame, where a stream does not make what the whole sequence makes."""
        names = {module: name for name, module in stream.model.named_modules()}
        calls: Counter[str] = Counter()

        def count(module: nn.Module, *_: Any) -> None:
            calls[names[module]] += 1

        with ExitStack() as stack:
            for module in names:
                if isinstance(module, Neuron | Carries):
                    stack.callback(module.register_forward_hook(count).remove)
            self._steps(stream, 1)
        often = next((name for name, number in calls.items() if number > 1), None)
        if often is not None:
            raise ValueError(
                f"{often or 'the model'!r} ({type(stream.model.get_submodule(often)).__name__}) is called "
                f"{calls[often]} times in one forward, and has one state: give each place a layer of its own"
            )
        if not self.agrees(stream):
            raise ValueError(self._why_not(stream))

    def agrees(self, stream: Stream) -> bool:
        """Whether a stream's results are those of the whole sequence, step by step and in two chunks."""
        return _close(self._joined(self._steps(stream, self.steps)), self.result) and _close(
            self._joined(self._chunks(stream)), self.result
        )

    def _joined(self, results: list[Tensor]) -> Tensor:
        return torch.cat(results, self.time_dim) if self.over_time else results[-1]

    def _steps(self, stream: Stream, count: int) -> list[Tensor]:
        stream.reset()
        results = []
        for step in range(count):
            given = self.sample if self.held else self.sample.select(self.time_dim, step)
            with _of_fewer_steps("one step"):
                result = stream(given)
            results.append(result.unsqueeze(self.time_dim) if self.over_time else result)
        return results

    def _chunks(self, stream: Stream) -> list[Tensor]:
        stream.reset()
        first, rest = self.steps // 2, self.steps - self.steps // 2
        with _of_fewer_steps("a part"):
            if self.held:
                return [stream.chunk(self.sample, first), stream.chunk(self.sample, rest)]
            return [stream.chunk(chunk) for chunk in self.sample.split([first, rest], self.time_dim)]

    # Which module -----------------------------------------------------------------------------------------------------

    def _why_not(self, stream: Stream) -> str:
        steps = {"steps": self.steps} if self.held else {}
        with _events_of(self.network) as whole:
            self._whole(self.sample, **steps)
        with _events_of(stream.model) as parts:
            self._steps(stream, self.steps)
        said = "the steps of the sample, one by one, do not make what the whole makes: "
        for entered, name, number in whole.order:
            module = self.network.get_submodule(name)
            what = f"{name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
            seen, own = whole.seen[entered, name], parts.seen[entered, name]
            if len(own) != len(seen) * self.steps:
                return f"{said}{what} is called {len(seen)} times for the whole, {len(own)} times in {self.steps} steps"
            if not self._agree(seen[number], own[number :: len(seen)]):
                return said + self._blame(module, name, what, entered)
        return f"{said}the forward of {type(self.network).__name__} mixes time steps"

    def _blame(self, module: nn.Module, name: str, what: str, entered: bool) -> str:
        """What to say of the first module that takes, or returns, something else."""
        if entered:
            parent = type(self.network.get_submodule(name.rpartition(".")[0])).__name__
            return f"the forward of {parent} mixes time steps ahead of {what}"
        if isinstance(module, Neuron):
            return (
                f"{what} makes other spikes of equal currents. Either rounding decides whether it fires, as where "
                "potentials meet the threshold exactly (try another sample), or its forward mixes time steps"
            )
        if next(module.children(), None) is None:
            return f"{what} mixes time steps"
        return (
            f"the forward of {what} mixes time steps behind the last module in it. A sum or mean over time at the end "
            "of a network is snnfast.Readout('sum') or Readout('mean') in a stream"
        )

    def _agree(self, whole: Tensor | None, parts: list[Tensor | None]) -> bool:
        """Whether what a call took or made is the whole of the steps', [T, B, ...] or [T·B, ...], or one of all."""
        steps = [part for part in parts if part is not None]
        if whole is None:
            return not steps
        if len({step.shape for step in steps}) != 1 or len(steps) != self.steps:
            return False
        joined = [torch.stack(steps, self.time_dim).flatten(0, 1)] if steps[0].dim() else []
        if self.time_dim == 1 and steps[0].dim() > 1:
            joined.append(torch.cat(steps, 1))
        return any(_close(candidate, whole) for candidate in (*joined, steps[-1]))


@contextmanager
def _of_fewer_steps(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"the model runs on the whole sample, and not on {what} of it: {type(error).__name__}: {one_line(error)}"
        ) from error


class _Events:
    """What modules took (entered) and returned, in order, with the number of that call of the module.

    Attributes:
        seen: by whether it was taken and the module's name, the first tensors of all calls; None where there is none.
    """

    def __init__(self) -> None:
        self.order: list[tuple[bool, str, int]] = []
        self.seen: dict[tuple[bool, str], list[Tensor | None]] = defaultdict(list)

    def note(self, entered: bool, name: str, value: object) -> None:
        seen = self.seen[entered, name]
        self.order.append((entered, name, len(seen)))
        seen.append(next((leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)), None))


@contextmanager
def _events_of(network: nn.Module) -> Iterator[_Events]:
    names = {module: name for name, module in network.named_modules()}
    events = _Events()

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        events.note(True, names[module], args)

    def leave(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        events.note(False, names[module], result)

    with ExitStack() as stack:
        for module in names:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield events


def _close(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    finite = wanted[wanted.isfinite()]
    largest = max(1.0, finite.abs().max().item()) if finite.numel() else 1.0
    return torch.allclose(found, wanted, rtol=_CLOSE, atol=_CLOSE * largest, equal_nan=True)
