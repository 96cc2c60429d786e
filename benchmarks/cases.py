"""What is measured, as data. A case is one workload; a table and a plot are made of the cases of one group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snnfast import surrogate

from .batch_norm import over_time
from .neuron import Forward, Neuron
from .peers import ADAPTERS

CHECKPOINT_STEPS = 16
"""Beyond this many steps the forward pass in training keeps the potential at every K-th."""

PEER_SIDES: tuple[str, ...] = tuple(adapter["name"] for adapter in ADAPTERS)
"""All sides of other libraries."""

LOOPS = ("snnfast", "naive", "relu", "copy")


@dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        name: unique; what `--case` takes.
        group: the table and the plot that it belongs to; `--case` takes it too.
        shape: the current's shape, [T, B, ...], or [B, ...] where it is held for `steps`.
        dtype: of the current.
        neuron: the layer.
        training: forward and backward; otherwise the forward pass alone, without gradients.
        steps: hold the current for that many steps.
        sides: names of baselines, snnfast among them.
        suites: the suites that have it: "quick" (seconds), "default" (minutes), "full".
        block: what surrounds the neuron, a key of BLOCKS.
        channels_last: the current [T, B, C, ...] and what is like it lie in memory as [T, B, ..., C].
        seconds: time to spend on measuring it, all sides together, after the first calls.
        devices: where it is worth measuring.
        note: a sentence for the reader of the table.
    """

    name: str
    group: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    neuron: Neuron = field(default_factory=Neuron)
    training: bool = True
    steps: int | None = None
    sides: tuple[str, ...] = LOOPS
    suites: frozenset[str] = frozenset({"default", "full"})
    block: str = "neuron"
    channels_last: bool = False
    seconds: float = 2.0
    devices: tuple[str, ...] = ("cpu", "cuda")
    note: str = ""

    @property
    def time_steps(self) -> int:
        return self.shape[0] if self.steps is None else self.steps

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.shape if self.steps is None else (self.steps, *self.shape)

    @property
    def elements(self) -> int:
        """Neurons times steps."""
        return math.prod(self.output_shape)

    def laid_out(self, values: Tensor) -> Tensor:
        """Values of a tensor of the case in the memory order of its currents."""
        return values.movedim(2, -1).contiguous().movedim(-1, 2) if self.channels_last else values

    def bytes_moved(self) -> float | None:
        """Bytes that must cross the memory: the physical floor. None where it has no row."""
        if self.block not in ("neuron", "residual"):
            return None
        item = self.dtype.itemsize
        if self.neuron.kind.startswith("BatchNorm"):
            # statistics; normalize and fire; and backward sums, then the current's gradient. A residual is read three
            # times and its gradient written.
            moved = (3 if not self.training else 8) + (0 if self.block == "neuron" else 4 if self.training else 1)
            return moved * item * self.elements
        state = 8 if self.dtype == torch.float64 else 4
        # a held current is read once, its gradient written once, for all steps
        currents = item / (1 if self.steps is None else self.steps)
        per_element = currents + item
        if self.training:
            per_element += currents + item + currents
            if self.time_steps > CHECKPOINT_STEPS:
                per_element += 2 * state / CHECKPOINT_STEPS
        return per_element * self.elements

    def describe(self) -> dict[str, object]:
        """For a result file."""
        return {
            "name": self.name,
            "group": self.group,
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "neuron": self.neuron.describe(),
            "training": self.training,
            "steps": self.steps,
            "time_steps": self.time_steps,
            "elements": self.elements,
            "input_bytes": math.prod(self.shape) * self.dtype.itemsize,
            "block": self.block,
            "channels_last": self.channels_last,
            "bytes_moved": self.bytes_moved(),
            "note": self.note,
        }


# Blocks: what stands around the neuron. Each makes, for a case on a device, the parameters that all sides share and a
# function that puts a side's neuron into place.


@dataclass(frozen=True)
class Block:
    parameters: Callable[[Case, torch.device, torch.Generator], Sequence[Tensor]]
    around: Callable[[Forward, Sequence[Tensor]], Forward]


def _no_parameters(case: Case, device: torch.device, generator: torch.Generator) -> Sequence[Tensor]:
    return ()


def _alone(neuron: Forward, parameters: Sequence[Tensor]) -> Forward:
    return lambda x, steps=None: neuron(x) if steps is None else neuron(x, steps=steps)


def _square_weight(case: Case, device: torch.device, generator: torch.Generator) -> Sequence[Tensor]:
    n = case.shape[-1]
    weight = torch.randn(n, n, generator=generator, device=device, dtype=case.dtype) / math.sqrt(n)
    return (weight.requires_grad_(case.training),)


def _residual(case: Case, device: torch.device, generator: torch.Generator) -> Sequence[Tensor]:
    current = case.laid_out(torch.randn(case.shape, generator=generator, device=device).to(case.dtype))
    return (current.requires_grad_(case.training),)


