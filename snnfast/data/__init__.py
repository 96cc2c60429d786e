"""Real image data sets as plain tensors: :func:`load` by name, then index or iterate in batches.

A data set is an :class:`ImageData` with a training and a test :class:`Split`. Everything that is wrong with a name, a
folder or a file is a :class:`DataError`, a ``ValueError`` whose one line names the culprit and what was expected.
:mod:`snnfast.data.augment` flips, crops and colours batches at random.
"""

from snnfast.data import augment
from snnfast.data.images import DataError, ImageData, Split
from snnfast.data.registry import check_known, data_sets, load

__all__ = ["DataError", "ImageData", "Split", "augment", "check_known", "data_sets", "load"]
