"""CIFAR-10 and CIFAR-100 from the official binary files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from snnfast.data.files import find_files, read_content
from snnfast.data.images import DataError, ImageData, Split

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32  # bytes: a plane of red, of green, of blue


@dataclass(frozen=True)
class _Format:
    """A record is one byte per label, then the image."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: tuple[int, ...]  # how many values each label byte has; the last one is the class
    subfolders: tuple[str, ...]  # as given; as the archive unpacks; beside other data sets
    archive: str


_CIFAR10 = _Format(
    "cifar10",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    labels=(10,),
    subfolders=("", "cifar-10-batches-bin", "cifar10"),
    archive="cifar-10-binary.tar.gz",
)
_CIFAR100 = _Format(
    "cifar100",
    train=("train.bin",),
    test=("test.bin",),
    labels=(20, 100),  # coarse, fine
    subfolders=("", "cifar-100-binary", "cifar100"),
    archive="cifar-100-binary.tar.gz",
)


def load_cifar10(folder: Path) -> ImageData:
    """CIFAR-10 from ``folder``, or from its ``cifar-10-batches-bin`` or ``cifar10`` folder: 3×32×32, 10 classes.

    The counts are read from the files, so that a smaller extract works too. Raises :class:`DataError`: see
    :func:`snnfast.data.load`.
    """
    return _load(_CIFAR10, folder)


def load_cifar100(folder: Path) -> ImageData:
    """CIFAR-100 from ``folder``, or from its ``cifar-100-binary`` or ``cifar100`` folder: 3×32×32, 100 classes.

    The labels are the fine ones. As :func:`load_cifar10` otherwise.
    """
    return _load(_CIFAR100, folder)


def _load(form: _Format, folder: Path) -> ImageData:
    parts = {name: (name, f"{name}.gz") for name in (*form.train, *form.test)}
    origin = f"they are in {form.archive} (the binary version) of https://www.cs.toronto.edu/~kriz/cifar.html"
    files = find_files(form.name, folder, form.subfolders, parts, origin)
    training = len(form.train)
    return ImageData(
        form.name, form.labels[-1], train=_read_split(form, files[:training]), test=_read_split(form, files[training:])
    )


def _read_split(form: _Format, files: Sequence[Path]) -> Split:
    records = [_read_records(form, file) for file in files]
    at = len(form.labels)
    images = np.concatenate([rows[:, at:] for rows in records]).reshape(-1, *_SHAPE)
    labels = np.concatenate([rows[:, at - 1] for rows in records]).astype(np.int64)
    return Split(torch.from_numpy(images), torch.from_numpy(labels), full_scale=255.0)


def _read_records(form: _Format, file: Path) -> np.ndarray:
    content = read_content(file)
    record = len(form.labels) + _PIXELS
    if not content:
        raise DataError(f"{file}: holds no images")
    if len(content) % record:
        raise DataError(
            f"{file}: truncated or of another format, {len(content)} bytes are not a whole number of {form.name} "
            f"records of {record} bytes"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    for column, classes in enumerate(form.labels):
        found = rows[:, column].max()
        if found >= classes:
            kind = "label" if len(form.labels) == 1 else ("coarse label", "fine label")[column]
            raise DataError(f"{file}: {kind} {found}, expected 0 to {classes - 1}")
    return rows
