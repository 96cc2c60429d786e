"""What an error of torch's means to a user, and what of its words is for them."""

from __future__ import annotations

import torch


def one_line(message: object) -> str:
    """The first line of a message: torch's have a trace of its own behind it."""
    return str(message).strip().partition("\n")[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device; torch has no type of its own for that on the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
