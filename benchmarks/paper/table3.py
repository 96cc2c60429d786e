"""Table 3: ResNet50 on CIFAR-100, and section 3.3's on Imagenette, trained directly, against ANN-SNN conversion.

As the paper's text has it, the network stays near guessing here; beside it are a beginning with which it learns
(``zero_init_residual`` and ``shortcut_scale``), shortcuts that carry currents, and the ANN twins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from snnfast.data import DataError
from snnfast.tuning import SignalProfile

from . import comparison, deep
from .comparison import Trained
from .experiment import Context, Experiment, Outcome, Plot, Table, Verdict
from .workbench import COLOURS, accuracies, dress, images, images_of, network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


@dataclass(frozen=True)
class Variant:
    """A network beside the table's.

    * ``prefix``: of the settings' network's name, for one with other shortcuts.
    * ``options``: besides the settings'.
    * ``twin``: whether it is the ANN twin.
    """

    prefix: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    twin: bool = False


CURE = {"zero_init_residual": True, "shortcut_scale": 2.0}
CURED, PLAIN = "identity blocks at first", "as in the paper's text"
MEMBRANE = f"membrane shortcuts, {CURED}"
CURED_TWIN, PLAIN_TWIN = f"ANN twin, {CURED}", f"ANN twin, {PLAIN}"
VARIANTS = {
    CURED: Variant(options=CURE),
    PLAIN: Variant(),
    MEMBRANE: Variant("ms_", {"zero_init_residual": True}),
    CURED_TWIN: Variant(options=CURE, twin=True),
    PLAIN_TWIN: Variant(twin=True),
}

RATED = 50
"""Test images on which firing rates are measured."""

SIGNAL_STEPS = 3
"""Time steps of the networks whose signals are profiled."""

ERRORS = 5
"""Binomial errors by which the accuracy of each seed must exceed guessing. Fixed before this table was measured; that
the cure helps was seen before, in smaller settings."""


@dataclass(frozen=True, kw_only=True)
class Settings(comparison.Settings):
    """Of the network of the table.

    * ``seeds``: networks of each kind, but for those in ``seeds_of``; ``kinds``: of :data:`VARIANTS`, the cured network
      and its twin among them.
    * ``signals``: images and width of the networks whose signals are profiled, before training, on images as the data
      set has them; None for the settings' width and images.
    * ``besides``: of another one, measured too where its data set can be read; None for none.
    """

    seeds: int = 3
    seeds_of: Mapping[str, int] = field(default_factory=dict)
    kinds: tuple[str, ...] = tuple(VARIANTS)
    signals: tuple[int, int] | None = None
    besides: comparison.Settings | None = None


SETTINGS = {
    "small": Settings(
        data="cifar100",
        otherwise="cifar10",
        train=6000,
        test=2000,
        size=16,
        model="resnet50",
        options={"width": 8},
        steps=4,
        evaluated=16,
        paper=PAPER,
        training={"epochs": 7, "batch_size": 50, "lr": 3e-3, "augment": "cifar"},
        tuning=(4, 16),
        trained_counts=(1, 2, 3, 4, 6, 8, 12, 16, 24),
        calibration=(100, 40),
        converted_test=50,
        signals=(16, 64),
        seeds_of={PLAIN: 2, MEMBRANE: 1, PLAIN_TWIN: 1},
    ),
    "medium": Settings(**comparison.MEDIUM, model="resnet18", paper=PAPER, seeds=1, kinds=(CURED, CURED_TWIN)),
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
        seeds=1,
        long=True,
        kinds=(CURED, PLAIN, CURED_TWIN),
        besides=IMAGENETTE,
    ),
}


@dataclass(frozen=True)
class Seed:
    """One trained network of a kind; ``accuracy``, 0 to 1, by steps at inference, by 1 for a twin."""

    kind: str
    seed: int
    loss: float
    accuracy: Mapping[int, float]
    gamma: float | None = None
    ratio: float | None = None


def measure(settings: Settings, context: Context) -> Outcome:
    """The table, and the network besides: its tables and plots are named after its data set, its claims say so."""
    besides = settings.besides
    # Looked for first: what is missing is said before hours of training.
    missing = None if besides is None else _missing(besides, context)
    made = _table(settings, context)
    if besides is None:
        return made
    if missing is not None:
        return replace(made, notes=[*made.notes, missing])
    context.say(f"  {besides.data}")
    more = comparison.report(besides, context)
    named = besides.data
    return Outcome(
        [*made.tables, *(replace(t, name=f"{named}-{t.name}", title=f"{named}: {t.title}") for t in more.tables)],
        [*made.plots, *(replace(p, name=f"{named}-{p.name}", title=f"{named}: {p.title}") for p in more.plots)],
        [*made.verdicts, *(replace(verdict, claim=f"{named}: {verdict.claim}") for verdict in more.verdicts)],
        [*made.notes, *more.notes],
    )


def _table(settings: Settings, context: Context) -> Outcome:
    """Trains every network of every kind; those of the first seed with the cure are the table's."""
    data = images_of(settings, context)
    at = settings.evaluated
    counts = sorted({settings.steps, at})
    seeds: list[Seed] = []
    of_table: dict[str, Trained] = {}
    signals = deep.signals(_profiles(settings, context))
    for kind in settings.kinds:
        variant = VARIANTS[kind]
        own = replace(settings, model=variant.prefix + settings.model, options={**settings.options, **variant.options})
        for seed in range(settings.seeds_of.get(kind, settings.seeds)):
            context.say(f"  {kind}")
            train = comparison.trained_twin if variant.twin else comparison.trained_network
            made = train(own, data, context, seed=seed)
            accuracy = accuracies(made.network, data.test, [1] if variant.twin else counts, batch_size=own.batch_size)
            sharpness = made.sharpness
            known = (None, None) if sharpness is None else (sharpness.gamma, sharpness.ratio)
            seeds.append(Seed(kind, seed, made.loss, accuracy, *known))
            if seed == 0:
                of_table[kind] = made
    cured = replace(settings, options={**settings.options, **CURE})
    measured = comparison.compared(cured, data, context, of_table[CURED], of_table[CURED_TWIN])
    made_of = comparison.outcome(cured, measured, f"backpropagation, {CURED}")
    found = verdicts(seeds, at, data.classes, len(data.test))
    others = comparison.verdicts(measured, at, settings.wanted)
    kept = others if settings.wanted is not None else others[:1]  # of the twin it is said over all seeds
    steps = comparison.steps_verdict(measured.trained, measured.converted, settings.model, measured.classes)
    spiking = {kind: made.network for kind, made in of_table.items() if not VARIANTS[kind].twin}
    rates = deep.rates(spiking, data.test, RATED)
    bars = Plot("shortcuts", f"Test accuracy at {at} steps", _drawing(seeds, at, data.classes))
    notes = [*measured.notes, "Accuracies are of all test images."]
    if context.scale == "small":
        notes.append(
            f"A first run at this scale, of 5 epochs, had one of three seeds with {CURED} at 2.00 %, short "
            "of the bound: epochs became 7, and seeds of the others fewer."
        )
    return Outcome(
        [*made_of.tables, shortcuts(seeds, settings.steps, at), signals[0], rates[0]],
        [*made_of.plots, bars, signals[1], rates[1]],
        [*found, *kept, steps],
        notes,
    )


