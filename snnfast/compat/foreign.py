"""What the layers that stand for neurons of other libraries have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from snnfast.compat.joined import Joined, joined
from snnfast.layers.neuron import Neuron
from snnfast.surrogate import Surrogate

__all__ = ["ForeignNeuron", "Refused", "adopted", "shape_like", "value_of"]

Kind = TypeVar("Kind", bound="ForeignNeuron")


class Refused(Exception):
    """Why a neuron of another library has no equal here, as the end of a sentence that begins with its name."""


class ForeignNeuron(Joined, Neuron):
    """An IF or LIF layer that is a neuron of another library as well."""

    def _after_reset(self, potential: Tensor, spikes: Tensor) -> Tensor:
        """The potentials that libraries keep, of those before the reset."""
        fired = (spikes.detach() if self.detach_reset else spikes).to(potential.dtype)
        if self.reset == "soft":
            return potential - fired * self.threshold
        return (1 - fired) * potential + fired * self.reset_value

    def _why_not_fused(self) -> str | None:
        """What keeps the layer from being one with a batch norm, as the end of a sentence; None: nothing."""
        return None


def adopted(
    kind: type[Kind], plain: type[Neuron], module: nn.Module, options: dict[str, Any], but: Iterable[str] = ()
) -> Kind:
    """A layer that has everything of a library's module, but for some names, and the options of a plain one.

    Args:
        kind: what the layer adds to IF or LIF.
        plain: IF or LIF.
        module: whose class the layer's is too.
        options: of the plain layer; :class:`Refused` is raised where it takes them not.
        but: the names.
    """
    try:
        made = plain(**options)
    except (TypeError, ValueError) as error:
        raise Refused(f"cannot be made: {error}") from None
    whole = joined(kind, plain, type(module))
    layer = whole.__new__(whole)
    standard = nn.Module().__dict__
    layer.__dict__.update({name: value for name, value in made.__dict__.items() if name not in standard})
    for name, value in module.__dict__.items():
        if name not in but:
            layer.__dict__[name] = value.copy() if isinstance(value, dict) else value
    return layer


_DISTANCES = torch.arange(-40, 41, dtype=torch.float64) * 0.1003  # of potential and threshold; on no edge of a shape


def shape_like(candidates: Sequence[Surrogate], spikes: Callable[[Tensor], Tensor], name: str) -> Surrogate:
    """That of the shapes whose derivative another library's spike function has, by trying; raises :class:`Refused`.

    Args:
        candidates: shapes that it may be, or none: formulas are not the same in all versions of a library.
        spikes: of distances between potential and threshold.
        name: for the message.
    """
    if candidates:
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
