"""Inputs, decays and thresholds of another library's layers, as the kernels read them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from snnfast._arguments.checks import dense
from snnfast.dynamics import check_dtype, not_a_tensor

__all__ = ["aligned", "sizes_of_a_step"]


def sizes_of_a_step(input_: Any, steps: int | None) -> list[int]:
    """The shape of one step."""
    if not isinstance(input_, Tensor):
        raise not_a_tensor("input_", input_)
    check_dtype("input_", dense("input_", input_))
    sizes = list(input_.shape) if steps is not None else list(input_.shape)[1:]
    if not sizes:
        raise ValueError(f"input_ must have the shape [T, B, ...], got {list(input_.shape)}")
    return sizes


def aligned(sizes: list[int], **tables: Tensor) -> tuple[list[Tensor], bool]:
    """Decays and thresholds that broadcast against one step: 0-d, one value per channel, or one per feature.

    Returns:
        The tables, and whether they are per feature, for which all of a step's dimensions but the batch must be one.
    """
    wide = {}
    for name, table in tables.items():
        if table.numel() == 1:
            continue
        shape = (*(1,) * (len(sizes) - table.dim()), *table.shape)
        if len(shape) > len(sizes) or any(n not in (1, size) for n, size in zip(shape, sizes, strict=True)):
            raise ValueError(f"{name} of shape {list(table.shape)} does not broadcast against one step, {sizes}")
        if shape[0] != 1:
            raise ValueError(f"{name} of shape {list(table.shape)} differs within the batch: one step is {sizes}")
        wide[name] = shape
    flat = any(math.prod(shape) != shape[1] for shape in wide.values())
    found = []
    for name, table in tables.items():
        if name not in wide:
            found.append(table.reshape(()))
        elif flat:
            found.append(table.reshape(wide[name])[0].expand(sizes[1:]).reshape(-1))
        else:
            found.append(table.reshape(-1))
    return found, flat
