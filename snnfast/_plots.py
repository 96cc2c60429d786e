"""Pictures, without pyplot, which would choose a backend for the whole process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snnfast._text import installs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

GRID = "#e5e7eb"


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
