"""The kernels that a test can run: those for the CPU, the CUDA source run on the host, those on a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import host_run
import torch

from snnfast import backends


@dataclass
class Kernels:
    """Which kernels a test runs, and the device its tensors are on."""

    name: str
    device: torch.device


def chosen(name: str, core_on_host: Callable[[], ModuleType], replace: Callable[[Any, str, Any], None]) -> Kernels:
    """The kernels of a name, ``replace`` (as setattr) having put the CUDA source on the host in place if asked for."""
    if name == "cuda_on_host":
        core = core_on_host()
        replace(backends, "of", lambda tensor: core.Cuda(0, 0))
    return Kernels(name, torch.device("cuda" if name == "cuda" else "cpu"))


def lasting(name: str) -> Kernels:
    """For one call outside of pytest: in place until Python ends, with memory poisoned as in the tests."""
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:  # a loaded module needs its file no longer
        return chosen(name, lambda: host_run.build(Path(folder)), setattr)
