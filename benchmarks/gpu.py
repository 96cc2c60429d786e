"""The kernels alone on a GPU: device time of large tensors as a share of the copy bandwidth of the same run.

    python -m snnfast.benchmarks.gpu --out DIR

Each case is compared with the plain loop first. Its calls are then captured into CUDA graphs, every call in one with
inputs and outputs of its own, so that neither Python nor the cache is what is measured, and replayed in turns with
copies of a tensor of the same size. The host's cost of a call is measured apart, on a tiny tensor. results.json and
table.txt are written anew after each case: a run that is killed leaves what it measured.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnfast._errors import one_line
from snnfast.cli.command import USAGE, Parser, seconds
from snnfast.comparing.timing import CpuClock, Step, Timing, clock_for, interleaved
from snnfast.dynamics import state_dtype
from snnfast.training.options import OptionError, choose_device
from snnfast.training.output import OutputFolder

from . import environment, measure, predicted, rows
from .baselines import OURS, find
from .cases import CHECKPOINT_STEPS, Case
from .gpu_cases import BESIDE, LARGE, PER_CALL, one_sample, small
from .launched import launched
from .measure import Result, Workload
from .neuron import Forward
from .report import aligned, duration, size

FEWEST_SECONDS = 4.0
"""No case is begun with less time left."""

COMPILE_SECONDS = 60.0
"""Nor one that compiles."""


def bytes_by_pass(case: Case) -> dict[str, float]:
    """The fewest bytes that the passes of a case must move."""
    forward, training = replace(case, training=False).bytes_moved(), case.bytes_moved()
    assert forward is not None and training is not None
    written = 0.0  # of checkpoints, by the forward pass in training
    if case.time_steps > CHECKPOINT_STEPS and not case.neuron.kind.startswith("BatchNorm"):
        written = case.elements * (8 if case.dtype == torch.float64 else 4) / CHECKPOINT_STEPS
    return {"forward": forward, "backward": training - forward - written, "training": training}


Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Passes:
    """The calls of a case: each pass as a function of the turn, whose inputs and gradients are its own."""

    workload: Workload
    side: Forward
    gradients: Sequence[Tensor]

    @classmethod
    def of(cls, workload: Workload, side: Forward) -> Passes:
        copies = [workload.gradient.clone() for _ in workload.inputs[1:]]
        return cls(workload, side, [workload.gradient, *copies])

    def output(self, turn: int) -> Tensor:
        return self.workload.forward(self.side, self.workload.inputs[turn])

    def forward(self, turn: int) -> Tensors:
        with torch.no_grad():
            return (self.output(turn),)

    def backward(self, turn: int, output: Tensor) -> Tensors:
        leaves = (self.workload.inputs[turn], *self.workload.parameters)
        return torch.autograd.grad(output, leaves, self.gradients[turn], retain_graph=True)

    def training(self, turn: int) -> Tensors:
        output = self.output(turn)
        return (output, *self.backward(turn, output))

    def copy(self, turn: int) -> Tensors:
        """Of a tensor of the output's size."""
        held = self.workload.case.steps is not None
        return ((self.gradients if held else self.workload.inputs)[turn].detach().clone(),)


@dataclass(frozen=True)
class Replayed:
    """Calls that are run together, ``turns`` at a time."""

    step: Step
    turns: int
    by: str  # "graph", or "launches" one by one
    first: Tensors  # what the first of them gives


def captured(call: Callable[[int], Tensors], turns: int, stream: torch.cuda.Stream | None) -> Replayed:
    """The calls of all turns as one CUDA graph. Where there is no stream (on a CPU), or a call cannot be captured, they
    are launched one by one."""

    def one_by_one() -> None:
        for turn in range(turns):
            call(turn)

    if stream is None:
        return Replayed(one_by_one, turns, "launches", call(0))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            kept = [call(turn) for turn in range(turns)]  # all at once: each has memory of its own
    except RuntimeError as error:
        print(f"not captured: {one_line(error)}", file=sys.stderr)
        torch.cuda.synchronize()
        return Replayed(one_by_one, turns, "launches", call(0))
    for tensor in kept[0]:
        tensor.detach().fill_(float("nan"))  # a replay has to write it
    graph.replay()
    return Replayed(graph.replay, turns, "graph", kept[0])


