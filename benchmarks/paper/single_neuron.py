"""One neuron learns a spike train by the losses (3) and (4), and a spike count by (6): the paper's section 2.3.

The neuron's inputs are fixed random spike trains; what is learned is its input weights. The wanted train is that of a
neuron with other weights, so that it can be reached. For the count there are several inputs with random labels: the
neuron must emit more than COUNT spikes for those labelled 1, and no more for those labelled 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import snnfast as sf
from snnfast import losses
from snnfast._text import installs
from snnfast.cli.command import USAGE, Parser, integer
from snnfast.training.output import OutputError, OutputFolder

STEPS = 200
INPUTS = 400
INPUT_RATE = 0.05  # spikes per step
PATTERNS = 20  # labelled inputs of the count task
COUNT = 5  # spikes that an input labelled 1 must exceed
COLOURS = {"wanted": "#6b7280", "before": "#c8553d", "after": "#0b6e4f"}


@dataclass
class Outcome:
    """What one training reached.

    ``wrong``: after every update, steps at which the spike differs from the wanted one (equations 3 and 4), or inputs
    whose count is on the wrong side (equation 6); ``out_of`` how many there are. ``first``, ``last``: the spike trains
    [T, patterns] before and after; ``wanted``: the train [T, 1], or the labels [patterns].
    """

    equation: str
    wrong: list[int]
    out_of: int
    first: list[list[int]]
    last: list[list[int]]
    wanted: list[Any]

    @property
    def best(self) -> int:
        """The fewest that were wrong at any time, and what ``last`` has: training stops there when that is 0."""
        return min(self.wrong)

    def __str__(self) -> str:
        what = "labels" if self.equation == "6" else "steps"
        tail = f"; none wrong from update {self.wrong.index(0)} on" if self.best == 0 else f"; fewest {self.best}"
        return f"equation ({self.equation})  {self.wrong[0]:3d} of {self.out_of} {what} wrong before training{tail}"


def random_spikes(*shape: int, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) < INPUT_RATE).float()


def respond(inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and potentials [T, patterns] of an IF neuron; input spikes [T, patterns, inputs], weights [inputs].

    No surrogate takes part: gradients come through the potentials, and the hard reset is not differentiated.
    """
    spikes, _, potential = sf.functional.integrate_and_fire(inputs @ weights, return_potential=True)
    return spikes, potential


def learn(
    equation: str,
    inputs: Tensor,
    weights: Tensor,
    wanted: Tensor,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    wrong: Callable[[Tensor], Tensor],
    *,
    updates: int,
    lr: float,
) -> Outcome:
    """Trains a copy of ``weights`` until nothing is wrong, for ``updates`` updates at most."""
    weights = weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=updates)
    history: list[int] = []
    first: Tensor | None = None
    best: Tensor | None = None
    for _ in range(updates + 1):
        spikes, potential = respond(inputs, weights)
        history.append(int(wrong(spikes)))
        first = spikes if first is None else first
        best = spikes if history[-1] == min(history) else best
        if history[-1] == 0:
            break
        optimizer.zero_grad()
        loss(spikes, potential, wanted).backward()
        optimizer.step()
        schedule.step()
    assert first is not None and best is not None
    before, after = (spikes.detach().int().tolist() for spikes in (first, best))
    return Outcome(equation, history, wanted.numel(), before, after, wanted.int().tolist())


def run(*, seed: int = 0, updates: int = 1000, lr: float = 0.005) -> list[Outcome]:
    """The three trainings, from one seed; the same weights before each."""
    generator = torch.Generator().manual_seed(seed)
    inputs = random_spikes(STEPS, 1, INPUTS, generator=generator)
    # Weights with which a neuron at this input rate fires about every tenth step.
    scale = 0.1 / (INPUTS * INPUT_RATE)
    teacher, weights = (scale * (1 + 3 * torch.randn(INPUTS, generator=generator)) for _ in range(2))
    wanted = respond(inputs, teacher)[0]
    patterns = random_spikes(STEPS, PATTERNS, INPUTS, generator=generator)
    labels = (torch.arange(PATTERNS) % 2).float()

    def mismatches(spikes: Tensor) -> Tensor:
        return (spikes != wanted).sum()

    def wrong_labels(spikes: Tensor) -> Tensor:
        return ((spikes.sum(0) > COUNT).float() != labels).sum()

    options: dict[str, Any] = {"updates": updates, "lr": lr}
    return [
        learn("3", inputs, weights, wanted, losses.SpikeTrainLoss(), mismatches, **options),
        learn("4", inputs, weights, wanted, losses.VanRossumLoss(tau=2.0), mismatches, **options),
        learn("6", patterns, weights, labels, losses.SpikeCountLoss(count=COUNT), wrong_labels, **options),
    ]


def plot(outcomes: Sequence[Outcome], path: Path) -> str:
    """Draws errors over updates, and trains or counts before and after; returns a remark on what is missing, or ""."""
    try:
        import matplotlib
    except ImportError:
        return f"plot skipped: matplotlib is not installed: {installs('plots')}"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(outcomes), 2, figsize=(10, 2.4 * len(outcomes)), layout="constrained")
    for outcome, (errors, result) in zip(outcomes, rows, strict=True):
        errors.plot(outcome.wrong, color=COLOURS["after"])
        errors.set(xlabel="update", ylabel=f"wrong of {outcome.out_of}", ylim=(0, None))
        errors.set_title(f"equation ({outcome.equation})", fontsize=10, loc="left")
        if outcome.equation == "6":
            for name, trains in (("before", outcome.first), ("after", outcome.last)):
                counts = torch.tensor(trains).sum(0)
                result.scatter(outcome.wanted, counts, s=14, alpha=0.6, color=COLOURS[name], label=name)
            result.axhline(COUNT + 0.5, color=COLOURS["wanted"], linewidth=0.8)
            result.set(xticks=[0, 1], xlim=(-0.5, 1.5), xlabel="label", ylabel="spikes")
        else:
            shown = {"wanted": outcome.wanted, "before": outcome.first, "after": outcome.last}
            for height, (name, train) in enumerate(shown.items()):
                at = torch.tensor(train)[:, 0].nonzero()[:, 0]
                result.eventplot(at, lineoffsets=-height, linelengths=0.8, colors=COLOURS[name])
            result.set(yticks=[0, -1, -2], yticklabels=list(shown), xlabel="time step", xlim=(0, STEPS))
        for axes in (errors, result):
            axes.spines[["top", "right"]].set_visible(False)
    rows[-1][1].legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m snnfast.benchmarks.paper.single_neuron",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder of the files (default: .)")
    parser.add_argument("--seed", type=integer(0, 2**63 - 1), default=0)
    parser.add_argument(
        "--updates", type=integer(1, 10**6), default=1000, help="at most, for each loss (default: 1000)"
    )
    arguments = parser.parse_args(argv)
    try:
        OutputFolder(arguments.out)
    except OutputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return USAGE
    outcomes = run(seed=arguments.seed, updates=arguments.updates)
    for outcome in outcomes:
        print(outcome)
    results = arguments.out / "single-neuron.json"
    results.write_text(json.dumps([asdict(outcome) for outcome in outcomes]) + "\n")
    remark = plot(outcomes, arguments.out / "single-neuron.png")
    print(remark or f"plot in {arguments.out / 'single-neuron.png'}")
    print(f"results in {results}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
