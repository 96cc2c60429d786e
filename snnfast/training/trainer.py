"""One network in training: its optimizer, its schedule and its history."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from snnfast.data import ImageData, Split
from snnfast.models import DigitsNet
from snnfast.training.implementations import neuron_factory
from snnfast.training.options import OptionError, TrainOptions

WEIGHT_DECAY = 0.01


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class StepRecord:
    """One training step, counted from 1: the batch's mean loss (nats) and accuracy (0 to 1), the step's duration."""

    step: int
    epoch: int
    lr: float
    loss: float
    accuracy: float
    seconds: float


class Trainer:
    """A :class:`DigitsNet` for ``data`` (on ``device``), AdamW with weight decay 0.01, a one-cycle schedule.

    The seed alone decides the initial weights and the order of the images: two trainers whose options differ in
    ``layer`` draw the same numbers. The global random state is left as it was. Raises :class:`OptionError` for a
    batch larger than the training split.
    """

    def __init__(self, data: ImageData, options: TrainOptions, device: torch.device) -> None:
        if options.batch_size > len(data.train):
            most = f"the {len(data.train)} training images of {data.name}"
            raise OptionError(f"batch_size must be at most {most}, got {options.batch_size}")
        self.data, self.options, self.device = data, options, device
        self.batches = len(data.train) // options.batch_size
        self.history: list[StepRecord] = []
        with torch.random.fork_rng(devices=[]):
            # On the CPU, then moved, so that a seed means the same weights on every device.
            torch.manual_seed(options.seed)
            self.model = DigitsNet(
                data.image_shape, data.classes, steps=options.steps, neuron=neuron_factory(options.layer)
            )
        self.model.to(device)
        self.order = torch.Generator().manual_seed(options.seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=options.lr, weight_decay=WEIGHT_DECAY)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=options.lr, total_steps=options.epochs * self.batches
        )

    def epoch_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The training images of one epoch in a new order, in full batches."""
        return self.data.train.batches(self.options.batch_size, shuffle=self.order, drop_last=True)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> StepRecord:
        """One training step: forward, backward, update; recorded in ``history``. Raises :class:`DivergedError`."""
        lr = self.schedule.get_last_lr()[0]
        start = synchronized_time(self.device)
        self.optimizer.zero_grad()
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        seconds = synchronized_time(self.device) - start
        self.schedule.step()
        count = len(self.history)
        record = StepRecord(
            step=count + 1,
            epoch=count // self.batches + 1,
            lr=lr,
            loss=loss.item(),
            accuracy=(logits.argmax(1) == labels).float().mean().item(),
            seconds=seconds,
        )
        self.history.append(record)
        if not math.isfinite(record.loss):
            raise DivergedError(
                f"the loss with the {self.options.layer} layer is {record.loss} at step {record.step} "
                f"(epoch {record.epoch}, learning rate {lr:.3g}): training stopped; try one below {self.options.lr:g}"
            )
        return record

    @torch.no_grad()
    def accuracy(self, split: Split) -> float:
        """The share (0 to 1) of the images in ``split`` that the network classifies correctly, in evaluation mode."""
        was_training = self.model.training
        self.model.eval()
        correct = sum(
            int((self.model(images).argmax(1) == labels).sum())
            for images, labels in split.batches(self.options.batch_size)
        )
        self.model.train(was_training)
        return correct / len(split)


def synchronized_time(device: torch.device) -> float:
    """Seconds on a monotonic clock, read once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def reproducible(threads: int | None) -> Iterator[None]:
    """``threads`` CPU threads (None leaves them), and cuDNN algorithms that give the same result each time."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled,
            benchmark=False,
            deterministic=True,
            allow_tf32=torch.backends.cudnn.allow_tf32,
        ):
            yield
    finally:
        torch.set_num_threads(before)