def checked(case: Case, workload: Workload, side: Forward, device: torch.device) -> tuple[dict[str, Any], Result]:
    """Whether our results are those of the plain loop, which is given the same values in the state's dtype (MATH.md: no
    current is rounded between batch norm and neuron); and our results."""
    ours = workload.run(side)
    loop, state = find("naive"), state_dtype(case.dtype)
    current, *parameters = (
        tensor.detach().to(state, copy=True).requires_grad_() for tensor in (workload.inputs[0], *workload.parameters)
    )
    wide = Workload(case, [current], parameters, workload.gradient.to(state))
    theirs = wide.run(loop.make(case.neuron, device))
    rounding = loop.rounds_differently(case.neuron)
    return measure.compare(ours, theirs, dtype=case.dtype, rounding=rounding), ours


def measured(case: Case, device: torch.device, *, for_seconds: float | None = None) -> dict[str, Any]:
    """Measures the passes of one case.

    Returns the case's description with ``agrees`` and ``remark``, and where it agrees ``copy`` (its timing and bytes)
    and ``passes``: by name ``time`` (seconds a call), ``bytes``, ``bytes_per_second``, ``fraction`` of the copy's.
    """
    workload, side = Workload.of(case, device), find(OURS).make(case.neuron, device)
    record, wanted = checked(case, workload, side, device)
    record = case.describe() | record
    if not record["agrees"]:
        return record
    replayed = all_captured(Passes.of(workload, side), device)
    given = {
        "copy": replayed["copy"].first,
        "forward": (wanted.output,),
        "backward": wanted.gradients,
        "training": (wanted.output, *wanted.gradients),
    }
    for name, one in replayed.items():
        if not all(torch.equal(a, b) for a, b in zip(one.first, given[name], strict=True)):
            return record | {"agrees": False, "remark": f"differs: {name} as a graph from the same call by itself"}
    timings = interleaved(
        {name: one.step for name, one in replayed.items()},
        clock_for(device),
        seconds=case.seconds if for_seconds is None else for_seconds,
        fewest=5,
    )
    times = {name: per_call(timing, replayed[name].turns) for name, timing in timings.items()}
    copied = 2 * case.elements * case.dtype.itemsize
    bandwidth = copied / times["copy"].median
    record |= {"turns": len(workload.inputs), "by": sorted({one.by for one in replayed.values()})}
    record["copy"] = {"time": times["copy"].as_dict(), "bytes": copied, "bytes_per_second": bandwidth}
    record["passes"] = {
        name: {
            "time": times[name].as_dict(),
            "bytes": moved,
            "bytes_per_second": moved / times[name].median,
            "fraction": moved / times[name].median / bandwidth,
        }
        for name, moved in bytes_by_pass(case).items()
    }
    return record


def all_captured(passes: Passes, device: torch.device) -> dict[str, Replayed]:
    """A copy and the passes, by name."""
    turns = len(passes.gradients)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # None: nothing is chosen; a backward pass runs on its forward pass's stream
        outputs = [passes.output(turn) for turn in range(turns)]
    calls: dict[str, Callable[[int], Tensors]] = {
        "copy": passes.copy,
        "forward": passes.forward,
        "backward": lambda turn: passes.backward(turn, outputs[turn]),
        "training": passes.training,
    }
    return {name: captured(call, turns, stream) for name, call in calls.items()}


def per_call(timing: Timing, turns: int) -> Timing:
    return Timing(
        median=timing.median / turns,
        lower=timing.lower / turns,
        upper=timing.upper / turns,
        least=timing.least / turns,
        samples=timing.samples,
    )


