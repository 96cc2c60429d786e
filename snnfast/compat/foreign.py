"""What the layers that stand for neurons of other libraries have in common."""

from __future__ import annotations

from snnfast.layers.neuron import Neuron

__all__ = ["ForeignNeuron", "Refused"]


class Refused(Exception):
    """Why a neuron of another library has no equal here, as the end of a sentence that begins with its name."""


class ForeignNeuron(Neuron):
    """An IF or LIF layer that is a neuron of another library as well."""

    def _why_not_fused(self) -> str | None:
        """What keeps the layer from being one with a batch norm, as the end of a sentence; None: nothing."""
        return None
