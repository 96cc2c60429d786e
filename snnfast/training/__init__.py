"""Training spiking networks: :func:`train` through one implementation of the neurons, :func:`compare` through two.

Both take :class:`TrainOptions` and write their files into its output folder. What a user can get wrong is an
:class:`OptionError`, :class:`OutputError` or :class:`snnfast.data.DataError` before training starts; a loss that is
no longer finite is a :class:`DivergedError`, and unequal results in a comparison are a :class:`MismatchError`.
"""

from snnfast.training.compare import Comparison, MismatchError, compare
from snnfast.training.implementations import IMPLEMENTATIONS
from snnfast.training.options import OptionError, TrainOptions
from snnfast.training.output import OutputError
from snnfast.training.run import Run, train
from snnfast.training.trainer import DivergedError, Trainer

__all__ = [
    "IMPLEMENTATIONS",
    "Comparison",
    "DivergedError",
    "MismatchError",
    "OptionError",
    "OutputError",
    "Run",
    "TrainOptions",
    "Trainer",
    "compare",
    "train",
]
