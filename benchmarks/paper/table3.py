"""Table 3: ResNet50 on CIFAR-100, and section 3.3's on Imagenette, trained directly, against ANN-SNN conversion."""

from __future__ import annotations

from dataclasses import dataclass, replace

from snnfast.data import DataError

from . import comparison
from .experiment import Context, Experiment, Outcome
from .workbench import images

PAPER = (
    ("Han et al.", "VGG16, ANN-SNN conversion", 70.93),
    ("Rathi et al.", "VGG11, ANN-SNN conversion", 70.94),
    ("the paper", "ResNet50, backpropagation", 58.5, 10, 40),
)
WANTED = 58.5

IMAGENETTE = comparison.Settings(
    data="imagenette",
    model="resnet50",
    options={"stem": "7x7"},
    evaluated=20,
    wanted=81.2,
    paper=(("the paper", "ResNet50, backpropagation", 81.2, 10, 20),),
    training={"epochs": 60, "batch_size": 64, "lr": "find"},
    converted_counts=(1, 2, 5, 10, 20, 40, 100, 200, 500, 1000),
    calibration=(500, 200),
    batch_size=25,
)


@dataclass(frozen=True, kw_only=True)
class Settings(comparison.Settings):
    """Of the network of the table.

    * ``besides``: of another one, measured too where its data set can be read; None for none.
    """

    besides: comparison.Settings | None = None


SETTINGS = {
    "small": Settings(
        data="cifar10",
        train=2500,
        test=400,
        size=16,
        model="resnet50",
        options={"width": 8},
        evaluated=40,
        paper=PAPER,
        training={"epochs": 6, "batch_size": 50, "lr": 3e-3, "augment": "cifar"},
        tuning=(4, 16),
        converted_test=50,
    ),
    "full": Settings(
        data="cifar100",
        model="resnet50",
        evaluated=40,
        paper=PAPER,
        wanted=WANTED,
        training={"epochs": 100, "batch_size": 128, "lr": "find", "augment": "cifar"},
        converted_counts=(1, 2, 5, 10, 20, 40, 100, 200, 500, 1000),
        calibration=(2000, 200),
        batch_size=25,
        besides=IMAGENETTE,
    ),
}


def measure(settings: Settings, context: Context) -> Outcome:
    """The table, and the network besides: its tables and plots are named after its data set, its claims say so."""
    besides = settings.besides
    # Looked for first: what is missing is said before hours of training.
    missing = None if besides is None else _missing(besides, context)
    made = comparison.report(settings, context)
    if besides is None:
        return made
    if missing is not None:
        return replace(made, notes=[*made.notes, missing])
    context.say(f"  {besides.data}")
    more = comparison.report(besides, context)
    return Outcome(
        [
            *made.tables,
            *(
                replace(table, name=f"{besides.data}-{table.name}", title=f"{besides.data}: {table.title}")
                for table in more.tables
            ),
        ],
        [
            *made.plots,
            *(
                replace(plot, name=f"{besides.data}-{plot.name}", title=f"{besides.data}: {plot.title}")
                for plot in more.plots
            ),
        ],
        [*made.verdicts, *(replace(verdict, claim=f"{besides.data}: {verdict.claim}") for verdict in more.verdicts)],
        [*made.notes, *more.notes],
    )


def _missing(settings: comparison.Settings, context: Context) -> str | None:
    """Why a data set cannot be read, in a line; None where it can."""
    try:
        images(settings.data, context, train=1, test=1)
    except DataError as error:
        line = f"{settings.data} is not measured: {error}"
        context.say(f"  {line}")
        return line
    return None


EXPERIMENT = Experiment(
    "table3", "ResNet50 on CIFAR-100 (small scale: on CIFAR-10)", "table 3, section 3.3", SETTINGS, measure
)
