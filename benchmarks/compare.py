"""Base against head: whether a revision gives the same bits, and what it made slower.

    python -m snnfast.benchmarks.compare REV              the working tree against REV
    python -m snnfast.benchmarks.compare REV --head REV2

Builds both revisions, each in a folder of its own, puts this benchmark suite into both, and asks two processes in
turns, so that a neighbour's load falls on both alike.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from snnfast import comparing
from snnfast._errors import one_line
from snnfast.cli.command import USAGE, Parser, integer, seconds

from . import environment, random_calls, rows
from .cases import select

SIDES = ("base", "head")
MOST_SLOWER = 0.05
MOST_SHOWN = 20
MOST_AGAIN = 2
"""How often a case that looks slower is measured again, in fresh processes and for twice as long."""


class CompareError(Exception):
    """What stands in the way of a comparison, for the user."""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m snnfast.benchmarks.compare",
        description="Builds two revisions of the checkout that it runs in, shows whether random calls give the same "
        "bits in both, and times the benchmark's cases in both, in turns. A case that looks slower is measured again, "
        f"twice, before it counts as slower by more than {MOST_SLOWER:.0%}. The exit code is 0 where all results are "
        "equal and nothing is slower, 1 where something is not, and 2 for what cannot be compared.",
    )
    parser.add_argument("base", metavar="REV", help="the revision to compare with, as git names it")
    parser.add_argument("--head", metavar="REV", help="the revision that is judged (default: the working tree)")
    parser.add_argument(
        "--calls",
        type=integer(0, 10**6),
        default=500,
        metavar="N",
        help="random calls whose results must be equal (default: 500)",
    )
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="NAME",
        help="a case or group to time; 'none' for no timing; may be repeated (default: the default suite)",
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=1.0,
        metavar="S",
        help="time for each side of a case in each round (default: 1)",
    )
    parser.add_argument(
        "--rounds", type=integer(1, 1000), default=3, metavar="N", help="rounds, each in fresh processes (default: 3)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--append", type=Path, metavar="DIR", help="add a row per case to DIR/compare.csv (default: no rows)"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="build there, and use what an earlier comparison of the same commits built there",
    )
    return parser


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        raise CompareError("git is not installed") from None
    except subprocess.CalledProcessError as error:
        raise CompareError(f"git {' '.join(arguments)}: {one_line(error.stderr)}") from None


@dataclass(frozen=True)
class Revision:
    """A revision, built: the folder to import it from."""

    name: str
    commit: str
    folder: Path


def _build(name: str, revision: str | None, top: Path, folder: Path, cuda: bool) -> Revision:
    """Installs a revision (None: the working tree) into a folder of its own; CompareError where that fails."""
    if revision is None:
        commit = _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    else:
        commit = _git("rev-parse", "--verify", f"{revision}^{{commit}}")
    target = folder / commit
    if not (target / "snnfast").is_dir() or commit.endswith("+"):
        print(f"building {name}, {commit[:12]}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            source = top
            if revision is not None:
                source = Path(temporary) / "source"
                source.mkdir()
                archive = subprocess.run(["git", "-C", str(top), "archive", commit], capture_output=True, check=True)
                subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
            shutil.rmtree(target, ignore_errors=True)
            environ = dict(os.environ, SNNFAST_CUDA="1" if cuda else "0")
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(target),
                str(source),
            ]
            finished = subprocess.run(command, env=environ, capture_output=True, text=True)
            if finished.returncode != 0:
                raise CompareError(f"{name}, {commit[:12]}, does not build:\n{finished.stderr.strip()[-2000:]}")
    # One program measures both: this one.
    for suite in (Path(__file__).parent, Path(comparing.__file__).parent):
        copy = target / "snnfast" / suite.name
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(suite, copy, ignore=shutil.ignore_patterns("results", "__pycache__"))
    return Revision(name, commit, target)


class Side:
    """A process that runs one revision."""

    def __init__(self, revision: Revision, device: str, preloaded: dict[str, str]) -> None:
        environ = dict(preloaded, PYTHONPATH=str(revision.folder))
        self.name = revision.name
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "snnfast.benchmarks.compare_worker", device],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=revision.folder,
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()

    def ask(self, call: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended: there is no answer to read
            self.process.stdin.write(json.dumps({"call": call} | arguments) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise CompareError(f"the process of {self.name} ended with exit code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise CompareError(f"{self.name}: {answer['error']}")
        return answer["value"]


@dataclass
class Compared:
    """One case: seconds per iteration of every turn, (median, least) of each side."""

    name: str
    equal: bool = True
    turns: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {side: [] for side in SIDES})
    again: int = 0

    def seconds(self, side: str) -> float:
        return statistics.median(median for median, _ in self.turns[side])

    @property
    def ratios(self) -> list[float]:
        """Head's time over base's, of each turn."""
        return [head[0] / base[0] for base, head in zip(self.turns["base"], self.turns["head"], strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def ratio_of_least(self) -> float:
        """Of the fastest samples: what is left once every disturbance is taken away."""
        return min(least for _, least in self.turns["head"]) / min(least for _, least in self.turns["base"])

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        lower, _, upper = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return lower, upper

    @property
    def slower(self) -> bool:
        """By more than noise explains: in the turns' median and in the fastest samples."""
        return min(self.ratio, self.ratio_of_least) > 1 + MOST_SLOWER


