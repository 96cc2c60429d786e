"""Figure 5: accuracy over the number of layers, of the ANN twin and of networks with fixed and with tuned sharpness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import nn

from snnfast.data import ImageData
from snnfast.training import Trainer
from snnfast.training.options import FIND, OptionError
from snnfast.tuning.gamma import set_gamma
from snnfast.tuning.trial import spiking_layers

from . import experiment
from .experiment import Context, Experiment, Outcome, Plot, Table, Verdict
from .workbench import COLOURS, dress, images_of, in_words, network, sharpen, train_model, training_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIANTS = {"ann": "ANN", "fixed": "SNN, γ = 100", "snn": "SNN, tuned γ"}
JUDGED = 9
"""The number of layers of the verdicts on γ."""

SHALLOW = 3
"""That at which the paper's SNN leads its ANN."""

NO_RATE = 1e-3
"""The highest learning rate of a network whose loss the range test sees fall at none: some here can hardly be trained,
and that is what the figure is to show."""

PAPER = "without fine-tuned γ only shallow networks can be effectively trained"
PAPER_SHALLOW = "with 3 and 4 layers SNNs achieve higher test accuracy than analogous ANNs (… only with 3 layers)"
PAPER_GROWTH = "with increasing number of layers the ANN accuracy grows more quickly"


@dataclass(frozen=True, kw_only=True)
class Settings(experiment.Settings):
    """Of the networks, and how many there are.

    * ``layers``: of the networks.
    * ``seeds``: networks of each kind; ``judged_seeds``: spiking ones of :data:`JUDGED` layers.
    """

    layers: tuple[int, ...] = (3, 4, 5, 9, 13)
    seeds: int = 3
    judged_seeds: int = 3


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
        seeds=1,
    ),
    "medium": Settings(
        data="cifar100",
        model="plain_net",
        layers=(SHALLOW,),
        training={"epochs": 10, "batch_size": 128, "lr": 5e-3, "augment": "cifar"},
    ),
    "full": Settings(
        data="cifar100", model="plain_net", training={"epochs": 60, "batch_size": 128, "lr": "find", "augment": "cifar"}
    ),
}


@dataclass(frozen=True)
class Trained:
    """One network's final accuracies, 0 to 1; ratio is None where γ is not tuned, γ too for the ANN."""

    layers: int
    variant: str
    seed: int
    gamma: float | None
    ratio: float | None
    lr: float | None
    train: float
    test: float


def measure(settings: Settings, context: Context) -> Outcome:
    """Trains every network of every kind."""
    data = images_of(settings, context)
    found, unbalanced, no_rate = [], [], []
    for layers in settings.layers:
        for variant in VARIANTS:
            seeds = settings.judged_seeds if layers == JUDGED and variant != "ann" else settings.seeds
            for seed in range(seeds):
                kind = {"activation": "relu"} if variant == "ann" else {}
                model = network(settings.model, data, context, seed=seed, layers=layers, **kind, **settings.options)
                gamma = ratio = None
                if variant == "fixed":
                    gamma = 100.0
                    set_gamma(spiking_layers(model), gamma)
                elif variant == "snn":
                    sharpness = sharpen(model, data, settings.tuning, context.say)
                    gamma, ratio = sharpness.gamma, sharpness.ratio
                    unbalanced += [] if sharpness.balanced else [f"{layers} layers, seed {seed}"]
                context.say(
                    f"  {layers} layers, {VARIANTS[variant]}, seed {seed}" + (f", γ = {gamma:.3g}" if gamma else "")
                )
                trainer = _trained(model, data, context, {"seed": seed, **settings.training})
                if trainer.options.lr != settings.training["lr"]:
                    no_rate.append(f"{layers} layers, {VARIANTS[variant]}, seed {seed}")
                accuracy = {part: trainer.evaluate(getattr(data, part)).accuracy for part in ("train", "test")}
                found.append(Trained(layers, variant, seed, gamma, ratio, trainer.lr, **accuracy))
    columns = (
        "layers",
        "network",
        "seed",
        "gamma",
        "ratio of gradients",
        "learning rate",
        "training accuracy",
        "test accuracy",
    )
    rows = [[t.layers, VARIANTS[t.variant], t.seed, t.gamma, t.ratio, t.lr, t.train, t.test] for t in found]
    notes = [
        f"{in_words(data, settings.model, settings.options)}, {training_in_words(settings.training)}; evaluated at the "
        "steps of training. The paper's figure 5 gives no numbers.",
        f"The verdicts on the ANN, at {SHALLOW} layers and over the layers, were added after the figure had been "
        "measured at small scale, and before it was at the others.",
    ]
    if unbalanced:
        notes.append(f"No γ balances the gradients, the default is used: {'; '.join(unbalanced)}.")
    if no_rate:
        notes.append(f"In the range test the loss fell at no rate, {NO_RATE:g} is used: {'; '.join(no_rate)}.")
    return Outcome(
        [Table("accuracies", "Final accuracies, 0 to 1", columns, rows)],
        [
            Plot(
                "accuracies",
                f"Final test (left) and training (right) accuracy over the number of layers; the paper: {PAPER}",
                _drawing(found),
                (9.0, 4.2),
            )
        ],
        [*verdicts(*(_by_part(found, variant) for variant in ("snn", "fixed"))), *_ann_verdicts(found)],
        notes,
    )


