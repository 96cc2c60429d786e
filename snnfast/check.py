"""Which axes a network's layers take for time and batch, where no shape can tell that they were meant otherwise."""

from __future__ import annotations

import inspect
import itertools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from snnfast._arguments.axes import axes_of, named
from snnfast._arguments.checks import integer
from snnfast._text import table
from snnfast.layers import BatchNormNeuron, Neuron, OverTime, Readout, reset_state
from snnfast.memory.report import check_model_and_sample, gpus_of, untouched

__all__ = ["CheckReport", "LayerAxes", "check"]

_FEW_CHANNELS = 4  # of images


@dataclass(frozen=True)
class LayerAxes:
    """One call of a snnfast layer.

    Attributes:
        name: as in ``model.named_modules()``; the model itself by its class.
        kind: the layer's class.
        shape: of its input.
        held: whether that is a current without time axis, held over the steps.
        time_dim: the layer's time dimension, 0 or 1; 0 for OverTime, which takes time and batch in either order.
        steps: T.
        batch: B.
        output: the result's shape.
        firing: the share of ones among the spikes; None for layers that do not fire.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    held: bool
    time_dim: int
    steps: int
    batch: int
    output: tuple[int, ...]
    firing: float | None

    @property
    def axes(self) -> str:
        """The input's axes by name, as "T=10, B=32, C=3, H=8, W=8" or "B=32, C=3, H=8, W=8, held for T=10"."""
        return f"{named(self.shape, None)}, held for T={self.steps}" if self.held else named(self.shape, self.time_dim)


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found; ``str()`` of it is a table of the layers' axes and the problems below.

    Attributes:
        layers: the calls of IF, LIF, BatchNormIF, BatchNormLIF, OverTime and Readout layers, in their order.
        problems: sentences, the weightiest first; empty where nothing was found.
    """

    layers: tuple[LayerAxes, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        firing = ["" if row.firing is None else f"{row.firing:.1%} fire" for row in self.layers]
        rows = [(row.name, row.kind, row.axes, share) for row, share in zip(self.layers, firing, strict=True)]
        lines = table(rows, left=4)
        if not self.problems:
            first = self.layers[0] if self.layers else None
            meant = f", if T={first.steps} and B={first.batch} are what you mean" if first else ""
            return "\n".join([*lines, f"no problems found{meant}"])
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}:"
        return "\n".join([*lines, count, *(f"  * {problem}" for problem in self.problems)])


def check(model: nn.Module, sample: Tensor | tuple[Any, ...], *, steps: int | None = None) -> CheckReport:
    """Runs a model once and says what its layers take for time and batch: ``print(snnfast.check(model, sample))``.

    Shapes alone cannot tell a forgotten time axis, batch-first data, or one layer of another ``time_dim``: a network
    runs on them without a word. This names the axes as each layer reads them, and lists what is suspicious: layers that
    disagree about T, B or the time dimension; a batch or channels taken for time; what looks like images without a time
    axis; T equal to B; a neuron layer that never fires, or at every step, or is not called; an input with NaN or
    infinite values. An error of the model is a problem too, with the layer that raised it.

    The model runs in its current mode (train or eval), without gradients and uncompiled, from carried states at rest.
    Parameters, gradients, buffers (running statistics), carried states and torch's random state are left as they were.
    Forward hooks of the model run; what else it changes in forward stays changed. The shares of spikes are read from
    the device, which waits for it.

    Args:
        model: any module with snnfast's layers.
        sample: its input, a tensor, or a tuple of its arguments.
        steps: the number of steps T that you mean, where another one is a problem.

    Returns:
        A :class:`CheckReport`.

    Raises:
        TypeError: model, sample or steps of another type.
        ValueError: a lazy module that was not run yet.
    """
    check_model_and_sample(model, sample)
    if steps is not None:
        integer("steps", steps, least=1)
    model = getattr(model, "_orig_mod", model)
    args = sample if isinstance(sample, tuple) else (sample,)
    run = _Run({module: name or type(module).__name__ for name, module in model.named_modules()})
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # a compiled graph would not see the hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(untouched(model, gpus_of(model, args)))
        stack.enter_context(run.watching())
        reset_state(model)
        try:
            model(*args)
        except Exception as error:
            run.failed(error)
    return CheckReport(tuple(run.rows), tuple([*run.errors, *_suspicions(run, steps), *run.notes]))


class _Run:
    """One forward pass, watched by hooks: the calls of snnfast's layers, and what was seen of them as they ran."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        self.names = names
        self.found: dict[int, LayerAxes] = {}  # by the order of the calls
        self.errors: list[str] = []
        self.misread: list[str] = []  # a batch or channels taken for time
        self.notes: list[str] = []  # of values
        # The modules that are running, with their inputs and the numbers of their calls.
        self._inside: list[tuple[nn.Module, Tensor | None, int]] = []
        self._calls = itertools.count()
        # What modules that know no time made, by its id: the tensor, and the module's name.
        self._timeless: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    @property
    def rows(self) -> list[LayerAxes]:
        return [self.found[call] for call in sorted(self.found)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.names:
                for handle in (
                    module.register_forward_pre_hook(self._enter, with_kwargs=True),
                    module.register_forward_hook(self._leave, with_kwargs=True),
                ):
                    stack.callback(handle.remove)
            yield

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        self._inside.append((module, given if isinstance(given, Tensor) else None, next(self._calls)))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        _, given, call = self._inside.pop()
        if isinstance(module, Neuron | OverTime | Readout):
            arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            given = next(iter(arguments.values()))
            self._note(call, module, given, arguments.get("steps"), output)
        elif isinstance(output, Tensor) and given is not None and not next(module.children(), None):
            self._mark(module, given, output)

    def _mark(self, module: nn.Module, given: Tensor, output: Tensor) -> None:
        """Notes that a layer that knows no time made a tensor, not of all steps at once, or passed one on."""
        if any(isinstance(outer, OverTime) for outer, *_ in self._inside):
            return
        maker = self._maker(given)
        axes = axes_of(module)
        if maker is None and axes is not None and axes.most is not None and axes.fit(given.dim()):
            maker = f"{self.names[module]!r} ({type(module).__name__})"
        if maker is not None and output.shape[:1] == given.shape[:1]:
            self._timeless[id(output)] = weakref.ref(output), maker

    def _maker(self, tensor: Tensor) -> str | None:
        found = self._timeless.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def _note(self, call: int, layer: nn.Module, given: Tensor, steps: int | None, output: Tensor) -> None:
        name, shape, time_dim = self.names[layer], tuple(given.shape), getattr(layer, "time_dim", 0)
        held = steps is not None
        firing = output.double().mean().item() if isinstance(layer, Neuron) and output.numel() else None
        self.found[call] = LayerAxes(
            name=name,
            kind=type(layer).__name__,
            shape=shape,
            held=held,
            time_dim=time_dim,
            steps=shape[time_dim] if steps is None else steps,
            batch=_size(shape, 0 if held else 1 - time_dim),
            output=tuple(output.shape),
            firing=firing,
        )
        merged = next((outer for outer, *_ in self._inside if type(outer) is OverTime), None)
        if merged is not None:
            self.misread.append(
                f"{name!r} is inside {self.names[merged]!r} (OverTime), where steps and batch are one dimension, which "
                "it takes for time: take it out"
            )
        maker = self._maker(given)
        if maker is not None and not held:
            self.misread.append(
                f"{name!r} takes dimension {time_dim} ({shape[time_dim]}) for time, and {maker} ahead of it knows no "
                "time: hold its current with steps=T, or put it into snnfast.OverTime, for a sample [T, B, ...]"
            )
        if isinstance(layer, Neuron):
            self._note_values(layer, given, firing)

    def _note_values(self, layer: Neuron, current: Tensor, firing: float | None) -> None:
        name = self.names[layer]
        if not torch.isfinite(current).all():
            self.notes.append(f"{name!r}: its input has NaN or infinite values")
        elif firing in (0.0, 1.0):
            threshold = layer.threshold
            given = f"its threshold is {threshold:g}" if not isinstance(threshold, Tensor) else "see its thresholds"
            if not isinstance(layer, BatchNormNeuron):
                given += f", its currents are {current.min().item():.3g} to {current.max().item():.3g}"
            self.notes.append(f"{name!r} {'never fires' if firing == 0 else 'fires at every step'}: {given}")

    def failed(self, error: Exception) -> None:
        """Notes the error of the innermost module that was running."""
        words = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if not self._inside:
            self.errors.append(f"the model raised {words}")
            return
        module, given, _ = self._inside[-1]
        said = f"{self.names[module]!r} ({type(module).__name__}) raised {words}"
        axes = axes_of(module)
        if given is not None and axes is not None and not axes.fit(given.dim()) and axes.fit(given.dim() - 1):
            takes = f"[B, {axes.names}]"
            said += f"; it takes {takes}, and snnfast.OverTime applies it to all steps of [T, {takes[1:]}"
        self.errors.append(said)


def _suspicions(run: _Run, steps: int | None) -> Iterator[str]:
    """What the axes of all calls together say, the weightiest first."""
    if not run.rows:
        if not run.errors:
            yield "no snnfast layer was called"
        return
    yield from run.misread
    yield from _called_step_by_step(run)
    if len({row.time_dim for row in run.rows if not _either_order(row)}) > 1:
        yield _disagreement("time_dim", lambda row: row.time_dim, [r for r in run.rows if not _either_order(r)])
    else:
        yield from _of_sizes(run, steps)
    called = {row.name for row in run.rows}
    for module, name in run.names.items():
        if isinstance(module, Neuron) and name not in called and not run.errors:
            yield f"{name!r} ({type(module).__name__}) was not called"


def _of_sizes(run: _Run, steps: int | None) -> Iterator[str]:
    """What T and B of the layers say, all of one time dimension."""
    time_dim = max((row.time_dim for row in run.rows), default=0)
    rows = [
        replace(row, time_dim=1, steps=row.batch, batch=row.steps) if time_dim == 1 and _either_order(row) else row
        for row in run.rows
    ]
    if not run.misread:  # which would explain these
        yield from _ambiguity(rows[0])
        for what, of in (("T", lambda row: row.steps), ("B", lambda row: row.batch)):
            if len({of(row) for row in rows}) > 1:
                yield _disagreement(what, of, rows)
    others = [row for row in rows if steps not in (None, row.steps)]
    if others:
        # OverTime takes both orders: its axes are what a layer that does not makes of them.
        other = next((row for row in others if not _either_order(row)), others[0])
        where = f"; dimension {1 - other.time_dim} has them" if other.batch == steps and not other.held else ""
        ran = f"{other.steps} step{'s' if other.steps > 1 else ''}"
        yield f"{other.name!r} runs {ran}, not the {steps} meant{where}"


def _called_step_by_step(run: _Run) -> Iterator[str]:
    """Neurons that a loop over time calls once per step: at each call they start at rest."""
    calls = Counter(row.name for row in run.rows if row.steps == 1)
    for layer, name in run.names.items():
        if calls[name] > 1 and isinstance(layer, Neuron) and not layer.carry_state:
            yield (
                f"{name!r} is called {calls[name]} times with 1 step, and starts at rest each time: give it all "
                "steps in one call, or make it with carry_state=True"
            )


def _either_order(row: LayerAxes) -> bool:
    return row.kind.endswith("OverTime")


def _size(shape: tuple[int, ...], dim: int) -> int:
    return shape[dim] if dim < len(shape) else 1


def _disagreement(what: str, of: Callable[[LayerAxes], int], rows: list[LayerAxes]) -> str:
    """Who says what, the many first, with the first of several named."""
    groups: dict[int, list[str]] = {}
    for row in rows:
        groups.setdefault(of(row), []).append(row.name)
    said = [
        f"{what}={value} at {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for value, names in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]
    return f"the layers disagree: {', but '.join(said)}"


def _ambiguity(first: LayerAxes) -> Iterator[str]:
    """What the first layer's input may have been meant to be."""
    if first.held or first.kind == "Readout":
        return
    shape = first.shape
    reads = f"{first.name!r} reads {list(shape)} as {first.axes}"
    missing = "the time axis is missing: hold the first neurons' current with steps=T, or add one"
    if len(shape) < 3:
        yield f"{reads}: if it is [B, C], {missing}"
    elif len(shape) == 4 and shape[1] <= _FEW_CHANNELS < shape[2] == shape[3]:
        one = "; if it is one sample [T, C, H, W], add the batch: sample.unsqueeze(1)"
        yield f"{reads}: it looks like images [B, C, H, W]; if it is, {missing}{one if first.time_dim == 0 else ''}"
    elif first.batch == 1 < first.steps:
        yield f"{reads}, a batch of one: if the {first.steps} are the batch, {missing}"
    elif first.steps == first.batch > 1:
        yield f"T and B are both {first.steps}: only a sample with another batch size tells which is which"
