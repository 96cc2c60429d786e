"""One training run, from options to files."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from snnfast.data import ImageData, load
from snnfast.training.implementations import room_for_compilations
from snnfast.training.options import TrainOptions, choose_device
from snnfast.training.output import OutputFolder
from snnfast.training.progress import Progress
from snnfast.training.trainer import Trainer, reproducible


@dataclass(frozen=True)
class Run:
    """What came of a run: ``trainer.model``, trained, ``trainer.history``, and the test accuracy, 0 to 1."""

    trainer: Trainer
    test_accuracy: float
    folder: OutputFolder


@contextmanager
def prepared(options: TrainOptions) -> Iterator[tuple[ImageData, torch.device, OutputFolder]]:
    """Finds what is wrong with device, data set or output folder, before any training.

    Yields the data set on its device; prints a line about each.
    """
    device = choose_device(options.device)
    data = load(options.data, options.data_dir)
    folder = OutputFolder(options.out)
    with reproducible(options.threads):
        shape = "×".join(map(str, data.image_shape))
        print(f"data    {data.name}: {len(data.train)} training and {len(data.test)} test images, {shape}")
        print(f"device  {device_name(device)}")
        if device.type == "cpu" and options.device is None and torch.cuda.is_available():
            print("        (there is a GPU, but this snnfast has no CUDA kernels: see snnfast info)")
        print(
            f"run     T = {options.steps}, {options.epochs} epochs, batches of {options.batch_size}, "
            f"learning rate up to {options.lr:g}, seed {options.seed}",
            flush=True,
        )
        yield data.to(device), device, folder


def train(options: TrainOptions) -> Run:
    """Trains the network through ``options.layer`` and evaluates it on the test images.

    Prints the progress, the test accuracy and where the files are: ``history-LAYER.csv`` (a line per step, written
    also where the run ends early) and ``summary-LAYER.json``. Raises what :mod:`snnfast.training` lists.
    """
    with prepared(options) as (data, device, folder), room_for_compilations(options.layer):
        trainer = Trainer(data, options, device)
        print(f"layer   {options.layer}: {trainer.model.neurons()[0]}", flush=True)
        try:
            with Progress(options.epochs, trainer.batches) as progress:
                for _ in range(options.epochs):
                    for images, labels in trainer.epoch_batches():
                        progress.update(trainer.step(images, labels))
        finally:
            folder.write_history(options.layer, trainer.history)
        run = Run(trainer, trainer.accuracy(data.test), folder)
        folder.write_json(f"summary-{options.layer}.json", summary(run))
    seconds = sum(record.seconds for record in trainer.history)
    print(f"test accuracy {run.test_accuracy:.2%} ({len(data.test)} images) after {seconds:.1f} s of training steps")
    print(folder.where())
    return run


def summary(run: Run) -> dict[str, Any]:
    """What ``summary-LAYER.json`` holds; times in seconds, accuracies from 0 to 1."""
    history = run.trainer.history
    return {
        "options": asdict(run.trainer.options),
        "test_accuracy": run.test_accuracy,
        "test_images": len(run.trainer.data.test),
        "first_loss": history[0].loss,
        "last_loss": history[-1].loss,
        "training_steps": len(history),
        "training_seconds": sum(record.seconds for record in history),
        "environment": environment(run.trainer.device),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Where a run took place: versions, device, CPU threads, and the machine's load over the last minute."""
    import snnfast

    return {
        "snnfast": snnfast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, {torch.get_num_threads()} threads"
