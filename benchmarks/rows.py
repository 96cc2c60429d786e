"""Results as rows, which are only ever added: a CSV file for each kind, every row with what it was measured on."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .baselines import OURS
from .measure import ratio
from .peers import LIBRARIES

Row = Mapping[str, Any]
"""Values by column; a None is an empty cell, and so is a column that is not there."""

MACHINE = (
    "date",
    "device",
    "device_name",
    "cores",
    "threads",
    "instruction_set",
    "allocator",
    "load",
    "python",
    "torch",
)
KINDS: dict[str, tuple[str, ...]] = {
    "cases": (
        *MACHINE,
        "commit",
        "snnfast",
        "side_version",
        "suite",
        "processes",
        "case",
        "side",
        "median_seconds",
        "lower_seconds",
        "upper_seconds",
        "samples",
        "ratio",
        "agrees",
        "cores_used_by_others",
        "kept_bytes",
        "peak_bytes",
    ),
    "block-memory": (*MACHINE, "commit", "snnfast", "side_version", "side", "steps", "bytes_per_neuron_and_step"),
    "gpu": (
        *MACHINE,
        "commit",
        "snnfast",
        "case",
        "pass",
        "median_seconds",
        "lower_seconds",
        "upper_seconds",
        "samples",
        "bytes",
        "copy_seconds",
        "copy_bytes",
        "fraction",
        "predicted",
    ),
    "compare": (
        *MACHINE,
        "base",
        "head",
        "case",
        "base_seconds",
        "head_seconds",
        "ratio",
        "lower_quartile",
        "upper_quartile",
        "ratio_of_fastest",
        "results_equal",
    ),
}
"""The columns of each kind, whose file is ``KIND.csv``."""


def machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`snnfast.benchmarks.environment.describe` found, as far as rows have it."""
    versions = environment["versions"]
    return {
        **{name: environment[name] for name in ("date", "device", "device_name", "cores", "threads", "commit")},
        "instruction_set": environment["isa"]["snnfast"],
        "allocator": environment["allocator"]["name"],
        "load": environment["load_average"][0],
        **{name: versions.get(name) for name in ("python", "torch", "snnfast")},
    }


def of_results(results: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows, by kind, of what ``snnfast bench`` measured on one device: its ``results.json``."""
    environment = results["environment"]
    where = machine(environment)
    cases: list[Row] = [
        {
            **where,
            "side_version": _version(name, environment),
            "suite": results["suite"],
            "processes": results["processes"],
            "case": case["name"],
            "side": name,
            **_seconds(side["time"]),
            "ratio": ratio(case, name, OURS),
            "agrees": side.get("agrees"),
            "cores_used_by_others": case.get("cores_used_by_others"),
            "kept_bytes": side["kept"]["total"] if "kept" in side else None,
            "peak_bytes": side.get("peak_bytes"),
        }
        for case in results["cases"]
        for name, side in case["sides"].items()
        if "time" in side
    ]
    found = results.get("memory") or {"steps": [], "sides": {}}
    memory: list[Row] = [
        {**where, "side_version": _version(name, environment), "side": name, "steps": steps}
        | {"bytes_per_neuron_and_step": kept}
        for name, side in found["sides"].items()
        if "skipped" not in side
        for steps, kept in zip(found["steps"], side["per_neuron_and_step"], strict=True)
    ]
    return {"cases": cases, "block-memory": memory}


def of_gpu(results: Mapping[str, Any]) -> list[Row]:
    """The rows of what ``python -m snnfast.benchmarks.gpu`` measured: one for each case and pass."""
    where = machine(results["environment"])
    return [
        {
            **where,
            "case": case["name"],
            "pass": name,
            **_seconds(one["time"]),
            "bytes": one["bytes"],
            "copy_seconds": case["copy"]["time"]["median"],
            "copy_bytes": case["copy"]["bytes"],
            "fraction": one["fraction"],
            "predicted": one.get("predicted"),
        }
        for case in results["cases"]
        for name, one in case.get("passes", {}).items()
    ]


def _seconds(time: Mapping[str, Any]) -> Row:
    """A measured time's columns."""
    return {f"{part}_seconds": time[part] for part in ("median", "lower", "upper")} | {"samples": time["samples"]}


def _version(side: str, environment: Mapping[str, Any]) -> str | None:
    """Of the library that a side is of; None for ours and torch's, whose versions the row has anyway."""
    return next((environment["versions"].get(library) for library in LIBRARIES if side.startswith(library)), None)


def check(folder: Path, kinds: Sequence[str]) -> None:
    """Finds out, before anything is measured, whether rows can be added.

    Raises ValueError for a folder that cannot be written, and for a file that has other columns.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in kinds:
            file = folder / f"{kind}.csv"
            with file.open(newline="") if file.exists() else io.StringIO() as stream:
                header = next(csv.reader(stream), None)
            if header is not None and tuple(header) != KINDS[kind]:
                raise ValueError(f"--append: {file} has other columns than rows of this version: name another folder")
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "it is not ours to write")
    except OSError as error:
        raise ValueError(f"--append: cannot write to {folder} ({error.strerror or error})") from error


def append(folder: Path, kind: str, rows: Sequence[Row]) -> Path:
    """Adds rows to the kind's file in ``folder``, which is made with its columns where there is none.

    Raises what :func:`check` raises; KeyError for a value without a column.
    """
    check(folder, [kind])
    columns = KINDS[kind]
    file = folder / f"{kind}.csv"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not file.exists():
        writer.writerow(columns)
    for row in rows:
        unknown = set(row) - set(columns)
        if unknown:
            raise KeyError(f"no column for {', '.join(sorted(unknown))} in {kind}")
        writer.writerow([_cell(row.get(name)) for name in columns])
    with file.open("a", encoding="utf-8", newline="") as stream:
        stream.write(text.getvalue())  # at once: an interruption leaves whole rows
    return file


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
