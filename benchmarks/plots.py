"""Results as pictures: time over T, time over size, memory over T. matplotlib is imported here alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from snnfast._text import installs

from .measure import disturbed

COLOURS = {
    "snnfast": "#0b6e4f",
    "naive": "#c8553d",
    "compiled": "#e0a030",
    "relu": "#6b7280",
    "spikingjelly": "#3b6fb6",
    "spikingjelly-native": "#1d3f72",
    "spikingjelly-triton": "#6f9bd1",
    "spikingjelly-torch": "#a3bfe0",
    "snntorch": "#7b4fa3",
    "norse": "#b07aa1",
    "unfused": "#e0a030",
    "snnfast-packed": "#36b37e",
    "spikingjelly-memopt": "#a3bfe0",
}

Value = Callable[[dict[str, Any]], float | None]


def _milliseconds(side: dict[str, Any]) -> float | None:
    if side.get("agrees") is False or "time" not in side:
        return None
    return side["time"]["median"] * 1e3


def _megabytes(side: dict[str, Any]) -> float | None:
    if side.get("agrees") is False or "kept" not in side:
        return None
    return side["kept"]["total"] / 1e6


Series = dict[str, tuple[str, dict[Any, float]]]
"""Per side its title and its points {x: y}."""


PLOTS: tuple[tuple[str, str, str, str, str, Value], ...] = (
    ("time-over-T.png", "over T", "time_steps", "time steps T", "forward + backward, ms", _milliseconds),
    ("time-over-size.png", "over size", "elements", "neurons x steps", "forward + backward, ms", _milliseconds),
    ("memory-over-T.png", "over T", "time_steps", "time steps T", "kept for backward, MB", _megabytes),
)


def _series(cases: Sequence[dict[str, Any]], group: str, x: str, value: Value) -> Series:
    """What a picture shows; cases of a group and of its longer-named kin share one."""
    series: Series = {}
    for case in cases:
        if case["group"] != group and not case["group"].startswith(f"{group},"):
            continue
        for name, side in case["sides"].items():
            y = value(side) if name in COLOURS else None
            if y is not None:
                series.setdefault(name, (side["title"], {}))[1].setdefault(case[x], y)
    return series


def write(results: dict[str, Any], folder: Path) -> tuple[list[Path], str]:
    """Writes the plots that the results have data for; returns their paths and a remark on what is missing, or ""."""
    try:
        import matplotlib
    except ImportError:
        return [], f"plots skipped: matplotlib is not installed: {installs('plots')}"
    matplotlib.use("Agg")
    machine = results["environment"]
    written: list[Path] = []
    empty: list[str] = []
    for name, group, x, x_label, y_label, value in PLOTS:
        series = {key: found for key, found in _series(results["cases"], group, x, value).items() if found[1]}
        if not any(len(points) > 1 for _, points in series.values()):
            empty.append(name)
            continue
        busy = any(disturbed(case) for case in results["cases"] if case["group"] == group)
        title = f"IF layer on {machine['device_name']}, torch {machine['versions']['torch']}"
        title += ", while others used the cores" if busy else ""
        written.append(_draw(folder / name, series, x_label, y_label, title, every_step=x == "time_steps"))
    if found := results.get("memory"):
        kept = {
            key: (side["title"], dict(zip(found["steps"], side["per_neuron_and_step"], strict=True)))
            for key, side in found["sides"].items()
            if "skipped" not in side
        }
        title = "A conv-BN-IF block in float32: kept for backward, weights not counted"
        file = folder / "block-memory-over-T.png"
        written.append(_draw(file, kept, "time steps T", "kept, bytes per neuron and step", title, every_step=True))
    return written, f"no {', '.join(empty)}: the cases chosen do not vary that" if empty else ""


def _draw(file: Path, series: Series, x_label: str, y_label: str, title: str, *, every_step: bool) -> Path:
    """Draws a curve for each side on logarithmic scales; ``every_step``: x has a tick at every point."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.5), layout="constrained")
    for key in COLOURS:
        if key not in series:
            continue
        label, points = series[key]
        xs = sorted(points)
        ours = key.startswith("snnfast")
        axes.plot(
            xs,
            [points[at] for at in xs],
            marker="o",
            label=label,
            color=COLOURS[key],
            markersize=5 if ours else 4,
            linewidth=2.4 if ours else 1.4,
            zorder=3 if ours else 2,
        )
    axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
    axes.set_xscale("log", base=2)
    if every_step:
        ticks = sorted({at for _, points in series.values() for at in points})
        axes.set_xticks(ticks, [str(at) for at in ticks])
    axes.grid(True, which="major", color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(title, fontsize=10, loc="left")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
    return file
