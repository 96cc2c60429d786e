"""The files a run leaves behind."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any


class OutputError(OSError):
    """An output folder that cannot be made or written."""


class OutputFolder:
    """A folder for a run's files, made and tried for writing at once; ``files`` lists what was written."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        self.files: list[str] = []
        trial = self.path / f".writable-{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            trial.write_bytes(b"")
            trial.unlink()
        except OSError as error:
            raise OutputError(
                f"output folder {str(self.path)!r} cannot be written: {error.strerror or error}"
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it no other run can hold the folder, which raises :class:`OutputError`; it ends with the process.

        Two runs would write the same files, each over what the other has half written.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"output folder {str(self.path)!r} cannot be read: {error.strerror or error}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"output folder {str(self.path)!r} is another run's, which is still going: wait, or name another"
                ) from error
            except OSError:  # a file system without locks
                pass
            yield
        finally:
            os.close(descriptor)

    def write_records(self, name: str, records: Sequence[Any]) -> None:
        """``records``, dataclasses of one kind, as the CSV file ``name``: a line each, numbers in full precision.

        Nothing where there are none.
        """
        if records:
            self.write_rows(name, [field.name for field in fields(records[0])], map(astuple, records))

    def write_rows(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """``rows`` under ``columns`` as the CSV file ``name``: numbers in full precision, nothing for None."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        self.write_text(name, text.getvalue())

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """``content`` as the JSON file ``name``."""
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def where(self) -> str:
        """The closing line of a command."""
        return f"Files are in {self.path}: {', '.join(self.files)}"

    def write_text(self, name: str, text: str) -> None:
        """``text`` as the file ``name``. Raises :class:`OutputError`."""
        # First beside its place, then moved: an interrupted run leaves the old file or the new one, never half of one.
        partial = self.path / f".{name}.partial"
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.path / name)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise OutputError(f"{self.path / name} cannot be written: {error.strerror or error}") from error
        self.note(name)

    def remove(self, name: str) -> None:
        """Removes the file ``name``, if there is one. Raises :class:`OutputError`."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path / name} cannot be removed: {error.strerror or error}") from error

    def note(self, name: str) -> None:
        """Counts ``name`` among the files, for :meth:`where`."""
        if name not in self.files:
            self.files.append(name)
