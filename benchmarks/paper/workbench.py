"""What the experiments share: images, networks, training, accuracies over time, the look of plots."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnfast import models
from snnfast._arguments.checks import integer
from snnfast.data import ImageData, Split
from snnfast.models import Network
from snnfast.training import Trainer, TrainOptions
from snnfast.training.options import FIND
from snnfast.training.records import StepRecord
from snnfast.training.trainer import reproducible
from snnfast.tuning import gradient_profile, tune_gamma

from .experiment import Context, Settings, Table, loaded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRID = "#dfe3e8"

SAID_EVERY = 8.0
"""Seconds within an epoch after which training says how far it is."""

COLOURS = {"ann": "#3f7fd0", "snn": "#d1495b", "fixed": "#2f9e6e", "converted": "#c98a1b"}
"""One colour for each kind of network in all figures: the paper's own, where it has one."""

SERIES = ("#d1495b", "#3f7fd0", "#2f9e6e", "#c98a1b", "#8a63d2", "#3aa6b9", "#7c8794")
"""Colours of curves that are not kinds of networks, in order."""


def images(
    name: str, context: Context, *, train: int | None = None, test: int | None = None, size: int | None = None
) -> ImageData:
    """The first images of a data set's splits, on the context's device; the same ones at every call.

    Args:
        name: of the data set, as :func:`snnfast.data.load` knows it.
        train, test: how many of each split; None for all.
        size: height and width to which images are average-pooled, rounded to what the data set can store; None keeps
            them as they are.

    Raises:
        ValueError: more images, or larger ones, than there are.
        snnfast.data.DataError: what ``load`` raises.
    """
    data = loaded(name, context.data_dir)
    for argument, wanted, split in (("train", train, data.train), ("test", test, data.test)):
        if wanted is not None:
            integer(argument, wanted, least=1, most=len(split))
    if size is not None:
        integer("size", size, least=1, most=min(data.image_shape[1:]))
    return replace(data, train=_part(data.train, train, size), test=_part(data.test, test, size)).to(context.device)


def images_of(settings: Settings, context: Context) -> ImageData:
    """The images that an experiment's settings name."""
    return images(
        settings.data_set(context.data_dir), context, train=settings.train, test=settings.test, size=settings.size
    )


def _part(split: Split, count: int | None, size: int | None) -> Split:
    pixels = split.images[:count]
    if size is not None and tuple(pixels.shape[2:]) != (size, size):
        # In pieces: all of a data set's images as floats would be a gigabyte.
        pooled = [F.adaptive_avg_pool2d(piece.float(), size).round_() for piece in pixels.split(4096)]
        pixels = torch.cat([piece.to(split.images.dtype) for piece in pooled])
    return replace(split, images=pixels, labels=split.labels[:count])


def network(name: str, data: ImageData, context: Context, *, seed: int = 0, **options: Any) -> Network:
    """The network ``name`` for the images of ``data``, on the context's device, its weights drawn from ``seed`` alone.

    ``options`` are those that ``data`` does not give, see :func:`snnfast.models.for_images`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = models.for_images(name, data.image_shape, data.classes, **options)
    assert isinstance(made, Network), f"{name} has no ANN twin"
    return made.to(context.device)


def train_model(
    model: nn.Module,
    data: ImageData,
    context: Context,
    *,
    each_step: Callable[[Trainer, StepRecord], None] = lambda trainer, record: None,
    **options: Any,
) -> Trainer:
    """Trains ``model`` as it is on ``data`` and says a line per epoch, and within a long one.

    Args:
        model: on the context's device, its γ and thresholds set.
        each_step: called with the trainer and the record of every step, after it.
        **options: of :class:`snnfast.training.TrainOptions`: epochs, batch_size, lr, schedule, augment, seed, …

    Returns:
        The trainer: its ``history`` has every step, its ``evaluate(split, steps)`` the loss and accuracy of a split.
    """
    settings = TrainOptions(data=data.name, **options)
    trainer = Trainer(data, settings, context.device, model)

    said = time.monotonic()

    def record(step: StepRecord) -> None:
        nonlocal said
        of_epoch = (step.step - 1) % trainer.batches + 1
        if of_epoch == trainer.batches or time.monotonic() - said > SAID_EVERY:
            said = time.monotonic()
            epoch = trainer.history[-of_epoch:]
            loss, accuracy = (sum(getattr(s, what) for s in epoch) / len(epoch) for what in ("loss", "accuracy"))
            seconds = sum(s.seconds for s in epoch)
            part = "" if of_epoch == trainer.batches else f", step {of_epoch}/{trainer.batches}"
            context.say(
                f"  epoch {step.epoch}/{settings.epochs}{part}: loss {loss:.4f}, accuracy {accuracy:.2%}, "
                f"{seconds:.1f} s"
            )
        each_step(trainer, step)

    with reproducible(None):
        trainer.fit(record)
    return trainer


def in_words(data: ImageData, model: str, options: Mapping[str, Any]) -> str:
    """The network and the images of an experiment, for its notes."""
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    height, width = data.image_shape[1:]
    counts = f"{len(data.train)} training and {len(data.test)} test images"
    return f"{model}({given}), {counts} of {data.name} at {height}×{width}"


def training_in_words(training: Mapping[str, Any]) -> str:
    """How an experiment trains, for its notes: ``training`` are options of :class:`snnfast.training.TrainOptions`."""
    lr = "that of the range test" if training["lr"] == FIND else f"{training['lr']:g}"
    rate = f"a fixed rate, {lr}" if training.get("schedule") == "constant" else f"one cycle of rates up to {lr}"
    augmented = "without" if training.get("augment", "none") == "none" else "with"
    return (
        f"{training['epochs']} epochs in batches of {training['batch_size']}, {rate}, {augmented} the paper's "
        "augmentation"
    )


@dataclass(frozen=True)
class Again:
    """The first ``count`` images of a split (None: all) in batches, as often as they are iterated.

    A list of them would keep every image as floats, for CIFAR half a gigabyte.
    """

    split: Split
    batch_size: int
    count: int | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.part.batches(self.batch_size)

    @property
    def part(self) -> Split:
        """The images that are iterated."""
        first = slice(self.count)
        return replace(self.split, images=self.split.images[first], labels=self.split.labels[first])


TOLERANCE = 0.05
"""How far from 1 the ratio of gradients may be for a sharpness to count as balanced."""


@dataclass(frozen=True)
class Sharpness:
    """The sharpness γ that a network has, the ratio of its halves' gradients there, and whether it was balanced."""

    gamma: float
    ratio: float
    balanced: bool

    def __str__(self) -> str:
        return f"{self.gamma:.3g}" + ("" if self.balanced else f" (not balanced: ratio {self.ratio:.2g})")


