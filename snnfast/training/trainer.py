"""One network in training: its optimizer, its schedule, its history and its state."""

from __future__ import annotations

import copy
import inspect
import math
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from snnfast import models, tuning
from snnfast._errors import is_out_of_memory, one_line
from snnfast.activity.layers import layer_activity
from snnfast.data import ImageData, Split
from snnfast.training.implementations import neuron_factory
from snnfast.training.options import AUGMENTATIONS, FIND, PRECISIONS, SURROGATES, TUNE, OptionError, TrainOptions
from snnfast.training.processes import ALONE, Processes
from snnfast.training.records import Evaluation, FiringRecord, StepRecord
from snnfast.tuning.gamma import set_gamma
from snnfast.tuning.trial import spiking_layers

_GAMMA_BATCHES = 8  # the ratio that is balanced is noisy over one
_GAMMA_BATCH_SIZE = 32
_RATE_STEPS = 100


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


class Trainer:
    """A network of ``options`` for ``data`` (on ``device``), AdamW, a one-cycle or constant schedule.

    The seed alone decides the initial weights, the order of the images, augmentation and dropout: two trainers whose
    options differ in ``layer`` draw the same numbers. The global random state is left as it was.

    Args:
        data: training and test images, on ``device``.
        options: see :class:`TrainOptions`. Its folder, data set and device are not used here.
        device: of the network.
        model: trained in the place of one made from the options, moved to ``device`` as it is; it must take
            ``model(images, steps=T)`` where evaluation at other step counts is asked for.
        processes: that train together, each of them with a trainer: each takes its part of every batch, statistics and
            gradients are those of the whole batch.

    Raises:
        OptionError: a sharpness for a network without spiking layers; a batch larger than the training split, or that
            the processes cannot share equally; compilation for several processes; options that the network does not
            have.
    """

    def __init__(
        self,
        data: ImageData,
        options: TrainOptions,
        device: torch.device,
        model: nn.Module | None = None,
        processes: Processes = ALONE,
    ) -> None:
        if options.batch_size > len(data.train):
            most = f"the {len(data.train)} training images of {data.name}"
            raise OptionError(f"batch_size must be at most {most}, got {options.batch_size}")
        if options.batch_size % processes.count:
            raise OptionError(
                f"batch_size must be a multiple of the {processes.count} processes, got {options.batch_size}"
            )
        if options.augment != "none" and data.image_shape[0] != 3:
            raise OptionError(
                f"augment must be 'none' for images of {data.image_shape[0]} channel, got {options.augment!r}"
            )
        if options.compile is not None and processes.count > 1:
            raise OptionError(f"compile must be None for several processes, got {options.compile!r}")
        self.data, self.options, self.device, self.processes = data, options, device, processes
        self.batches = len(data.train) // options.batch_size
        self.history: list[StepRecord] = []
        self.evaluations: list[Evaluation] = []
        self.rates: list[FiringRecord] = []
        self.precision = options.precision or ("bfloat16" if device.type == "cuda" else "float32")
        if model is None:
            with torch.random.fork_rng(devices=[]):
                # On the CPU, then moved, so that a seed means the same weights on every device.
                torch.manual_seed(options.seed)
                model = build(data, options)
        if options.loss != "sum" and "per_step" not in inspect.signature(model.forward).parameters:
            of = f"a model without per_step, such as {type(model).__name__}"
            raise OptionError(f"loss must be 'sum' for {of}, got {options.loss!r}")
        self.layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
        self.model = model.to(device, memory_format=self.layout)  # type: ignore[call-overload]  # torch declares no layout
        self.order = torch.Generator().manual_seed(options.seed)
        self._order_of_epoch = self.order.get_state()
        # Every process its own numbers: they augment different images.
        self.augmentation = torch.Generator().manual_seed(options.seed + 1_000_003 * processes.rank)
        self._random = self._seeded(options.seed + 1_000_003 * processes.rank)
        self._is_drawing = False
        # A word is TUNE or FIND: what :meth:`tune` finds.
        self.gamma = None if isinstance(options.gamma, str) else options.gamma
        self.lr = None if isinstance(options.lr, str) else options.lr
        self.tuned = options.gamma != TUNE and options.lr != FIND
        if self.tuned:
            self._begin()

    @property
    def total_steps(self) -> int:
        """Training steps of the whole run."""
        return self.options.epochs * self.batches

    def tune(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Finds what the options leave to be found, sharpness first, then the learning rate; :meth:`fit` calls it.

        ``say`` is told what was found. Raises :class:`OptionError` where no sharpness balances the gradients, or the
        loss falls at no learning rate.
        """
        if self.tuned:
            return
        found: tuple[Any, Any] | Exception = (self.gamma, self.lr)
        if self.processes.first:
            try:
                with self.drawing():
                    found = self._found(say)
            except (OptionError, ValueError) as error:  # for the others too, which wait
                found = error
        found = self.processes.from_first(found)
        if isinstance(found, Exception):
            raise found
        self.gamma, self.lr = found
        self._begin()

    def _found(self, say: Callable[[str], None]) -> tuple[Any, Any]:
        generator = torch.Generator().manual_seed(self.options.seed)
        order = torch.randperm(len(self.data.train), generator=generator)

        def batches(size: int, count: int) -> list[tuple[Tensor, Tensor]]:
            places = torch.arange(size * count) % len(order)
            chosen = order[places].view(count, size).to(self.data.train.images.device)
            return [self.data.train[part] for part in chosen]

        gamma, lr = self.gamma, self.lr
        if self.options.gamma == TUNE:
            size = min(_GAMMA_BATCH_SIZE, self.options.batch_size)
            try:
                search = tuning.tune_gamma(self.model, batches(size, _GAMMA_BATCHES))
            except ValueError as error:
                raise OptionError(f"gamma must be given, it cannot be tuned: {error}") from error
            gamma = search.gamma
            rests_on = search.profile.rests_on()
            say(
                f"gamma   {gamma:.4g}, tuned: gradients of the first half over the rest {search.ratio:.3g} "
                f"({len(search.gammas)} evaluations)" + f", {rests_on}" * bool(rests_on)
            )
        if self.options.lr == FIND:
            size = self.options.batch_size // self.processes.count
            trial = tuning.lr_range_test(self.model, batches(size, min(self.batches, _RATE_STEPS)), steps=_RATE_STEPS)
            if trial.suggestion is None:
                raise OptionError(f"lr must be given: in the range test {trial.reason}")
            lr = trial.suggestion
            say(f"lr      up to {lr:.3g}, by the range test")
        return gamma, lr

    def _begin(self) -> None:
        """Gives the network its sharpness and makes the optimizer, once both are known."""
        self.tuned = True
        if self.gamma is not None:
            layers = spiking_layers(self.model, required=False)
            if not layers:
                raise OptionError(f"gamma must be None for a network without spiking layers, got {self.gamma}")
            set_gamma(layers, self.gamma)
        assert self.lr is not None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr, weight_decay=self.options.weight_decay)
        if self.options.schedule == "one-cycle":
            self.schedule: torch.optim.lr_scheduler.LRScheduler = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, max_lr=self.lr, total_steps=self.total_steps
            )
        else:
            self.schedule = torch.optim.lr_scheduler.ConstantLR(self.optimizer, 1.0, 0)
        self.average: AveragedModel | None = None
        if self.options.ema is not None:
            decay = get_ema_multi_avg_fn(self.options.ema)
            self.average = AveragedModel(self.model, multi_avg_fn=decay, use_buffers=True)
        self._trained: Callable[..., Any] = self.model
        if self.options.compile is not None:
            # Batches are of one shape. fullgraph: a part that silently stays uncompiled is an error.
            self._trained = torch.compile(self.model, fullgraph=True, dynamic=False, mode=self.options.compile)
        if self.processes.count > 1:
            models.synchronize(self.model)
            # Synchronized statistics are the same in every process: there is nothing to send before each step. torch
            # has called that argument by two names.
            names = inspect.signature(DistributedDataParallel.__init__).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
            nothing_to_send: dict[str, Any] = {name: False}
            self._trained = DistributedDataParallel(self.model, **nothing_to_send)

    def close(self) -> None:
        """Lets go of what sends gradients to the other processes, and with it of their group: trains no further."""
        self._trained = self.model

    def fit(
        self,
        each_step: Callable[[StepRecord], None] = lambda record: None,
        each_epoch: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        """Trains to the end, from where the trainer stands.

        ``each_step`` is called with the record of every step, ``each_epoch`` with the number of each epoch that ended.
        Raises :class:`DivergedError`, and what :meth:`tune` raises.
        """
        self.tune()
        with self.drawing():
            while len(self.history) < self.total_steps:
                for images, labels in self.epoch_batches():
                    each_step(self.step(images, labels))
                each_epoch(len(self.history) // self.batches)

    def epoch_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of the full batches of one epoch, in a new order, augmented.

        In the midst of an epoch, by ``history``: what is left of that epoch.
        """
        done = len(self.history) % self.batches
        if done:
            self.order.set_state(self._order_of_epoch)
        self._order_of_epoch = self.order.get_state()
        # Drawn on the CPU whatever the device, so that a seed means the same order everywhere.
        order = torch.randperm(len(self.data.train), generator=self.order).to(self.data.train.images.device)
        size = self.options.batch_size // self.processes.count
        augment = AUGMENTATIONS[self.options.augment]
        for batch in range(done, self.batches):
            start = batch * self.options.batch_size + self.processes.rank * size
            images, labels = self.data.train[order[start : start + size]]
            yield images if augment is None else augment(images, self.augmentation), labels

    def step(self, images: Tensor, labels: Tensor) -> StepRecord:
        """One training step: forward, backward, update; recorded in ``history``.

        Raises :class:`DivergedError`; ValueError after the last step of the run; and what :meth:`tune` raises.
        """
        self.tune()
        if len(self.history) >= self.total_steps:
            raise ValueError(f"the run is at its end, after step {len(self.history)} of {self.total_steps}")
        lr = float(self.schedule.get_last_lr()[0])
        start = synchronized_time(self.device)
        self.optimizer.zero_grad()
        with self._autocast():
            logits, loss = self._logits_and_loss(images.contiguous(memory_format=self.layout), labels)
        loss.backward()
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
            for averaged, own in zip(self.average.module.buffers(), self.model.buffers(), strict=True):
                if not own.is_floating_point():  # a count, of which there is no average
                    averaged.copy_(own)
        seconds = synchronized_time(self.device) - start
        self.schedule.step()
        correct = (logits.detach().argmax(1) == labels).float().mean()
        mean = self.processes.sum(torch.stack([loss.detach().float(), correct])) / self.processes.count
        count = len(self.history)
        record = StepRecord(
            step=count + 1,
            epoch=count // self.batches + 1,
            lr=lr,
            loss=mean[0].item(),
            accuracy=mean[1].item(),
            seconds=seconds,
        )
        self.history.append(record)
        if not math.isfinite(record.loss):
            raise DivergedError(
                f"the loss with the {self.options.layer} layer is {record.loss} at step {record.step} "
                f"(epoch {record.epoch}, learning rate {lr:.3g}): training stopped; try one below {self.lr:g}"
            )
        return record

    def _logits_and_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits [B, classes] of a batch and its loss, as the options have it."""
        smoothing = self.options.label_smoothing
        if self.options.loss == "sum":
            logits = self._trained(images)
            return logits, F.cross_entropy(logits, labels, label_smoothing=smoothing)
        each = self._trained(images, per_step=True)
        loss = F.cross_entropy(each.flatten(0, 1), labels.repeat(len(each)), label_smoothing=smoothing)
        return each.sum(0), loss

    @property
    def evaluated(self) -> nn.Module:
        """What :meth:`evaluate` runs: the network, or the average of its weights where one is kept and has begun."""
        average = self.average if self.tuned else None
        if average is None or not average.n_averaged:
            return self.model
        return average.module

    @torch.no_grad()
    def evaluate(self, split: Split, steps: int | None = None) -> Evaluation:
        """Loss and accuracy on ``split`` in evaluation mode, at ``steps`` time steps (default: those of training).

        All processes take part, each with a part of the images.
        """
        model = self.evaluated
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        size = self.options.batch_size // self.processes.count
        for start in range(self.processes.rank * size, len(split), self.processes.count * size):
            images, labels = split[slice(start, start + size)]
            with self._autocast():
                images = images.contiguous(memory_format=self.layout)
                logits = model(images) if steps is None else model(images, steps=steps)
            sums[0] += F.cross_entropy(logits.float(), labels, reduction="sum")
            sums[1] += (logits.argmax(1) == labels).sum()
        model.train(was_training)
        loss, accuracy = (self.processes.sum(sums) / len(split)).tolist()
        return Evaluation(
            len(self.history) // self.batches,
            self.options.steps if steps is None else steps,
            loss,
            accuracy,
            len(split),
        )

    @torch.no_grad()
    def firing(self) -> list[FiringRecord]:
        """How each spiking layer fires now, in the order reached; none of a network without snnfast's layers.

        Nothing that training depends on is changed. All processes may call it, and find the same.
        """
        images, _ = self.data.test[slice(0, self.options.batch_size // self.processes.count)]
        with self._autocast():
            found = layer_activity(self.evaluated, images.contiguous(memory_format=self.layout))
        epoch = len(self.history) // self.batches
        return [FiringRecord(epoch, row.name, row.rate, row.silent, row.saturated) for row in found]

    def accuracy(self, split: Split) -> float:
        """The share (0 to 1) of the images in ``split`` that the network classifies correctly, in evaluation mode."""
        return self.evaluate(split).accuracy

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within it the global random state is the trainer's own (dropout draws from it); after it, what it was."""
        if self._is_drawing:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._set_random(self._random)
            self._is_drawing = True
            try:
                yield
            finally:
                self._random = self._read_random()
                self._is_drawing = False

    def _seeded(self, seed: int) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return self._read_random()

    def _read_random(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _set_random(self, states: dict[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if self.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def state(self) -> dict[str, Any]:
        """All that training on needs, in plain types and tensors; all processes must call it.

        Weights and the optimizer's tensors are the trainer's own, which change as it goes on: write them, or copy them.
        """
        midst = len(self.history) % self.batches
        own = {
            "augmentation": self.augmentation.get_state(),
            "random": self._read_random() if self._is_drawing else self._random,
        }
        return {
            "data": fingerprint(self.data),
            "precision": self.precision,
            "gamma": self.gamma,
            "lr": self.lr,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self._order_of_epoch if midst else self.order.get_state(),
            "processes": self.processes.gathered(own),
            "history": torch.tensor([astuple(record) for record in self.history], dtype=torch.float64).view(-1, 6),
            "evaluations": [astuple(evaluation) for evaluation in self.evaluations],
            "rates": [astuple(record) for record in self.rates],
            "average": None
            if self.average is None
            else {"count": int(self.average.n_averaged), "model": self.average.module.state_dict()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from a :meth:`state` of the same options, as if it had never stopped."""
        self.gamma, self.lr = state["gamma"], state["lr"]
        self.model.load_state_dict(state["model"])
        self._begin()
        # torch keeps the tensors it is given: the state may be of a trainer that goes on, too.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"]["model"])
            self.average.n_averaged.fill_(state["average"]["count"])
        self._order_of_epoch = state["order"]
        self.order.set_state(state["order"])
        own = state["processes"][self.processes.rank]
        self.augmentation.set_state(own["augmentation"])
        self._random = own["random"]
        self.history = [StepRecord(int(step), int(epoch), *rest) for step, epoch, *rest in state["history"].tolist()]
        self.evaluations = [Evaluation(*values) for values in state["evaluations"]]
        self.rates = [FiringRecord(*values) for values in state.get("rates", ())]  # files of old have none


def fingerprint(data: ImageData) -> str:
    """A data set in words that differ for another one: the counts of images and a checksum of pixels and labels."""
    checksum = 0
    for split in (data.train, data.test):
        for tensor in (split.images, split.labels):
            checksum = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), checksum)
    return f"{data.name}, {len(data.train)} and {len(data.test)} images, checksum {checksum:08x}"


def build(data: ImageData, options: TrainOptions) -> nn.Module:
    """The network that ``options`` name, for the images and classes of ``data``.

    Raises :class:`OptionError` for what the network does not have or allow.
    """
    given = dict(options.model_options)
    reserved = {"steps", "surrogate", "num_classes", "in_channels", "image_size"} & given.keys()
    if reserved:
        why = "it has an option of its own, or the data decide"
        raise OptionError(f"model_options must not hold {', '.join(sorted(reserved))}: {why}")
    if options.surrogate is not None:
        given["surrogate"] = SURROGATES[options.surrogate]()
    if options.layer != "fused":
        if given:
            raise OptionError(f"model_options must be empty with the layer {options.layer!r}, got {given}")
        return models.DigitsNet(
            data.image_shape, data.classes, steps=options.steps, neuron=neuron_factory(options.layer)
        )
    try:
        return models.for_images(options.model, data.image_shape, data.classes, steps=options.steps, **given)
    except (TypeError, ValueError) as error:
        # What was not given is the data set's preset: who asked for one option sees the others.
        all_of_them = ", ".join(f"{name}={value}" for name, value in options.model_options.items())
        having = f"; the model's options are {all_of_them}" if len(options.model_options) > 1 else ""
        raise OptionError(f"model {options.model}: {one_line(error)}{having}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OptionError(f"model {options.model}: its weights need more memory than there is, with {given}") from error


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
