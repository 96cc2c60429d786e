"""What a reproduced table or figure of the paper is: settings, an outcome, verdicts.

Each experiment is a module of this folder with ``SETTINGS``, a dict of its settings for each scale, and
``EXPERIMENT``, an :class:`Experiment`. Its ``run`` trains and measures, and returns an :class:`Outcome`; files, plots
and pages are made of it in one place, for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALES = ("small", "full")


@dataclass(frozen=True)
class Context:
    """What an experiment is run with.

    * ``scale``: one of :data:`SCALES`: two CPU cores and minutes, or the paper's own setting.
    * ``data_dir``: the folder of the data sets, as :func:`snnfast.data.load` takes it.
    * ``device``: where networks are trained.
    * ``say``: prints one line of progress.
    * ``folder``: where the results of all experiments are, a folder each; None where they are not written.
    """

    scale: str
    data_dir: str | None
    device: torch.device
    say: Callable[[str], None] = print
    folder: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of plain numbers and words under ``columns``; written as ``NAME.csv``."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Plot:
    """A picture: ``draw`` fills an empty matplotlib figure of ``size`` inches; written as ``NAME.svg``."""

    name: str
    title: str
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (7.2, 4.5)


@dataclass(frozen=True)
class Verdict:
    """An inequality that was fixed before anything was measured, and whether it holds.

    * ``claim``: the inequality in words, with its bound.
    * ``shown``: whether the measured numbers satisfy it.
    * ``measured``: those numbers, in words.
    * ``paper``: what the paper says of it.
    """

    claim: str
    shown: bool
    measured: str
    paper: str = ""

    def __str__(self) -> str:
        return f"{'shown' if self.shown else 'NOT SHOWN'}: {self.claim}; measured: {self.measured}"


@dataclass(frozen=True)
class Outcome:
    """What came of an experiment; ``notes`` say in what the setting differs from the paper's."""

    tables: Sequence[Table]
    plots: Sequence[Plot]
    verdicts: Sequence[Verdict]
    notes: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    * ``name``: as the command calls it, such as ``fig3``.
    * ``title``: in words.
    * ``place``: where the paper has it.
    * ``run``: measures at ``context.scale``.
    """

    name: str
    title: str
    place: str
    run: Callable[[Context], Outcome]