class HostClock(CpuClock):
    """Wall-clock time of a call that queues its work, which is less than the call itself."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sample(self, step: Step, times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return (time.perf_counter() - begin) / times


def costs_of_a_call(device: torch.device, for_seconds: float) -> dict[str, dict[str, float]]:
    """Wall time of a call on a tiny tensor, forward and backward unless said otherwise, beside torch.relu's."""
    steps: dict[str, Step] = {}
    for name, case in PER_CALL.items():
        workload = Workload.of(case, device)
        steps[name] = workload.step(find(OURS).make(case.neuron, device))
    case = PER_CALL["IF"]
    steps["torch.relu"] = Workload.of(case, device).step(find("relu").make(case.neuron, device))
    for step in steps.values():
        step()
    timings = interleaved(steps, HostClock(device), seconds=for_seconds)
    return {name: timing.as_dict() for name, timing in timings.items()}


def with_predictions(case: Case, device: torch.device, record: dict[str, Any], table: Mapping[str, float]) -> None:
    """Adds the kernels of each pass, found on a small tensor, and what was predicted for them."""
    case = one_sample(case)
    passes = Passes.of(Workload.of(case, device), find(OURS).make(case.neuron, device))
    output = passes.output(0)
    calls = {"forward": functools.partial(passes.forward, 0), "backward": functools.partial(passes.backward, 0, output)}
    names = {name: sorted(launched(call, device)) for name, call in calls.items()}
    shares = {name: predicted.of_kernels(found, table) for name, found in names.items()}
    for name, found in names.items():
        record["passes"][name] |= {"kernels": found, "predicted": shares[name]}
    whole, forward, backward = record["passes"]["training"], shares["forward"], shares["backward"]
    whole["predicted"] = None
    if forward and backward:
        moved = record["passes"]["backward"]["bytes"]
        whole["predicted"] = whole["bytes"] / ((whole["bytes"] - moved) / forward + moved / backward)


# The command


class Run:
    """A run's results, on disk as far as they have come."""

    def __init__(self, folder: Path, device: torch.device, until: float) -> None:
        self.folder, self.device, self.until = folder, device, until
        self.results: dict[str, Any] = {
            "format": 1,
            "suite": "gpu",
            "complete": False,
            "environment": environment.describe(device),
            "per_call": {},
            "cases": [],
            "beside": [],
            "failed": {},
            "left_out": [],
        }

    def keep(self) -> None:
        for name, content in (
            ("results.json", json.dumps(self.results, indent=1, default=str) + "\n"),
            ("table.txt", table(self.results) + "\n"),
        ):
            part = self.folder / f"{name}.part"
            part.write_text(content)
            os.replace(part, self.folder / name)  # whole at any moment

    def each(self, cases: Sequence[Case], into: str, work: Callable[[Case], dict[str, Any]]) -> None:
        for case in cases:
            needed = COMPILE_SECONDS if "compiled" in case.sides else FEWEST_SECONDS
            if time.monotonic() + needed > self.until:
                self.results["left_out"].append(case.name)
                continue
            begin = time.monotonic()
            try:
                self.results[into].append(work(case))
            except Exception as error:  # the rest is worth having
                self.results["failed"][case.name] = f"{type(error).__name__}: {one_line(error)}"
            took = time.monotonic() - begin
            print(f"{case.name}: {took:.1f} s {self.results['failed'].get(case.name, '')}", file=sys.stderr, flush=True)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.keep()


def table(results: Mapping[str, Any]) -> str:
    """The results in words."""
    machine = results["environment"]
    lines = [f"{machine['device_name']}, torch {machine['versions']['torch']}, commit {machine['commit']}"]
    told = [case for case in results["cases"] if case["agrees"]]
    if told:
        passes = [(name, "moved", "of copy", "predicted") for name in told[0]["passes"]]
        head = ("case", "copy GB/s", *(word for words in passes for word in words))
        lines += ["", *aligned([head, *map(_row, told)]), ""]
    lines += [f"WRONG {case['name']}: {case['remark']}" for case in results["cases"] if not case["agrees"]]
    for name, timing in results["per_call"].items():
        lines.append(f"a call of {name} on a tiny tensor: {duration(timing['median'])} of the host's time")
    for case in results["beside"]:
        lines.append(f"{case['name']}, {case['dtype']}: " + ", ".join(_beside(case)))
    lines += [f"FAILED {name}: {reason}" for name, reason in results["failed"].items()]
    if results["left_out"]:
        lines.append(f"no time left for {', '.join(results['left_out'])}")
    return "\n".join(lines)


