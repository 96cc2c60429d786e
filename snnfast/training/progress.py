"""How far a run is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from snnfast._text import installs
from snnfast.training.records import Evaluation, StepRecord

_LINE_EVERY = 30.0  # seconds, within an epoch
_WORTH_A_LINE = 10.0  # seconds of an epoch


class Progress:
    """Shows the mean loss and accuracy of the current epoch.

    Where stderr is a terminal: a bar there, with the time left. Elsewhere, and without tqdm: a line on stdout at the
    end of each epoch, and every 30 seconds within a longer one, with the time left. Use as a context manager, so that
    the bar is closed whatever happens. ``done`` steps were taken before; nothing is shown where not ``shown``.
    """

    def __init__(self, epochs: int, batches: int, *, done: int = 0, shown: bool = True) -> None:
        self._epochs, self._batches, self._shown = epochs, batches, shown
        self._done = self._before = done
        self._losses: list[float] = []
        self._accuracies: list[float] = []
        self._start = self._last_line = self._last_evaluation = time.monotonic()
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                print(f"note    no progress bar: tqdm is not installed: {installs('train')}")
            else:
                self._bar = tqdm(total=epochs * batches, initial=done, unit="step", dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, record: StepRecord) -> None:
        """Counts one training step."""
        if not self._shown:
            return
        self._done += 1
        self._losses.append(record.loss)
        self._accuracies.append(record.accuracy)
        loss, accuracy = (sum(values) / len(values) for values in (self._losses, self._accuracies))
        epoch = f"epoch {record.epoch}/{self._epochs}"
        of_epoch = (self._done - 1) % self._batches + 1
        if self._bar is not None:
            self._bar.set_description(epoch, refresh=False)
            self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.2%}", refresh=False)
            self._bar.update()
        elif of_epoch == self._batches or time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            part = "" if of_epoch == self._batches else f", step {of_epoch}/{self._batches}"
            elapsed = self._last_line - self._start
            left = elapsed / (self._done - self._before) * (self._epochs * self._batches - self._done)
            time_left = f", {_in_words(left)} left" if left >= 1 else ""
            print(f"{epoch}{part}: loss {loss:.4f}, accuracy {accuracy:.2%}, {elapsed:.1f} s{time_left}", flush=True)
        if of_epoch == self._batches:
            self._losses.clear()
            self._accuracies.clear()

    def evaluated(self, found: Evaluation) -> None:
        """Says what an evaluation within the run came to, where epochs are long enough to wait for it."""
        before, self._last_evaluation = self._last_evaluation, time.monotonic()
        if self._shown and self._last_evaluation - before > _WORTH_A_LINE:
            line = f"epoch {found.epoch}/{self._epochs}: test loss {found.loss:.4f}, test accuracy {found.accuracy:.2%}"
            if self._bar is not None:
                self._bar.write(line)
            else:
                print(line, flush=True)


def _in_words(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"
