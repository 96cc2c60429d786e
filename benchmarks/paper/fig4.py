"""Figure 4: learning curves of a ResNet18 with and without batch normalization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from snnfast.training import StepRecord, Trainer
from snnfast.tuning import normalize_thresholds

from . import experiment
from .experiment import Context, Experiment, Outcome, Plot, Table, Verdict
from .workbench import (
    SERIES,
    Again,
    dress,
    images_of,
    in_words,
    loss_curve,
    network,
    sharpen,
    train_model,
    training_in_words,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE = {"lr": 5e-4, "schedule": "constant"}
"""The paper's, for both networks."""

PAPER = "the training converges much faster with batch normalization"

KINDS = {"with": "with batch normalization", "without": "without"}


@dataclass(frozen=True, kw_only=True)
class Settings(experiment.Settings):
    """Of the network, at a fixed learning rate of 5e-4 as in the paper, and what is recorded.

    * ``threshold_images``: training images whose largest currents are the thresholds; None for all, as in the paper.
    * ``every``: training steps from one validation to the next.
    * ``window``: training steps that a plotted training loss is the mean of.
    """

    threshold_images: int | None = None
    every: int = 400
    window: int = 50


SETTINGS = {
    "small": Settings(
        data="cifar10",
        train=2500,
        test=300,
        size=16,
        model="resnet18",
        options={"width": 16},
        training={"epochs": 4, "batch_size": 32},
        tuning=(4, 16),
        threshold_images=2000,
        every=39,
        window=20,
    ),
    "full": Settings(data="cifar10", model="resnet18", training={"epochs": 30, "batch_size": 128, "augment": "cifar"}),
}


def measure(settings: Settings, context: Context) -> Outcome:
    """Trains the two networks."""
    data = images_of(settings, context)
    training, validation, notes = {}, {}, []
    for kind, words in KINDS.items():
        options = {"batch_norm": kind == "with", "fire_on_equal": True, **settings.options}
        model = network(settings.model, data, context, **options)
        if kind == "without":
            batches = Again(data.train, 100, settings.threshold_images)
            thresholds = normalize_thresholds(model, batches)
            notes.append(
                f"Without batch normalization: thresholds from {min(thresholds.values()):.3g} to "
                f"{max(thresholds.values()):.3g}, the largest currents over {len(batches.part)} images."
            )
        sharpness = sharpen(model, data, settings.tuning, context.say)
        notes.append(f"γ {words}: {sharpness}.")
        context.say(f"  {words}, γ = {sharpness}")
        training[kind], validation[kind] = _curves(model, data, context, settings)
    notes.append(
        "Potentials equal to the threshold fire, in both: where thresholds are the largest currents, a neuron that has "
        "to exceed its own fires a step later in each layer, and within ten steps no spike comes through all of them."
    )
    notes.insert(
        0,
        f"{in_words(data, settings.model, settings.options)}, {training_in_words({**RATE, **settings.training})}. The "
        "paper's figure 4 gives no numbers.",
    )
    return Outcome(
        [
            Table(
                "training",
                "Training loss of every step",
                ("batch normalization", "step", "loss"),
                [[kind, record.step, record.loss] for kind in KINDS for record in training[kind]],
            ),
            Table(
                "validation",
                "Validation loss",
                ("batch normalization", "step", "loss"),
                [[kind, step, loss] for kind in KINDS for step, loss in validation[kind].items()],
            ),
        ],
        [
            Plot(
                "losses",
                f"Training (solid) and validation (dashed) loss over the training steps; the paper: {PAPER}",
                _drawing(training, validation, settings.window),
            )
        ],
        verdicts(
            {kind: [r.loss for r in training[kind]] for kind in KINDS},
            {kind: list(validation[kind].values())[-1] for kind in KINDS},
        ),
        notes,
    )


def _curves(model: Any, data: Any, context: Context, settings: Settings) -> tuple[list[StepRecord], dict[int, float]]:
    """Training records and validation losses by step, the last step's included."""
    found: dict[int, float] = {}

    def each_step(trainer: Trainer, record: StepRecord) -> None:
        if record.step % settings.every == 0 or record.step == trainer.total_steps:
            found[record.step] = trainer.evaluate(data.test).loss

    trainer = train_model(model, data, context, each_step=each_step, **{**RATE, **settings.training})
    return trainer.history, found


def verdicts(training: Mapping[str, Sequence[float]], validation: Mapping[str, float]) -> list[Verdict]:
    """With against without: losses of every training step, and the last validation losses."""
    last = {kind: fmean(losses[-max(1, len(losses) // 10) :]) for kind, losses in training.items()}
    return [
        Verdict(
            f"with batch normalization the {part} loss after the same number of steps is lower than without ({how})",
            values["with"] < values["without"],
            f"{values['with']:.4g} with, {values['without']:.4g} without",
            PAPER,
        )
        for part, how, values in (
            ("training", "mean of the last tenth of the steps", last),
            ("validation", "at the end", validation),
        )
    ]


def _drawing(
    training: Mapping[str, Sequence[StepRecord]], validation: Mapping[str, Mapping[int, float]], window: int
) -> Any:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (kind, words), colour in zip(KINDS.items(), SERIES, strict=False):  # red with, blue without
            axes.plot(*loss_curve(training[kind], window), color=colour, label=f"{words}, training")
            axes.plot(
                *zip(*validation[kind].items(), strict=True), color=colour, linestyle="--", label=f"{words}, validation"
            )
        dress(axes, xlabel="training step", ylabel="loss", legend=True)

    return draw


EXPERIMENT = Experiment(
    "fig4", "Learning with and without batch normalization", "figure 4, section 2.6", SETTINGS, measure
)
