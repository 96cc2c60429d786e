"""What a reproduced table or figure of the paper is: settings, an outcome, verdicts.

Each experiment is a module of this folder with ``EXPERIMENT``, an :class:`Experiment`. It trains and measures, and
returns an :class:`Outcome`; files, plots and pages are made of it in one place, for all.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from snnfast.data import DataError, ImageData, load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALES = ("small", "medium", "full")
"""Minutes on two CPU cores, hours on them with checkpoints, and the paper's own setting; not each has every one."""


@dataclass(frozen=True)
class Context:
    """What an experiment is run with.

    * ``scale``: one of :data:`SCALES`.
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
    * ``otherwise``: the data set in the place of ``data`` where that one's files are not there; None for none.
    * ``model``, ``options``: the network, see :func:`.workbench.network`.
    * ``training``: options of :class:`snnfast.training.TrainOptions`.
    * ``tuning``: batches for each evaluation of the search for γ, and their size, see :func:`.workbench.sharpen`.
    """

    data: str
    otherwise: str | None = None
    train: int | None = None
    test: int | None = None
    size: int | None = None
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    tuning: tuple[int, int] = (8, 32)

    def data_set(self, data_dir: str | None) -> str:
        """The data set that there is: ``data``, or ``otherwise``."""
        try:
            loaded(self.data, data_dir)
        except DataError:
            if self.otherwise is None:
                raise
            try:
                loaded(self.otherwise, data_dir)
            except DataError:
                pass
            else:
                return self.otherwise
            raise
        return self.data


@functools.lru_cache(maxsize=2)
def loaded(name: str, data_dir: str | None) -> ImageData:
    """:func:`snnfast.data.load`, which keeps what it read."""
    return load(name, data_dir if data_dir is not None else os.environ.get("SNNFAST_DATA"))


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    * ``name``: as the command calls it, such as ``fig3``.
    * ``title``: in words.
    * ``place``: where the paper has it.
    * ``settings``: for each of :data:`SCALES` that it has.
    * ``measure``: trains and measures.
    """

    name: str
    title: str
    place: str
    settings: Mapping[str, Any]
    measure: Callable[[Any, Context], Outcome]

    def data_set(self, scale: str, data_dir: str | None) -> str:
        """The data set that the experiment reads at a scale: the settings' own, or the one in its place.

        Raises:
            snnfast.data.DataError: neither can be read; the message is of the settings' own.
        """
        return self.settings[scale].data_set(data_dir)

    def run(self, context: Context) -> Outcome:
        """Measures at the context's scale."""
        settings = self.settings[context.scale]
        outcome = self.measure(settings, context)
        read = settings.data_set(context.data_dir)
        if read == settings.data:
            return outcome
        note = f"Measured on {read}: the files of {settings.data}, on which the paper measured, were not in the folder."
        return replace(outcome, notes=[*outcome.notes, note])
