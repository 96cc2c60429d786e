"""Figure 6: test accuracy over the number of steps at inference, for three numbers of steps in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from . import experiment
from .experiment import Context, Experiment, Outcome, Plot, Table, Verdict
from .workbench import SERIES, accuracies, dress, images_of, in_words, network, sharpen, train_model, training_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINT = 0.01
"""Bound of the verdicts, fixed before anything was measured: one point of accuracy."""

PAPER = (
    "increasing SNN time steps during inference beyond the number that it was trained with does not improve the "
    "accuracy"
)


@dataclass(frozen=True, kw_only=True)
class Settings(experiment.Settings):
    """Of the networks, and what is measured.

    * ``trained``: steps of training; ``counts``: at inference; ``seeds``: networks for each.
    """

    trained: tuple[int, ...] = (10, 20, 40)
    counts: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80)
    seeds: int = 3


SETTINGS = {
    "small": Settings(
        data="cifar100",
        otherwise="cifar10",
        train=8000,
        test=2000,
        size=16,
        model="plain_net",
        options={"width": 16},
        training={"epochs": 8, "batch_size": 50, "lr": 5e-3},
        counts=(1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80),
        seeds=2,
    ),
    "full": Settings(
        data="cifar100", model="plain_net", training={"epochs": 60, "batch_size": 128, "lr": "find", "augment": "cifar"}
    ),
}

Curves = dict[int, list[dict[int, float]]]
"""Trained steps -> for each seed, accuracy by steps at inference."""


def measure(settings: Settings, context: Context) -> Outcome:
    """Trains every network and evaluates it at all counts."""
    data = images_of(settings, context)
    counts = tuple(sorted({*settings.counts, *settings.trained, *(2 * steps for steps in settings.trained)}))
    curves: Curves = {steps: [] for steps in settings.trained}
    networks = []
    for steps in settings.trained:
        for seed in range(settings.seeds):
            model = network(settings.model, data, context, seed=seed, layers=5, steps=steps, **settings.options)
            sharpness = sharpen(model, data, settings.tuning, context.say)
            context.say(f"  trained at {steps} steps, seed {seed}, γ = {sharpness}")
            trainer = train_model(model, data, context, steps=steps, seed=seed, **settings.training)
            networks.append([steps, seed, sharpness.gamma, sharpness.ratio, trainer.lr])
            curves[steps].append(accuracies(model, data.test, counts))
    rows = [
        [steps, seed, count, accuracy]
        for steps, found in curves.items()
        for seed, curve in enumerate(found)
        for count, accuracy in curve.items()
    ]
    return Outcome(
        [
            Table(
                "accuracies", "Test accuracy, 0 to 1", ("trained steps", "seed", "inference steps", "accuracy"), rows
            ),
            Table(
                "best",
                "The best mean accuracy over the steps at inference",
                ("trained steps", "inference steps", "mean accuracy"),
                [[s, *best(curves[s])] for s in curves],
            ),
            Table(
                "networks",
                "What each network was trained with",
                ("trained steps", "seed", "gamma", "ratio of gradients", "learning rate"),
                networks,
            ),
        ],
        [
            Plot(
                "accuracies",
                f"Test accuracy over the steps at inference; mean, lowest and highest of the seeds; the paper: {PAPER}",
                _drawing(curves),
            )
        ],
        verdicts(curves),
        [
            f"{in_words(data, settings.model, {'layers': 5, **settings.options})}, "
            f"{training_in_words(settings.training)}; {settings.seeds} seeds.",
            _on_maximum(curves),
        ],
    )


def mean(found: Sequence[Mapping[int, float]], count: int) -> float:
    """The mean accuracy over the seeds at ``count`` steps."""
    return fmean(curve[count] for curve in found)


def best(found: Sequence[Mapping[int, float]]) -> tuple[int, float]:
    """The number of steps with the highest mean accuracy, the first of several, and that accuracy."""
    count = max(found[0], key=lambda count: mean(found, count))
    return count, mean(found, count)


def verdicts(curves: Curves) -> list[Verdict]:
    """For each number of trained steps T: accuracy at 2T no more than a point above that at T."""
    made = []
    for steps, found in curves.items():
        at, twice = mean(found, steps), mean(found, 2 * steps)
        made.append(
            Verdict(
                f"trained at {steps} steps, accuracy at {2 * steps} is no more than 1 point above that at {steps}",
                # Shares are whole numbers of images over their number: no rounding decides.
                twice - at <= POINT + 1e-12,
                f"{at:.2%} at {steps} steps, {twice:.2%} at {2 * steps}",
                PAPER,
            )
        )
    return made


def _on_maximum(curves: Curves) -> str:
    tops = {steps: best(found)[1] for steps, found in curves.items()}
    values = list(tops.values())
    falls = all(a > b for a, b in pairwise(values))
    said = ", ".join(f"{top:.2%} trained at {steps}" for steps, top in tops.items())
    return (
        "The paper also sees the maximum accuracy fall with the number of trained steps. Here it "
        f"{'does' if falls else 'does not'}: {said}."
    )


def _drawing(curves: Curves) -> Any:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (steps, found), colour in zip(curves.items(), SERIES, strict=False):  # red, blue, green
            counts = list(found[0])
            axes.plot(counts, [100 * mean(found, count) for count in counts], color=colour, label=f"trained at {steps}")
            low, high = ([100 * bound(curve[count] for curve in found) for count in counts] for bound in (min, max))
            axes.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.axvline(steps, color=colour, linestyle=":", linewidth=1)
        dress(axes, xlabel="time steps at inference", ylabel="test accuracy, %", legend=True)

    return draw


EXPERIMENT = Experiment("fig6", "Accuracy over the steps at inference", "figure 6, section 3.4", SETTINGS, measure)
