"""What an op is given, in groups: each is one argument of the functions in this room, and some of the op's schema."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = [
    "BIAS",
    "CHECKPOINTS",
    "CURRENT",
    "INITIAL",
    "LAST",
    "NO_STATES",
    "POTENTIAL",
    "RESIDUAL",
    "SCHEMAS",
    "TAU",
    "THRESHOLD",
    "WEIGHT",
    "Gradients",
    "NormalizedOptions",
    "Options",
    "States",
    "normalized_options",
    "states_of",
]

# Bits of `outputs`: the optional ones of a forward pass, and the gradients that a backward pass is asked for.
LAST, POTENTIAL, CHECKPOINTS = 1, 2, 4
CURRENT, INITIAL, THRESHOLD, TAU, RESIDUAL, WEIGHT, BIAS = (1 << bit for bit in range(7))


class States(NamedTuple):
    """The neurons' tensors; None: rest, or the number in ``Options.neuron``."""

    v0: Tensor | None
    threshold: Tensor | None
    tau: Tensor | None


NO_STATES = States(None, None, None)
"""Of neurons without tensors, once for all their calls."""


def states_of(v0: Tensor | None, threshold: Tensor | None, tau: Tensor | None) -> States:
    """The tensors as a group."""
    return NO_STATES if v0 is None and threshold is None and tau is None else States(v0, threshold, tau)


class Gradients(NamedTuple):
    """The gradients that a backward pass is sent, None where nobody sends one."""

    spikes: Tensor | None
    v_last: Tensor | None
    potential: Tensor | None


class Options(NamedTuple):
    """How neurons run."""

    neuron: tuple[float, float, float, float, float]  # threshold, tau, reset value, gamma, beta
    kinds: tuple[int, int]  # flags of the dynamics, code of the surrogate's shape
    steps: int | None  # that the current is held for; None: it has a time axis
    time_dim: int
    outputs: int  # bits


class NormalizedOptions(NamedTuple):
    """How neurons run on normalized currents: :class:`Options`, and those of the normalization."""

    neuron: tuple[float, float, float, float, float]
    kinds: tuple[int, int]
    steps: int | None
    time_dim: int
    outputs: int
    eps: float
    batch: bool  # by the batch's own statistics


def normalized_options(options: NormalizedOptions, *, outputs: int, batch: bool) -> NormalizedOptions:
    """The same options with other outputs and statistics: ``_replace``, which dynamo of torch 2.6 cannot trace."""
    neuron, kinds, steps, time_dim, _, eps, _ = options
    return NormalizedOptions(neuron, kinds, steps, time_dim, outputs, eps, batch)


SCHEMAS = {
    States: "Tensor? v0, Tensor? threshold, Tensor? tau",
    Gradients: "Tensor? grad_spikes, Tensor? grad_v_last, Tensor? grad_potential",
    Options: "float[] neuron, int[] kinds, SymInt? steps, int time_dim, int outputs",
    NormalizedOptions: "float[] neuron, int[] kinds, SymInt? steps, int time_dim, int outputs, float eps, bool batch",
}
"""The groups as a schema has them."""