def _row(case: Mapping[str, Any]) -> tuple[str, ...]:
    cells = [case["name"], f"{case['copy']['bytes_per_second'] / 1e9:.0f}"]
    for one in case["passes"].values():
        share = one.get("predicted")
        cells += [duration(one["time"]["median"]), size(one["bytes"]), f"{one['fraction']:.1%}"]
        cells.append("-" if share is None else f"{share:.0%}")
    return tuple(cells)


def _beside(case: dict[str, Any]) -> list[str]:
    told = []
    for name, side in case["sides"].items():
        if name == OURS:
            continue
        ratio = measure.ratio(case, name)
        if ratio is not None:
            told.append(f"{side['title']} {ratio:.2f}x ours")
        else:
            told.append(f"{side['title']}: {side.get('skipped') or side.get('remark') or 'not timed'}")
    return told


def wrong(results: Mapping[str, Any]) -> list[str]:
    """The cases whose results are not the plain loop's, and those that failed."""
    return [case["name"] for case in results["cases"] if not case["agrees"]] + list(results["failed"])


def _parser() -> Parser:
    parser = Parser(prog="python -m snnfast.benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", help="default: a GPU where there is one with kernels for it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for results.json and table.txt")
    parser.add_argument("--seconds", type=seconds, default=110.0, help="begin no case that would end later")
    parser.add_argument("--small", action="store_true", help="tiny tensors: shows that it runs, measures nothing")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--append", type=Path, metavar="DIR", help="add a row per case and pass to DIR/gpu.csv")
    parser.add_argument(
        "--predicted", type=Path, default=predicted.FOLDER, help="a CSV file of predictions, or a folder"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, 1 where a result is wrong or missing, 2 for wrong arguments."""
    begin = time.monotonic()
    parser = _parser()
    arguments = parser.parse_args(argv)
    known = [case.name for case in (*LARGE, *BESIDE)]
    try:
        unknown = [name for name in arguments.case if name not in known]
        if unknown:
            raise ValueError(f"unknown case {unknown[0]!r}; the cases are: {', '.join(known)}")
        device = choose_device(arguments.device)
        OutputFolder(arguments.out)
        if arguments.append is not None:
            rows.check(arguments.append, ["gpu"])
        architecture = "".join(map(str, torch.cuda.get_device_capability(device))) if device.type == "cuda" else ""
        shares = predicted.read(arguments.predicted, architecture)
    except (OptionError, OSError, ValueError) as error:
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return USAGE
    shrunk = small if arguments.small else lambda case: case
    large, beside = (
        [shrunk(case) for case in cases if not arguments.case or case.name in arguments.case]
        for cases in (LARGE, [case for case in BESIDE if not (arguments.small and "compiled" in case.sides)])
    )
    if not large and not beside:
        print(f"{parser.prog}: error: --small leaves out {', '.join(arguments.case)}", file=sys.stderr)
        return USAGE
    run = Run(arguments.out, device, begin + arguments.seconds)
    results = run.results
    results["per_call"] = costs_of_a_call(device, 0.1 if arguments.small else 2.0)
    run.each(large, "cases", lambda case: measured(case, device))
    run.each(beside, "beside", lambda case: measure.measure(case, device))
    cases = {case.name: case for case in large}
    for record in results["cases"]:
        if record["agrees"]:
            try:
                with_predictions(cases[record["name"]], device, record, shares)
            except Exception as error:  # what was measured is worth having
                results["failed"][f"{record['name']}, its kernels' names"] = (
                    f"{type(error).__name__}: {one_line(error)}"
                )
    results["complete"] = not results["left_out"]
    run.keep()
    if arguments.append is not None:
        rows.append(arguments.append, "gpu", rows.of_gpu(results))
    print(table(results))
    return 1 if wrong(results) else 0


if __name__ == "__main__":
    sys.exit(main())
