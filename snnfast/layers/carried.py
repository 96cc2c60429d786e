"""The carried states of all layers of a model at once."""

from __future__ import annotations

from torch import nn

from snnfast.layers.base import Carries
from snnfast.layers.neuron import Neuron

__all__ = ["carrying", "detach_state", "reset_state"]


def reset_state(model: nn.Module) -> int:
    """Forgets every carried potential of a model, layer by layer as :meth:`snnfast.IF.reset_state` does.

    Before another sequence, or a batch of another size.

    Args:
        model: any module: a network, fused or not, compiled or wrapped, a layer itself, or a :class:`Stream`, whose
            running readouts and delayed spikes are forgotten too.

    Returns:
        How many of its layers carry a state (``carry_state=True``).

    Raises:
        TypeError: model is not a torch.nn.Module.
    """
    layers = carrying(model)
    for layer in layers:
        layer.reset_state()
    return len(layers)


def detach_state(model: nn.Module) -> int:
    """Keeps every carried potential of a model and cuts its graph, as :meth:`snnfast.IF.detach_state` does.

    Between the parts of a sequence that are trained one by one (truncated backpropagation through time).

    Arguments, result and errors are those of :func:`reset_state`.
    """
    layers = carrying(model)
    for layer in layers:
        layer.detach_state()
    return len(layers)


def carrying(model: object) -> list[Neuron | Carries]:
    """What of a model carries a state, in the order of its modules."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return [module for module in model.modules() if isinstance(module, Neuron | Carries) and module.carry_state]
