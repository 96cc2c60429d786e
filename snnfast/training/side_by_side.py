"""Training through the fused layer and the naive loop side by side: are they equal, and how much faster is one?

Speed-ups are printed only after results were compared in the same process; both sides are timed in turn, step by
step, so that whatever else the machine does strikes both.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any

from snnfast.training.layer_timing import LayerClock, LayerTiming, MismatchError, capture
from snnfast.training.options import OptionError, TrainOptions
from snnfast.training.output import OutputFolder
from snnfast.training.progress import Progress
from snnfast.training.run import Run, prepared, summary
from snnfast.training.trainer import Trainer

__all__ = ["Comparison", "MismatchError", "compare"]

SIDES = ("fused", "naive")
MEASUREMENTS = 3  # of the neuron layers, before training and again after it
_WARM_UP = 3  # steps left out of the medians: the first ones allocate memory and choose convolution algorithms
_EARLY = 10  # losses over which two correct implementations must stay together
_EARLY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    ``runs`` by side; ``layers`` the neuron layers' own timings; ``step_seconds`` the median training step by side;
    ``early_difference`` the largest difference of the first ten losses.
    """

    runs: dict[str, Run]
    layers: list[LayerTiming]
    step_seconds: dict[str, float]
    early_difference: float

    @property
    def step_speedup(self) -> float:
        """Naive over fused, the whole training step."""
        return self.step_seconds["naive"] / self.step_seconds["fused"]

    @property
    def layer_seconds(self) -> dict[str, float]:
        """Forward and backward of all neuron layers, by side."""
        return {side: sum(layer.seconds[side] for layer in self.layers) for side in SIDES}

    @property
    def layer_speedup(self) -> float:
        """Naive over fused, the neuron layers alone."""
        seconds = self.layer_seconds
        return seconds["naive"] / seconds["fused"]


def compare(options: TrainOptions) -> Comparison:
    """Trains two networks from one seed, fused and naive, in turn on the same batches; ``options.layer`` is not used.

    First the neuron layers alone: on the currents and gradients that meet them in the first batch, spikes must be
    equal and gradients within 1e-5 of the largest, then forward and backward are timed. Then the whole training,
    where the first losses must be equal bit for bit. Prints both speed-ups; writes ``history-`` and ``summary-``
    files of both and ``compare.json``. Raises :class:`MismatchError` where results differ, and what
    :func:`snnfast.training.train` raises.
    """
    if options.model != "digits":
        raise OptionError(f"model must be 'digits', which both can train, for a comparison; got {options.model!r}")
    with prepared(options) as (data, device, folder):
        trainers = {side: Trainer(data, replace(options, layer=side), device) for side in SIDES}
        first_images, first_labels = data.train[: options.batch_size]
        passes = capture(trainers["fused"].model, first_images, first_labels)
        clock = LayerClock(passes, {side: trainer.model.neurons() for side, trainer in trainers.items()}, device)
        _measure(clock)
        try:
            _train_in_turn(trainers, options)
        finally:
            for side, trainer in trainers.items():
                folder.write_records(f"history-{side}.csv", trainer.history)
        runs = {side: Run(trainer, trainer.accuracy(data.test), folder) for side, trainer in trainers.items()}
        _measure(clock)
        comparison = Comparison(runs, clock.timings(), _medians(trainers), _early_difference(trainers))
        _write(comparison, folder)
    _print(comparison)
    print(folder.where())
    return comparison


def _measure(clock: LayerClock) -> None:
    for _ in range(MEASUREMENTS):
        clock.measure()


def _train_in_turn(trainers: dict[str, Trainer], options: TrainOptions) -> None:
    fused, naive = (trainers[side] for side in SIDES)
    turns = [(fused, naive), (naive, fused)]
    with Progress(options.epochs, fused.batches) as progress:
        for _ in range(options.epochs):
            # Each side draws its own order from its own generator: equal, since nothing else draws from it.
            for index, batches in enumerate(zip(fused.epoch_batches(), naive.epoch_batches(), strict=True)):
                for trainer in turns[index % 2]:
                    images, labels = batches[0] if trainer is fused else batches[1]
                    trainer.step(images, labels)
                first, second = fused.history[-1].loss, naive.history[-1].loss
                if len(fused.history) == 1 and first != second:
                    raise MismatchError(f"the first loss differs: fused {first!r}, naive {second!r}")
                progress.update(fused.history[-1])


def _medians(trainers: dict[str, Trainer]) -> dict[str, float]:
    def median(trainer: Trainer) -> float:
        timed = trainer.history[_WARM_UP:] or trainer.history
        return statistics.median(record.seconds for record in timed)

    return {side: median(trainer) for side, trainer in trainers.items()}


def _early_difference(trainers: dict[str, Trainer]) -> float:
    fused, naive = (trainers[side].history[:_EARLY] for side in SIDES)
    return max(abs(a.loss - b.loss) for a, b in zip(fused, naive, strict=True))


def _write(comparison: Comparison, folder: OutputFolder) -> None:
    content: dict[str, Any] = {
        "step_speedup": comparison.step_speedup,
        "step_seconds": comparison.step_seconds,
        "layer_speedup": comparison.layer_speedup,
        "layer_seconds": comparison.layer_seconds,
        "layers": [asdict(layer) for layer in comparison.layers],
        "early_loss_difference": comparison.early_difference,
        "test_accuracy": {side: run.test_accuracy for side, run in comparison.runs.items()},
    }
    for side, run in comparison.runs.items():
        folder.write_json(f"summary-{side}.json", summary(run))
    folder.write_json("compare.json", content)


def _print(comparison: Comparison) -> None:
    fused, naive = (comparison.runs[side] for side in SIDES)
    difference = comparison.early_difference
    within = "within" if difference <= _EARLY_TOLERANCE else "NOT within"
    print("\nresults  neuron layers: spikes equal, gradients within rounding; first loss equal bit for bit")
    print(f"         first {_EARLY} losses differ by at most {difference:.1e}, {within} {_EARLY_TOLERANCE:g}")
    print(f"         test accuracy: fused {fused.test_accuracy:.2%}, naive {naive.test_accuracy:.2%}")
    print(f"\n{'milliseconds, medians, both sides in turn':<56}{'fused':>9}{'naive':>9}{'speed-up':>10}")
    for layer in comparison.layers:
        _print_row(f"{layer.name}, {layer.shape_in_words}, forward + backward", layer.seconds)
    _print_row("neuron layers together", comparison.layer_seconds)
    _print_row("whole training step", comparison.step_seconds)
    layers, step = comparison.layer_speedup, comparison.step_speedup
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores + 1:
        print(f"note: the machine's load is {load:.1f} on {cores} cores, by others too; times are not steady")
    print(f"\nspeed-up of the neuron layers {layers:.2f}×, of the whole training step {step:.2f}×")


def _print_row(name: str, seconds: dict[str, float]) -> None:
    fused, naive = (seconds[side] for side in SIDES)
    print(f"{name:<56}{fused * 1e3:9.3f}{naive * 1e3:9.3f}{naive / fused:9.2f}×")
