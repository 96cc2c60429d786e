"""What the values of a network's graph are, seen by running it on a sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnfast.ann.flat import Flat, owner, without_writing
from snnfast.fusion.match import describe
from snnfast.fusion.randomness import restore, states_of_generators

__all__ = ["Seen", "look"]

_TOLERANCE = 1e-3  # of the largest value: convolutions of another batch size may add up in another order


@dataclass(frozen=True)
class Seen:
    """A node's value for the sample, and for twice as many samples: shapes of tensors, everything else as it is."""

    once: Any
    twice: Any
    tensor: bool

    @property
    def batched(self) -> bool:
        """Whether it is a tensor [B, ...], or the number B or a multiple of it."""
        first, second = (value[0] if self.tensor and value else value for value in (self.once, self.twice))
        return type(first) is int and type(second) is int and second == 2 * first != 0

    @property
    def fixed(self) -> bool:
        """Whether it is the same for every batch: a tensor's shape, or a value."""
        return self.once == self.twice


def look(flat: Flat, sample: Tensor) -> dict[fx.Node, Seen]:
    """Every node's value; what writes into its input does no longer.

    Raises:
        ValueError: the network does not run on the sample, its graph computes something else than it does, or it does
            not treat the samples of a batch alike.
    """
    twice = torch.cat([sample, sample * 0.5])
    generators = states_of_generators(flat.module)
    with _in_evaluation(flat.module), torch.no_grad():
        _run(flat.module, sample, "the sample")  # which makes lazy modules
        expected = _run(flat.module, twice, "twice as many samples")
        without_writing(flat)
        restore(generators)
        found = _Looking(flat, "twice as many samples")
        result = found.run(twice)
        if not _equal(result, expected):
            raise ValueError(
                "ann cannot be followed: its graph computes something else than it does on the sample (views of what "
                "is written in place, or random numbers, may be why)"
            )
        single = _Looking(flat, "the sample")
        restore(generators)
        alone = single.run(sample)
        restore(generators)
        if not _equal(alone, result[: len(sample)]) and _equal(single.run(sample), alone):
            raise ValueError("ann must compute each sample of a batch by itself: another batch gives another result")
    return {node: Seen(*_both(single.values[node], value)) for node, value in found.values.items()}


def _run(module: nn.Module, sample: Tensor, what: str) -> Tensor:
    try:
        result = module(sample)
    except Exception as error:
        raise ValueError(
            f"ann does not run on {what}, {list(sample.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(result, Tensor):
        raise ValueError(f"ann must give one tensor, got {type(result).__name__}")
    if result.dim() == 0 or len(result) != len(sample):
        raise ValueError(f"ann must give a result [B, ...] for {what}, {list(sample.shape)}, got {list(result.shape)}")
    return result


def _equal(a: Tensor, b: Tensor) -> bool:
    largest = float(b.abs().max()) if b.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=_TOLERANCE * largest, equal_nan=True)


def _both(once: Any, twice: Any) -> tuple[Any, Any, bool]:
    return (*(_shape(value) for value in (once, twice)), isinstance(once, Tensor))


def _shape(value: Any) -> Any:
    """A value with the shapes of tensors in their place, so that it can be compared."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return tuple(map(_shape, value)) if isinstance(value, tuple | list) else value


@contextmanager
def _in_evaluation(module: nn.Module) -> Iterator[None]:
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, training in modes.items():
            inner.training = training


class _Looking(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, flat: Flat, what: str) -> None:
        super().__init__(flat.module, garbage_collect_values=False, graph=flat.graph)
        self.values: dict[fx.Node, Any] = {}
        self.what = what
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        try:
            self.values[n] = super().run_node(n)
        except Exception as error:
            where = describe(self.module.get_submodule(owner(n)), owner(n))
            raise ValueError(
                f"ann does not run on {self.what}: {n} in the forward of {where}: {type(error).__name__}: {error} "
                "(is a batch size written into it?)"
            ) from error
        return self.values[n]
