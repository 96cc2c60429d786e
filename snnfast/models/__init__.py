"""Spiking networks built on the fused layers.

Every network takes ``neuron``, a function that makes a spiking layer, so that the same weights run through another
implementation of the same dynamics; the part before the first neuron is computed once, not for every step.
"""

from snnfast.models.digits import DigitsNet, NeuronFactory, SummedLinear

__all__ = ["DigitsNet", "NeuronFactory", "SummedLinear"]
