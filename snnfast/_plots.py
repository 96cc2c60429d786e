"""Pictures, without pyplot, which would choose a backend for the whole process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from snnfast._arguments.checks import path as checked_path
from snnfast._text import installs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

GRID = "#e5e7eb"

Profile = TypeVar("Profile")


def empty_figure(width: float, height: float) -> Figure:
    """A figure of so many inches. Raises ImportError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plots need matplotlib, which is not installed: {installs('plots')}") from error
    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Axes) -> None:
    """A pale grid at the major ticks, and no frame above and on the right."""
    axes.grid(True, which="major", color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def whole_numbers(axis: Axis) -> None:
    """Ticks of a picture's axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    locator = axis.get_major_locator()
    assert isinstance(locator, MaxNLocator)
    locator.set_params(integer=True)


def plot_over_layers(
    profiles: Mapping[str, Profile],
    kind: type[Profile],
    values: Callable[[Profile], Sequence[float]],
    path: str | os.PathLike[str],
    **axes_options: Any,
) -> None:
    """Writes a profile's values over the layer number, a curve for each label; NaN is a gap.

    Raises TypeError or ValueError for no mapping, no profile or no path; ImportError without matplotlib.
    """
    if not isinstance(profiles, Mapping):
        raise TypeError(f"profiles must be a mapping of labels to profiles, got {type(profiles).__name__}")
    for label, profile in profiles.items():
        if not isinstance(profile, kind):
            raise TypeError(f"profiles must hold {kind.__name__}s, got {type(profile).__name__} for {label!r}")
    path = checked_path("path", path)
    if not profiles:
        raise ValueError("profiles must hold at least one profile, got none")
    figure = empty_figure(7.2, 4.5)
    axes = figure.subplots()
    for label, profile in profiles.items():
        shown = values(profile)
        axes.plot(range(1, len(shown) + 1), shown, marker="o", markersize=4, label=label)
    axes.set(xlabel="spiking layer, from the input", **axes_options)
    plain(axes)
    whole_numbers(axes.xaxis)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
