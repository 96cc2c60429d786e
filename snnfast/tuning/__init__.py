"""What is measured and set before training: the signal, the surrogate's sharpness, the learning rate, the thresholds.

:func:`signal_profile` measures what is left of an image from layer to layer, and so whether a deep network can learn.
:func:`gradient_profile` measures how the loss's gradient changes from layer to layer, :func:`tune_gamma` sets the
sharpness at which it neither explodes nor vanishes (the paper's section 2.5), :func:`lr_range_test` finds the highest
learning rate of a schedule (section 3.1), and :func:`normalize_thresholds` sets the thresholds of a network without
batch normalization (section 2.6). All take a model and ``batches``, a list or DataLoader of (inputs, targets), and
leave everything that they are not asked to set as they found it: weights, gradients, running statistics, mode, carried
states, and the random state of the CPU and the GPUs; when they raise, all of it. What is set is in the model's state
dict: a surrogate in its metadata, a threshold under a key (:func:`hold_thresholds`).
"""

from snnfast.tuning.gamma import GammaSearch, tune_gamma
from snnfast.tuning.gradients import GradientProfile, gradient_profile, plot_profiles
from snnfast.tuning.learning_rate import LearningRateRange, lr_range_test
from snnfast.tuning.signals import SignalProfile, plot_signals, signal_profile
from snnfast.tuning.thresholds import hold_thresholds, normalize_thresholds

__all__ = [
    "GammaSearch",
    "GradientProfile",
    "LearningRateRange",
    "SignalProfile",
    "gradient_profile",
    "hold_thresholds",
    "lr_range_test",
    "normalize_thresholds",
    "plot_profiles",
    "plot_signals",
    "signal_profile",
    "tune_gamma",
]
