"""``snnfast train``."""

from __future__ import annotations

import argparse
import ast
import sys
from typing import Any

from snnfast import models, training
from snnfast._errors import is_out_of_memory
from snnfast.cli.command import USAGE
from snnfast.data import DataError, data_sets
from snnfast.training.options import default_in_words as default

_OK, _FAILED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``snnfast train``."""
    parser.description = (
        "Trains a network of integrate-and-fire neurons as the paper does: constant-current input, summed readout, "
        "AdamW, a one-cycle schedule. Options that are not given take what suits the data set; with --resume, what the "
        "run had. Under torchrun --no-python, the processes train together."
    )
    parser.set_defaults(command=_train)
    _add_network(parser)
    _add_task(parser)
    _add_optimization(parser)
    _add_surroundings(parser)


def _add_network(parser: argparse.ArgumentParser) -> None:
    """What is trained, on what."""
    parser.add_argument("--data", metavar="NAME", help=f"data set: {', '.join(data_sets())} (default: digits)")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder with the data set's files (default: $SNNFAST_DATA; digits needs none)"
    )
    parser.add_argument(
        "--model", metavar="NAME", help=f"network: {', '.join(models.names())} (default: {default('model')})"
    )
    parser.add_argument(
        "--model-option",
        action="append",
        type=_model_option,
        metavar="NAME=VALUE",
        dest="model_options",
        help="an option of the network, such as layers=9 or activation=relu for its ANN twin; may be repeated "
        "(default: none; zero_init_residual=true and shortcut_scale=2.0 for cifar100 and imagenette, whose preset the "
        "others come to, and stem=7x7 for imagenette)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--layer",
        metavar="NAME",
        help="implementation of the neurons in the network digits: "
        f"{', '.join(training.IMPLEMENTATIONS)} (default: fused)",
    )
    which.add_argument(
        "--compare",
        action="store_true",
        help="train the network digits fused and naive in turn; print the speed-up of the whole step and of the neuron "
        "layers",
    )
    which.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in the folder, if there is one, as if the run had never stopped",
    )


def _add_task(parser: argparse.ArgumentParser) -> None:
    """For how long, in steps, epochs and batches."""
    parser.add_argument("--steps", type=int, metavar="T", help="time steps an image is held for (default: 10)")
    parser.add_argument(
        "--eval-steps",
        type=_step_counts,
        metavar="T[,T...]",
        help="time steps at which the trained network is evaluated (default: those of --steps, and for data sets other "
        "than digits twice as many too)",
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help=f"passes over the training images (default: {default('epochs')})"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"images a batch, of all processes together (default: {default('batch_size')})",
    )


def _add_optimization(parser: argparse.ArgumentParser) -> None:
    """How."""
    parser.add_argument(
        "--lr",
        type=_number_or_word,
        metavar="RATE",
        help=f"(highest) learning rate, or find: by a range test first (default: {default('lr')})",
    )
    parser.add_argument("--schedule", metavar="NAME", help=f"{', '.join(training.SCHEDULES)} (default: one-cycle)")
    parser.add_argument(
        "--loss",
        metavar="NAME",
        help=f"{', '.join(training.LOSSES)}: cross entropy of the logits summed over time, or of each step's, averaged "
        "(default: sum)",
    )
    parser.add_argument(
        "--label-smoothing", type=float, metavar="SHARE", help="of a label, spread over all classes (default: 0)"
    )
    parser.add_argument(
        "--ema",
        type=float,
        metavar="SHARE",
        help="of the past in a moving average of the weights, which is evaluated then (default: no average)",
    )
    parser.add_argument("--weight-decay", type=float, metavar="SHARE", help="AdamW's (default: 0.01)")
    parser.add_argument("--clip", type=float, metavar="NORM", help="cut the gradient to this norm (default: it is not)")
    parser.add_argument(
        "--gamma",
        type=_number_or_word,
        metavar="VALUE",
        help="sharpness of the surrogate, or tune: balance the gradients first (default: "
        f"{default('gamma', unset='that of the shape')}; with another spiking network tune)",
    )
    parser.add_argument(
        "--surrogate", metavar="NAME", help=f"its shape: {', '.join(training.SURROGATES)} (default: FastSigmoid)"
    )
    parser.add_argument(
        "--augment",
        metavar="NAME",
        help=f"of the training images: {', '.join(training.AUGMENTATIONS)} (default: {default('augment')})",
    )
    parser.add_argument(
        "--compile",
        metavar="MODE",
        help=f"train the network under torch.compile: {', '.join(training.COMPILE_MODES)} (default: as it is)",
    )
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help=f"{', '.join(training.PRECISIONS)} (default: bfloat16 on a GPU, float32 on the CPU)",
    )


def _add_surroundings(parser: argparse.ArgumentParser) -> None:
    """Where, and what is written."""
    parser.add_argument("--seed", type=int, metavar="N", help="of all that is random (default: 0)")
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU where there is one with kernels for it)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument(
        "--checkpoint-every", type=float, metavar="SECONDS", help="between two checkpoints (default: 60)"
    )
    parser.add_argument(
        "--tensorboard",
        action="store_const",
        const=True,
        help="write TensorBoard's logs too, into DIR/tensorboard (default: no)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for history, evaluations, summary and checkpoint (default: ./snnfast-train); files of an earlier "
        "run are overwritten, but its checkpoint is kept as checkpoint-previous.pt",
    )


def _model_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
    except (ValueError, SyntaxError):
        return name, value  # a word


def _step_counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be one or more integers, T or T,T,..., got {text!r}") from None


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _train(arguments: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "compare", "resume")}
    if given["model_options"] is not None:
        given["model_options"] = dict(given["model_options"])
    if arguments.compare and given["model"] is None:
        given["model"] = "digits"
    try:
        options = training.options_for(given.pop("data"), resume=arguments.resume, **given)
        if arguments.compare:
            training.compare(options)
        else:
            training.train(options, resume=arguments.resume)
    except (training.CheckpointError, DataError, training.OptionError, training.OutputError) as error:
        print(f"snnfast train: error: {error}", file=sys.stderr)
        return USAGE
    except (training.DivergedError, training.MismatchError) as error:
        print(f"snnfast train: {error}", file=sys.stderr)
        return _FAILED
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "choose fewer --steps or --eval-steps, a smaller --batch-size, or a smaller network"
        print(f"snnfast train: error: out of memory: {remedy}", file=sys.stderr)
        return USAGE
    return _OK
