"""Which CUDA kernels some work launches, by the names that ``core.variant_names`` has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch

CURRENTS = ("plain", "normalized", "any")
"""``Currents`` of csrc/math/normalization.h, by number, as compilers and profilers write it."""


def kernel(name: str) -> str | None:
    """A demangled name as csrc/variants.h writes it, without result and parameters; None where it is not ours."""
    found = re.match(r"(?:void )?(snnfast::portable::\w+_kernel(?:<.*>)?)\(", name)
    if found is None:
        return None
    return re.sub(
        r"\(snnfast::portable::Currents\)(\d)",
        lambda code: f"snnfast::portable::Currents::{CURRENTS[int(code[1])]}",
        found[1],
    )


def kernels(names: Iterable[str]) -> set[str]:
    """Ours among demangled names."""
    return {found for name in names if (found := kernel(name))}


def launched(work: Callable[[], object], device: torch.device) -> set[str]:
    """Our kernels that ``work`` launches, by torch's profiler; none on a CPU."""
    if device.type != "cuda":
        work()
        return set()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize(device)
    return kernels(event.name for event in seen.events())
