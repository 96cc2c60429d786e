"""The command ``snnfast``: ``info``, ``bench``, ``train`` and ``reproduce``."""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from snnfast.cli.command import Parser

_BENCH_HELP = "measure the layers against the loops and libraries they replace, on the devices present"
_OK, _INTERRUPTED, _NO_READER = 0, 130, 141


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
            return import_module("snnfast.benchmarks").main(arguments[1:])
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
    # Imported here, as the training itself is: `snnfast bench` needs none of it.
    import snnfast
    from snnfast.cli import train

    parser = Parser(prog="snnfast", description="Spiking neurons over time as one kernel, for PyTorch.")
    parser.add_argument("--version", action="version", version=f"snnfast {snnfast.__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="{info,bench,train,reproduce}", required=True, parser_class=Parser
    )
    info = commands.add_parser("info", help="print what was compiled and which versions are in use")
    info.set_defaults(command=_info)
    commands.add_parser("bench", help=_BENCH_HELP, add_help=False)
    _add_reproduce(commands.add_parser("reproduce", help="the paper's tables and figures"))
    train.add_arguments(commands.add_parser("train", help="train a spiking network on real images"))
    return parser


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    # By name: the benchmarks' folder in the source tree is another one than the package's (pyproject.toml), and what
    # checks types looks there.
    reproduce = import_module("snnfast.benchmarks.paper.reproduce")
    reproduce.add_arguments(parser)
    parser.set_defaults(command=reproduce.run)


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
