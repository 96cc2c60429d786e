"""What a training run is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from snnfast import build_info, models, surrogate
from snnfast._arguments.checks import LARGEST_COUNT, LARGEST_FLOAT32, integer, number_within, word
from snnfast._arguments.hints import refuse
from snnfast.data import augment, check_known
from snnfast.training.implementations import IMPLEMENTATIONS

FIND, TUNE = "find", "tune"
"""In the place of a number: the learning rate by a range test, the surrogate's sharpness by balancing gradients."""

SCHEDULES = ("one-cycle", "constant")
LOSSES = ("sum", "tet")
"""Cross entropy of the logits summed over time (the paper's), and of each step's, averaged (Deng et al. 2022)."""
COMPILE_MODES = ("default", "reduce-overhead")
"""Of ``torch.compile``; the second replays CUDA graphs on a GPU."""
SURROGATES: Mapping[str, Callable[..., surrogate.Surrogate]] = surrogate.SHAPES
AUGMENTATIONS = {"none": None, "cifar": augment.CIFAR, "cifar-strong": augment.CIFAR_STRONG}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}

# What suits each data set where the user says nothing: seconds for digits and half an hour for mnist on 2 CPU cores;
# the others are for a GPU. The paper's section 3.1 where it gives a value; it gives no epochs and no batch sizes.
# Not the paper's is how ResNet50's blocks begin: with its text alone the network stays at guessing here (docs/results).
_IDENTITY_BLOCKS = {"zero_init_residual": True, "shortcut_scale": 2.0}
_PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"model": "digits", "epochs": 20, "batch_size": 64, "lr": 5e-3},
    "mnist": {"model": "mnist_net", "epochs": 10, "batch_size": 64, "lr": 2e-3},
    "cifar10": {"model": "resnet11", "epochs": 100, "batch_size": 128, "lr": FIND, "augment": "cifar"},
    "cifar100": {
        "model": "resnet50",
        "model_options": _IDENTITY_BLOCKS,
        "epochs": 100,
        "batch_size": 128,
        "lr": FIND,
        "augment": "cifar",
    },
    "imagenette": {
        "model": "resnet50",
        "model_options": {"stem": "7x7", **_IDENTITY_BLOCKS},
        "epochs": 60,
        "batch_size": 64,
        "lr": FIND,
    },
}
_SMALL_PRESETS = {"mnist": {"model": "digits", "epochs": 2, "batch_size": 64, "lr": 3e-3}}
"""The same for the network ``digits``."""

UNBALANCED = ("digits", "mnist_net")
"""Networks of three spiking layers without batch norm: gradients vanish there at every sharpness."""

MOST_THREADS = 1024
"""More than any machine's cores; each thread takes memory, of which a machine runs out."""

MOST_RATE = 1e30
"""Beyond, AdamW's step itself is not a float32 number."""


_COUNTS = (
    ("steps", 1, LARGEST_COUNT),
    ("epochs", 1, LARGEST_COUNT),
    ("batch_size", 1, LARGEST_COUNT),
    ("seed", 0, 2**63 - 1),
)
"""Options that are integers, the least and the most that each may be."""


class OptionError(ValueError):
    """An option outside its range; the message names it, what came and what is allowed."""


