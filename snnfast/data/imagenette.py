"""Imagenette from its folders of JPEG files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from snnfast._text import installs
from snnfast.data.images import DataError, ImageData, Split

# WordNet's numbers of: tench, English springer, cassette player, chain saw, church, French horn, garbage truck, gas
# pump, golf ball, parachute. A class's label is its place here, which is the folders' order.
CLASSES = (
    "n01440764",
    "n02102040",
    "n02979186",
    "n03000684",
    "n03028079",
    "n03394916",
    "n03417042",
    "n03425413",
    "n03445777",
    "n03888257",
)
_SIZE = 128  # pixels, the paper's
_SUBFOLDERS = ("", "imagenette2", "imagenette2-320", "imagenette2-160", "imagenette")
_ORIGIN = "unpack imagenette2-320.tgz (or imagenette2, imagenette2-160) of https://github.com/fastai/imagenette there"
_ENDINGS = (".jpeg", ".jpg", ".png")


def load_imagenette(folder: Path) -> ImageData:
    """Imagenette from ``folder``, or from its ``imagenette2``, ``-320``, ``-160`` or ``imagenette`` folder.

    ``train`` and ``val`` hold a folder for each of the 10 classes; ``val`` is the test split. Images are decoded by
    Pillow, made RGB where they are grey, and resized to 128×128 pixels, whatever their aspect ratio, with antialiased
    bilinear interpolation: 3×128×128. All of them are kept in memory, 660 MB for the whole set. Raises
    :class:`DataError`: see :func:`snnfast.data.load`; also where Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"the data set 'imagenette' is read with Pillow, which is not installed: {installs('images')}"
        ) from error
    place = _find(folder)

    def decode(file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))
        except Image.UnidentifiedImageError as error:
            raise DataError(f"{file}: not an image that Pillow knows") from error
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            raise DataError(f"{file}: truncated or damaged image ({error})") from error

    def read_split(name: str) -> Split:
        files, labels = zip(*_files(place / name), strict=True)
        images = torch.empty(len(files), 3, _SIZE, _SIZE, dtype=torch.uint8)
        # Pillow decodes without the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for index, pixels in enumerate(pool.map(decode, files)):
                    images[index] = torch.tensor(pixels).permute(2, 0, 1)
            except DataError:
                pool.shutdown(cancel_futures=True)
                raise
        return Split(images, torch.tensor(labels), full_scale=255.0)

    return ImageData("imagenette", len(CLASSES), train=read_split("train"), test=read_split("val"))


def _find(folder: Path) -> Path:
    """The folder with ``train`` and ``val``, whose class folders are complete; the error names what is missing."""
    places = [folder / name for name in _SUBFOLDERS]
    place = next((place for place in places if (place / "train").is_dir() or (place / "val").is_dir()), folder)
    expected = [f"{split}/{name}" for split in ("train", "val") for name in CLASSES]
    missing = [name for name in expected if not (place / name).is_dir()]
    if missing:
        # Ten names are enough where a whole split is missing.
        rest = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise DataError(f"imagenette: no {', '.join(missing[:10])}{rest} in {str(place)!r}; {_ORIGIN}")
    for split in ("train", "val"):
        extra = [
            entry.name
            for entry in sorted((place / split).iterdir())
            if entry.is_dir() and entry.name not in CLASSES and not entry.name.startswith(".")
        ]
        if extra:
            raise DataError(
                f"{place / split}: class folder {extra[0]}{f' and {len(extra) - 1} more' if extra[1:] else ''}, "
                f"expected the {len(CLASSES)} of Imagenette only ({CLASSES[0]} to {CLASSES[-1]})"
            )
    return place


def _files(split: Path) -> Iterator[tuple[Path, int]]:
    """The image files of a split with their labels, by class and name."""
    for label, name in enumerate(CLASSES):
        files = sorted(file for file in (split / name).iterdir() if file.suffix.lower() in _ENDINGS)
        if not files:
            raise DataError(f"{split / name}: holds no images ({', '.join(_ENDINGS)})")
        for file in files:
            yield file, label
