"""What the layers that stand for neurons of other libraries have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from snnfast.layers.neuron import IF, LIF, Neuron
from snnfast.surrogate import Surrogate

__all__ = ["ForeignNeuron", "Refused", "made", "shape_like", "take_over", "value_of"]

Kind = TypeVar("Kind", bound="ForeignNeuron")


class Refused(Exception):
    """Why a neuron of another library has no equal here, as the end of a sentence that begins with its name."""


class ForeignNeuron(Neuron):
    """An IF or LIF layer that is a neuron of another library as well."""

    def _why_not_fused(self) -> str | None:
        """What keeps the layer from being one with a batch norm, as the end of a sentence; None: nothing."""
        return None


def made(kind: type[ForeignNeuron], **options: Any) -> Neuron:
    """The plain layer with the options of one of another library; raises :class:`Refused` where there is none."""
    try:
        return (LIF if issubclass(kind, LIF) else IF)(**options)
    except (TypeError, ValueError) as error:
        raise Refused(f"cannot be made: {error}") from None


def take_over(kind: type[Kind], plain: Neuron, module: nn.Module, but: Iterable[str] = ()) -> Kind:
    """A layer with the options of a plain one and, but for some names, everything that a module of a library has."""
    layer = kind.__new__(kind)
    standard = nn.Module().__dict__
    layer.__dict__.update({name: value for name, value in plain.__dict__.items() if name not in standard})
    for name, value in module.__dict__.items():
        if name not in but:
            layer.__dict__[name] = value.copy() if isinstance(value, dict) else value
    return layer


_DISTANCES = torch.arange(-40, 41, dtype=torch.float64) * 0.1003  # of potential and threshold; on no edge of a shape


def shape_like(candidates: Sequence[Surrogate], spikes: Callable[[Tensor], Tensor], name: str) -> Surrogate:
    """That of the shapes whose derivative another library's spike function has, by trying; raises :class:`Refused`.

    Args:
        candidates: shapes that it may be: formulas are not the same in all versions of a library.
        spikes: of distances between potential and threshold.
        name: for the message.
    """
    with torch.inference_mode(False), torch.enable_grad():
        distances = _DISTANCES.clone().requires_grad_()
        (slopes,) = torch.autograd.grad(spikes(distances).sum(), distances)
    for shape in candidates:
        if torch.allclose(shape.derivative(_DISTANCES), slopes.double(), rtol=1e-4, atol=1e-7):
            return shape
    raise Refused(f"has a surrogate, {name}, that is none of the kernels' shapes")


def value_of(state: Any) -> Any:
    """A state that may be in the middle of a graph, as it can be copied and pickled: its values."""
    return state.detach().clone() if isinstance(state, Tensor) else state
