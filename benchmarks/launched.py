"""Which CUDA kernels some work launches, by the names that ``core.variant_names`` has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch

POLICIES = {
    "Currents": ("plain", "normalized", "any"),
    "Channels": ("shared", "own"),
    "Pass": ("sums", "gradients", "any"),
}
"""The enumerations of csrc/math/normalization.h, by number, as compilers and profilers write them."""


def with_words(name: str) -> str:
    """A demangled name with the words of enumerations in place of their numbers."""

    def words(found: re.Match[str]) -> str:
        return f"{found['spaces']}{found['policy']}::{POLICIES[found['policy']][int(found['number'])]}"

    policies = "|".join(POLICIES)
    return re.sub(rf"\((?P<spaces>(?:\w+::)*)(?P<policy>{policies})\)(?P<number>\d)", words, name)


def kernel(name: str) -> str | None:
    """A demangled name as csrc/variants.h writes it, without result and parameters; None where it is not ours."""
    found = re.match(r"(?:void )?(snnfast::portable::\w+_kernel(?:<.*>)?)\(", name)
    return None if found is None else with_words(found[1])


def short(name: str) -> str:
    """A kernel's name without namespaces, result, parameters and spaces: what all ways of writing it have in common."""
    name = re.sub(r"^void |\(snnfast.*\)$", "", with_words(name.strip()))
    return re.sub(r"\b\w+::|_kernel\b| ", "", name)


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
