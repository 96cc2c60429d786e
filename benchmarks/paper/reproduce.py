"""The command ``snnfast reproduce``: the paper's tables and figures."""

from __future__ import annotations

import argparse
import importlib
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch

from snnfast.data import DataError
from snnfast.training.options import OptionError, check_threads, choose_device
from snnfast.training.output import OutputError, OutputFolder
from snnfast.training.trainer import reproducible

from ..environment import describe
from . import files, page
from .experiment import SCALES, Context, Experiment, Verdict

NAMES = ("table1", "table2", "table3", "fig2", "fig3", "fig4", "fig5", "fig6", "claims")
"""Modules of this folder, in the paper's order; ``claims`` is last, since it reads what the others found."""

ALL = "all"

SAID_EVERY = 10.0
"""Seconds after which a run that has said nothing says that it goes on."""


def run(arguments: argparse.Namespace) -> int:
    """Runs the command with what :func:`add_arguments` reads.

    Returns its exit code: 0, also where a verdict is NOT SHOWN; 1 where an experiment failed; 2 for an unknown name,
    missing data or an output folder that cannot be written, found before anything is trained and said in one line.
    """
    try:
        if arguments.name not in (*NAMES, ALL):
            raise OptionError(f"unknown table or figure {arguments.name!r}; known: {', '.join((*NAMES, ALL))}")
        device = choose_device(arguments.device)
        check_threads(arguments.threads)
        experiments = _chosen(arguments.name, arguments.scale)
        out = OutputFolder(arguments.out)
        for one in experiments:
            one.data_set(arguments.scale, arguments.data_dir)  # raises where there is none
        for one in experiments:
            OutputFolder(out.path / one.name)
    except (OptionError, OutputError, DataError) as error:
        print(f"snnfast reproduce: error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.name} at scale {arguments.scale} on {device}, into {out.path}", flush=True)
    if remark := files.why_no_plots():  # now, and not after the work
        print(remark, flush=True)
    with _Progress() as progress, reproducible(arguments.threads):
        context = Context(arguments.scale, arguments.data_dir, device, progress.say, str(out.path))
        return _run(experiments, context, out, _command(arguments))


def _chosen(name: str, scale: str) -> list[Experiment]:
    """The experiments of a name, or all, that have the scale; :class:`OptionError` where none has."""
    found = [_experiment(one) for one in (NAMES if name == ALL else (name,))]
    having = [one for one in found if scale in one.settings]
    if not having:
        others = [one for one in NAMES if scale in _experiment(one).settings]
        raise OptionError(f"{name} has no scale {scale}; these have: {', '.join(others)}")
    return having


def _command(arguments: argparse.Namespace) -> str:
    """The command that gives these results on another machine, whose folders have other names."""
    given = [f"--{name} {getattr(arguments, name)}" for name in ("device", "threads") if getattr(arguments, name)]
    return " ".join([f"snnfast reproduce {arguments.name} --scale {arguments.scale} --data-dir DIR", *given])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = "Reproduces a table or figure of the paper: CSV, plot and verdicts, and a page of all results."
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(NAMES)}, or {ALL}")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="small",
        help="small: minutes each on two CPU cores, on parts of the data; medium: hours on them, on whole data sets; "
        "full: the paper's setting, for a GPU; what these two train has checkpoints, from which the same command goes "
        "on (default: small)",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the data sets' files (default: $SNNFAST_DATA)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument(
        "--out", metavar="DIR", default="snnfast-paper", help="folder for the results (default: ./snnfast-paper)"
    )


def _experiment(name: str) -> Experiment:
    return importlib.import_module(f".{name}", __package__).EXPERIMENT


class _Progress:
    """Prints lines of progress, and where there are none for a while, that the run goes on."""

    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> _Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def say(self, line: str) -> None:
        self._last = time.monotonic()
        print(line, flush=True)

    def _go_on(self) -> None:
        while not self._ended.wait(SAID_EVERY / 10):
            if time.monotonic() - self._last >= SAID_EVERY:
                try:
                    self.say(f"  … {time.monotonic() - self._begin:.0f} s")
                except (OSError, ValueError):  # nobody reads any more: for the run itself to find out
                    return


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
    environment = describe(context.device)
    about = {"scale": context.scale, "seconds": seconds, "command": command, "environment": environment}
    folder = OutputFolder(Path(out.path) / experiment.name)
    remarks = files.write(folder, experiment, outcome, about)
    for line in (*outcome.verdicts, *outcome.notes, *remarks):
        print(line)
    print(f"{experiment.name}: {seconds:.0f} s", flush=True)
    return outcome.verdicts
