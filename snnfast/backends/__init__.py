"""The compiled core, and which part of it runs a tensor. The seam for further backends is `target`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

try:
    from snnfast import _core as core
except ImportError as error:
    raise ImportError(
        f"snnfast's compiled core could not be loaded ({error}). Install the package with "
        "'python -m pip install .' in its source folder; running from the source folder without installing, or with "
        "another Python version than it was built for, does not work."
    ) from error

# One OpenMP runtime per process: torch's own (csrc/threads.h).
torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
openmp = core.use_openmp_of(str(torch_library))

DEVICES = ("cpu", "cuda", "meta")  # meta: shapes only


@lru_cache(maxsize=256)
def where(device: int, threads: int, stream: int) -> Any:
    return core.Where(device, threads, stream)


def target(tensor: torch.Tensor) -> tuple[Any, Any]:
    """The core to call for a tensor and the place to run: CPU threads, or the current stream of its CUDA device."""
    if tensor.is_cuda:
        device = tensor.get_device()
        return core, where(device, 0, torch._C._cuda_getCurrentRawStream(device))
    return core, where(-1, torch.get_num_threads(), 0)


def check_device(device: torch.device) -> None:
    """Raises RuntimeError, naming the remedy, for a device that nothing here can run."""
    if device.type not in DEVICES:
        raise RuntimeError(f"snnfast has kernels for cpu and cuda tensors, none for {device.type}; move it to one")
    if device.type == "cuda" and not core.with_cuda:
        raise RuntimeError(
            "current is on a CUDA device, but this build of snnfast has no CUDA kernels: reinstall it where nvcc is "
            "on PATH, with SNNFAST_CUDA=1 (see snnfast.build_info())"
        )


def build_info() -> dict[str, Any]:
    """What was compiled, and what each device uses.

    Returns:
        dict with the keys ``version``, ``compiler``, ``cpu`` (backend, instruction set, OpenMP runtime or why none,
        threads) and ``cuda`` (backend or why none; toolkit, architectures and the driver it needs).
    """
    from snnfast._version import __version__

    cpu = {
        "backend": "compiled kernels",
        "instruction_set": core.instruction_set(),
        "threads": torch.get_num_threads() if openmp else 1,
        "openmp": f"the runtime of {torch_library.name}" if openmp else "none found in torch: runs on one thread",
    }
    if core.with_cuda:
        major = int(core.cuda_toolkit.split(".")[0])
        cuda = {
            "backend": "compiled kernels",
            "toolkit": core.cuda_toolkit,
            "architectures": core.cuda_architectures,
            "driver": "580 or newer" if major >= 13 else "525 or newer",
            "available": torch.cuda.is_available(),
        }
    else:
        cuda = {"backend": "none", "why": "built without nvcc or with SNNFAST_CUDA=0", "available": False}
    return {"version": __version__, "compiler": core.compiler, "cpu": cpu, "cuda": cuda}
