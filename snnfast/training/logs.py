"""TensorBoard's view of a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from snnfast._text import installs
from snnfast.training.options import OptionError
from snnfast.training.records import Evaluation, FiringRecord, StepRecord


class Board:
    """Writes loss, accuracy, learning rate and time of each step, evaluations, and firing rates, for TensorBoard.

    Into ``FOLDER/tensorboard``; does nothing unless ``wanted``. A run that goes on writes on: TensorBoard shows the
    later of two values of one step. A context manager, so that what is buffered is written whatever happens. Raises
    :class:`OptionError` where TensorBoard is wanted and not installed.
    """

    def __init__(self, wanted: bool, folder: Path) -> None:
        self._writer: Any = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OptionError(f"--tensorboard: TensorBoard is not installed: {installs('logs')}") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def step(self, record: StepRecord) -> None:
        """Adds one training step."""
        if self._writer is not None:
            for name in ("loss", "accuracy", "lr", "seconds"):
                self._writer.add_scalar(f"train/{name}", getattr(record, name), record.step)

    def evaluation(self, found: Evaluation, step: int) -> None:
        """Adds an evaluation after ``step`` training steps."""
        if self._writer is not None:
            self._writer.add_scalar("test/loss", found.loss, step)
            self._writer.add_scalar("test/accuracy", found.accuracy, step)

    def rates(self, found: Iterable[FiringRecord], step: int) -> None:
        """Adds how the layers fire after ``step`` training steps."""
        if self._writer is not None:
            for record in found:
                for name in ("rate", "silent", "saturated"):
                    self._writer.add_scalar(f"{name}/{record.layer}", getattr(record, name), step)
