"""A network trained directly, its ANN twin, and what conversion makes of the twin: tables 2 and 3, and the claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from snnfast.convert import to_spiking

from . import experiment
from .experiment import Context, Outcome, Plot, Table, Verdict
from .workbench import COLOURS, SERIES, accuracies, dress, images_of, in_words, log_steps, network, sharpen, train_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = "snnfast"
TRAINED, CONVERTED, TWIN = "trained", "converted", "ANN twin"


@dataclass(frozen=True, kw_only=True)
class Settings(experiment.Settings):
    """Of the network and its twin, and what is measured.

    * ``evaluated``: steps at inference, the paper's; ``steps``: of training.
    * ``paper``: rows of its table: model, method, accuracy in percent.
    * ``wanted``: the paper's own accuracy, where ours is measured in its setting; None elsewhere.
    * ``trained_counts``, ``converted_counts``: steps at inference of the two spiking networks.
    * ``calibration``: training images that thresholds are balanced on, and the steps that takes.
    * ``converted_test``: test images for the converted network, which is slow; None for all.
    * ``batch_size``: of inference.
    """

    evaluated: int
    steps: int = 10
    paper: tuple[tuple[str, str, float], ...] = ()
    wanted: float | None = None
    trained_counts: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40)
    converted_counts: tuple[int, ...] = (1, 2, 5, 10, 20, 40, 80, 160, 320)
    calibration: tuple[int, int] = (200, 100)
    converted_test: int | None = None
    batch_size: int = 50


@dataclass(frozen=True)
class Measured:
    """Accuracies, 0 to 1, of the three networks: by steps at inference, and the twin's."""

    trained: dict[int, float]
    converted: dict[int, float]
    twin: float
    notes: tuple[str, ...]


