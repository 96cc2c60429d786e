"""Table 3: ResNet50 on CIFAR-100, trained directly, against ANN-SNN conversion."""

from __future__ import annotations

from . import comparison
from .comparison import Settings
from .experiment import Experiment

PAPER = (
    ("Han et al.", "VGG16, ANN-SNN conversion", 70.93),
    ("Rathi et al.", "VGG11, ANN-SNN conversion", 70.94),
    ("the paper", "ResNet50, backpropagation, 40 steps", 58.5),
)
WANTED = 58.5

SETTINGS = {
    "small": Settings(
        data="cifar10", train=2500, test=400, size=16, model="resnet50", options={"width": 8},
        evaluated=40, paper=PAPER, training={"epochs": 6, "batch_size": 50, "lr": 3e-3, "augment": "cifar"},
        tuning=(4, 16), converted_test=100,
    ),
    "full": Settings(
        data="cifar100", model="resnet50", evaluated=40, paper=PAPER, wanted=WANTED,
        training={"epochs": 100, "batch_size": 128, "lr": "find", "augment": "cifar"},
        converted_counts=(1, 2, 5, 10, 20, 40, 100, 200, 500, 1000), calibration=(2000, 200), batch_size=25,
    ),
}  # fmt: skip

EXPERIMENT = Experiment(
    "table3", "ResNet50 on CIFAR-100 (small scale: on CIFAR-10)", "table 3, section 3.3", SETTINGS, comparison.report
)
