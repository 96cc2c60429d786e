"""Compiles the CUDA kernels' own source for the host, as a module with the interface of snnfast._core."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
NAME = "_core_on_host"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wno-unknown-pragmas"]


def build(directory: Path, csrc: Path = CSRC) -> ModuleType:
    """Compiles into ``directory`` (objects are reused while nothing changed) and imports the module.

    Raises:
        RuntimeError: no C++ compiler, or it refused the source; the message has its output.
    """
    import pybind11

    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("no C++ compiler (set CXX)")
    sources = [
        csrc / "bindings.cpp",
        csrc / "cuda" / "launch.cu",
        *sorted((csrc / "cuda" / "instantiate").glob("*.cu")),
        HERE / "no_cpu.cpp",
    ]
    headers = [*csrc.rglob("*.h"), *csrc.rglob("*.cuh"), HERE / "cuda_runtime.h"]
    state = hashlib.sha256("".join(f.read_text() for f in sorted([*sources, *headers])).encode()).hexdigest()[:16]
    folder = directory / state
    folder.mkdir(parents=True, exist_ok=True)
    module = folder / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        includes = [f"-I{HERE}", f"-I{csrc}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
        macros = [
            f"-DSNNFAST_MODULE={NAME}",
            '-DSNNFAST_CUDA_TOOLKIT="host"',
            '-DSNNFAST_CUDA_ARCHITECTURES="host"',
            '-DSNNFAST_COMPILER="host"',
        ]

        def compile_one(source: Path) -> str:
            target = folder / (source.stem + ".o")
            run([compiler, *FLAGS, *includes, *macros, "-x", "c++", "-c", str(source), "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        run([compiler, "-shared", *objects, "-o", str(module)])
    spec = importlib.util.spec_from_file_location(NAME, module)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


def symbols(module: ModuleType) -> dict[str, int]:
    """The functions of a built module, demangled, and where they lie in its file. RuntimeError without ``nm``."""
    nm = shutil.which("nm")
    if nm is None:
        raise RuntimeError("no nm")
    assert module.__file__ is not None
    listed = subprocess.run([nm, "-C", module.__file__], capture_output=True, text=True, check=True).stdout
    parts = (line.split(maxsplit=2) for line in listed.splitlines() if not line.startswith(" "))
    return {name: int(address, 16) for address, kind, name in parts if kind in "tTwW"}


def launched(module: ModuleType) -> set[str]:
    """The kernels, as functions of :func:`symbols`, that were launched since this was last asked."""
    assert module.__file__ is not None
    library = ctypes.CDLL(module.__file__)
    room = 4096
    addresses = (ctypes.c_void_p * room)()
    count = library.host_run_launched(addresses, room)
    assert count <= room
    known = symbols(module)
    anchor = ctypes.cast(library.host_run_launched, ctypes.c_void_p).value
    assert anchor is not None
    base = anchor - known["host_run_launched"]
    names = {base + at: name for name, at in known.items()}
    return {names[address] for address in addresses[:count]}
