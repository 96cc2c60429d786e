"""The layers: torch.nn modules whose forward is one call of snnfast.autograd.

``neuron`` has IF and LIF, ``batch_norm`` the same behind a batch norm, ``over_time`` the two layers around them;
``tables`` keeps thresholds and time constants, ``state_dict`` what checkpoints hold, ``carried`` a model's states.
"""

from snnfast.layers.batch_norm import BatchNormIF, BatchNormLIF, BatchNormNeuron
from snnfast.layers.carried import detach_state, reset_state
from snnfast.layers.neuron import IF, LIF, Neuron
from snnfast.layers.over_time import OverTime, Readout

__all__ = [
    "IF",
    "LIF",
    "BatchNormIF",
    "BatchNormLIF",
    "BatchNormNeuron",
    "Neuron",
    "OverTime",
    "Readout",
    "detach_state",
    "reset_state",
]
