"""What is judged: calls of the layers, each with the kernels that it launches and the bytes that these must move."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"

BATCH, CHANNELS, SPACE = 64, 64, 1024
STEPS = (4, 10, 16, 64)
SIZES = {"float32": 4, "bfloat16": 2}
SHORT, MIDDLE = 4, 12  # steps of a short block and a middle one (csrc/cuda/tuning.h)


@dataclass(frozen=True)
class Pass:
    """One kernel's share of a case."""

    what: str  # for arguments.cpp
    dtype: str
    steps: int
    last: bool = False  # channels-last

    @property
    def width(self) -> int:
        """Neurons of a thread, as csrc/cuda/tuning.h and csrc/variants.h have it."""
        wide = 16 // SIZES[self.dtype]
        return 4 if self.backward and (self.steps > SHORT or self.last) else wide

    @property
    def backward(self) -> bool:
        return self.what in ("backward", "sums", "gradients")

    @property
    def bytes(self) -> int:
        """That must be moved for every neuron and step."""
        tensors = {"forward": 2, "backward": 3, "moments": 1, "normalized": 2, "sums": 2, "gradients": 3}
        return tensors[self.what] * SIZES[self.dtype]

    @property
    def together(self) -> int:
        """Loads that must be in flight at once."""
        if not self.backward:
            return 4
        return min(self.steps, 12) if self.steps > SHORT else 8

    def pattern(self) -> str:
        """Of the kernel's name (listing.demangled)."""
        dtype = "float" if self.dtype == "float32" else rf"snnfast::portable::{self.dtype}"
        policy = r"(?:\(snnfast::portable::\w+\))?"
        number = {"forward": "0", "backward": "0"}.get(self.what, "1")
        channels = f"{policy}{int(self.last)}"
        dynamics = r"snnfast::portable::HardDetached<float>"
        if self.what == "moments":
            return rf"moments_kernel<{dtype}, {self.width}, {channels}>"
        if not self.backward:
            return rf"forward_kernel<{dtype}, {self.width}, {dynamics}, {policy}{number}, {channels}>"
        middle = MIDDLE if self.steps <= MIDDLE and self.what != "backward" else 16
        block = SHORT if self.steps <= SHORT else middle
        what = f"{policy}{0 if self.what == 'sums' else 1}"
        surrogate = r"snnfast::portable::FastSigmoid"
        return (
            rf"backward_kernel<{dtype}, {self.width}, {block}, {surrogate}, {dynamics}, {policy}{number}, {channels}, "
            rf"{what}, false>"
        )

    def matches(self, name: str) -> bool:
        return re.search(self.pattern(), name) is not None


@dataclass(frozen=True)
class Case:
    """One row of the table: one pass, or those of a layer one after the other."""

    name: str
    passes: tuple[Pass, ...]

    @property
    def dtype(self) -> str:
        return self.passes[0].dtype

    @property
    def steps(self) -> int:
        return self.passes[0].steps


def cases() -> Iterator[Case]:
    for dtype in SIZES:
        for name, what in (("IF forward", "forward"), ("IF backward", "backward")):
            for steps in STEPS:
                yield Case(name, (Pass(what, dtype, steps),))
        for last in (False, True):
            layout = ", channels-last" if last else ""
            for steps in STEPS:
                passes = tuple(Pass(w, dtype, steps, last) for w in ("moments", "normalized", "sums", "gradients"))
                for one in passes:
                    yield Case(f"BatchNormIF{layout}: {one.what}", (one,))
                yield Case(f"BatchNormIF{layout}", passes)


@cache
def program() -> Path:
    """arguments.cpp, compiled."""
    target = Path(tempfile.mkdtemp(prefix="snnfast-arguments-")) / "arguments"
    source = Path(__file__).with_name("arguments.cpp")
    subprocess.run(["g++", "-std=c++17", f"-I{CSRC}", str(source), "-o", str(target)], check=True)
    return target


@cache
def arguments(one: Pass) -> tuple[int, int, bytes]:
    """Blocks of the launch, rows that a thread walks down, the bytes of the parameters."""
    call = [one.what, one.width, one.steps, BATCH, CHANNELS, SPACE, int(one.last)]
    done = subprocess.run([str(program()), *map(str, call)], stdout=subprocess.PIPE, text=True, check=True)
    blocks, rows, parameters = done.stdout.split()
    return int(blocks), int(rows), bytes.fromhex(parameters)
