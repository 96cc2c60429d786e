"""Training spiking networks: :func:`train` trains one, :func:`compare` through two implementations of the neurons.

Both take :class:`TrainOptions` and write their files into its output folder; :class:`Trainer` is one network in
training, for other programs. What a user can get wrong is an :class:`OptionError`, :class:`OutputError`,
:class:`CheckpointError` or :class:`snnfast.data.DataError` before training starts; a loss that is no longer finite is a
:class:`DivergedError`, and unequal results in a comparison are a :class:`MismatchError`.
"""

from snnfast.training.checkpoints import CheckpointError, load_model
from snnfast.training.implementations import IMPLEMENTATIONS
from snnfast.training.options import (
    AUGMENTATIONS,
    COMPILE_MODES,
    LOSSES,
    PRECISIONS,
    SCHEDULES,
    SURROGATES,
    UNBALANCED,
    OptionError,
    TrainOptions,
)
from snnfast.training.output import OutputError
from snnfast.training.processes import Processes
from snnfast.training.records import Evaluation, FiringRecord, StepRecord
from snnfast.training.run import Run, options_for, train
from snnfast.training.side_by_side import Comparison, MismatchError, compare
from snnfast.training.trainer import DivergedError, Trainer

__all__ = [
    "AUGMENTATIONS",
    "COMPILE_MODES",
    "IMPLEMENTATIONS",
    "LOSSES",
    "PRECISIONS",
    "SCHEDULES",
    "SURROGATES",
    "UNBALANCED",
    "CheckpointError",
    "Comparison",
    "DivergedError",
    "Evaluation",
    "FiringRecord",
    "MismatchError",
    "OptionError",
    "OutputError",
    "Processes",
    "Run",
    "StepRecord",
    "TrainOptions",
    "Trainer",
    "compare",
    "load_model",
    "options_for",
    "train",
]