def measure(settings: Settings, context: Context) -> Measured:
    """Trains the network and its twin, converts the twin, and evaluates all three."""
    data = images_of(settings, context)
    model = network(settings.model, data, context, steps=settings.steps, **settings.options)
    sharpness = sharpen(model, data, settings.tuning)
    context.say(f"  {settings.model}, γ = {sharpness}")
    train_model(model, data, context, steps=settings.steps, **settings.training)
    counts = sorted({*settings.trained_counts, settings.steps, settings.evaluated})
    trained = accuracies(model, data.test, counts, batch_size=settings.batch_size)
    context.say(f"  {settings.model}, its ANN twin")
    twin = network(settings.model, data, context, activation="relu", steps=settings.steps, **settings.options)
    trainer = train_model(twin, data, context, steps=settings.steps, **settings.training)
    twin_accuracy = trainer.evaluate(data.test).accuracy
    number, steps = settings.calibration
    batches = [pixels for pixels, _ in replace(data.train, images=data.train.images[:number]).batches(50)]
    converted_network = to_spiking(twin.eval(), batches, steps=steps)
    some = slice(settings.converted_test)
    part = replace(data.test, images=data.test.images[some], labels=data.test.labels[some])
    context.say(f"  converted, up to {max(settings.converted_counts)} steps on {len(part)} images")
    counts = sorted({*settings.converted_counts, settings.evaluated})
    # As many images at a time as keep the spikes of the longest run in memory.
    at_once = max(1, min(settings.batch_size, 4000 // max(counts)))
    converted = accuracies(converted_network, part, counts, batch_size=at_once)
    notes = (
        f"{in_words(data, settings.model, settings.options)}. Trained at {settings.steps} steps, γ = {sharpness}.",
        f"The twin has the same layers with ReLU and was trained on as many images; it is converted by balancing "
        f"thresholds on {number} training images over {steps} steps, and evaluated on {len(part)} test images.",
    )
    return Measured(trained, converted, twin_accuracy, notes)


def curves(settings: Settings, measured: Measured) -> tuple[Table, Plot]:
    """Accuracies over the steps at inference, as a table and as a plot with the paper's own number in it."""
    rows = [
        *([TRAINED, steps, accuracy] for steps, accuracy in measured.trained.items()),
        *([CONVERTED, steps, accuracy] for steps, accuracy in measured.converted.items()),
        [TWIN, None, measured.twin],
    ]
    title = "Accuracy over the steps at inference"
    return (
        Table("accuracies", f"{title}, 0 to 1", ("network", "inference steps", "accuracy"), rows),
        Plot("accuracies", f"{title}: trained directly, and converted from the ANN twin", _drawing(settings, measured)),
    )


def report(settings: Settings, context: Context) -> Outcome:
    """Table 2 or 3: ours beside the paper's rows, curves and verdicts."""
    return outcome(settings, measure(settings, context))


def outcome(settings: Settings, measured: Measured) -> Outcome:
    """What :func:`report` makes of what was measured."""
    at = settings.evaluated
    ours = [
        [OURS, f"{settings.model}, backpropagation, {at} steps", 100 * measured.trained[at], "here"],
        [OURS, f"{settings.model}, ANN-SNN conversion, {at} steps", 100 * measured.converted[at], "here"],
        [OURS, f"{settings.model}, ANN-SNN conversion, {max(measured.converted)} steps",
         100 * measured.converted[max(measured.converted)], "here"],
        [OURS, f"{settings.model}, ANN", 100 * measured.twin, "here"],
    ]  # fmt: skip
    rows = [[*row, "the paper"] for row in settings.paper] + ours
    table, plot = curves(settings, measured)
    comparison = Table(
        "comparison", "Test accuracy, %, beside the paper's table", ("model", "method", "accuracy", "source"), rows
    )
    return Outcome([comparison, table], [plot], verdicts(measured, at, settings.wanted), measured.notes)


def verdicts(measured: Measured, at: int, wanted: float | None) -> list[Verdict]:
    """Trained against converted at ``at`` steps; and the trained one's accuracy against ``wanted`` percent."""
    trained, converted = measured.trained[at], measured.converted[at]
    made = [
        Verdict(
            f"at {at} steps the network that was trained directly is more accurate than the converted one",
            trained > converted,
            f"{trained:.2%} against {converted:.2%}",
            "several orders of magnitude less inference time steps are needed when training SNNs from scratch",
        )
    ]
    if wanted is not None:
        made.append(
            Verdict(
                f"accuracy at {at} steps at least the paper's {wanted:g} %",
                100 * trained >= wanted,
                f"{trained:.2%}",
                f"{wanted:g} %",
            )
        )
    return made


def steps_to_within(accuracy: Mapping[int, float], points: float) -> int:
    """The smallest number of steps from which on accuracy stays within ``points`` (0 to 1) of that at the largest."""
    counts = sorted(accuracy)
    final = accuracy[counts[-1]]
    reached = counts[-1]
    for count in reversed(counts):
        # A share is a whole number of images over their number: no rounding decides.
        if abs(accuracy[count] - final) > points + 1e-12:
            break
        reached = count
    return reached


def _drawing(settings: Settings, measured: Measured) -> Any:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for label, accuracy, colour in (
            ("trained directly", measured.trained, COLOURS["snn"]),
            ("converted from the twin", measured.converted, COLOURS["converted"]),
        ):
            axes.plot(
                list(accuracy), [100 * value for value in accuracy.values()], marker="o", markersize=4, color=colour,
                label=label,
            )  # fmt: skip
        if settings.paper:
            name, method, accuracy = settings.paper[-1]
            axes.plot(
                [settings.evaluated], [accuracy], marker="*", markersize=11, linestyle="", color=SERIES[-1],
                label=f"{name}: {method}",
            )  # fmt: skip
        axes.axhline(100 * measured.twin, color=COLOURS["ann"], linestyle="--", label="ANN twin")
        log_steps(axes, [*measured.trained, *measured.converted])
        dress(axes, xlabel="time steps at inference", ylabel="test accuracy, %", legend=True)

    return draw
