"""A run's state on disk: written whole or not at all, and read only where it fits."""

from __future__ import annotations

import io
import os
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import snnfast
from snnfast.data import load
from snnfast.layers.state_dict import takes_keys
from snnfast.training.options import OptionError, TrainOptions
from snnfast.training.output import OutputError
from snnfast.training.trainer import Trainer, build, fingerprint

FORMAT = 1
"""Of the file; raised when an older snnfast could not read what a newer one writes."""

NAME, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"

_PARTS = (
    "options",
    "data",
    "precision",
    "gamma",
    "lr",
    "model",
    "optimizer",
    "schedule",
    "order",
    "processes",
    "history",
    "evaluations",
)

# What may differ from the run that is gone on with: none of it changes what is computed, but for the last bits of sums
# on another device or number of threads.
_FREE = ("data_dir", "device", "threads", "out", "eval_steps", "checkpoint_every", "tensorboard")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is of another run; the message says what differs."""


def save(trainer: Trainer, path: Path, *, keep_previous: bool = False) -> bool:
    """Writes the trainer's state to ``path``; all processes must call it, the first one writes.

    First beside its place, then moved: whenever the process is killed, the file is the one before or the new one,
    whole. With ``keep_previous`` a file that is there is moved to :data:`PREVIOUS` first. Returns whether one was.
    Raises :class:`OutputError`.
    """
    state = trainer.state()
    if not trainer.processes.first:
        return False
    options = asdict(trainer.options)
    content = {"format": FORMAT, "snnfast": snnfast.__version__, "options": options, **state}
    partial = path.with_name(f".{path.name}.partial")
    # In memory first: of a full disk, torch says that a position is unexpected.
    whole = io.BytesIO()
    torch.save(content, whole)
    try:
        with partial.open("wb") as file:
            file.write(whole.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        moved = keep_previous and path.exists()
        if moved:
            path.replace(path.with_name(PREVIOUS))
        partial.replace(path)
        return moved
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        kept = "the checkpoint before it, if any, is still there"
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; {kept}") from error


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Only tensors and plain types are read: a file from elsewhere cannot run code. Raises :class:`CheckpointError` for
    what is no checkpoint, a truncated or damaged one, and one of a newer format.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is another")
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # which ones a damaged file raises is not said anywhere
        raise CheckpointError(
            f"checkpoint {str(path)!r} ({len(raw)} bytes) is truncated, damaged or no checkpoint of snnfast"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CheckpointError(f"checkpoint {str(path)!r} is not one that `snnfast train` wrote")
    if content["format"] > FORMAT:
        raise CheckpointError(
            f"checkpoint {str(path)!r} was written by snnfast {content.get('snnfast')} in format {content['format']}; "
            f"this is snnfast {snnfast.__version__}, which reads formats up to {FORMAT}: install a newer one"
        )
    missing = [name for name in _PARTS if name not in content]
    if missing or not isinstance(content["options"], dict):
        raise CheckpointError(
            f"checkpoint {str(path)!r} is not one that `snnfast train` wrote: no {', '.join(missing) or 'options'}"
        )
    # An option that came later was what it is where nothing is said.
    defaults = asdict(TrainOptions())
    content["options"] = {name: content["options"].get(name, default) for name, default in defaults.items()}
    content["options"]["eval_steps"] = tuple(content["options"].get("eval_steps", ()))
    return content


def options_of(content: dict[str, Any], given: dict[str, Any]) -> TrainOptions:
    """The options of the run that a checkpoint is of, with ``given`` ones (None is not given) in their place.

    Raises :class:`CheckpointError` for one that differs and would change what is computed.
    """
    of_run = TrainOptions(**content["options"])
    chosen = {name: value for name, value in given.items() if value is not None}
    options = TrainOptions(**{**asdict(of_run), **chosen})
    asked = computed(options)
    asked.pop("precision")  # which None stands for is the device's to say: resume compares it
    check_same_run(content, asked)
    return options


def computed(options: TrainOptions) -> dict[str, Any]:
    """The options that decide what is computed."""
    return {name: value for name, value in asdict(options).items() if name not in _FREE}


def check_same_run(content: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises :class:`CheckpointError` where what is ``asked`` for is not what the checkpoint is of, naming each."""
    of_run = {**content["options"], "precision": content["precision"], "images": content["data"]}
    differ = [
        f"{name} {of_run.get(name)!r} there, {value!r} here"
        for name, value in asked.items()
        if of_run.get(name) != value
    ]
    if differ:
        raise CheckpointError(
            f"the checkpoint is of another run: {'; '.join(differ)} (a run keeps its options to its end; begin another "
            "one in a folder of its own, with --out)"
        )


def resume(trainer: Trainer, content: dict[str, Any]) -> None:
    """Puts a checkpoint's state into ``trainer``. Raises :class:`CheckpointError` for one that does not fit."""
    own = {"precision": trainer.precision, "images": fingerprint(trainer.data)}
    check_same_run(content, {**computed(trainer.options), **own})
    wrote = len(content["processes"])
    if wrote != trainer.processes.count:
        raise CheckpointError(
            f"the checkpoint is of a run of {wrote} processes, this one has {trainer.processes.count}"
        )
    _check_weights(trainer.model, content["model"])
    trainer.load_state(content)


def _check_weights(model: nn.Module, state: dict[str, Any]) -> None:
    own = model.state_dict()
    differ = [f"no {name}" for name in own if name not in state]
    taken = takes_keys(model)
    differ += [f"{name} that this network does not have" for name in state if name not in own and name not in taken]
    differ += [
        f"{name} of shape {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if differ:
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise CheckpointError(f"the checkpoint's weights are of another network: {'; '.join(differ[:4])}{more}")


def load_model(path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> nn.Module:
    """The network of a checkpoint, with its weights and surrogates, in evaluation mode on the CPU.

    Of a run with ``ema`` the average, which its accuracies are of.

    Args:
        path: the file, or the folder it is in.
        data_dir: where the data set is that the network was trained on, for the shape of its images; see
            :func:`snnfast.data.load`.

    Raises:
        CheckpointError: a file that cannot be read or does not fit.
        DataError: a data set that is not there.
    """
    file = Path(path).expanduser()
    content = read(file / NAME if file.is_dir() else file)
    try:
        options = TrainOptions(**content["options"])
        folder = data_dir if data_dir is not None else options.data_dir
        model = build(load(options.data, folder), options)
    except OptionError as error:
        raise CheckpointError(f"the checkpoint's options are not this snnfast's: {error}") from error
    weights = content["average"]["model"] if content.get("average") else content["model"]
    _check_weights(model, weights)
    model.load_state_dict(weights)
    return model.eval()