def _profiles(settings: Settings, context: Context) -> dict[str, SignalProfile]:
    """The signal of a network of each kind before training."""
    number, width = settings.signals if settings.signals is not None else (16, None)
    whole = images(settings.data_set(context.data_dir), context)
    data = images_of(settings, context) if width is None else whole
    context.say(f"  signals of {len(settings.kinds)} networks on {number} images")
    found = {}
    for kind in settings.kinds:
        variant = VARIANTS[kind]
        options = {**settings.options, **variant.options, **({} if width is None else {"width": width})}
        twin = {"activation": "relu"} if variant.twin else {}
        made = network(variant.prefix + settings.model, data, context, steps=SIGNAL_STEPS, **options, **twin)
        found[kind] = deep.profiled(made, data.train, number)
    return found


def shortcuts(seeds: Sequence[Seed], steps: int, at: int) -> Table:
    """A row for each trained network."""
    rows = [
        [one.kind, one.seed, one.gamma, one.ratio, one.loss, one.accuracy.get(steps), _at(one, at)] for one in seeds
    ]
    columns = ("network", "seed", "gamma", "gradients' ratio", "last epoch's loss", f"accuracy at {steps} steps")
    return Table(
        "shortcuts",
        "The network by its beginning and its shortcuts: every one that was trained",
        (*columns, f"accuracy at {at} steps, or of the twin"),
        rows,
    )


def _at(one: Seed, steps: int) -> float:
    return one.accuracy[steps] if steps in one.accuracy else one.accuracy[1]


def _of(seeds: Sequence[Seed], kind: str, at: int) -> list[float]:
    return [_at(one, at) for one in seeds if one.kind == kind]


def verdicts(seeds: Sequence[Seed], at: int, classes: int, images: int) -> list[Verdict]:
    """What the cure does: against guessing on ``images`` of ``classes``, against none, against its twin."""
    guessing = 1 / classes
    bound = guessing + ERRORS * math.sqrt(guessing * (1 - guessing) / images)
    cured, plain, twin = (_of(seeds, kind, at) for kind in (CURED, PLAIN, CURED_TWIN))
    in_words = ", ".join(f"{accuracy:.2%}" for accuracy in cured)
    made = [
        Verdict(
            f"the network that begins with identity blocks learns: at {at} steps every seed's accuracy is above that "
            f"of guessing, {guessing:.0%}, by more than {ERRORS} times its binomial error: above {bound:.2%}",
            min(cured) > bound,
            in_words,
            "in this work we directly train deep SNNs using backpropagation with surrogate gradient",
        ),
        comparison.twin_verdict(fmean(cured), fmean(twin), at),
    ]
    if plain:
        more = Verdict(
            f"at {at} steps it is more accurate than the network as in the paper's text, mean over the seeds",
            fmean(cured) > fmean(plain),
            f"{fmean(cured):.2%} against {fmean(plain):.2%}",
        )
        made.insert(1, more)
    return made


def _drawing(seeds: Sequence[Seed], at: int, classes: int) -> Any:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        kinds = list(dict.fromkeys(one.kind for one in seeds))
        for place, kind in enumerate(kinds):
            values = [100 * value for value in _of(seeds, kind, at)]
            colour = COLOURS["ann" if "twin" in kind else "snn"]
            axes.barh(place, fmean(values), color=colour, alpha=0.35, height=0.6)
            axes.plot(values, [place] * len(values), "o", color=colour, markersize=5)
        axes.axvline(100 / classes, color="#7c8794", linestyle="--", label="guessing")
        axes.set_yticks(range(len(kinds)), kinds)
        axes.invert_yaxis()
        dress(axes, xlabel="test accuracy, %", ylabel="", legend=True)

    return draw


def _missing(settings: comparison.Settings, context: Context) -> str | None:
    """Why a data set cannot be read, in a line; None where it can."""
    try:
        images(settings.data, context, train=1, test=1)
    except DataError as error:
        line = f"{settings.data} is not measured: {error}"
        context.say(f"  {line}")
        return line
    return None


EXPERIMENT = Experiment("table3", "ResNet50 on CIFAR-100", "table 3, section 3.3", SETTINGS, measure)
