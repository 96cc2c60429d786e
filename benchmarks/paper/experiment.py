"""What a reproduced table or figure of the paper is: settings, an outcome, verdicts.

Each experiment is a module of this folder with ``EXPERIMENT``, an :class:`Experiment`. It trains and measures, and
returns an :class:`Outcome`; files, plots and pages are made of it in one place, for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """An inequality and whether it holds; fixed before anything was measured, or the outcome's notes say otherwise.

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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an experiment trains on what; experiments add to it.

    * ``data``, ``train``, ``test``, ``size``: images, see :func:`.workbench.images`.
    * ``model``, ``options``: the network, see :func:`.workbench.network`.
    * ``training``: options of :class:`snnfast.training.TrainOptions`.
    * ``tuning``: batches for each evaluation of the search for γ, and their size, see :func:`.workbench.sharpen`.
    """

    data: str
    train: int | None = None
    test: int | None = None
    size: int | None = None
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    tuning: tuple[int, int] = (8, 32)


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    * ``name``: as the command calls it, such as ``fig3``.
    * ``title``: in words.
    * ``place``: where the paper has it.
    * ``settings``: for each of :data:`SCALES`.
    * ``measure``: trains and measures.
    """

    name: str
    title: str
    place: str
    settings: Mapping[str, Any]
    measure: Callable[[Any, Context], Outcome]

    def needs(self, scale: str) -> tuple[str, ...]:
        """The data sets that the experiment reads at a scale."""
        return (self.settings[scale].data,)

    def run(self, context: Context) -> Outcome:
        """Measures at the context's scale."""
        return self.measure(self.settings[context.scale], context)
