"""A network trained directly, its ANN twin, and what conversion makes of the twin: tables 2 and 3, and the claims."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from snnfast.convert import to_spiking
from snnfast.data import ImageData
from snnfast.models import Network
from snnfast.training import TrainOptions, train

from . import experiment
from .experiment import Context, Outcome, Plot, Table, Verdict
from .workbench import (
    COLOURS,
    SERIES,
    Sharpness,
    accuracies,
    beside_the_paper,
    dress,
    images_of,
    in_words,
    log_steps,
    network,
    sharpen,
    train_model,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = "snnfast"
POINT, TIMES = 0.01, 10
"""Bounds of the verdict on steps: a point of accuracy, and how many times more. Fixed before anything was measured for
the claims; tables 2 and 3 took the verdict over after they had been measured at small scale."""

TRAINED, CONVERTED, TWIN = "trained", "converted", "ANN twin"

OF_TWIN = 0.9
"""The share of its twin's accuracy that the trained network must reach where the setting is not the paper's; fixed
without a look at what was measured."""


@dataclass(frozen=True, kw_only=True)
class Settings(experiment.Settings):
    """Of the network and its twin, and what is measured.

    * ``evaluated``: steps at inference, the paper's; ``steps``: of training.
    * ``paper``: rows of its table, see :func:`.workbench.beside_the_paper`.
    * ``wanted``: the paper's own accuracy, where ours is measured in its setting; None elsewhere.
    * ``trained_counts``, ``converted_counts``: steps at inference of the two spiking networks.
    * ``calibration``: training images that thresholds are balanced on, and the steps that takes.
    * ``converted_test``: test images for the converted network, which is slow; None for all.
    * ``batch_size``: of inference.
    * ``long``: whether the networks are trained as ``snnfast train`` does it, each in a folder of its own under the
      results', with checkpoints: a run that was stopped goes on where it was, bit for bit. On whole data sets alone.
    """

    evaluated: int
    steps: int = 10
    paper: tuple[tuple[Any, ...], ...] = ()
    wanted: float | None = None
    trained_counts: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40)
    converted_counts: tuple[int, ...] = (1, 2, 5, 10, 20, 40, 80, 160, 320)
    calibration: tuple[int, int] = (200, 100)
    converted_test: int | None = None
    batch_size: int = 50
    long: bool = False


MEDIUM: Mapping[str, Any] = {
    "data": "cifar10",
    "options": {"width": 16},
    "steps": 4,
    "evaluated": 8,
    "training": {"epochs": 20, "batch_size": 128, "lr": 3e-3, "augment": "cifar", "precision": "bfloat16"},
    "trained_counts": (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32),
    "calibration": (1000, 100),
    "converted_test": 1000,
    "long": True,
}
"""What the networks of the medium scale have in common."""


@dataclass(frozen=True)
class Measured:
    """Accuracies, 0 to 1, of the three networks, and on how many images.

    * ``trained``, ``converted``: by steps at inference; ``twin``: without steps.
    * ``alike``: the trained one's at the paper's steps, on the converted one's images.
    * ``images``: of training, of the test, and of the converted network's test.
    * ``classes``: of the data set.
    * ``notes``: the setting in words.
    """

    trained: dict[int, float]
    converted: dict[int, float]
    twin: float
    alike: float
    classes: int
    images: tuple[int, int, int] = (0, 0, 0)
    notes: tuple[str, ...] = ()


def measure(settings: Settings, context: Context) -> Measured:
    """Trains the network and its twin, converts the twin, and evaluates all three."""
    data = images_of(settings, context)
    return compared(
        settings, data, context, trained_network(settings, data, context), trained_twin(settings, data, context)
    )


@dataclass(frozen=True)
class Trained:
    """A trained network, and what is known of its training.

    * ``sharpness``: None for a twin; ``loss``: the mean of the last epoch's.
    """

    network: Network
    sharpness: Sharpness | None
    loss: float


def trained_network(settings: Settings, data: ImageData, context: Context, *, seed: int = 0) -> Trained:
    """The settings' network, its γ balanced, trained; ``seed`` is of its weights and of training."""
    if settings.long:
        return _trained_in_folder(settings, context, seed, {}, "tune")
    model = network(settings.model, data, context, seed=seed, steps=settings.steps, **settings.options)
    sharpness = sharpen(model, data, settings.tuning, context.say)
    context.say(f"  {settings.model}, seed {seed}, γ = {sharpness}")
    return _trained(model, sharpness, settings, data, context, seed)


