"""The implementations that are compared, as data: what each is called, where it runs, how it is built.

A side is a callable `forward(current, steps=None) -> output`, built by `Baseline.make(neuron, device)`. To add one, add
a `Baseline` to `BASELINES`, or, of another library, its arguments to `ADAPTERS` in `peers.py`; to let one run a further
kind of neuron, add the kind to its `make`.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import snnfast
from snnfast.comparing.naive import NaiveIF, NaiveLIF

from . import peers
from .batch_norm import BATCH_STATISTICS, with_batch_norm
from .neuron import ALL_DTYPES, Forward, Neuron, Unsupported

__all__ = ["BASELINES", "OURS", "Baseline", "Neuron", "Unsupported", "find"]

OURS = "snnfast"


def _nothing_missing() -> str | None:
    return None


@dataclass(frozen=True)
class Baseline:
    """One implementation.

    Attributes:
        name: the key in results and on the command line.
        title: what a table calls it.
        make: builds the callable for a neuron on a device; raises `Unsupported` with the reason where it cannot.
        yardstick: another function (torch.relu, a copy): its time is a measure, its results are compared with nothing.
        forward_only: run without gradients in a training case too.
        devices, dtypes: where it runs.
        missing: why it cannot run on this machine, or None.
        overrides: the options in which its dynamics differ from a given neuron's. Its results are compared with
            snnfast under the same options, so that a difference in convention does not read as an error.
        rounding: why it may round differently from MATH.md ("" where it must not). Where set, a neuron whose spikes
            differ is left out of the comparison, and at most 1e-4 of the neurons may.
        slow_start: the first call compiles, and its time is worth reporting.
        note: a sentence for the results.
    """

    name: str
    title: str
    make: Callable[[Neuron, torch.device], Forward]
    yardstick: bool = False
    forward_only: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] = ALL_DTYPES
    missing: Callable[[], str | None] = _nothing_missing
    overrides: Callable[[Neuron], Mapping[str, Any]] = field(default=lambda neuron: {})
    rounding: str = ""
    slow_start: bool = False
    note: str = ""

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """The reason why this cannot run there, or None."""
        if device.type not in self.devices:
            return f"runs on {' and '.join(self.devices)} only"
        if dtype not in self.dtypes:
            return f"has no {str(dtype).removeprefix('torch.')}"
        return self.missing()

    def rounds_differently(self, neuron: Neuron) -> str:
        """Why its spikes for this neuron may differ from ours, "" where they must not."""
        return self.rounding or (BATCH_STATISTICS if neuron.kind.startswith("BatchNorm") else "")

    def own_dynamics(self, neuron: Neuron) -> Neuron:
        """The neuron that this implementation runs when asked for `neuron`: the same one where nothing differs."""
        asked = {
            "surrogate": neuron.surrogate,
            "detach_reset": neuron.detach_reset,
            "fire_on_equal": neuron.option("fire_on_equal", False),
        }
        differing = {name: value for name, value in self.overrides(neuron).items() if value != asked[name]}
        return replace(neuron, options={**neuron.options, **differing}) if differing else neuron


# One line per kind of neuron: the fused layer and the plain loop.
FUSED: dict[str, Callable[..., Forward]] = {
    "IF": lambda **o: snnfast.IF(**o),
    "LIF": lambda **o: snnfast.LIF(**o),
    "BatchNormIF": lambda **o: snnfast.BatchNormIF(**o),
}
NAIVE: dict[str, Callable[..., Forward]] = {
    "IF": NaiveIF,
    "LIF": NaiveLIF,
    "BatchNormIF": lambda **o: with_batch_norm(NaiveIF, **o),
}
UNFUSED: dict[str, Callable[..., Forward]] = {"BatchNormIF": lambda **o: with_batch_norm(snnfast.IF, **o)}
RELU: dict[str, Callable[..., Forward]] = {
    "IF": lambda **o: _relu,
    "LIF": lambda **o: _relu,
    "BatchNormIF": lambda **o: with_batch_norm(lambda **_: _relu, **o),
}


def _relu(current: Tensor, steps: int | None = None) -> Tensor:
    if steps is not None:
        raise Unsupported("has no notion of a current held over time")
    return torch.relu(current)


def _maker(kinds: Mapping[str, Callable[..., Forward]], what: str) -> Callable[[Neuron, torch.device], Forward]:
    """Makes a side from a table of kinds, on the device."""

    def make(neuron: Neuron, device: torch.device) -> Forward:
        if neuron.kind not in kinds:
            raise Unsupported(f"no {what} is written for {neuron.kind}")
        side = kinds[neuron.kind](**neuron.options)
        return side.to(device) if isinstance(side, torch.nn.Module) else side

    return make


_make_naive = _maker(NAIVE, "plain loop")


@functools.cache
def _empty_compile_cache() -> None:
    """Points the compiler's cache at an empty folder, once a process: a compile time read off a cache is none."""
    folder = tempfile.mkdtemp(prefix="snnfast-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder


def _make_compiled(neuron: Neuron, device: torch.device) -> Forward:
    # every case starts afresh: no recompilation limit reached, no graph of another shape reused
    torch._dynamo.reset()
    _empty_compile_cache()
    return torch.compile(_make_naive(neuron, device), fullgraph=True, dynamic=False)


def _make_copy(neuron: Neuron, device: torch.device) -> Forward:
    written_out: list[Tensor] = []

    def copy(current: Tensor, steps: int | None = None, residual: Tensor | None = None) -> Tensor:
        if steps is not None:  # a held current: the copy is of the size of the spikes, as everywhere
            if not written_out:
                written_out.append(current.expand(steps, *current.shape).contiguous())
            current = written_out[0]
        return current.clone()

    return copy


def _make_no_neuron(neuron: Neuron, device: torch.device) -> Forward:
    return lambda current, steps=None: current


def _no_compiler() -> str | None:
    if torch.cuda.is_available() or any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return None
    return "torch.compile needs a C++ compiler on CPU, and none is on the PATH"


BASELINES: tuple[Baseline, ...] = (
    Baseline(OURS, "snnfast", _maker(FUSED, "fused layer")),
    Baseline("naive", "naive loop", _make_naive),
    Baseline(
        "compiled",
        "compiled loop",
        _make_compiled,
        missing=_no_compiler,
        slow_start=True,
        rounding="a compiler may contract or reorder arithmetic",
        note="the naive loop under torch.compile(fullgraph=True, dynamic=False), one compilation per T",
    ),
    Baseline(
        "unfused",
        "batch norm, snnfast.IF",
        _maker(UNFUSED, "pair of layers"),
        note="torch's batch norm and the fused neuron, as two layers",
    ),
    Baseline(
        "relu",
        "torch.relu",
        _maker(RELU, "twin without spikes"),
        yardstick=True,
        note="behind torch's batch norm where the layer has one: the network's twin without spikes",
    ),
    Baseline("copy", "copy", _make_copy, yardstick=True, forward_only=True, note="out of place, into a fresh tensor"),
    Baseline("matmul", "linear alone", _make_no_neuron, yardstick=True, note="the block without its neuron"),
    *(Baseline(**peer) for peer in peers.ADAPTERS),
)


def find(name: str, among: tuple[Baseline, ...] | None = None) -> Baseline:
    """The baseline of that name; KeyError listing the names otherwise."""
    for baseline in BASELINES if among is None else among:
        if baseline.name == name:
            return baseline
    raise KeyError(f"no baseline {name!r}; there are {', '.join(b.name for b in BASELINES)}")
