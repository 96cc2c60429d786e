"""One case measured: every side built, run once, compared, counted and timed, all in this process."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnfast.comparing.timing import Neighbours, clock_for, interleaved

from .baselines import BASELINES, OURS, Baseline, find
from .cases import BLOCKS, Case
from .kept import kept_for_backward, peak_memory, rotations
from .neuron import Forward, Neuron, Unsupported

# the largest gradient error, relative to that tensor's largest gradient, that rounding explains
GRADIENT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
NEURONS_THAT_MAY_DIFFER = 1e-4


@dataclass(frozen=True)
class Result:
    """What one run gives: the output, and in training the gradients of the input and the parameters."""

    output: Tensor
    gradients: tuple[Tensor, ...]


@dataclass
class Workload:
    """The tensors of a case: inputs to rotate through, shared parameters, and the gradient of the output."""

    case: Case
    inputs: list[Tensor]
    parameters: Sequence[Tensor]
    gradient: Tensor

    @classmethod
    def of(cls, case: Case, device: torch.device) -> Workload:
        generator = torch.Generator(device).manual_seed(20060_4436)

        def normal(shape: Sequence[int]) -> Tensor:
            return case.laid_out(torch.randn(shape, generator=generator, device=device).to(case.dtype))

        # half of the currents' spread is one threshold in two steps: about a fifth of the neurons fire at a step
        first = normal(case.shape) * 0.5 + 0.1
        bytes_each = max(first.nbytes, 1)
        inputs = [first] + [case.laid_out(first.flip(1).clone()) for _ in range(rotations(bytes_each, device) - 1)]
        parameters = BLOCKS[case.block].parameters(case, device, generator)
        gradient = normal(case.output_shape)
        return cls(case, [x.requires_grad_(case.training) for x in inputs], parameters, gradient)

    def forward(self, side: Forward, x: Tensor) -> Tensor:
        return BLOCKS[self.case.block].around(side, self.parameters)(x, steps=self.case.steps)

    def run(self, side: Forward, x: Tensor | None = None, forward_only: bool = False) -> Result:
        x = self.inputs[0] if x is None else x
        if forward_only or not self.case.training:
            with torch.no_grad():
                return Result(self.forward(side, x), ())
        output = self.forward(side, x)
        return Result(output, torch.autograd.grad(output, (x, *self.parameters), self.gradient.to(output.dtype)))

    def step(self, side: Forward, forward_only: bool = False) -> Callable[[], object]:
        turns = itertools.cycle(self.inputs)
        return lambda: self.run(side, next(turns), forward_only) and None


def compare(mine: Result, theirs: Result, *, dtype: torch.dtype, rounding: str = "") -> dict[str, Any]:
    """Whether two sides computed the same: spikes equal exactly, gradients within rounding.

    With `rounding` (a reason), neurons whose spikes differ are left out, and up to 1e-4 of them may.

    Returns a dict: agrees (bool), remark, differing_neurons and gradient_error (relative to the largest gradient; None
    where there is none).
    """
    if theirs.output.shape != mine.output.shape:
        return {
            "agrees": False,
            "remark": f"differs: shape {tuple(theirs.output.shape)}, not {tuple(mine.output.shape)}",
            "differing_neurons": None,
            "gradient_error": None,
        }
    apart = (theirs.output.to(mine.output.dtype) != mine.output).any(0)
    differing = apart.float().mean().item() if apart.numel() else 0.0
    error = None
    for ours, other in zip(mine.gradients, theirs.gradients, strict=True):
        ours, other = ours.double(), other.double()
        scale = ours.abs().max().item() if ours.numel() else 0.0
        difference = (ours - other).abs()
        if rounding and ours.shape == mine.output.shape:
            difference = difference.masked_fill(apart.unsqueeze(0), 0.0)
        largest = difference.max().item() if ours.numel() else 0.0
        # a NaN on one side is a difference, and max() keeps it
        error = max(error or 0.0, largest / scale if scale else largest) if largest == largest else float("nan")
        if error != error:
            break
    record = {"differing_neurons": differing, "gradient_error": error}
    if differing > (NEURONS_THAT_MAY_DIFFER if rounding else 0.0):
        return record | {"agrees": False, "remark": f"differs: the spikes of {differing:.2%} of the neurons"}
    if error is not None and not error <= GRADIENT_TOLERANCE[dtype]:
        return record | {"agrees": False, "remark": f"differs: gradients by {error:.1e} of the largest"}
    but = f", but for {differing:.1e} of the neurons ({rounding})" if differing else ""
    return record | {"agrees": True, "remark": f"same results{but}"}


def _oracle(workload: Workload, neuron: Neuron, device: torch.device) -> Result:
    return workload.run(find(OURS).make(neuron, device))


def measure(
    case: Case, device: torch.device, *, seconds: float | None = None, baselines: Sequence[Baseline] | None = None
) -> dict[str, Any]:
    """Measures one case on a device.

    Args:
        case: the workload.
        device: where.
        seconds: time to spend, instead of the case's own.
        baselines: the implementations, instead of those the case names; snnfast must be among them.

    Returns:
        The case's description with "sides": for each side its timing in seconds, kept and peak bytes, and whether its
        results agree with snnfast's; or why it did not run. Only a failure of snnfast itself raises.
    """
    if baselines is None:
        baselines = tuple(find(name, BASELINES) for name in case.sides)
    workload = Workload.of(case, device)
    sides: dict[str, dict[str, Any]] = {}
    running: dict[str, Callable[[], object]] = {}
    for baseline in baselines:
        if device.type not in baseline.devices:
            continue
        record: dict[str, Any] = {"title": baseline.title, "note": baseline.note}
        sides[baseline.name] = record
        if why := baseline.why_not(device, case.dtype):
            record["skipped"] = why
            continue
        try:
            side = baseline.make(case.neuron, device)
            begin = time.perf_counter()
            result = workload.run(side, forward_only=baseline.forward_only)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if baseline.slow_start:
                record["first_call"] = time.perf_counter() - begin
            if not baseline.yardstick and baseline.name != OURS:
                own = baseline.own_dynamics(case.neuron)
                record |= compare(
                    _oracle(workload, own, device),
                    result,
                    dtype=case.dtype,
                    rounding=baseline.rounds_differently(case.neuron),
                )
                if own != case.neuron:
                    record["own_dynamics"] = own.describe()
            del result
            if case.training and not baseline.forward_only:
                record["kept"] = kept_for_backward(
                    functools.partial(workload.forward, side, workload.inputs[0]),
                    workload.inputs[:1],
                    workload.parameters,
                ).as_dict()
            step = workload.step(side, baseline.forward_only)
            record["peak_bytes"] = peak_memory(step, device)
        except Unsupported as error:
            record["skipped"] = str(error)
            continue
        except Exception as error:  # a peer that fails must not end the run; ours must
            if baseline.name == OURS:
                raise
            record["skipped"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        running[baseline.name] = step
    neighbours = Neighbours()
    timings = interleaved(running, clock_for(device), seconds=case.seconds if seconds is None else seconds)
    for name, timing in timings.items():
        sides[name]["time"] = timing.as_dict()
    others = neighbours.cores() if device.type == "cpu" else None
    return case.describe() | {"sides": sides, "cores_used_by_others": others}


def ratio(case: dict[str, Any], slower: str, faster: str = OURS) -> float | None:
    """How many times the time of `faster` the side `slower` takes, in a measured case; None where one did not run, or
    where their results were compared and differ: no speed-up over a wrong result."""
    sides = case["sides"]
    if any("time" not in sides.get(name, {}) for name in (slower, faster)):
        return None
    if any(sides[name].get("agrees") is False for name in (slower, faster)):
        return None
    return sides[slower]["time"]["median"] / sides[faster]["time"]["median"]


def disturbed(case: dict[str, Any]) -> bool:
    """Whether other processes competed for the cores while this case was timed on CPU."""
    return (case.get("cores_used_by_others") or 0.0) > 0.1


def quartile_ratios(case: dict[str, Any], slower: str, faster: str = OURS) -> tuple[float, float]:
    """Between what the ratio of two sides that ran may lie: of the one's fast quartile to the other's slow one, and the
    reverse. On a calm machine the two are near each other."""
    slow, fast = (case["sides"][name]["time"] for name in (slower, faster))
    return slow["lower"] / fast["upper"], slow["upper"] / fast["lower"]


def calmer(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Of two measurements of a case the one with which others competed less for the cores."""
    return min(first, second, key=lambda case: case.get("cores_used_by_others") or 0.0)


def copy_share(case: dict[str, Any]) -> float | None:
    """The share of the copy bandwidth, measured beside it on the same size, that snnfast reaches, counting the bytes
    that must move. None for small tensors, where a call's own cost counts and not the memory."""
    copying = case["sides"].get("copy", {}).get("time")
    ours = case["sides"].get(OURS, {}).get("time")
    if not (copying and ours and (case["bytes_moved"] or 0) >= 1e6):
        return None
    copied = 2 * getattr(torch, case["dtype"]).itemsize * case["elements"]
    return (case["bytes_moved"] / ours["median"]) / (copied / copying["median"])
