"""How far a run is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from snnfast.training.trainer import StepRecord

_LINE_EVERY = 30.0  # seconds, within an epoch


class Progress:
    """Shows the mean loss and accuracy of the current epoch.

    Where stderr is a terminal: a bar there, with the time left. Elsewhere: a line on stdout at the end of each epoch,
    and every 30 seconds within a longer one. Use as a context manager, so that the bar is closed whatever happens.
    """

    def __init__(self, epochs: int, batches: int) -> None:
        self._epochs, self._batches = epochs, batches
        self._losses: list[float] = []
        self._accuracies: list[float] = []
        self._start = self._last_line = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=epochs * batches, unit="step", dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, record: StepRecord) -> None:
        """Counts one training step."""
        self._losses.append(record.loss)
        self._accuracies.append(record.accuracy)
        done = len(self._losses)
        loss, accuracy = sum(self._losses) / done, sum(self._accuracies) / done
        epoch = f"epoch {record.epoch}/{self._epochs}"
        if self._bar is not None:
            self._bar.set_description(epoch, refresh=False)
            self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.2%}", refresh=False)
            self._bar.update()
        elif done == self._batches or time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            part = "" if done == self._batches else f", step {done}/{self._batches}"
            elapsed = self._last_line - self._start
            print(f"{epoch}{part}: loss {loss:.4f}, accuracy {accuracy:.2%}, {elapsed:.1f} s", flush=True)
        if done == self._batches:
            self._losses.clear()
            self._accuracies.clear()
