"""What is measured of the kernels alone, as data: tensors several times the size of a GPU's L2 cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from snnfast.surrogate import Arctangent

from .cases import Case
from .neuron import Neuron

SAMPLES = (64, 64, 32, 32)
"""[B, C, H, W]: at T = 10 in float32 168 MB a tensor."""

DTYPES = (torch.float32, torch.bfloat16)
SHORT = {torch.float32: "", torch.bfloat16: "-bfloat16", torch.float16: "-float16"}
SMALL = (2, 4, 3, 4)
"""The same where nothing is measured, only run."""


def _case(name: str, group: str, steps: int, dtype: torch.dtype = torch.float32, **more: object) -> Case:
    given: dict[str, object] = {"shape": (steps, *SAMPLES), "seconds": 1.0, "suites": frozenset({"gpu"})} | more
    return Case(name=f"{name}{SHORT[dtype]}", group=group, dtype=dtype, **given)  # type: ignore[arg-type]


def _normalized(channels: int = SAMPLES[1]) -> Neuron:
    return Neuron("BatchNormIF", {"num_features": channels})


def _large() -> Iterable[Case]:
    """The most important first: a run may be cut short."""
    for steps in (10, 16, 4):
        for dtype in DTYPES:
            yield _case(f"if-{steps}", "IF", steps, dtype)
            yield _case(f"bn-{steps}", "batch norm + IF", steps, dtype, neuron=_normalized())
    for dtype in DTYPES:
        yield _case("if-64", "IF", 64, dtype)
        yield _case("bn-residual-10", "batch norm + IF", 10, dtype, neuron=_normalized(), block="residual")
        yield _case("if-channels-last-10", "channels last", 10, dtype, channels_last=True)
        yield _case("bn-channels-last-10", "channels last", 10, dtype, channels_last=True, neuron=_normalized())
    yield _case("bn-64", "batch norm + IF", 64, neuron=_normalized())
    yield _case("bn-small-planes-10", "batch norm + IF", 10, shape=(10, 512, 512, 4, 4), neuron=_normalized(512))
    yield _case("soft-10", "other neurons", 10, neuron=Neuron("IF", {"reset": "soft"}))
    yield _case("lif-10", "other neurons", 10, neuron=Neuron("LIF", {"tau": 2.0}))
    yield _case("arctangent-10", "other neurons", 10, neuron=Neuron("IF", {"surrogate": Arctangent()}))
    yield replace(_case("held-10", "other neurons", 10, note="one current for all steps"), shape=SAMPLES, steps=10)
    yield _case("if-10", "other dtypes", 10, torch.float16)
    for dtype in DTYPES:
        yield _case("if-large-10", "IF", 10, dtype, shape=(10, 256, *SAMPLES[1:]))


def _beside() -> Iterable[Case]:
    """The whole call, Python included, beside other implementations."""
    sides = ("snnfast", "naive", "relu", "copy", "spikingjelly-native", "spikingjelly-triton")
    for steps, dtype in ((10, torch.float32), (10, torch.bfloat16), (4, torch.float32), (64, torch.float32)):
        yield _case(f"beside-{steps}", "beside other implementations", steps, dtype, sides=sides, seconds=1.5)
    # the compiler takes a minute
    compiled = ("snnfast", "compiled", "copy")
    yield _case("beside-compiled-4", "beside other implementations", 4, sides=compiled)


def with_samples(case: Case, samples: tuple[int, ...]) -> Case:
    """The same on samples of another shape, [B, C, ...]."""
    neuron = case.neuron
    if "num_features" in neuron.options:
        neuron = replace(neuron, options={**neuron.options, "num_features": samples[1]})
    time = () if case.steps is not None else (case.time_steps,)
    return replace(case, shape=(*time, *samples), neuron=neuron)


def small(case: Case) -> Case:
    """The same on a few hundred numbers, in no time."""
    return replace(with_samples(case, SMALL), seconds=0.0)


def one_sample(case: Case) -> Case:
    """The same on a single sample."""
    return with_samples(case, (1, *case.shape[-3:]))


LARGE: tuple[Case, ...] = tuple(_large())
BESIDE: tuple[Case, ...] = tuple(_beside())
PER_CALL = {
    "IF, inference": Case("per-call-inference", "per call", (4, 2, 8), training=False),
    "IF": Case("per-call", "per call", (4, 2, 8)),
    "BatchNormIF": Case("per-call-bn", "per call", (4, 2, 8), neuron=_normalized(8)),
}
"""So few elements that what a call costs before it computes is all that counts."""
