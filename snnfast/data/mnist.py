"""MNIST from its four original files."""

from __future__ import annotations

from pathlib import Path

import torch

from snnfast.data.files import find_files
from snnfast.data.idx import read_idx
from snnfast.data.images import DataError, ImageData, Split

_CLASSES = 10
_PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SUBFOLDERS = ("", "mnist", "MNIST/raw")  # as given; beside other data sets; as torchvision lays it out
_ORIGIN = "the original files are at https://ossci-datasets.s3.amazonaws.com/mnist/"


def load_mnist(folder: Path) -> ImageData:
    """MNIST from ``folder``, or from its ``mnist`` or ``MNIST/raw`` folder: 28×28 pixels, 10 classes.

    Each file may be gzip-compressed, and may be called ``train-images.idx3-ubyte`` as some mirrors do. The counts are
    read from the files, so that a smaller extract works too. Raises :class:`DataError`: see
    :func:`snnfast.data.load`.
    """
    # Some mirrors write a point for the hyphen.
    names = {part: (part, part.replace("-idx", ".idx")) for part in _PARTS}
    parts = {f"{part}[.gz]": [name + end for name in of_part for end in ("", ".gz")] for part, of_part in names.items()}
    files = find_files("mnist", folder, _SUBFOLDERS, parts, _ORIGIN)
    return ImageData("mnist", _CLASSES, train=_read_split(*files[:2]), test=_read_split(*files[2:]))


def _read_split(image_file: Path, label_file: Path) -> Split:
    images = read_idx(image_file, dimensions=3)
    labels = read_idx(label_file, dimensions=1)
    if len(images) == 0:
        raise DataError(f"{image_file}: holds no images")
    if images.shape[1:] != (28, 28):
        raise DataError(f"{image_file}: images of {images.shape[1]}×{images.shape[2]} pixels, expected 28×28")
    if len(images) != len(labels):
        raise DataError(
            f"{image_file} has {len(images)} images but {label_file} has {len(labels)} labels: not of one set"
        )
    if labels.max() >= _CLASSES:
        raise DataError(f"{label_file}: label {labels.max()}, expected 0 to {_CLASSES - 1}")
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long(), full_scale=255.0)
