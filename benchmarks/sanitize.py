"""Some two hundred small calls that launch every kernel, to be run under compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m snnfast.benchmarks.sanitize

Without torch's cache of memory every tensor is an allocation of its own, so that an access past its end is seen. On a
GPU the results are compared with the CPU's; --kernels lists what was launched, by a profiler that cannot run under
compute-sanitizer as well.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import snnfast as sf
from snnfast import backends
from snnfast._errors import one_line
from snnfast.backends import DTYPE_CODES
from snnfast.cli.command import USAGE, Parser
from snnfast.dynamics import state_dtype
from snnfast.ops.pack_bits import pack_bits, unpack_bits
from snnfast.training.options import OptionError, choose_device

from .launched import launched

Results = list[Tensor]

DTYPES = tuple(DTYPE_CODES)
WIDE, NARROW = (
    (2, 8, 5, 8),
    (3, 5, 7),
)  # [B, C, ...]; rows that whole accesses fill, to a ragged last block, and odd ones
SHORT, MIDDLE, LONG = 3, 9, 20  # a short block of steps, a middle one, and beyond a checkpoint
PAPERS: tuple[dict[str, Any], ...] = ({}, {"reset": "soft"}, {"detach_reset": False})
"""The two kinds of dynamics that have kernels of their own, and another."""
SURROGATES = tuple(sf.surrogate.SHAPES.values())


@dataclass(frozen=True)
class Call:
    """Neurons forward and backward: the currents' shape and place in memory, and the options that are given.

    ``tables``: thresholds and time constants per channel, all of which get gradients; ``states``: an initial potential,
    and gradients of the last and of all recorded ones.
    """

    dtype: torch.dtype
    steps: int = LONG
    sizes: tuple[int, ...] = WIDE
    layout: str = "dense"
    time_dim: int = 0
    held: bool = False
    tables: bool = False
    states: bool = False
    normalized: bool = False
    residual: bool = False
    training: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    operations = 2

    def __str__(self) -> str:
        marks = [name for name in ("held", "tables", "states", "normalized", "residual") if getattr(self, name)]
        given = [f"{name}={value}" for name, value in self.options.items()]
        return " ".join([f"{self.dtype} T={self.steps} {self.sizes} {self.layout}", *marks, *given])

    def run(self, device: torch.device) -> Results:
        """Outputs and gradients, on the CPU; the same values at every call."""
        rng = torch.Generator().manual_seed(self.steps)
        time = () if self.held else (self.steps,)
        shape = (*self.sizes[: self.time_dim], *time, *self.sizes[self.time_dim :])
        full = (*self.sizes[: self.time_dim], self.steps, *self.sizes[self.time_dim :])
        state, channels = state_dtype(self.dtype), self.sizes[1]

        def leaf(sizes: Sequence[int], dtype: torch.dtype, layout: str = "dense", shift: float = 0.0) -> Tensor:
            values = torch.rand(tuple(sizes), generator=rng, dtype=torch.float64) + shift
            return placed(values.to(dtype), layout, device).requires_grad_()

        leaves = [leaf(shape, self.dtype, self.layout, -0.2)]
        given: dict[str, Any] = dict(self.options)
        if self.held:
            given["steps"] = self.steps
        if self.states:
            given["v0"] = leaf(self.sizes, state)
        if self.tables:
            given |= {"threshold": leaf((channels,), state, shift=0.3), "tau": leaf((channels,), state, shift=1.2)}
        if self.residual:
            given["residual"] = leaf(full, self.dtype, self.layout, -0.5)
        if self.normalized:
            given |= {"weight": leaf((channels,), state, shift=0.5), "bias": leaf((channels,), state)}
        leaves += [value for value in given.values() if isinstance(value, Tensor)]
        if self.normalized:
            given["training"] = self.training
            given["running_mean"], given["running_var"] = (leaf((channels,), state).detach() for _ in range(2))
        outputs = self.function()(leaves[0], time_dim=self.time_dim, return_potential=self.states, **given)
        outputs = outputs if self.states else outputs[:1]
        sent = [leaf(output.shape, output.dtype, "dense").detach() for output in outputs]
        return [*(output.detach().cpu() for output in outputs), *map(Tensor.cpu, grad(outputs, leaves, sent))]

    def function(self) -> Callable[..., tuple[Tensor, ...]]:
        if self.normalized:
            return sf.functional.batch_norm_integrate_and_fire
        leaky = self.tables or "tau" in self.options
        return sf.functional.leaky_integrate_and_fire if leaky else sf.functional.integrate_and_fire


def grad(outputs: Sequence[Tensor], leaves: Sequence[Tensor], sent: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(list(outputs), list(leaves), list(sent))


def placed(values: Tensor, layout: str, device: torch.device) -> Tensor:
    """Values in memory of the device that ends where they end: only copied there, so that no other kernel runs."""
    if layout == "channels last":
        return values.movedim(2, -1).contiguous().to(device).movedim(-1, 2)
    if layout == "every second sample":
        wide = values.new_zeros(values.shape[0], 2 * values.shape[1] - 1, *values.shape[2:])
        wide[:, ::2] = values
        return wide.to(device)[:, ::2]
    if layout == "offset by one element":
        flat = torch.cat([values.new_zeros(1), values.flatten()]).to(device)
        return flat[1:].view(values.shape)
    return values.contiguous().to(device)


@dataclass(frozen=True)
class Packing:
    """Spikes to bits and back."""

    dtype: torch.dtype
    count: int
    layout: str = "dense"

    normalized = False
    operations = 2

    def __str__(self) -> str:
        return f"{self.dtype} packing {self.count} {self.layout}"

    def run(self, device: torch.device) -> Results:
        rng = torch.Generator().manual_seed(self.count)
        spikes = torch.randint(0, 2, (self.count,), generator=rng).to(self.dtype)
        bits = pack_bits(placed(spikes, self.layout, device))
        return [bits.cpu(), unpack_bits(bits, self.count, self.dtype).cpu()]


def calls(dtype: torch.dtype) -> Iterator[Call | Packing]:
    """All calls of a dtype."""
    call = partial(Call, dtype)
    for options, steps in itertools.product(PAPERS, (SHORT, LONG)):
        yield call(steps, options=options)
    for options in PAPERS:
        yield call(layout="offset by one element", options=options)
    for layout, steps in itertools.product(("dense", "channels last"), (SHORT, MIDDLE, LONG)):
        for options in PAPERS[:2]:
            yield call(steps, layout=layout, normalized=True, options=options)
    yield call(normalized=True, options=PAPERS[2])
    for surrogate, sizes in itertools.product(SURROGATES, (WIDE, NARROW)):
        yield call(sizes=sizes, options={"surrogate": surrogate(gamma=2.0, beta=0.8), "tau": 2.0})
    for layout in ("channels last", "every second sample"):
        yield call(layout=layout)
        yield call(layout=layout, normalized=True, residual=True)
    yield call(time_dim=1, sizes=(4, 3, 8))
    yield call(sizes=NARROW, normalized=True, residual=True)
    yield call(sizes=(64, 3, 16, 16), steps=SHORT, normalized=True)  # sums of a channel in several pieces
    yield call(sizes=(2, 300), steps=SHORT, normalized=True)  # and of more channels than a block has threads
    yield call(normalized=True, training=False, residual=True)
    yield call(normalized=True, held=True, residual=True)
    yield call(normalized=True, tables=True, states=True)
    for sizes in (WIDE, NARROW):
        yield call(sizes=sizes, tables=True)
        yield call(sizes=sizes, tables=True, states=True, options={"reset": "soft"})
        yield call(sizes=sizes, held=True)
        yield call(sizes=sizes, states=True)
        yield call(sizes=sizes, options={"delay": True})
    yield call(held=True, tables=True, states=True, options={"delay": True})
    for count, layout in ((1, "dense"), (8, "dense"), (1027, "dense"), (1000, "offset by one element")):
        yield Packing(dtype, count, layout)


def differs(found: Results, wanted: Results, normalized: bool) -> str:
    """What of a call's results on a GPU is not the CPU's, "" where all is: spikes equal, the rest to rounding."""
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        bound = {torch.float64: 1e-9, torch.float32: 1e-4}.get(one.dtype, 2e-2)
        if not one.isfinite().all():
            return f"result {number} is not finite"
        if normalized:  # statistics are summed in another order, which may move a spike
            continue
        error = (one.double() - other.double()).abs().max().item()
        if error > (bound * other.double().abs().max().item() if number else 0.0):
            return f"result {number} differs by {error:.1e}"
    return ""


def run_all(device: torch.device) -> tuple[int, int, list[str]]:
    """Runs all calls: how many, of how many operations, and what differs from the CPU's results."""
    count = operations = 0
    wrong = []
    for dtype in DTYPES:
        for call in calls(dtype):
            found = call.run(device)
            count, operations = count + 1, operations + call.operations
            if device.type != "cpu" and (said := differs(found, call.run(torch.device("cpu")), call.normalized)):
                wrong.append(f"{call}: {said}")
    return count, operations, wrong


