"""An experiment's outcome on disk: its tables as CSV, its plots as SVG, and the rest as one JSON file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snnfast._text import installs
from snnfast.training.output import OutputFolder

from .experiment import Experiment, Outcome, Plot

RESULT = "result.json"
_KEYS = {"title", "place", "verdicts", "notes", "tables", "plots"}


def write(folder: OutputFolder, experiment: Experiment, outcome: Outcome, about: dict[str, Any]) -> list[str]:
    """Writes an outcome's files; ``about`` (scale, seconds, environment) is added to ``result.json``.

    Returns what there is to say about files that were not written.
    """
    for table in outcome.tables:
        for row in table.rows:
            if len(row) != len(table.columns):
                raise ValueError(f"table {table.name}: a row of {len(row)} values for {len(table.columns)} columns")
        folder.write_rows(f"{table.name}.csv", table.columns, table.rows)
    drawn, remarks = _draw(folder, experiment.name, outcome.plots)
    result = {
        "name": experiment.name,
        "title": experiment.title,
        "place": experiment.place,
        "verdicts": [asdict(verdict) for verdict in outcome.verdicts],
        "notes": list(outcome.notes),
        "tables": [{"file": f"{table.name}.csv", "title": table.title} for table in outcome.tables],
        "plots": [{"file": f"{plot.name}.svg", "title": plot.title} for plot in drawn],
        **about,
    }
    # Last, and it names the others: a folder without it is not a result.
    folder.write_json(RESULT, result)
    return remarks


def why_no_plots() -> str | None:
    """What to say where plots cannot be drawn; None where they can."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return f"plots skipped (tables and verdicts need none): matplotlib is not installed: {installs('plots')}"
    return None


def _draw(folder: OutputFolder, name: str, plots: Sequence[Plot]) -> tuple[list[Plot], list[str]]:
    if not plots:
        return [], []
    if why := why_no_plots():
        return [], [why]
    import matplotlib
    from matplotlib.figure import Figure

    for plot in plots:
        # Of equal numbers the same file, and ids that no other plot on the same page has.
        with matplotlib.rc_context({"svg.hashsalt": f"{name}/{plot.name}", "svg.fonttype": "path"}):
            figure = Figure(figsize=plot.size, layout="constrained")
            plot.draw(figure)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
        folder.write_text(f"{plot.name}.svg", text.getvalue())
    return list(plots), []


def read(folder: Path) -> dict[str, Any] | None:
    """The ``result.json`` of an experiment's folder, or None where there is none that can be read."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.keys() >= _KEYS else None


def inline(svg: str, prefix: str) -> str:
    """An SVG file's element alone, for a page of several: no XML prologue, and ids that start with ``prefix``."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', element)
    element = re.sub(r'(xlink:href="|href=")#', rf"\g<1>#{prefix}-", element)
    # What matplotlib says of all elements is for its own.
    element = element.replace("*{stroke-", "figure svg *{stroke-")
    return re.sub(r"url\(#", f"url(#{prefix}-", element)
