"""What a measurement was made on, and the allocator that it is made under."""

from __future__ import annotations

import contextlib
import ctypes.util
import datetime
import glob
import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import snnfast

from .peers import LIBRARIES

ALLOCATORS = ("jemalloc", "tcmalloc")

# jemalloc as it comes gives the pages of a large tensor back at once and asks for fresh ones at the next: a copy of
# 10 MB then takes ten times as long, nearly all of it page faults. These settings keep them.
KEEP_PAGES = "oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1"


def loaded_allocator() -> str | None:
    """The caching allocator loaded into this process ("jemalloc", "tcmalloc"), or None."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    return next((name for name in ALLOCATORS if f"lib{name}" in maps), None)


def find_allocator() -> str | None:
    """The path of an installed jemalloc or tcmalloc, or None."""
    places = [
        f"{root}/lib{name}*.so*"
        for name in ALLOCATORS
        for root in (
            f"/usr/lib/{platform.machine()}-linux-gnu",
            "/usr/lib64",
            "/usr/lib",
            "/usr/local/lib",
            f"{sys.prefix}/lib",
        )
    ]
    for place in places:
        # the debugging and profiling variants of tcmalloc measure something else
        found = sorted(path for path in glob.glob(place) if "debug" not in path and "profiler" not in path)
        if found:
            return found[0]
    return ctypes.util.find_library("jemalloc") or ctypes.util.find_library("tcmalloc")


def preloading(environ: dict[str, str]) -> dict[str, str] | None:
    """The environment in which a child of this process runs under a caching allocator; None where it would not help:
    one is loaded already, or none is found."""
    if loaded_allocator() is not None:
        return None
    library = find_allocator()
    if library is None:
        return None
    changed = dict(environ)
    changed["LD_PRELOAD"] = " ".join(filter(None, (library, environ.get("LD_PRELOAD"))))
    changed.setdefault("MALLOC_CONF", KEEP_PAGES)
    return changed


def faults_per_copy(megabytes: int = 16, copies: int = 10) -> float:
    """Page faults that one fresh buffer of that size costs: near 0 under an allocator that keeps its pages."""
    source = torch.ones(megabytes << 18)
    for _ in range(3):
        source.clone()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(copies):
        source.clone()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / copies


def allocator() -> dict[str, Any]:
    """The allocator, its settings, and whether fresh CPU buffers are free of page faults, with a sentence."""
    name, faults = loaded_allocator(), faults_per_copy()
    record: dict[str, Any] = {
        "name": name or "the C library's",
        "settings": os.environ.get("MALLOC_CONF", ""),
        "page_faults_per_16_MB": faults,
        "caching": faults < 100,
    }
    if record["caching"]:
        record["remark"] = f"CPU buffers from {record['name']}, pages kept between calls"
    else:
        record["remark"] = (
            f"CPU buffers from {record['name']}: {faults:.0f} page faults per fresh 16 MB, which every "
            "CPU time below includes; "
            + (
                "set MALLOC_CONF=" + KEEP_PAGES
                if name == "jemalloc"
                else "no jemalloc or tcmalloc was found (Debian, Ubuntu: apt install libjemalloc2)"
            )
        )
    return record


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("snnfast", "torch", "numpy", "triton", *LIBRARIES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def source_tree() -> Path | None:
    """The source folder that this is run from: the current one, or one around it."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "csrc").is_dir()), None)


def source_digest(tree: Path) -> str:
    """A hash of all that decides what is measured: csrc, snnfast, benchmarks, and what builds them.

    Equal in every copy of the tree, in the checkout of the commit that it is a copy of too:
    ``python -P -c "from snnfast.benchmarks import environment as e; print(e.source_digest(e.source_tree()))"``.
    """
    found = hashlib.sha256()
    files = [tree / name for name in ("CMakeLists.txt", "pyproject.toml", "setup.py")]
    for folder, kinds in (("csrc", "*"), ("snnfast", "*.py"), ("benchmarks", "*.py")):
        files += sorted(file for file in (tree / folder).rglob(kinds) if file.is_file())
    for file in files:
        found.update(f"{file.relative_to(tree).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def commit() -> str | None:
    """The commit of the source tree that this is run from.

    What the variable SNNFAST_COMMIT says; else what git says, "+" appended where a tracked file is modified; in a copy
    without git ``source <digest>`` of :func:`source_digest`; None outside of a source tree.
    """
    if given := os.environ.get("SNNFAST_COMMIT"):
        return given
    tree = source_tree()
    if tree is None:
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(tree), *arguments], capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == tree.resolve():  # not of a repository around it
            return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        pass
    return f"source {source_digest(tree)}"


def describe(device: torch.device) -> dict[str, Any]:
    """Device, processor, versions, allocator, threads, load and commit, for a result file."""
    record: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "isa": {
            "snnfast": snnfast.build_info().get("cpu", {}).get("instruction_set"),
            "torch": torch.backends.cpu.get_cpu_capability(),
        },
        "system": platform.platform(),
        "versions": _versions(),
        "build_info": snnfast.build_info(),
        "allocator": allocator(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "commit": commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record["cuda"] = {
            "toolkit_of_torch": torch.version.cuda,
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "l2_bytes": getattr(properties, "L2_cache_size", None),
        }
    return record