def built() -> set[str]:
    """The kernels of forward and backward passes that a call can get."""
    return {name for code in DTYPE_CODES.values() for way in (0, 1) for name in backends.core.variant_names(way, code)}


def covered(names: set[str]) -> str:
    """Of the kernels that are built, how many were launched, and which were not."""
    left = sorted(built() - names)
    others = sorted(names - built())
    said = f"variants: {len(built()) - len(left)} of {len(built())} launched, and {len(others)} other kernels"
    return "\n".join([said, *(f"  not launched: {name}" for name in left)])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, 1 where a result is wrong or a kernel was not launched, 2 for wrong arguments."""
    parser = Parser(prog="python -m snnfast.benchmarks.sanitize", description=__doc__.split("\n")[0])
    parser.add_argument("--device", help="default: a GPU where there is one with kernels for it")
    parser.add_argument("--kernels", action="store_true", help="list which kernels were launched, on a GPU")
    arguments = parser.parse_args(argv)
    try:
        device = choose_device(arguments.device)
    except OptionError as error:
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return USAGE
    begin = time.monotonic()
    names: set[str] = set()
    totals: list[tuple[int, int, list[str]]] = []
    if arguments.kernels and device.type == "cuda":
        names = launched(lambda: totals.append(run_all(device)), device)
    else:
        totals.append(run_all(device))
    ((count, operations, wrong),) = totals
    print(f"{count} calls, {operations} operations on {device} in {time.monotonic() - begin:.1f} s")
    if names:
        print(covered(names))
    elif arguments.kernels:
        print(f"variants: of {len(built())} none is launched on a CPU, whose kernels are compiled without names")
    for line in wrong:
        print(f"WRONG {line}")
    return 1 if wrong or (names and built() - names) else 0


if __name__ == "__main__":
    sys.exit(main())