def _kernel(case: Case, device: torch.device, generator: torch.Generator) -> Sequence[Tensor]:
    c = case.shape[2]
    weight = torch.randn(c, c, 3, 3, generator=generator, device=device) / math.sqrt(9 * c)
    return (weight.to(case.dtype).requires_grad_(case.training),)


def _after_convolution(neuron: Forward, parameters: Sequence[Tensor]) -> Forward:
    def convolve(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, parameters[0], padding=1)

    return lambda x, steps=None: neuron(over_time(convolve, x))


def _after_linear(neuron: Forward, parameters: Sequence[Tensor]) -> Forward:
    return lambda x, steps=None: neuron(torch.nn.functional.linear(x, parameters[0]), steps)


BLOCKS: dict[str, Block] = {
    "neuron": Block(_no_parameters, _alone),
    "linear": Block(_square_weight, _after_linear),
    "residual": Block(_residual, lambda neuron, parameters: lambda x, steps=None: neuron(x, residual=parameters[0])),
    "convolution": Block(_kernel, _after_convolution),
}

SHAPES = ((4, 32, 64, 16, 16), (10, 16, 64, 16, 16), (32, 8, 64, 16, 16))
SURROGATES = tuple(shape() for shape in surrogate.SHAPES.values())
FULL = frozenset({"full"})
BOTH = frozenset({"default", "full"})
ALL = frozenset({"quick", "default", "full"})