def trained_twin(settings: Settings, data: ImageData, context: Context, *, seed: int = 0) -> Trained:
    """The ANN twin of :func:`trained_network`'s."""
    context.say(f"  {settings.model}, seed {seed}, its ANN twin")
    kind = {"activation": "relu"}
    if settings.long:
        return _trained_in_folder(settings, context, seed, kind, None)
    model = network(settings.model, data, context, seed=seed, steps=settings.steps, **kind, **settings.options)
    return _trained(model, None, settings, data, context, seed)


def _trained(
    model: Network, sharpness: Sharpness | None, settings: Settings, data: ImageData, context: Context, seed: int
) -> Trained:
    trainer = train_model(model, data, context, steps=settings.steps, seed=seed, **settings.training)
    return Trained(model, sharpness, fmean(step.loss for step in trainer.history[-trainer.batches :]))


def _trained_in_folder(
    settings: Settings, context: Context, seed: int, kind: Mapping[str, Any], gamma: str | None
) -> Trained:
    """The network of a run in a folder of its own, which goes on from its checkpoint."""
    assert context.folder is not None, "a long run needs a folder"
    assert settings.train is settings.size is None, "a long run is of a whole data set"
    options = {**settings.options, **kind}
    named = "-".join([settings.model, *(f"{name}={value}" for name, value in options.items()), f"seed={seed}"])
    run = train(
        TrainOptions(
            data=settings.data_set(context.data_dir),
            data_dir=context.data_dir,
            model=settings.model,
            model_options=options,
            steps=settings.steps,
            gamma=gamma,
            seed=seed,
            device=str(context.device),
            threads=torch.get_num_threads(),
            out=str(Path(context.folder) / "runs" / context.scale / named),
            **settings.training,
        ),
        resume=True,
    )
    model = run.trainer.evaluated
    assert isinstance(model, Network), model
    # Its γ is balanced, or the run ended with an error; the ratio is in what the run printed.
    sharpness = None if run.trainer.gamma is None else Sharpness(run.trainer.gamma, math.nan, True)
    return Trained(model, sharpness, fmean(step.loss for step in run.trainer.history[-run.trainer.batches :]))


