"""A network that takes one step at a time and keeps its state in between."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnfast._arguments.checks import dense, integer
from snnfast._arguments.hints import to_floating, to_tensor
from snnfast.dynamics import not_a_tensor
from snnfast.layers import Neuron, OverTime, Readout, reset_state
from snnfast.layers.base import copied
from snnfast.layers.carried import carrying
from snnfast.memory.report import check_model_and_sample
from snnfast.streams.carriers import Delayed, OneStepOverTime, RunningReadout
from snnfast.streams.folding import Fold, fold, replace
from snnfast.streams.trial import Trial
from snnfast.trial import random_state_kept, spiking_layers

__all__ = ["Stream", "streaming"]


class Stream(nn.Module):
    """A network in evaluation that takes a sequence step by step; :func:`streaming` makes it.

    ``stream(step)`` takes one step [B, ...] and returns what the network makes of it, [B, ...]; behind a readout over
    time that is the sum or mean of all steps so far. ``stream.chunk(steps)`` does the same with several steps.
    ``reset()`` begins another sequence, as :func:`reset_state` does. No gradients are kept, and no mode but evaluation.

    States are part of copies and pickles, not of the state dict. A call that raises leaves them as they were.

    Attributes:
        model: the network that runs, with what keeps its state in the places of the layers.
        time_dim: of what :meth:`chunk` takes and gives, 0 or 1.
        held: whether a step is the input of a network that holds it: an image, as of the networks of ``sf.models``.
        over_time: whether the result has one entry for each step; otherwise it is one of all steps so far.
        folded: the names of batch norms that are part of the convolution or linear layer before them.
    """

    def __init__(self, model: nn.Module, trial: Trial, folded: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.time_dim, self.held, self.over_time = trial.time_dim, trial.held, trial.over_time
        self.folded = folded
        self._dims = trial.sample.dim() - (not trial.held)
        self._floating = trial.sample.is_floating_point()
        self._carriers = carrying(model)
        self._began: torch.Size | None = None  # one step of the sequence that is going on
        self.train(False)

    if TYPE_CHECKING:

        def __call__(self, step: Tensor) -> Tensor: ...

    def forward(self, step: Tensor) -> Tensor:
        """Runs one step.

        Args:
            step: [B, ...]: one step of a sequence, or what the network holds.

        Returns:
            The network's result without a time axis: this step's, or that of all steps so far.

        Raises:
            TypeError, ValueError: not a dense tensor, integers where the sample is floating, another number of
                dimensions than a step of the sample has, or another shape than the sequence began with; and what the
                network's layers raise.
        """
        self._check("step", step, self._dims, "[B, ...]", "; stream.chunk takes several steps")
        result = self._run(step, step.shape, 1) if self.held else self._run(step.unsqueeze(self.time_dim), step.shape)
        return result.select(self.time_dim, 0) if self.over_time else result

    def chunk(self, steps: Tensor, count: int | None = None) -> Tensor:
        """Runs several steps in one call.

        Args:
            steps: [T, B, ...] ([B, T, ...] with time_dim=1); of a network that holds its input, that input [B, ...].
            count: for how many steps it is held; None for a network that does not hold it.

        Returns:
            The results of the steps over time, [T, B, ...] ([B, T, ...]), or the one of all steps so far.

        Raises:
            TypeError, ValueError: as a step's; a ``count`` that is missing, or given where nothing is held, or below 1;
                no step in ``steps``.
        """
        if self.held:
            self._check("steps", steps, self._dims, "[B, ...], which is held for count steps")
            return self._run(steps, steps.shape, integer("count", count, least=1))
        if count is not None:
            raise ValueError(f"count must be None, got {count!r}: this network holds nothing, its steps have an axis")
        axes = "[T, B, ...]" if self.time_dim == 0 else "[B, T, ...]"
        self._check("steps", steps, self._dims + 1, axes, "; the stream itself takes one step [B, ...]")
        if steps.shape[self.time_dim] == 0:
            raise ValueError(f"steps must have at least one step, got shape {list(steps.shape)}")
        return self._run(steps, steps.select(self.time_dim, 0).shape)

    def _check(self, name: str, given: Tensor, dims: int, axes: str, otherwise: str = "") -> None:
        if not isinstance(given, Tensor):
            raise not_a_tensor(name, given)
        dense(name, given)
        if given.is_floating_point() is not self._floating:
            wanted, remedy = ("floating", to_floating(name, given)) if self._floating else ("integers", "")
            raise TypeError(f"{name} must be {wanted}, as the sample is, got {given.dtype}{remedy}")
        if given.dim() != dims:
            raise ValueError(f"{name} must have {dims} dimensions, {axes}, got shape {list(given.shape)}{otherwise}")

    def _run(self, given: Tensor, step: torch.Size, held_for: int | None = None) -> Tensor:
        states = [carrier._state for carrier in self._carriers]
        if self._began not in (None, step) and any(state is not None for state in states):
            raise ValueError(
                f"a step must have the shape {list(self._began or ())} with which the sequence began, got "
                f"{list(step)}: call reset() before another batch"
            )
        try:
            with torch.no_grad():
                result = self.model(given) if held_for is None else self.model(given, steps=held_for)
        except BaseException:
            for carrier, state in zip(self._carriers, states, strict=True):
                carrier._state = state
            raise
        if step != self._began:
            self._began = step
        return result

    def reset(self) -> None:
        """Begins a new sequence, with any batch size: every layer at rest."""
        reset_state(self)

    def train(self, mode: bool = True) -> Stream:
        """Stays in evaluation, whatever the mode asked for: a module that has a stream may be trained."""
        return super().train(False)

    def extra_repr(self) -> str:
        shown = [f"time_dim={self.time_dim}"] if self.time_dim else []
        shown += ["held=True"] if self.held else []
        return ", ".join([*shown, f"folded={len(self.folded)}"])


def streaming(model: nn.Module, sample: Tensor) -> Stream:
    """A copy of a trained network that takes a sequence step by step: ``stream = snnfast.streaming(model, sample)``.

    What the stream makes of the steps of a sequence, one by one or in chunks, is what ``model.eval()`` makes of the
    whole, to rounding: spikes are equal where rounding does not decide whether a potential crosses its threshold. That
    is tried on the sample, in float64, before the stream is returned: a network that mixes time steps, by a mean over T
    or attention over T, is refused, with the module that does. A `Readout` gives its sum or mean of all steps so far.

    The stream shares nothing with the model, whose training may go on; make another stream of what it learned then.
    Each batch norm in evaluation becomes part of the convolution or linear layer whose output goes to it alone, and so
    does the one of a BatchNormIF or BatchNormLIF (in float32 and float64; others stay). ``delay=True`` works.

    Networks that hold their input, as those of :mod:`snnfast.models` do, take it at every step, the same image or
    another one; their forward must have an argument ``steps``.

    Args:
        model: any network of snnfast's layers that maps one tensor to one tensor; in training or evaluation, on any
            device. Nothing in it is changed.
        sample: what the model takes: a sequence [T, B, ...] ([B, T, ...] where its layers have time_dim=1) of two steps
            or more, or the [B, ...] input of a network that holds it. Spikes in it make the trial worth more.

    Returns:
        A :class:`Stream` at rest, of the model's dtype and on its device.

    Raises:
        TypeError: the model is no module, or a stream already; the sample or the result is no tensor.
        ValueError: the steps do not make what the whole makes, with the module that mixes them; a network without
            spiking layers or with layers of both time dimensions; a batch norm without running statistics; a layer that
            is called twice in a forward; a forward that holds a current and has no argument ``steps``; a sample of one
            step; a lazy module that was not run yet.
    """
    check_model_and_sample(model, sample)
    if not isinstance(sample, Tensor):
        raise TypeError(f"sample must be a tensor, got {type(sample).__name__}{to_tensor('sample', sample)}")
    dense("sample", sample)
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, Stream):
        raise TypeError("model is a stream already: make another one of the network that it was made of")
    _check_batch_norms(model)
    time_dim = _time_dim(model)
    if sample.dim() < 2:
        raise ValueError(f"sample must be a sequence [T, B, ...] or held, [B, ...], got shape {list(sample.shape)}")
    exact = sample.detach().double() if sample.is_floating_point() else sample.detach()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(sample.device.type, enabled=False))
        stack.enter_context(random_state_kept())
        if "torch._dynamo" in sys.modules:  # a compiled graph would not see the hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        trial = Trial(_copied(model).double(), exact, time_dim)
        trial.check(_made(trial.network, trial, []))
        folds = [pair for pair in trial.folds if _in_full_precision(model, pair)]
        if not trial.agrees(_made(trial.network, trial, folds)):
            folds = []
        return _made(model, trial, folds)


def _check_batch_norms(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name or 'the model'!r} ({type(module).__name__}) has no running statistics: it normalizes by those "
                "of the whole batch and all its steps, in evaluation too, and a stream has one step"
            )


def _time_dim(model: nn.Module) -> int:
    layers: dict[Any, str] = {**spiking_layers(model)}
    layers |= {m: name or type(m).__name__ for name, m in model.named_modules() if isinstance(m, Readout)}
    first, *others = layers
    for layer in others:
        if layer.time_dim != first.time_dim:
            raise ValueError(
                f"the layers disagree about time: time_dim={first.time_dim} at {layers[first]!r}, "
                f"time_dim={layer.time_dim} at {layers[layer]!r}"
            )
    return first.time_dim


def _in_full_precision(model: nn.Module, pair: Fold) -> bool:
    weight: Any = model.get_submodule(pair.linear).weight
    return weight.dtype in (torch.float32, torch.float64)


def _copied(model: nn.Module) -> nn.Module:
    """A copy in evaluation, at rest and without gradients."""
    copy = copied(model).eval().requires_grad_(False)
    for module in copy.modules():
        if isinstance(module, Neuron):
            module.reset_state()
    return copy


def _made(model: nn.Module, trial: Trial, folds: list[Fold]) -> Stream:
    """A stream of a network's copy."""
    network = fold(_copied(model), folds)
    for module in list(network.modules()):
        if isinstance(module, Neuron):
            if module.delay:
                network = replace(network, module, Delayed(module))
            module.__dict__["carry_state"] = True  # which is fixed for everybody else
        elif type(module) is OverTime:
            module.__class__ = OneStepOverTime
        elif type(module) is Readout:
            network = replace(network, module, RunningReadout(module))
        else:
            in_stream: Any = getattr(module, "in_stream", None)
            if in_stream is not None:
                network = replace(network, module, in_stream())
    return Stream(network, trial, tuple(pair.norm for pair in folds))