def _short(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _headline() -> Iterable[Case]:
    for shape in SHAPES:
        yield Case(f"if-{_short(shape)}", "one layer, training", shape, seconds=4.0)
    for shape in SHAPES:
        # Apart, since a side that moves ten times the memory leaves every side after it cold caches. Compiling takes a
        # minute and grows with T, so a first run sees it once, at the shortest.
        compiled = ("compiled",) if shape == SHAPES[0] else ()
        yield Case(
            f"if-{_short(shape)}-peers",
            "one layer, training, beside other libraries",
            shape,
            seconds=4.0,
            sides=LOOPS + compiled + PEER_SIDES,
            suites=frozenset({"default"}),
        )
        yield Case(
            f"if-{_short(shape)}-all",
            "one layer, training, beside other libraries",
            shape,
            suites=FULL,
            seconds=20.0,
            sides=(*LOOPS, "compiled", *PEER_SIDES),
        )
    for shape in SHAPES:
        yield Case(
            f"if-{_short(shape)}-inference",
            "one layer, inference",
            shape,
            training=False,
            sides=LOOPS + PEER_SIDES,
            seconds=2.0,
        )
    yield Case("if-quick", "one layer, training", (4, 4, 8, 8, 8), suites=frozenset({"quick"}), seconds=0.2)
    yield Case(
        "if-quick-inference",
        "one layer, inference",
        (4, 4, 8, 8, 8),
        training=False,
        suites=frozenset({"quick"}),
        seconds=0.1,
    )


def _over_time() -> Iterable[Case]:
    for steps in (1, 2, 4, 8, 16, 32, 64, 128):
        suites = BOTH if steps in (1, 4, 16, 64, 128) else FULL
        yield Case(f"steps-{steps}", "over T", (steps, 8, 32, 16, 16), suites=suites, seconds=1.5)
        # unrolled, 128 steps take the compiler many minutes
        if steps <= 32:
            yield Case(
                f"steps-{steps}-all",
                "over T, compiled loop and peers",
                (steps, 8, 32, 16, 16),
                suites=FULL,
                sides=(*LOOPS, "compiled", *PEER_SIDES),
                seconds=3.0,
            )
    for steps in (1, 3):
        yield Case(f"steps-{steps}-quick", "over T", (steps, 2, 64), suites=frozenset({"quick"}), seconds=0.1)


def _over_size() -> Iterable[Case]:
    for exponent in range(8, 23):
        suites = BOTH if exponent in (8, 12, 16, 20) else FULL
        yield Case(
            f"size-2e{exponent}", "over size", (8, 2 ** (exponent - 3)), suites=suites, seconds=1.5, note="T = 8"
        )
    for exponent in (6, 9):
        yield Case(
            f"size-2e{exponent}-quick", "over size", (8, 2 ** (exponent - 3)), suites=frozenset({"quick"}), seconds=0.1
        )


def _variants() -> Iterable[Case]:
    shape = SHAPES[1]
    for shape_of in SURROGATES:
        name = type(shape_of).__name__
        yield Case(f"surrogate-{name.lower()}", "surrogates", shape, neuron=Neuron("IF", {"surrogate": shape_of}))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        name = str(dtype).removeprefix("torch.")
        peers = ("spikingjelly-native", "spikingjelly-triton", "spikingjelly-torch")
        yield Case(f"dtype-{name}", "dtypes", shape, dtype=dtype, sides=LOOPS + peers)
    yield Case("soft", "dynamics", shape, neuron=Neuron("IF", {"reset": "soft"}), sides=LOOPS + PEER_SIDES)
    yield Case("hard-attached", "dynamics", shape, neuron=Neuron("IF", {"detach_reset": False}), suites=FULL)
    yield Case("lif", "dynamics", shape, neuron=Neuron("LIF", {"tau": 2.0}), sides=LOOPS + PEER_SIDES)
    yield Case(
        "lif-undecayed",
        "dynamics",
        shape,
        neuron=Neuron("LIF", {"tau": 2.0, "decay_input": False}),
        sides=LOOPS + PEER_SIDES,
        suites=FULL,
    )
    yield Case(
        "held",
        "dynamics",
        shape[1:],
        steps=shape[0],
        sides=("snnfast", "naive", "copy"),
        note="one current held for T steps; the copy is of the spikes' size",
    )
    yield Case(
        "tiny", "per call", (4, 2, 8), suites=ALL, seconds=0.5, note="64 elements: what a call costs before it computes"
    )
    yield Case("tiny-inference", "per call", (4, 2, 8), suites=ALL, seconds=0.3, training=False)


def _batch_norm() -> Iterable[Case]:
    sides = ("snnfast", "naive", "unfused", "relu", "copy")
    everyone = (*sides, "compiled", *PEER_SIDES)
    for shape, suites in ((SHAPES[1], BOTH), (SHAPES[0], FULL), (SHAPES[2], FULL)):
        neuron = Neuron("BatchNormIF", {"num_features": shape[2]})
        name, group = _short(shape), "batch norm + IF, training"
        peers = ("spikingjelly", "spikingjelly-native", "spikingjelly-triton", "spikingjelly-torch")
        yield Case(f"bn-{name}", group, shape, neuron=neuron, sides=sides, suites=suites, seconds=4.0)
        yield Case(
            f"bn-residual-{name}",
            group,
            shape,
            neuron=neuron,
            sides=sides,
            suites=suites,
            block="residual",
            seconds=3.0,
            note="with a residual current, which gets a gradient too",
        )
        yield Case(
            f"bn-{name}-peers",
            f"{group}, beside other libraries",
            shape,
            neuron=neuron,
            suites=suites,
            sides=(*sides, *peers),
            seconds=3.0,
        )
        if shape == SHAPES[1]:
            yield Case(f"bn-{name}-all", group, shape, neuron=neuron, sides=everyone, suites=FULL, seconds=20.0)
            yield Case(
                f"bn-{name}-bfloat16",
                group,
                shape,
                dtype=torch.bfloat16,
                neuron=neuron,
                suites=FULL,
                sides=(*sides, *peers),
                seconds=4.0,
            )
    shape = (10, 4, 64, 16, 16)
    yield Case(
        "conv-bn",
        "convolution, batch norm, IF",
        shape,
        sides=(*sides, "spikingjelly"),
        block="convolution",
        neuron=Neuron("BatchNormIF", {"num_features": 64}),
        seconds=3.0,
        note="a 3x3 convolution of 64 channels in front",
    )


def _published() -> Iterable[Case]:
    """Linear(N, N) + LIF, batch 16, T = 500: a benchmark in circulation, run with the time axis first, equal dynamics
    and synchronized timing. "linear alone" shows how much of it is the matrix product."""
    # decay_input=False is the leak that all of the libraries can run
    neuron = Neuron("LIF", {"tau": 2.0, "decay_input": False})
    for n, devices in ((512, ("cpu", "cuda")), (4096, ("cpu", "cuda")), (8192, ("cuda",)), (16384, ("cuda",))):
        yield Case(
            f"linear-lif-{n}",
            "Linear + LIF, T = 500, batch 16",
            (500, 16, n),
            neuron=neuron,
            block="linear",
            sides=("snnfast", "naive", "matmul", *PEER_SIDES),
            suites=FULL,
            seconds=20.0,
            devices=devices,
        )


def _all_cases() -> tuple[Case, ...]:
    makers = (_headline, _over_time, _over_size, _variants, _batch_norm, _published)
    cases = tuple(case for make in makers for case in make())
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases of one name"
    return cases


CASES: tuple[Case, ...] = _all_cases()


def select(suite: str, device: str, wanted: Sequence[str] = ()) -> list[Case]:
    """The cases of a suite for a device; or those named, by name or group, of whichever suite.

    Raises ValueError, listing what is allowed, for a name that no case and no group has.
    """
    if not wanted:
        return [case for case in CASES if suite in case.suites and device in case.devices]
    chosen = []
    for name in wanted:
        found = [case for case in CASES if case.name == name]
        found = found or [case for case in CASES if case.group == name and suite in case.suites]
        if not found:
            groups = list(dict.fromkeys(case.group for case in CASES if suite in case.suites))
            raise ValueError(
                f"unknown case {name!r}; the cases are: {', '.join(case.name for case in CASES)}; "
                f"and the groups: {', '.join(repr(group) for group in groups)}"
            )
        chosen += [case for case in found if case not in chosen and device in case.devices]
    return chosen