class Comparison:
    """Two built revisions and how to ask them."""

    def __init__(self, revisions: Sequence[Revision], device: str) -> None:
        self.revisions = revisions
        self.device = device
        self.environ = environment.preloading(dict(os.environ)) or dict(os.environ)

    def _sides(self, stack: ExitStack) -> dict[str, Side]:
        return {
            revision.name: stack.enter_context(Side(revision, self.device, self.environ)) for revision in self.revisions
        }

    def different_calls(self, count: int) -> list[tuple[str, str]]:
        """Of ``count`` random calls the results that differ: their names, and a line about each."""
        differing = []
        with ExitStack() as stack:
            sides = self._sides(stack)
            for side in sides.values():
                print(f"{side.name}: snnfast {side.ask('version')}", file=sys.stderr)
            for first in range(0, count, 100):
                number = min(100, count - first)
                base, head = (sides[name].ask("digests", first=first, count=number) for name in SIDES)
                for seed, (old, new) in enumerate(zip(base, head, strict=True), first):
                    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
                    differing += [
                        (name, f"{random_calls.draw(seed)}: {name}: {old.get(name)}, now {new.get(name)}")
                        for name in names
                    ]
        return differing

    def time(self, cases: Sequence[Compared], seconds: float) -> None:
        """One round over the cases, in fresh processes; adds to what was measured before."""
        turns = 5
        with ExitStack() as stack:
            sides = self._sides(stack)
            for case in cases:
                digests = {name: sides[name].ask("prepare", name=case.name) for name in SIDES}
                case.equal = case.equal and digests["base"] == digests["head"]
                for turn in range(turns):
                    for name in SIDES if turn % 2 == 0 else reversed(SIDES):
                        case.turns[name].append(tuple(sides[name].ask("sample", seconds=seconds / turns)))
                print(f"{case.name}: {case.ratio:.3f}", file=sys.stderr, flush=True)


def table(cases: Sequence[Compared]) -> str:
    """The cases, the slowest first."""
    lines = [f"{'case':34} {'base ms':>9} {'head ms':>9} {'ratio':>6} {'quartiles':>13} {'fastest':>8}  results"]
    for case in sorted(cases, key=lambda case: -case.ratio):
        lower, upper = case.quartiles
        verdict = "SLOWER" if case.slower else ""
        lines.append(
            f"{case.name:34} {case.seconds('base') * 1e3:9.4g} {case.seconds('head') * 1e3:9.4g} "
            f"{case.ratio:6.3f} {lower:6.3f}-{upper:.3f} {case.ratio_of_least:8.3f}  "
            f"{'equal' if case.equal else 'DIFFERENT'} {verdict}".rstrip()
        )
    return "\n".join(lines)


def _rows(cases: Sequence[Compared], revisions: Sequence[Revision], where: dict[str, Any]) -> list[rows.Row]:
    machine = {name: value for name, value in rows.machine(where).items() if name in rows.MACHINE}
    found: list[rows.Row] = []
    for case in cases:
        lower, upper = case.quartiles
        found.append(
            {
                **machine,
                **{revision.name: revision.commit for revision in revisions},
                "case": case.name,
                "base_seconds": case.seconds("base"),
                "head_seconds": case.seconds("head"),
                "ratio": case.ratio,
                "lower_quartile": lower,
                "upper_quartile": upper,
                "ratio_of_fastest": case.ratio_of_least,
                "results_equal": case.equal,
            }
        )
    return found


def _compare(arguments: Any, folder: Path) -> bool:
    top = Path(_git("rev-parse", "--show-toplevel"))
    cuda = arguments.device == "cuda"
    revisions = [_build("base", arguments.base, top, folder, cuda), _build("head", arguments.head, top, folder, cuda)]
    comparison = Comparison(revisions, arguments.device)
    differing = comparison.different_calls(arguments.calls)
    for _, line in differing[:MOST_SHOWN]:
        print(f"DIFFERENT {line}")
    print(f"random calls: {arguments.calls}, results that differ: {len(differing)}", flush=True)
    for name, times in Counter(name for name, _ in differing).most_common():
        print(f"  {name}: {times}")
    cases = []
    if arguments.case != ["none"]:
        cases = [Compared(case.name) for case in select("default", arguments.device, arguments.case)]
    for _ in range(arguments.rounds if cases else 0):
        comparison.time(cases, arguments.seconds)
    for again in range(1, MOST_AGAIN + 1):
        doubtful = [case for case in cases if case.slower]
        if not doubtful:
            break
        for case in doubtful:
            case.again = again
        comparison.time(doubtful, 2 * arguments.seconds)
    if cases:
        where = environment.describe(torch.device(arguments.device))
        print(
            f"{where['device_name']}, {where['threads']} threads, torch {where['versions']['torch']}, "
            f"load {', '.join(f'{load:.1f}' for load in where['load_average'])}; "
            f"base {revisions[0].commit[:12]}, head {revisions[1].commit[:12]}"
        )
        print(table(cases))
        slower = [case.name for case in cases if case.slower]
        print(f"slower by more than {MOST_SLOWER:.0%}: {', '.join(slower) or 'none'}")
        if arguments.append is not None:
            rows.append(arguments.append, "compare", _rows(cases, revisions, where))
    return not differing and all(case.equal and not case.slower for case in cases)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; 0 where all is equal and nothing slower, 1 where something is, 2 for bad usage."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.append is not None:
            rows.check(arguments.append, ["compare"])
        with ExitStack() as stack:
            folder = arguments.keep
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="snnfast-compare-")))
            folder = folder.absolute()
            folder.mkdir(parents=True, exist_ok=True)
            return 0 if _compare(arguments, folder) else 1
    except (CompareError, ValueError) as error:
        print(f"compare: {one_line(error) if isinstance(error, ValueError) else error}", file=sys.stderr)
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
