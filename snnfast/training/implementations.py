"""The implementations of one spiking layer that a network can be trained through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from snnfast.comparing.naive import NaiveIF
from snnfast.layers import IF
from snnfast.models import NeuronFactory

_RESET = "soft"  # the paper's choice for image classification (MATH.md, section 9)


def _fused() -> nn.Module:
    return IF(reset=_RESET)


def _naive() -> nn.Module:
    return NaiveIF(reset=_RESET)


def _compiled() -> nn.Module:
    layer = _naive()
    # fullgraph: a part that silently stays uncompiled is an error. In place, so that parameter names stay the same.
    layer.compile(fullgraph=True, dynamic=False)
    return layer


_FACTORIES: dict[str, NeuronFactory] = {"fused": _fused, "naive": _naive, "compiled": _compiled}

IMPLEMENTATIONS: tuple[str, ...] = tuple(_FACTORIES)
"""``fused``: :class:`snnfast.IF`; ``naive``: a Python loop over the steps; ``compiled``: it under ``torch.compile``."""


def neuron_factory(implementation: str) -> Callable[[], nn.Module]:
    """What makes a soft-reset IF layer of this implementation, one of :data:`IMPLEMENTATIONS`."""
    return _FACTORIES[implementation]


@contextmanager
def room_for_compilations(implementation: str) -> Iterator[None]:
    """Lets ``torch.compile`` keep a program for every shape of a run.

    All layers share one Python function, and each needs one program for training, one for evaluation and one for the
    last, shorter batch: with three layers that is past the compiler's default limit of 8 programs a function.
    """
    if implementation != "compiled":
        yield
        return
    import torch._dynamo

    with torch._dynamo.config.patch(cache_size_limit=64):
        yield
