"""What is written down of a run: a record for each step, evaluation and layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepRecord:
    """One training step, counted from 1: the batch's mean loss (nats) and accuracy (0 to 1), the step's duration."""

    step: int
    epoch: int
    lr: float
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Mean loss (nats) and accuracy (0 to 1) of a split at ``steps`` time steps, after ``epoch`` epochs."""

    epoch: int
    steps: int
    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class FiringRecord:
    """How a spiking layer fires after ``epoch`` epochs, in evaluation mode on the first batch of the test images.

    ``rate``: spikes per neuron and step; ``silent`` and ``saturated``: the shares of neurons that never fire, and that
    fire at every step. All from 0 to 1.
    """

    epoch: int
    layer: str
    rate: float
    silent: float
    saturated: float
