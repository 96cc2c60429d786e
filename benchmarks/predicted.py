"""Predicted shares of the copy bandwidth, read from the tables that are committed; a missing table is no error.

A table is a CSV file, a row a kernel, with the columns ``kernel`` (a name of ``core.variant_names``, or a demangled or
shortened one) and ``fraction``; where it has a column ``architecture`` ("90"), rows of other architectures than asked
for are passed over.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from .launched import short

FOLDER = Path("benchmarks/results/predicted")
"""In the source tree."""


def read(place: Path, architecture: str = "") -> dict[str, float]:
    """The predicted fraction by kernel, in short, of a CSV file or all in a folder; empty where there is none.

    Raises ValueError for a file that is no such table.
    """
    files = sorted(place.glob("*.csv")) if place.is_dir() else [place] if place.is_file() else []
    found: dict[str, float] = {}
    for file in files:
        try:
            with file.open(newline="") as stream:
                for row in csv.DictReader(stream):
                    of = (row.get("architecture") or architecture).removeprefix("sm_")
                    if row.get("kernel") and row.get("fraction") and of == architecture:
                        found[short(row["kernel"])] = float(row["fraction"])
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{file} is no table of predictions: {error}") from error
    return found


def of_kernels(names: Iterable[str], table: Mapping[str, float]) -> float | None:
    """The fraction of work that launches these kernels of forward and backward passes: that of the slowest.

    None where the table lacks one of them, or there are none.
    """
    found = [table.get(name) for name in map(short, names) if name.startswith(("forward<", "backward<"))]
    known = [value for value in found if value is not None]
    return min(known) if known and len(known) == len(found) else None
