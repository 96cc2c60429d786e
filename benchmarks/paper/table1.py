"""Table 1: the MNIST network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import experiment
from .experiment import Context, Experiment, Outcome, Plot, Table, Verdict
from .workbench import (
    COLOURS,
    accuracies,
    beside_the_paper,
    dress,
    images_of,
    in_words,
    log_steps,
    network,
    paper_line,
    train_model,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = (
    ("Mozafari et al.", "reward-modulated STDP", 97.2),
    ("Tavanaei et al.", "STDP + gradient descent", 98.6),
    ("Lee et al.", "backpropagation", 99.59),
    ("the paper", "backpropagation", 99.40, 10, 20),
)


@dataclass(frozen=True, kw_only=True)
class Settings(experiment.Settings):
    """Of the network, and what is measured.

    * ``steps``: of training; ``evaluated``: at inference.
    * ``wanted``: of the verdict, in percent.
    """

    steps: int = 10
    evaluated: int = 20
    counts: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40)
    wanted: float = 99.40


SETTINGS = {
    # The least of the paper's table is what a part of the data must reach.
    "small": Settings(
        data="mnist",
        train=12000,
        test=4000,
        model="mnist_net",
        training={"epochs": 3, "batch_size": 64, "lr": 2e-3},
        wanted=97.2,
    ),
    "full": Settings(data="mnist", model="mnist_net", training={"epochs": 10, "batch_size": 64, "lr": 2e-3}),
}


def measure(settings: Settings, context: Context) -> Outcome:
    """Trains the network and evaluates it."""
    data = images_of(settings, context)
    model = network(settings.model, data, context, steps=settings.steps, **settings.options)
    train_model(model, data, context, steps=settings.steps, **settings.training)
    counts = sorted({*settings.counts, settings.steps, settings.evaluated})
    found = accuracies(model, data.test, counts)
    seen = (len(data.train), settings.training["epochs"], len(data.test))
    ours = [
        ["snnfast", "backpropagation", 100 * found[steps], settings.steps, steps, *seen]
        for steps in (settings.steps, settings.evaluated)
    ]
    return Outcome(
        [
            beside_the_paper(PAPER, ours),
            Table(
                "accuracies",
                "Test accuracy over the steps at inference, 0 to 1",
                ("inference steps", "accuracy"),
                [list(pair) for pair in found.items()],
            ),
        ],
        [
            Plot(
                "accuracies", f"Test accuracy over the steps at inference, trained at {settings.steps}", _drawing(found)
            )
        ],
        verdicts(found[settings.evaluated], settings.evaluated, settings.wanted),
        [f"{in_words(data, settings.model, settings.options)}; trained at {settings.steps} steps."],
    )


def verdicts(accuracy: float, steps: int, wanted: float) -> list[Verdict]:
    """The accuracy (0 to 1) at ``steps`` against ``wanted`` percent."""
    return [
        Verdict(
            f"accuracy at {steps} steps is at least {wanted:g} %",
            100 * accuracy >= wanted,
            f"{accuracy:.2%}",
            "99.40 % trained at 10 steps and evaluated at 20",
        )
    ]


def _drawing(found: dict[int, float]) -> Any:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(
            list(found),
            [100 * value for value in found.values()],
            marker="o",
            markersize=4,
            color=COLOURS["snn"],
            label="snnfast",
        )
        paper_line(axes, PAPER[-1][2], "the paper, 20 steps")
        log_steps(axes, list(found))
        dress(axes, xlabel="time steps at inference", ylabel="test accuracy, %", legend=True)

    return draw


EXPERIMENT = Experiment("table1", "The MNIST network", "table 1, section 3.2", SETTINGS, measure)