def _trained(model: nn.Module, data: ImageData, context: Context, options: dict[str, Any]) -> Trainer:
    """The network after training, at :data:`NO_RATE` where the range test finds no rate."""
    try:
        return train_model(model, data, context, **options)
    except OptionError as error:
        if options["lr"] != FIND:
            raise
        context.say(f"  {error}")
        return train_model(model, data, context, **{**options, "lr": NO_RATE})


def _by_part(found: Sequence[Trained], variant: str) -> dict[str, list[float]]:
    judged = [one for one in found if one.variant == variant and one.layers == JUDGED]
    return {"training": [one.train for one in judged], "test": [one.test for one in judged]}


def verdicts(tuned: Mapping[str, Sequence[float]], fixed: Mapping[str, Sequence[float]]) -> list[Verdict]:
    """Tuned against fixed sharpness, accuracies by "training" and "test" for each seed; none where there are none."""
    made = []
    for part, values in tuned.items():
        others = fixed[part]
        if not values or not others:
            continue
        lead = fmean(values) - fmean(others)
        spread = max(max(values) - min(values), max(others) - min(others))
        made.append(
            Verdict(
                f"at {JUDGED} layers the tuned γ beats γ = 100 in {part} accuracy by more than the seeds' spread",
                lead > spread,
                f"{fmean(values):.2%} against {fmean(others):.2%}, a lead of {100 * lead:.1f} points; spread "
                f"{100 * spread:.1f} points over {len(values)} seeds",
                PAPER,
            )
        )
    return made


def _ann_verdicts(found: Sequence[Trained]) -> list[Verdict]:
    """:func:`ann_verdicts` of what was trained."""
    of = {}
    for variant in ("snn", "ann"):
        tests: dict[int, list[float]] = {}
        for one in found:
            if one.variant == variant:
                tests.setdefault(one.layers, []).append(one.test)
        of[variant] = {layers: fmean(values) for layers, values in tests.items()}
    return ann_verdicts(of["snn"], of["ann"])


def ann_verdicts(snn: Mapping[int, float], ann: Mapping[int, float]) -> list[Verdict]:
    """Tuned γ against the ANN: mean test accuracies by the number of layers, the same in both."""
    made = []
    if SHALLOW in snn:
        made.append(
            Verdict(
                f"at {SHALLOW} layers the SNN is more accurate on the test images than its ANN",
                snn[SHALLOW] > ann[SHALLOW],
                f"{snn[SHALLOW]:.2%} against {ann[SHALLOW]:.2%}",
                PAPER_SHALLOW,
            )
        )
    fewest, most = min(snn), max(snn)
    if most > fewest:
        grown, ann_grown = snn[most] - snn[fewest], ann[most] - ann[fewest]
        made.append(
            Verdict(
                f"from {fewest} to {most} layers the ANN's test accuracy grows by more than the SNN's",
                ann_grown > grown,
                f"by {100 * ann_grown:.1f} points against {100 * grown:.1f}",
                PAPER_GROWTH,
            )
        )
    return made


def _drawing(found: Sequence[Trained]) -> Any:
    def draw(figure: Figure) -> None:
        for axes, part, title in zip(
            figure.subplots(1, 2, sharey=True), ("test", "train"), ("test", "training"), strict=True
        ):
            for variant, label in VARIANTS.items():
                layers = sorted({one.layers for one in found})
                values = [
                    [100 * getattr(one, part) for one in found if one.variant == variant and one.layers == count]
                    for count in layers
                ]
                middle = [fmean(of) for of in values]
                reach = [
                    [m - min(of) for m, of in zip(middle, values, strict=True)],
                    [max(of) - m for m, of in zip(middle, values, strict=True)],
                ]
                axes.errorbar(layers, middle, reach, color=COLOURS[variant], marker="o", capsize=3, label=label)
            axes.set_xticks(layers)
            dress(axes, xlabel="layers", ylabel=f"{title} accuracy, %", legend=part == "test")

    return draw


EXPERIMENT = Experiment("fig5", "Accuracy over the number of layers", "figure 5, section 3.3", SETTINGS, measure)
