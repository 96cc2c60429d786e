"""One training run, from options to files."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from snnfast.data import ImageData, load
from snnfast.training import checkpoints
from snnfast.training.implementations import room_for_compilations
from snnfast.training.logs import Board
from snnfast.training.options import OptionError, TrainOptions, choose_device
from snnfast.training.output import OutputFolder
from snnfast.training.processes import ALONE, Processes, joined
from snnfast.training.progress import Progress
from snnfast.training.records import Evaluation
from snnfast.training.trainer import Trainer, reproducible

_ASK_EVERY = 20  # training steps: several processes agree on a checkpoint by a message, which takes time


@dataclass(frozen=True)
class Run:
    """What came of a run: ``trainer.model``, trained, ``trainer.history``, and the test accuracy, 0 to 1.

    ``evaluations`` are those of the trained network, one for each of ``options.evaluated_steps``; ``test_accuracy`` is
    that at the training's own step count.
    """

    trainer: Trainer
    test_accuracy: float
    folder: OutputFolder
    evaluations: tuple[Evaluation, ...] = ()


@contextmanager
def prepared(
    options: TrainOptions, processes: Processes = ALONE, device: torch.device | None = None
) -> Iterator[tuple[ImageData, torch.device, OutputFolder]]:
    """Finds what is wrong with device, data set or output folder, before any training.

    Yields the data set on its device; prints a line about each.
    """
    device = choose_device(options.device) if device is None else device
    data = load(options.data, options.data_dir)
    folder = OutputFolder(options.out)
    with folder.held() if processes.first else nullcontext(), reproducible(options.threads):
        if processes.first:
            _say_what(options, data, device, processes)
        yield data.to(device), device, folder


def _say_what(options: TrainOptions, data: ImageData, device: torch.device, processes: Processes) -> None:
    shape = "×".join(map(str, data.image_shape))
    print(f"data    {data.name}: {len(data.train)} training and {len(data.test)} test images, {shape}")
    print(f"device  {device_name(device)}" + (f", {processes.count} processes" if processes.count > 1 else ""))
    if device.type == "cpu" and options.device is None and torch.cuda.is_available():
        print("        (there is a GPU, but this snnfast has no CUDA kernels: see snnfast info)")
    most = "up to " if options.schedule == "one-cycle" else ""
    rate = "to be found" if isinstance(options.lr, str) else f"{most}{options.lr:g}"
    print(
        f"run     T = {options.steps}, {options.epochs} epochs, batches of {options.batch_size}, "
        f"learning rate {rate}, seed {options.seed}",
        flush=True,
    )


def train(options: TrainOptions, *, resume: bool = False) -> Run:
    """Trains the network that ``options`` describe and evaluates it on the test images.

    Prints the progress, the test accuracy and where the files are: ``history.csv`` (a line per step, written also
    where the run ends early), ``evaluations.csv`` (the test images after every epoch and at the end), ``rates.csv``
    (how each spiking layer fires after every epoch: :class:`FiringRecord`; none without snnfast's layers),
    ``summary.json`` and ``checkpoint.pt``. Started by ``torchrun``, the processes train together; the first one prints
    and writes.

    Args:
        options: of the run.
        resume: goes on from the folder's ``checkpoint.pt``, where there is one, as if the run had never stopped:
            the same numbers, bit for bit, on the same machine.

    Raises:
        OptionError, OutputError, CheckpointError, DivergedError, snnfast.data.DataError: see :mod:`snnfast.training`.
            The last checkpoint is there to go on from.
    """
    with (
        joined(choose_device(options.device)) as (processes, own_device),
        prepared(options, processes, own_device) as (data, device, folder),
        room_for_compilations(options.layer),
    ):
        say = print if processes.first else _silent
        _check_equal_options(options, processes)
        trainer = Trainer(data, options, device, processes=processes)
        files = _Files(trainer, folder, say)
        with closing(trainer), Board(options.tensorboard and processes.first, folder.path) as board:
            files.begin(resume)
            say(f"model   {_named(options)}, {_parameters(trainer)} parameters; {_neuron(trainer)}", flush=True)
            trainer.tune(say)
            if not trainer.history:
                # From here on the folder is this run's: --resume goes on with it, and not with an earlier one.
                files.save()
            evaluations = _train(trainer, files, board)
        # The last epoch's, which is there whatever step counts were asked for.
        at_own = [found for found in trainer.evaluations if found.steps == options.steps]
        run = Run(trainer, at_own[-1].accuracy, folder, tuple(evaluations))
        files.save()
        if processes.first:
            folder.write_json("summary.json", summary(run))
    seconds = sum(record.seconds for record in trainer.history)
    for found in evaluations:
        at = "" if options.evaluated_steps == (options.steps,) else f" at {found.steps} steps"
        say(f"test accuracy {found.accuracy:.2%}{at} ({found.images} images) after {seconds:.1f} s of training steps")
    if guesses(run.test_accuracy, data.classes, len(data.test)):
        say(
            f"that is no better than guessing ({1 / data.classes:.2%}): the documentation's page 'When a deep network "
            "does not learn' goes through the reasons"
        )
    say(folder.where())
    return run


def guesses(accuracy: float, classes: int, images: int) -> bool:
    """Whether an accuracy, 0 to 1, is within three binomial errors of that of guessing, or below."""
    guessing = 1 / classes
    return accuracy <= guessing + 3 * math.sqrt(guessing * (1 - guessing) / images)


def _train(trainer: Trainer, files: _Files, board: Board) -> list[Evaluation]:
    options = trainer.options
    shown = trainer.processes.first
    try:
        with Progress(options.epochs, trainer.batches, done=len(trainer.history), shown=shown) as progress:

            def each_step(record: Any) -> None:
                progress.update(record)
                board.step(record)
                files.save_if_due()

            def each_epoch(epoch: int) -> None:
                found = trainer.evaluate(trainer.data.test)
                trainer.evaluations.append(found)
                progress.evaluated(found)
                board.evaluation(found, len(trainer.history))
                rates = trainer.firing()
                trainer.rates += rates
                board.rates(rates, len(trainer.history))
                files.save()

            trainer.fit(each_step, each_epoch)
    finally:
        files.write_tables()
    # The last epoch's own evaluation is one of these already, and so are those of an earlier end.
    known = {at.steps: at for at in trainer.evaluations if at.epoch == options.epochs}
    for steps in options.evaluated_steps:
        if steps not in known:
            known[steps] = trainer.evaluate(trainer.data.test, steps)
            trainer.evaluations.append(known[steps])
    return [known[steps] for steps in options.evaluated_steps]


class _Files:
    """The run's files in its folder, of which the first process's are written."""

    def __init__(self, trainer: Trainer, folder: OutputFolder, say: Any) -> None:
        self._trainer, self._folder, self._say = trainer, folder, say
        self._path = folder.path / checkpoints.NAME
        self._is_first_save = True
        self._last = time.monotonic()

    def begin(self, resume: bool) -> None:
        """Reads the folder's checkpoint where the run is to go on from it."""
        if not resume:
            return
        if not self._path.exists():
            self._say(f"resume  no checkpoint in {self._folder.path}: from the beginning")
            return
        checkpoints.resume(self._trainer, checkpoints.read(self._path))
        self._is_first_save = False
        done, total = len(self._trainer.history), self._trainer.total_steps
        self._say(f"resume  after step {done} of {total}")

    def save_if_due(self) -> None:
        """Saves where the last checkpoint is older than the options ask for; all processes decide alike.

        Not after an epoch's last step: the evaluation that follows belongs to that checkpoint.
        """
        step, processes = len(self._trainer.history), self._trainer.processes
        if step % self._trainer.batches == 0 or (processes.count > 1 and step % _ASK_EVERY):
            return
        due = time.monotonic() - self._last >= self._trainer.options.checkpoint_every
        if processes.from_first(due):
            self.save()

    def save(self) -> None:
        """Writes the checkpoint and the tables; an earlier run's checkpoint is moved aside before the first one."""
        if checkpoints.save(self._trainer, self._path, keep_previous=self._is_first_save):
            self._say(f"note    the checkpoint of an earlier run is now {checkpoints.PREVIOUS}", flush=True)
        self._is_first_save = False
        self._folder.note(checkpoints.NAME)
        self.write_tables()
        self._last = time.monotonic()

    def write_tables(self) -> None:
        """``history.csv``, ``evaluations.csv`` and ``rates.csv``, whole."""
        if self._trainer.processes.first:
            self._folder.write_records("history.csv", self._trainer.history)
            self._folder.write_records("evaluations.csv", self._trainer.evaluations)
            self._folder.write_records("rates.csv", self._trainer.rates)
            if not self._trainer.rates:
                self._folder.remove("rates.csv")  # of an earlier run, where this one may have none to the end


def _check_equal_options(options: TrainOptions, processes: Processes) -> None:
    """Raises :class:`OptionError` where the processes were given different options that decide what is computed."""
    found = [checkpoints.computed(one) for one in processes.gathered(options)]
    differ = [name for name in found[0] if any(one[name] != found[0][name] for one in found)]
    if differ:
        values = "; ".join(f"{name} {', '.join(repr(one[name]) for one in found)}" for name in differ)
        raise OptionError(f"all processes must be given the same options, got {values}")


def _silent(*_: Any, **__: Any) -> None:
    """What the processes other than the first say."""


def _parameters(trainer: Trainer) -> str:
    return f"{sum(parameter.numel() for parameter in trainer.model.parameters()):,}"


def _named(options: TrainOptions) -> str:
    """The network with its options, those of the data set's preset among them."""
    given = ", ".join(f"{name}={value}" for name, value in options.model_options.items())
    return options.model + f" ({given})" * bool(given)


def _neuron(trainer: Trainer) -> str:
    layers = trainer.model.neurons()
    return f"{len(layers)} × {layers[0]}"


def summary(run: Run) -> dict[str, Any]:
    """What ``summary.json`` holds; times in seconds, accuracies from 0 to 1."""
    trainer = run.trainer
    history = trainer.history
    return {
        "options": asdict(trainer.options),
        "gamma": trainer.gamma,
        "lr": trainer.lr,
        "precision": trainer.precision,
        "processes": trainer.processes.count,
        "test_accuracy": run.test_accuracy,
        "evaluations": [asdict(found) for found in run.evaluations],
        "test_images": len(trainer.data.test),
        "first_loss": history[0].loss,
        "last_loss": history[-1].loss,
        "training_steps": len(history),
        "training_seconds": sum(record.seconds for record in history),
        "environment": environment(trainer.device),
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


def options_for(data: str | None, *, resume: bool, **given: Any) -> TrainOptions:
    """The options of a run: those given, and for the rest the checkpoint's, or what suits the data set.

    With ``resume`` and a checkpoint in the folder, the options that are None are those of its run. Raises
    :class:`snnfast.training.CheckpointError` for one that differs from them and would change what is computed.
    """
    out = given.get("out") or TrainOptions.out
    file = Path(out).expanduser() / checkpoints.NAME
    if resume and os.path.exists(file):  # False, too, for a path that cannot be: the output folder's error says why
        # The folder that the checkpoint is in now, wherever it was when it was written.
        return checkpoints.options_of(checkpoints.read(file), {"data": data, **given, "out": out})
    return TrainOptions.for_data(data or TrainOptions.data, **given)
