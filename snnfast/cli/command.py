"""What the commands share: one line for a mistake, and numbers that are checked as they are read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

import torch

USAGE = 2
"""The exit code for wrong arguments."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage text, which would bury it."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def integer(least: int, most: int) -> Callable[[str], int]:
    """Reads an integer argument within limits."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {least} and at most {most}, got {text!r}")
        return value

    return read


def seconds(text: str) -> float:
    """Reads a duration."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return value


def one_line(message: object) -> str:
    """The first line of a message: torch's have a trace of its own behind it."""
    return str(message).strip().partition("\n")[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device; torch has no type of its own for that on the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
