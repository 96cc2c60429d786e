"""The command ``snnfast``: ``info``, ``bench``, ``train`` and ``reproduce``."""

from __future__ import annotations

import argparse
import ast
import io
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from snnfast.cli.command import USAGE, Parser, is_out_of_memory

_BENCH_HELP = "measure the layers against the loops and libraries they replace, on the devices present"
_OK, _FAILED, _INTERRUPTED, _NO_READER = 0, 1, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with ``argv`` (default: the process's arguments).

    Returns its exit code: 0; 1 where training diverged or compared results differ; 2 for wrong arguments, missing
    data or an output folder that cannot be written, said in one line on stderr; 130 when interrupted; 141 where
    nobody reads the output any more, as under ``| head``. An error that is not the user's is raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without "×" shows "?", and the run goes on
            stream.reconfigure(errors="replace")
    try:
        if arguments[:1] == ["bench"]:
            # Ahead of the parser: what follows, --help included, is the benchmark suite's own.
            from snnfast import benchmarks

            return benchmarks.main(arguments[1:])
        parsed = _parser().parse_args(arguments)
        return parsed.command(parsed)
    except SystemExit as exit_:  # wrong arguments; --help and --version
        return exit_.code if isinstance(exit_.code, int) else _OK
    except KeyboardInterrupt:
        print("\nsnnfast: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:  # what is still buffered would fail again as Python exits
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return _NO_READER


def _parser() -> argparse.ArgumentParser:
    import snnfast

    parser = Parser(prog="snnfast", description="Spiking neurons over time as one kernel, for PyTorch.")
    parser.add_argument("--version", action="version", version=f"snnfast {snnfast.__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="{info,bench,train,reproduce}", required=True, parser_class=Parser
    )
    info = commands.add_parser("info", help="print what was compiled and which versions are in use")
    info.set_defaults(command=_info)
    commands.add_parser("bench", help=_BENCH_HELP, add_help=False)
    _add_reproduce(commands.add_parser("reproduce", help="the paper's tables and figures"))
    _add_train(commands.add_parser("train", help="train a spiking network on real images"))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    from snnfast import models
    from snnfast.data import data_sets
    from snnfast.training import AUGMENTATIONS, IMPLEMENTATIONS, PRECISIONS, SCHEDULES, SURROGATES
    from snnfast.training.options import default_in_words as default

    parser.description = (
        "Trains a network of integrate-and-fire neurons as the paper does: constant-current input, summed readout, "
        "AdamW, a one-cycle schedule. Options that are not given take what suits the data set; with --resume, what the "
        "run had. Under torchrun --no-python, the processes train together."
    )
    parser.set_defaults(command=_train)
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
        "(default: none; stem=7x7 for imagenette)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--layer",
        metavar="NAME",
        help=f"implementation of the neurons in the network digits: {', '.join(IMPLEMENTATIONS)} (default: fused)",
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
    parser.add_argument(
        "--lr",
        type=_number_or_word,
        metavar="RATE",
        help=f"(highest) learning rate, or find: by a range test first (default: {default('lr')})",
    )
    parser.add_argument("--schedule", metavar="NAME", help=f"{', '.join(SCHEDULES)} (default: one-cycle)")
    parser.add_argument("--weight-decay", type=float, metavar="SHARE", help="AdamW's (default: 0.01)")
    parser.add_argument("--clip", type=float, metavar="NORM", help="cut the gradient to this norm (default: it is not)")
    parser.add_argument(
        "--gamma",
        type=_number_or_word,
        metavar="VALUE",
        help="sharpness of the surrogate, or tune: balance the gradients first (default: "
        f"{default('gamma', unset='that of the shape')})",
    )
    parser.add_argument(
        "--surrogate", metavar="NAME", help=f"its shape: {', '.join(SURROGATES)} (default: FastSigmoid)"
    )
    parser.add_argument(
        "--augment",
        metavar="NAME",
        help=f"of the training images: {', '.join(AUGMENTATIONS)} (default: {default('augment')})",
    )
    parser.add_argument(
        "--precision", metavar="NAME", help=f"{', '.join(PRECISIONS)} (default: bfloat16 on a GPU, float32 on the CPU)"
    )
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


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    from snnfast.benchmarks.paper import reproduce

    reproduce.add_arguments(parser)
    parser.set_defaults(command=reproduce.run)


def _model_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
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
    from snnfast.data import DataError
    from snnfast.training import (
        CheckpointError,
        DivergedError,
        MismatchError,
        OptionError,
        OutputError,
        compare,
        options_for,
        train,
    )

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "compare", "resume")}
    if given["model_options"] is not None:
        given["model_options"] = dict(given["model_options"])
    if arguments.compare and given["model"] is None:
        given["model"] = "digits"
    try:
        options = options_for(given.pop("data"), resume=arguments.resume, **given)
        if arguments.compare:
            compare(options)
        else:
            train(options, resume=arguments.resume)
    except (CheckpointError, DataError, OptionError, OutputError) as error:
        print(f"snnfast train: error: {error}", file=sys.stderr)
        return USAGE
    except (DivergedError, MismatchError) as error:
        print(f"snnfast train: {error}", file=sys.stderr)
        return _FAILED
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "choose fewer --steps or --eval-steps, a smaller --batch-size, or a smaller network"
        print(f"snnfast train: error: out of memory: {remedy}", file=sys.stderr)
        return USAGE
    return _OK


def _info(arguments: argparse.Namespace) -> int:
    import torch

    import snnfast

    facts: dict[str, Any] = {
        "snnfast": snnfast.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or "none",
        "build": snnfast.build_info(),
    }
    _print_facts(facts)
    return _OK


def _print_facts(facts: Mapping[str, Any], indent: str = "") -> None:
    """Names in one column, values in the next; nested facts indented below their name."""
    width = max((len(str(name)) for name in facts), default=0)
    for name, value in facts.items():
        if isinstance(value, Mapping):
            print(f"{indent}{name}")
            _print_facts(value, indent + "  ")
        elif isinstance(value, list | tuple):
            print(f"{indent}{name:<{width}}  {', '.join(map(str, value)) or 'none'}")
        else:
            print(f"{indent}{name:<{width}}  {value}")


if __name__ == "__main__":
    raise SystemExit(main())
