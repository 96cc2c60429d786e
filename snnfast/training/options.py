"""What a training run is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from snnfast import build_info
from snnfast.data import check_known
from snnfast.training.implementations import IMPLEMENTATIONS

# What suits each data set where the user says nothing: seconds for digits on 2 CPU cores, minutes for mnist.
_PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 20, "batch_size": 64, "lr": 5e-3},
    "mnist": {"epochs": 2, "batch_size": 64, "lr": 3e-3},
}

MOST_THREADS = 1024
"""More than any machine's cores; each thread takes memory, of which a machine runs out."""


class OptionError(ValueError):
    """An option outside its range; the message names it, what came and what is allowed."""


@dataclass(frozen=True)
class TrainOptions:
    """The options of one training run; :meth:`for_data` fills in what suits a data set.

    * ``data``, ``data_dir``: see :func:`snnfast.data.load`.
    * ``layer``: one of :data:`IMPLEMENTATIONS`. The random numbers drawn do not depend on it.
    * ``steps``: time steps T for which each image is held.
    * ``epochs``, ``batch_size``: passes over the training images; images a batch. A last batch that is not full is
      left out, another one each epoch.
    * ``lr``: the highest learning rate of the one-cycle schedule.
    * ``seed``: of the initial weights and the order of the images.
    * ``device``: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU where there is one and this build has kernels for
      it.
    * ``threads``: CPU threads of torch, for this run; None leaves them.
    * ``out``: folder for the files, made if need be; files of an earlier run with the same ``layer`` are overwritten.

    Raises :class:`OptionError`, or :class:`snnfast.data.DataError` for an unknown data set.
    """

    data: str = "digits"
    data_dir: str | None = None
    layer: str = "fused"
    steps: int = 10
    epochs: int = 20
    batch_size: int = 64
    lr: float = 5e-3
    seed: int = 0
    device: str | None = None
    threads: int | None = None
    out: str = "snnfast-train"

    def __post_init__(self) -> None:
        check_known(self.data)
        if self.layer not in IMPLEMENTATIONS:
            raise OptionError(f"layer must be one of {', '.join(IMPLEMENTATIONS)}, got {self.layer!r}")
        _check_integer("steps", self.steps, least=1)
        _check_integer("epochs", self.epochs, least=1)
        _check_integer("batch_size", self.batch_size, least=1)
        _check_integer("seed", self.seed, least=0, most=2**63 - 1)
        if self.threads is not None:
            _check_integer("threads", self.threads, least=1, most=MOST_THREADS)
        if not (isinstance(self.lr, int | float) and math.isfinite(self.lr) and self.lr > 0):
            raise OptionError(f"lr must be a finite number above 0, got {self.lr!r}")
        if not self.out:
            raise OptionError("out must name a folder ('.' is the current one), got ''")

    @classmethod
    def for_data(cls, data: str, **given: Any) -> TrainOptions:
        """The options that suit the data set ``data``, with those in ``given`` that are not None in their place."""
        check_known(data)
        known = {field.name for field in fields(cls)}
        chosen = {name: value for name, value in given.items() if value is not None or name not in known}
        return cls(data=data, **{**_PRESETS.get(data, {}), **chosen})


def _check_integer(name: str, value: Any, *, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"of at least {least}" + ("" if most is None else f" and at most {most}")
        raise OptionError(f"{name} must be an integer {allowed}, got {value!r}")


def choose_device(name: str | None) -> torch.device:
    """The named device; for None a GPU where there is one and this build has CUDA kernels, else the CPU.

    Raises :class:`OptionError` for a device that torch does not know or reach, or that snnfast has no kernels for.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() and has_cuda_kernels() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device must be cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise OptionError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    if not torch.cuda.is_available():
        raise OptionError(f"device {name!r}: torch {torch.__version__} finds no CUDA GPU")
    if (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA GPU(s), numbered from 0")
    if not has_cuda_kernels():
        remedy = "reinstall it where nvcc is on PATH, with SNNFAST_CUDA=1"
        raise OptionError(f"device {name!r}: this snnfast has no CUDA kernels; {remedy}")
    return device


def has_cuda_kernels() -> bool:
    """Whether this build of snnfast can run CUDA tensors."""
    return build_info()["cuda"]["backend"] != "none"