@dataclass(frozen=True)
class TrainOptions:
    """The options of one training run; :meth:`for_data` fills in what suits a data set.

    * ``data``, ``data_dir``: see :func:`snnfast.data.load`.
    * ``model``, ``model_options``: see :func:`snnfast.models.build`; the data set gives the shape of the images and the
      number of classes, ``steps`` and ``surrogate`` are options of their own. Plain values only, since checkpoints hold
      them. ``{"activation": "relu"}`` trains the ANN twin.
    * ``layer``: one of :data:`IMPLEMENTATIONS`, other than ``fused`` with the model ``digits`` only. The random numbers
      drawn do not depend on it.
    * ``steps``: time steps T for which each image is held in training.
    * ``eval_steps``: time steps at which the trained network is evaluated; empty means ``steps`` alone.
    * ``epochs``, ``batch_size``: passes over the training images; images a batch, of all processes together. A last
      batch that is not full is left out, another one each epoch.
    * ``lr``: the (highest) learning rate, or ``"find"``: :func:`snnfast.tuning.lr_range_test` finds it first.
    * ``schedule``: ``one-cycle``, or ``constant``.
    * ``loss``: cross entropy, ``sum`` of the logits summed over time, or ``tet`` of each step's logits, averaged over
      the steps (temporal efficient training, Deng et al. 2022, without its second term).
    * ``label_smoothing``: the share of the label's probability that is spread over all classes, from 0 to below 1.
    * ``ema``: the share of the past, from 0 to below 1, in an exponential moving average of weights and running
      statistics, which is what is evaluated then; None for none.
    * ``weight_decay``: AdamW's.
    * ``clip``: the norm to which the gradient is cut; None leaves it.
    * ``gamma``: the surrogate's sharpness in every spiking layer; ``"tune"``: :func:`snnfast.tuning.tune_gamma` finds
      it first; None: as the model has it.
    * ``surrogate``: its shape, one of :data:`SURROGATES`; None: as the model has it, the fast sigmoid.
    * ``augment``: ``cifar`` (:data:`snnfast.data.augment.CIFAR`), ``cifar-strong``
      (:data:`snnfast.data.augment.CIFAR_STRONG`: AutoAugment and cutout), or ``none``.
    * ``compile``: ``default`` or ``reduce-overhead``, the mode of ``torch.compile`` under which the network is
      trained; None trains it as it is. The second replays CUDA graphs on a GPU, which was not run here.
    * ``precision``: ``float32``, or ``bfloat16`` by autocast; None is bfloat16 on a GPU and float32 on the CPU.
    * ``seed``: of the initial weights, the order of the images, augmentation and dropout.
    * ``device``: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU where there is one and this build has kernels for
      it.
    * ``threads``: CPU threads of torch, for this run; None leaves them.
    * ``checkpoint_every``: seconds from one checkpoint to the next; there is one at the end of each epoch besides.
    * ``tensorboard``: whether to write TensorBoard's logs too.
    * ``out``: folder for the files, made if need be; files of an earlier run are overwritten, but its checkpoint is
      kept as ``checkpoint-previous.pt``.

    Raises :class:`OptionError`, or :class:`snnfast.data.DataError` for an unknown data set.
    """

    data: str = "digits"
    data_dir: str | None = None
    model: str = "digits"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    layer: str = "fused"
    steps: int = 10
    eval_steps: tuple[int, ...] = ()
    epochs: int = 20
    batch_size: int = 64
    lr: float | str = 5e-3
    schedule: str = "one-cycle"
    loss: str = "sum"
    label_smoothing: float = 0.0
    ema: float | None = None
    weight_decay: float = 0.01
    clip: float | None = None
    gamma: float | str | None = None
    surrogate: str | None = None
    augment: str = "none"
    compile: str | None = None
    precision: str | None = None
    seed: int = 0
    device: str | None = None
    threads: int | None = None
    checkpoint_every: float = 60.0
    tensorboard: bool = False
    out: str = "snnfast-train"

    def __post_init__(self) -> None:
        check_known(self.data)
        _checked(word, "model", self.model, models.names())
        _checked(word, "layer", self.layer, IMPLEMENTATIONS)
        _checked(word, "schedule", self.schedule, SCHEDULES)
        _checked(word, "loss", self.loss, LOSSES)
        if self.loss != "sum" and self.model == "digits":
            raise OptionError(f"loss must be 'sum' with the model 'digits', got {self.loss!r}")
        _checked(number_within, "label_smoothing", self.label_smoothing, least=0, below=1)
        if self.ema is not None:
            _checked(number_within, "ema", self.ema, least=0, below=1)
        _checked(word, "augment", self.augment, AUGMENTATIONS)
        if self.compile is not None:
            _checked(word, "compile", self.compile, COMPILE_MODES)
            if self.layer == "compiled":
                raise OptionError(f"compile must be None with the layer 'compiled', got {self.compile!r}")
        if self.precision is not None:
            _checked(word, "precision", self.precision, PRECISIONS)
        for name, value in self.model_options.items():
            if not _is_plain(value):
                allowed = "plain numbers, words, booleans, None or lists of them"
                raise OptionError(f"model_options must hold {allowed}, got {name}={value!r}")
        if self.surrogate is not None:
            _checked(word, "surrogate", self.surrogate, SURROGATES)
        if self.layer != "fused" and self.model != "digits":
            raise OptionError(f"layer must be 'fused' with the model {self.model!r}, got {self.layer!r}")
        for name, least, most in _COUNTS:
            _checked(integer, name, getattr(self, name), least=least, most=most)
        object.__setattr__(self, "eval_steps", tuple(self.eval_steps))
        for steps in self.eval_steps:
            _checked(integer, "eval_steps", steps, least=1)
        check_threads(self.threads)
        if self.lr != FIND:
            _checked(number_within, "lr", self.lr, above=0, most=MOST_RATE, allowed=f"a number or {FIND!r}")
        _checked(number_within, "weight_decay", self.weight_decay, least=0)
        if self.clip is not None:
            _checked(number_within, "clip", self.clip, above=0)
        if self.gamma is not None and self.gamma != TUNE:
            allowed = f"a number or {TUNE!r}"
            _checked(number_within, "gamma", self.gamma, least=0, most=LARGEST_FLOAT32, allowed=allowed)
        _checked(number_within, "checkpoint_every", self.checkpoint_every, least=0)
        if not self.out:
            raise OptionError("out must name a folder ('.' is the current one), got ''")

    @classmethod
    def for_data(cls, data: str, **given: Any) -> TrainOptions:
        """The options that suit the data set ``data``, with those in ``given`` that are not None in their place."""
        check_known(data)
        known = [field.name for field in fields(cls)]
        unknown = {name: value for name, value in given.items() if name not in known}
        if unknown:
            raise refuse("TrainOptions", cls, unknown)
        chosen = {name: value for name, value in given.items() if value is not None}
        preset = dict(_PRESETS[data])
        if "digits" in (chosen.get("model"), preset["model"]) or chosen.get("layer", "fused") != "fused":
            # The implementations other than the fused one are there for this network alone.
            preset |= {"model": "digits"} | _SMALL_PRESETS.get(data, {})
        if chosen.get("model", preset["model"]) != preset["model"]:
            preset.pop("model_options", None)
        options = {**preset, **chosen}
        if "model_options" in preset:  # one by one: who asks for the twin means the twin of this network
            options["model_options"] = {**preset["model_options"], **chosen.get("model_options", {})}
        spiking = options.get("model_options", {}).get("activation") != "relu"
        steps = options.get("steps", cls.steps)
        if spiking and options["model"] not in UNBALANCED:
            options.setdefault("gamma", TUNE)
        if spiking and data != "digits" and isinstance(steps, int):
            # The paper evaluates at twice the trained steps (section 3.2).
            options.setdefault("eval_steps", (steps, 2 * steps))
        return cls(data=data, **options)

    @property
    def evaluated_steps(self) -> tuple[int, ...]:
        """``eval_steps``, each once, or ``steps`` where there are none."""
        return tuple(dict.fromkeys(self.eval_steps)) or (self.steps,)


def default_in_words(name: str, unset: str = "") -> str:
    """What an option is for each data set where it is not given: "20 for digits, 100 for cifar10, cifar100".

    ``unset`` stands for None and for an empty value.
    """
    found: dict[str, list[str]] = {}
    for data in _PRESETS:
        value = getattr(TrainOptions.for_data(data), name)
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        found.setdefault(unset if value in (None, "") else str(value), []).append(data)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{value} for {', '.join(data)}" for value, data in found.items())


def check_threads(threads: int | None) -> None:
    """Raises :class:`OptionError` for what is no number of CPU threads; None, which leaves torch's, is allowed."""
    if threads is not None:
        _checked(integer, "threads", threads, least=1, most=MOST_THREADS)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _checked(check: Callable[..., Any], name: str, value: Any, *allowed: Any, **limits: Any) -> None:
    """A check of :mod:`snnfast._arguments.checks`, whose refusal is an :class:`OptionError`."""
    try:
        check(name, value, *allowed, **limits)
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error


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
