"""Figure 2: the output currents of the last layer over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snnfast.models import Network

from . import experiment
from .experiment import Context, Experiment, Outcome, Plot, Table, Verdict
from .workbench import dress, images_of, in_words, network, sharpen, train_model, training_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAME = 1e-4
"""Bound of the verdict, fixed before anything was measured."""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True)
class Settings(experiment.Settings):
    """Of the network, and what is shown.

    * ``steps``: of training, and of what is shown.
    * ``examples``: the first test images that are shown.
    """

    steps: int = 10
    examples: int = 6


SETTINGS = {
    "small": Settings(
        data="cifar10",
        train=4000,
        test=1000,
        size=16,
        model="plain_net",
        options={"layers": 5},
        training={"epochs": 8, "batch_size": 64, "lr": 5e-3, "augment": "cifar"},
    ),
    "full": Settings(
        data="cifar10", model="resnet11", training={"epochs": 100, "batch_size": 128, "lr": "find", "augment": "cifar"}
    ),
}


def measure(settings: Settings, context: Context) -> Outcome:
    """Trains a network and records what its last layer receives at each step."""
    data = images_of(settings, context)
    model = network(settings.model, data, context, steps=settings.steps, **settings.options)
    sharpen(model, data, settings.tuning, context.say)
    trainer = train_model(model, data, context, steps=settings.steps, **settings.training)
    accuracy = trainer.evaluate(data.test).accuracy
    model.eval()
    pixels, labels = data.test[: len(data.test)]
    with torch.no_grad():
        parts = [currents(model, part, settings.steps) for part in pixels.split(100)]
        found = torch.cat(parts, 1)  # [T, B, classes]
        logits = torch.cat([model(part, steps=settings.steps) for part in pixels.split(100)])
    error = ((found.sum(0) - logits).abs().max() / logits.abs().max()).item()
    lead = leads(found, labels)
    names = CIFAR10 if settings.data == "cifar10" else tuple(map(str, range(data.classes)))
    shown = found[:, : settings.examples].cpu()
    rows = [
        [example, names[labels[example]], step + 1, output, shown[step, example, output].item()]
        for example in range(shown.shape[1])
        for step in range(settings.steps)
        for output in range(data.classes)
    ]
    wanted = [names[label] for label in labels[: settings.examples].tolist()]
    return Outcome(
        [
            Table(
                "currents",
                "Output currents of the first test images",
                ("example", "label", "step", "output", "current"),
                rows,
            ),
            Table(
                "lead",
                "Share of the test images whose label has the largest current summed up to each step",
                ("step", "share"),
                [[step, share] for step, share in enumerate(lead, 1)],
            ),
        ],
        [
            Plot(
                "currents",
                "Output currents of the first test images: output neuron over time step, label above",
                _drawing(shown, wanted),
                (9.0, 5.2),
            )
        ],
        verdicts(error),
        [
            f"{in_words(data, settings.model, settings.options)}, {training_in_words(settings.training)}; test "
            f"accuracy {accuracy:.2%}.",
            "The currents at a step are the last linear map of that step's spikes. The paper shows examples and no "
            "numbers.",
        ],
    )


def currents(model: Network, images: Tensor, steps: int) -> Tensor:
    """The last layer's currents [T, B, classes] for images [B, C, H, W], in evaluation mode."""
    features = model.features(images, steps)
    return torch.stack([model.classifier(model.head(spikes), 1) for spikes in features])


def leads(found: Tensor, labels: Tensor) -> list[float]:
    """For each step, the share of images whose label has the largest of the currents [T, B, classes] summed so far."""
    return (found.cumsum(0).argmax(2) == labels).double().mean(1).tolist()


def verdicts(error: float) -> list[Verdict]:
    """The inequality, for the largest difference to the logits over the largest logit."""
    return [
        Verdict(
            f"the output currents summed over time are the logits, within {SAME:g} of the largest",
            error <= SAME,
            f"{error:.1e}",
            "currents from the neurons of the last layer are summed and treated as class logits",
        )
    ]


def _drawing(shown: Tensor, labels: Sequence[str]) -> Any:
    def draw(figure: Figure) -> None:
        columns = (len(labels) + 1) // 2
        grid = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
        most = shown.abs().max().item() or 1.0
        for number, axes in enumerate(grid.flat):
            if number >= len(labels):
                axes.set_visible(False)
                continue
            picture = axes.imshow(
                shown[:, number].T.numpy(),
                cmap="RdBu_r",
                vmin=-most,
                vmax=most,
                aspect="auto",
                origin="lower",
                extent=(0.5, shown.shape[0] + 0.5, -0.5, shown.shape[2] - 0.5),
            )
            dress(axes, title=labels[number])
            axes.grid(False)
        for axes in grid[-1]:
            axes.set_xlabel("time step")
        for axes in grid[:, 0]:
            axes.set_ylabel("output neuron")
        figure.colorbar(picture, ax=list(grid.flat), label="current")

    return draw


EXPERIMENT = Experiment(
    "fig2", "Output currents of the last layer over time", "figure 2, section 2.1", SETTINGS, measure
)