def compared(settings: Settings, data: ImageData, context: Context, ours: Trained, twin: Trained) -> Measured:
    """Converts the twin, and evaluates all three."""
    counts = sorted({*settings.trained_counts, settings.steps, settings.evaluated})
    trained = accuracies(ours.network, data.test, counts, batch_size=settings.batch_size)
    twin_accuracy = accuracies(twin.network, data.test, [1], batch_size=settings.batch_size)[1]
    number, steps = settings.calibration
    batches = [pixels for pixels, _ in replace(data.train, images=data.train.images[:number]).batches(50)]
    converted_network = to_spiking(twin.network.eval(), batches, steps=steps)
    some = slice(settings.converted_test)
    part = replace(data.test, images=data.test.images[some], labels=data.test.labels[some])
    context.say(f"  converted, up to {max(settings.converted_counts)} steps on {len(part)} images")
    counts = sorted({*settings.converted_counts, settings.evaluated})
    # As many images at a time as keep the spikes of the longest run in memory.
    at_once = max(1, min(settings.batch_size, 4000 // max(counts)))
    converted = accuracies(converted_network, part, counts, batch_size=at_once)
    # The two are compared on the same images: a part may be easier than the whole.
    alike = accuracies(ours.network, part, [settings.evaluated], batch_size=settings.batch_size)[settings.evaluated]
    notes = (
        f"{in_words(data, settings.model, settings.options)}. Trained at {settings.steps} steps, γ = {ours.sharpness}.",
        f"The twin has the same layers with ReLU and was trained on as many images; it is converted by balancing "
        f"thresholds on {number} training images over {steps} steps, and evaluated on {len(part)} test images.",
    )
    counted = (len(data.train), len(data.test), len(part))
    return Measured(trained, converted, twin_accuracy, alike, data.classes, counted, notes)


def curves(settings: Settings, measured: Measured) -> tuple[Table, Plot]:
    """Accuracies over the steps at inference, as a table and as a plot with the paper's own number in it."""
    rows: list[list[Any]] = [
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


def outcome(settings: Settings, measured: Measured, method: str = "backpropagation") -> Outcome:
    """What :func:`report` makes of what was measured; ``method`` names the trained network's in the table."""
    at, longest = settings.evaluated, max(measured.converted)
    train, test, part = measured.images
    epochs = settings.training["epochs"]
    ours = [
        [OURS, f"{settings.model}, {method}", 100 * measured.trained[at], settings.steps, at, train, epochs, test],
        *(
            [
                OURS,
                f"{settings.model}, ANN-SNN conversion",
                100 * measured.converted[count],
                None,
                count,
                train,
                epochs,
                part,
            ]
            for count in (at, longest)
        ),
        [OURS, f"{settings.model}, ANN", 100 * measured.twin, None, None, train, epochs, test],
    ]
    table, plot = curves(settings, measured)
    made = [
        learns_verdict(measured, at),
        *verdicts(measured, at, settings.wanted),
        steps_verdict(measured.trained, measured.converted, settings.model, measured.classes),
    ]
    after = (
        "The verdicts on learning, on the twin's accuracy and on steps to within a point were added to this table "
        "after a first run at small scale, whose images and epochs were changed for time and for learning."
    )
    return Outcome([beside_the_paper(settings.paper, ours), table], [plot], made, (*measured.notes, after))


def learns_verdict(measured: Measured, at: int) -> Verdict:
    """The trained network at ``at`` steps against guessing."""
    guessing = 1 / measured.classes
    return Verdict(
        f"the network learns: at {at} steps at least twice the accuracy of guessing, {guessing:.0%}",
        measured.trained[at] >= 2 * guessing,
        f"{measured.trained[at]:.2%} (its ANN twin {measured.twin:.2%})",
        "in this work we directly train deep SNNs using backpropagation with surrogate gradient",
    )


def verdicts(measured: Measured, at: int, wanted: float | None) -> list[Verdict]:
    """The trained network at ``at`` steps against the converted one, and against ``wanted`` percent.

    Where ``wanted`` is None, against :data:`OF_TWIN` of its twin's accuracy.
    """
    trained, converted = measured.trained[at], measured.converted[at]
    against_converted = Verdict(
        f"at {at} steps the network that was trained directly is more accurate than the converted one",
        measured.alike > converted,
        f"{measured.alike:.2%} against {converted:.2%} on the same {measured.images[2]} images",
        "several orders of magnitude less inference time steps are needed when training SNNs from scratch",
    )
    if wanted is None:
        return [against_converted, twin_verdict(trained, measured.twin, at)]
    return [
        against_converted,
        Verdict(
            f"accuracy at {at} steps at least the paper's {wanted:g} %",
            100 * trained >= wanted,
            f"{trained:.2%}",
            f"{wanted:g} %",
        ),
    ]


def twin_verdict(trained: float, twin: float, at: int) -> Verdict:
    """The trained network at ``at`` steps against its twin."""
    return Verdict(
        f"at {at} steps the network that was trained directly has at least {OF_TWIN:g} of its twin's accuracy",
        # A share is a whole number of images over their number: no rounding decides.
        trained >= OF_TWIN * twin - 1e-12,
        f"{trained:.2%} against {twin:.2%}",
        "the trained SNN falls behind in accuracy compared to analogous ANN",
    )


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


def steps_verdict(trained: Mapping[int, float], converted: Mapping[int, float], model: str, classes: int) -> Verdict:
    """Steps to within a point of each network's own final accuracy, that at the largest number of steps measured.

    Of networks that guess, the number of steps says nothing: both must end at twice the accuracy of guessing.
    """
    learned = all(accuracy[max(accuracy)] >= 2 / classes for accuracy in (trained, converted))
    few, many = steps_to_within(trained, POINT), steps_to_within(converted, POINT)
    return Verdict(
        f"the converted {model} needs at least {TIMES} times the steps of the trained one to come within 1 point of "
        "its own final accuracy, both ending at twice that of guessing or more",
        learned and many >= TIMES * few,
        f"{many} steps to {converted[max(converted)]:.2%} at {max(converted)} (converted), {few} to "
        f"{trained[max(trained)]:.2%} at {max(trained)} (trained)",
        "as low as 10 steps against on the order of 1000",
    )


def _drawing(settings: Settings, measured: Measured) -> Any:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for label, accuracy, colour in (
            ("trained directly", measured.trained, COLOURS["snn"]),
            ("converted from the twin", measured.converted, COLOURS["converted"]),
        ):
            axes.plot(
                list(accuracy),
                [100 * value for value in accuracy.values()],
                marker="o",
                markersize=4,
                color=colour,
                label=label,
            )
        if settings.paper:
            name, method, accuracy = settings.paper[-1][:3]
            axes.plot(
                [settings.evaluated],
                [accuracy],
                marker="*",
                markersize=11,
                linestyle="",
                color=SERIES[-1],
                label=f"{name}: {method}",
            )
        axes.axhline(100 * measured.twin, color=COLOURS["ann"], linestyle="--", label="ANN twin")
        log_steps(axes, [*measured.trained, *measured.converted])
        dress(axes, xlabel="time steps at inference", ylabel="test accuracy, %", legend=True)

    return draw
