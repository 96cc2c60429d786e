"""Finding and reading a data set's files; what is wrong with them is a DataError that names them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from snnfast.data.images import DataError


def find_files(
    data_set: str, folder: Path, subfolders: Sequence[str], parts: Mapping[str, Sequence[str]], origin: str
) -> list[Path]:
    """The data set's files, all from one of the ``subfolders`` of ``folder``.

    ``parts``: for each file, how a message calls it, and the names that it may have. Where no subfolder has all of
    them, the :class:`DataError` speaks of the one that has the most: it names every missing file, and their origin.
    """
    best: list[Path | None] = []
    for subfolder in subfolders:
        found = [_first_file(folder / subfolder, names) for names in parts.values()]
        if not best or found.count(None) < best.count(None):
            best, place = found, folder / subfolder
    missing = [part for part, file in zip(parts, best, strict=True) if file is None]
    if missing:
        raise DataError(f"{data_set}: no {', '.join(missing)} in {str(place)!r}; {origin}")
    return [file for file in best if file is not None]


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_content(path: Path) -> bytes:
    """The bytes of a file, through gzip where the content (not the name) says so. Raises :class:`DataError`."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except EOFError as error:
        raise DataError(f"{path}: truncated, its gzip stream ends early ({len(raw)} bytes of file)") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip stream ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
