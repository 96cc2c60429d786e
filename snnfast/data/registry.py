"""The data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snnfast._arguments.checks import path as checked_path
from snnfast.data.cifar import load_cifar10, load_cifar100
from snnfast.data.digits import load_digits
from snnfast.data.imagenette import load_imagenette
from snnfast.data.images import DataError, ImageData
from snnfast.data.mnist import load_mnist

DATA_DIR_VARIABLE = "SNNFAST_DATA"


@dataclass(frozen=True)
class _Embedded:
    """A data set that comes with a package: no folder to name."""

    load: Callable[[], ImageData]


@dataclass(frozen=True)
class _FromFolder:
    """A data set that is read from a folder."""

    load: Callable[[Path], ImageData]


_DATA_SETS: dict[str, _Embedded | _FromFolder] = {
    "digits": _Embedded(load_digits),
    "mnist": _FromFolder(load_mnist),
    "cifar10": _FromFolder(load_cifar10),
    "cifar100": _FromFolder(load_cifar100),
    "imagenette": _FromFolder(load_imagenette),
}


def data_sets() -> tuple[str, ...]:
    """The names that :func:`load` knows."""
    return tuple(_DATA_SETS)


def check_known(name: str) -> None:
    """Raises :class:`DataError`, which lists the known names, for a name that :func:`load` does not know."""
    if not isinstance(name, str) or name not in _DATA_SETS:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(_DATA_SETS)}")


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> ImageData:
    """The data set ``name``, on the CPU.

    * ``digits``: 1797 handwritten digits of 8×8 pixels, embedded in scikit-learn. Nothing to download; ``data_dir``
      is not used.
    * ``mnist``: 70000 handwritten digits of 28×28 pixels, from the four original IDX files (gzip or not).
    * ``cifar10``: 60000 colour images of 32×32 pixels, from the binary version's ``data_batch_1.bin`` to
      ``data_batch_5.bin`` and ``test_batch.bin``.
    * ``cifar100``: as many with 100 (fine) labels, from the binary version's ``train.bin`` and ``test.bin``.
    * ``imagenette``: 13394 photographs, resized to 128×128 pixels, from the folders ``train`` and ``val`` with one
      folder per class. Needs Pillow.

    All but ``digits`` are read from ``data_dir``, or, where that is None, from the folder that the environment variable
    ``SNNFAST_DATA`` names; also from a subfolder as the archives unpack.

    Raises :class:`DataError` for an unknown name, a folder that is not there, and missing, truncated or mislabelled
    files: every missing one by name, with where they come from.
    """
    check_known(name)
    data_set = _DATA_SETS[name]
    if isinstance(data_set, _Embedded):
        return data_set.load()
    folder = data_dir if data_dir is not None else os.environ.get(DATA_DIR_VARIABLE) or None
    if folder is None:
        raise DataError(
            f"the data set {name!r} is read from a folder: name it with --data-dir (data_dir) or "
            f"the environment variable {DATA_DIR_VARIABLE}; an empty one is told what belongs there"
        )
    path = Path(checked_path("data_dir", folder)).expanduser()
    if not os.path.isdir(path):  # False, too, for a name that cannot be
        raise DataError(f"data folder {str(path)!r} {'is not a folder' if os.path.exists(path) else 'does not exist'}")
    return data_set.load(path)