def sharpen(
    model: nn.Module, data: ImageData, tuning: tuple[int, int] = (8, 32), say: Callable[[str], None] = lambda line: None
) -> Sharpness:
    """Tunes γ on the first training images, or leaves it as it is where no γ balances the gradients.

    Args:
        model: a network of spiking neurons.
        data: whose training images and labels are used.
        tuning: batches for each evaluation of the search, and their size; fewer where there are fewer images.
        say: is told that the search begins.
    """
    batches, batch_size = tuning
    say(f"  balancing γ on {batches} batches of {batch_size}")
    chosen = list(itertools.islice(data.train.batches(min(batch_size, len(data.train))), batches))
    try:
        search = tune_gamma(model, chosen, tolerance=TOLERANCE)
        # Where no γ comes near, tune_gamma sets the nearest and warns.
        return Sharpness(search.gamma, search.ratio, abs(search.ratio - 1) <= TOLERANCE)
    except ValueError:
        profile = gradient_profile(model, chosen)
        return Sharpness(profile.gammas[0], profile.ratio, False)


def logits_at(model: Network, images: Tensor, steps: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
    """The logits [B, classes] after each of the numbers of steps, smallest first, from one pass over the largest.

    The first t steps of a longer run are the run of t steps, so sums of the last neuron's spikes up to t give its
    logits. That holds in evaluation mode, where batch normalization does not look at the steps to come.

    Raises:
        ValueError: no number of steps, one below 1, a network in training mode.
    """
    counts = sorted(set(steps))
    if not counts:
        raise ValueError("steps must hold at least one number, got none")
    integer("steps", counts[0], least=1)
    if model.training:
        raise ValueError("model must be in evaluation mode: call model.eval()")
    features = model.features(images, counts[-1])
    if not model.activation.spiking:
        logits = model.classifier(model.head(features), 1)
        yield from ((count, logits) for count in counts)
        return
    total, before = torch.zeros_like(features[0]), 0
    for count in counts:
        total = total + features[before:count].sum(0)
        before = count
        yield count, model.classifier(model.head(total), count)


@torch.no_grad()
def accuracies(model: Network, split: Split, steps: Sequence[int], *, batch_size: int = 100) -> dict[int, float]:
    """The share (0 to 1) of the split's images classified correctly after each number of steps, in evaluation mode.

    One pass over the largest number of steps for all, see :func:`logits_at`; the model's mode is restored. Networks
    without a time axis have the same accuracy at each. Memory is that of ``batch_size`` images over the largest number.
    """
    training = model.training
    model.eval()
    correct = dict.fromkeys(steps, 0)
    try:
        for pixels, labels in split.batches(batch_size):
            for count, logits in logits_at(model, pixels, steps):
                correct[count] += int((logits.argmax(1) == labels).sum())
    finally:
        model.train(training)
    return {count: number / len(split) for count, number in correct.items()}


def beside_the_paper(paper: Sequence[Sequence[Any]], ours: Sequence[Sequence[Any]]) -> Table:
    """The paper's table with our rows under it.

    Args:
        paper: model, method, accuracy in percent, and where it says so the steps of training and at inference.
        ours: as ``paper``, then training images, epochs and test images.
    """
    columns = (
        "model",
        "method",
        "accuracy",
        "trained steps",
        "inference steps",
        "training images",
        "epochs",
        "test images",
        "source",
    )
    rows = [[*row, *[None] * (len(columns) - 1 - len(row)), "the paper"] for row in paper]
    rows += [[*row, "here"] for row in ours]
    return Table("comparison", "Test accuracy, %, beside the paper's table", columns, rows)


def loss_curve(history: Sequence[StepRecord], window: int = 1) -> tuple[list[int], list[float]]:
    """Step numbers and training losses, each loss the mean of the last ``window`` steps (fewer at the start)."""
    integer("window", window, least=1)
    losses = [record.loss for record in history]
    parts = (losses[max(0, end - window) : end] for end in range(1, len(losses) + 1))
    return [record.step for record in history], [sum(part) / len(part) for part in parts]


def dress(axes: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "", legend: bool = False) -> None:
    """The look of all plots: labels, a light grid, no frame at the top and the right."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    axes.grid(True, which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False)


def log_steps(axes: Axes, counts: Sequence[int]) -> None:
    """A logarithmic axis of time steps with plain numbers on it."""
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(12) if min(counts) <= 2**power <= max(counts)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def paper_line(axes: Axes, value: float, label: str = "paper") -> None:
    """A dashed horizontal line at the paper's number."""
    axes.axhline(value, color=SERIES[-1], linestyle="--", linewidth=1.2, label=label)
