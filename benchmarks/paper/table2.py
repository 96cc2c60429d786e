"""Table 2: ResNet11 on CIFAR-10, trained directly, against ANN-SNN conversion."""

from __future__ import annotations

from . import comparison
from .comparison import Settings
from .experiment import Experiment

PAPER = (
    ("Wu et al.", "backpropagation", 90.53),
    ("Lee et al.", "backpropagation", 90.95),
    ("Han et al.", "ANN-SNN conversion", 93.63),
    ("Rathi et al.", "ANN-SNN conversion", 92.94),
    ("the paper", "ResNet11, backpropagation", 90.20, 10, 20),
)
WANTED = 90.20

SETTINGS = {
    "small": Settings(
        data="cifar10",
        train=3000,
        test=600,
        size=16,
        model="resnet11",
        options={"width": 16},
        evaluated=20,
        paper=PAPER,
        training={"epochs": 6, "batch_size": 64, "lr": 3e-3, "augment": "cifar"},
        tuning=(4, 16),
        converted_test=200,
    ),
    "medium": Settings(**comparison.MEDIUM, model="resnet11", paper=PAPER),
    "full": Settings(
        data="cifar10",
        model="resnet11",
        evaluated=20,
        paper=PAPER,
        wanted=WANTED,
        training={"epochs": 100, "batch_size": 128, "lr": "find", "augment": "cifar"},
        converted_counts=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
        calibration=(2000, 200),
        long=True,
    ),
}

EXPERIMENT = Experiment("table2", "ResNet11 on CIFAR-10", "table 2, section 3.2", SETTINGS, comparison.report)
