"""The IDX format of the original MNIST files.

A big-endian header (two zero bytes, a type code, the number of dimensions, then each dimension as 32 bits), followed by
the values in C order.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from snnfast.data.files import read_content
from snnfast.data.images import DataError

_UNSIGNED_BYTE = 0x08  # the only type code of the MNIST files


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of unsigned bytes in ``path``, read through gzip where the content (not the name) says so.

    ``dimensions`` is the number the file must have: 3 for images ``[N, H, W]``, 1 for labels ``[N]``. Raises
    :class:`DataError`, naming the file and what was expected, where the file cannot be read, is truncated or too
    long, or has another magic number.
    """
    content = read_content(path)
    header = 4 + 4 * dimensions
    expected_magic = _UNSIGNED_BYTE << 8 | dimensions
    magic = int.from_bytes(content[:4], "big")
    if len(content) >= 4 and magic != expected_magic:
        kind = f"IDX, unsigned bytes, {dimensions} dimension{'s' if dimensions > 1 else ''}"
        raise DataError(f"{path}: magic number {magic}, expected {expected_magic} ({kind})")
    if len(content) < header:
        raise DataError(f"{path}: truncated, {len(content)} bytes do not hold the IDX header of {header} bytes")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected, found = math.prod(shape), len(content) - header
    if found != expected:
        wrong = "truncated" if found < expected else "too long"
        of = "×".join(map(str, shape))
        raise DataError(f"{path}: {wrong}, {found} bytes of values, expected {expected} ({of} by its header)")
    # A copy: the array is writable, as torch.from_numpy wants it, and the file's bytes can go.
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()
