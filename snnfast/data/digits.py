"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from snnfast._text import installs
from snnfast.data.images import DataError, ImageData, Split

_TEST_EVERY = 5  # every fifth image of a class is a test image


def load_digits() -> ImageData:
    """1797 grey images of 8×8 pixels (0 to 16) in 10 classes: 1442 for training, 355 for testing.

    Within each class every fifth image, in the stored order, is a test image: stratified and the same for ever,
    whatever the version of the random number generators. As in a random split, a writer's other digits may be among
    the training images. Raises :class:`DataError` where scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            f"the data set 'digits' is scikit-learn's, which is not installed: {installs('train')}"
        ) from error
    digits = datasets.load_digits()
    labels = np.asarray(digits.target, dtype=np.int64)
    images = np.asarray(digits.images).astype(np.uint8)[:, None]
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True

    def split(mask: np.ndarray) -> Split:
        return Split(torch.from_numpy(images[mask]), torch.from_numpy(labels[mask]), full_scale=16.0)

    return ImageData("digits", 10, train=split(~is_test), test=split(is_test))
