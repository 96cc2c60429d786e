"""The command ``snnfast reproduce``: the paper's tables and figures."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from snnfast.data import DataError, load
from snnfast.training.options import OptionError, check_threads, choose_device
from snnfast.training.output import OutputError, OutputFolder
from snnfast.training.run import environment
from snnfast.training.trainer import reproducible

from .. import environment as machine
from . import files, page
from .experiment import SCALES, Context, Experiment, Verdict

NAMES = ("table1", "table2", "table3", "fig2", "fig3", "fig4", "fig5", "fig6", "claims")
"""Modules of this folder, in the paper's order; ``claims`` is last, since it reads what the others found."""

ALL = "all"


class UsageError(Exception):
    """Arguments that cannot be used; the message is for the user."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with ``argv``.

    Returns its exit code: 0, also where a verdict is NOT SHOWN; 1 where an experiment failed; 2 for wrong arguments,
    missing data or an output folder that cannot be written, found before anything is trained and said in one line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = _parser().parse_args(arguments)
        device = choose_device(parsed.device)
        check_threads(parsed.threads)
        names = NAMES if parsed.name == ALL else (parsed.name,)
        if parsed.name not in (ALL, *NAMES):
            raise UsageError(f"unknown table or figure {parsed.name!r}; known: {', '.join((*NAMES, ALL))}")
        experiments = [_experiment(name) for name in names]
        out = OutputFolder(parsed.out)
        for one in experiments:
            OutputFolder(out.path / one.name)
        for data_set in dict.fromkeys(need for one in experiments for need in one.needs(parsed.scale)):
            load(data_set, parsed.data_dir)
    except (UsageError, OptionError, OutputError, DataError) as error:
        print(f"snnfast reproduce: error: {error}", file=sys.stderr)
        return 2
    context = Context(parsed.scale, parsed.data_dir, device, _say, str(out.path))
    command = f"snnfast reproduce {shlex.join(arguments)}"
    with reproducible(parsed.threads):
        return _run(experiments, context, out, command)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="snnfast reproduce",
        description="Reproduces a table or figure of the paper: CSV, plot and verdicts, and a page of all results.",
    )
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(NAMES)}, or {ALL}")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="small",
        help="small: minutes each on two CPU cores, on parts of the data; full: the paper's setting, for a GPU "
        "(default: small)",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the data sets' files (default: $SNNFAST_DATA)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument(
        "--out", metavar="DIR", default="snnfast-paper", help="folder for the results (default: ./snnfast-paper)"
    )
    return parser


def _experiment(name: str) -> Experiment:
    return importlib.import_module(f".{name}", __package__).EXPERIMENT


def _say(line: str) -> None:
    print(line, flush=True)


def _run(experiments: Sequence[Experiment], context: Context, out: OutputFolder, command: str) -> int:
    begin = time.monotonic()
    failed, verdicts = [], {}
    for experiment in experiments:
        name = experiment.name
        print(f"\n== {name}: {experiment.title} ({experiment.place}), scale {context.scale}", flush=True)
        try:
            verdicts[name] = _one(experiment, context, out, command)
        except Exception:
            if len(experiments) == 1:
                raise
            traceback.print_exc()
            failed.append(name)
        out.write_text("index.html", page.index(out.path, NAMES))
    if len(experiments) > 1:
        print(f"\n== verdicts, after {(time.monotonic() - begin) / 60:.1f} minutes")
        for name, found in verdicts.items():
            for verdict in found:
                print(f"{name}  {verdict}")
        for name in failed:
            print(f"{name}  FAILED: see its error above")
    print(f"\nThe results are in {out.path}: open index.html", flush=True)
    return 1 if failed else 0


def _one(experiment: Experiment, context: Context, out: OutputFolder, command: str) -> Sequence[Verdict]:
    begin = time.monotonic()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # nothing depends on what ran before
        outcome = experiment.run(context)
    seconds = time.monotonic() - begin
    described = machine.describe(context.device)
    about = {
        "scale": context.scale,
        "seconds": seconds,
        "command": command,
        "environment": {
            **environment(context.device),
            "cpu": described["cpu"],
            "commit": described["commit"],
            "allocator": described["allocator"],
            "date": described["date"],
        },
    }
    folder = OutputFolder(Path(out.path) / experiment.name)
    remarks = files.write(folder, experiment, outcome, about)
    for line in (*outcome.verdicts, *outcome.notes, *remarks):
        print(line)
    print(f"{experiment.name}: {seconds:.0f} s", flush=True)
    return outcome.verdicts


if __name__ == "__main__":
    sys.exit(main())
