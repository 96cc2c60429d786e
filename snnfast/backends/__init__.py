"""What runs the kernels: the compiled core, on CPU threads or a CUDA stream.

A backend is an object with the methods of ``core.Cpu`` and ``core.Cuda`` (snnfast/_core.pyi), one for each kind of
call; which one runs a tensor is decided in :func:`of` alone.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

try:
    from snnfast import _core as core
except ImportError as error:
    _source = Path(__file__).resolve().parents[2]
    if (_source / "csrc").is_dir() and not list((_source / "snnfast").glob("_core.*.so")):
        raise ImportError(
            f"Python found snnfast's source folder, {_source}, ahead of an installed snnfast: run Python in another "
            "folder, or with -P, as 'python -P'; where nothing is installed yet, 'python -m pip install .' there first"
        ) from None
    raise ImportError(
        f"snnfast's compiled core could not be loaded ({error}). Install the package with "
        "'python -m pip install .' in its source folder; another Python version than it was built for does not do"
    ) from error

# One OpenMP runtime per process: torch's own (csrc/cpu/threads.h).
torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
openmp = core.use_openmp_of(str(torch_library))

DEVICES = ("cpu", "cuda", "meta")  # meta: shapes only


DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
"""What the core calls them."""

Backend = core.Cpu | core.Cuda
"""Runs a call's kernel: a method for each kind of call, and no torch. A further backend has the same methods."""

on_cpu = lru_cache(maxsize=16)(core.Cpu)
on_cuda = lru_cache(maxsize=256)(core.Cuda)


def of(tensor: torch.Tensor) -> Backend:
    """The backend for a tensor: the CPU's threads, or the current stream of its CUDA device."""
    if tensor.is_cuda:
        device = tensor.get_device()
        return on_cuda(device, torch._C._cuda_getCurrentRawStream(device))
    return on_cpu(torch.get_num_threads())


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
