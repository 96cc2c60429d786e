"""What the commands share: one line for a mistake, and numbers that are checked as they are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from snnfast._arguments import checks
from snnfast._errors import one_line

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
            raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
        return _checked(checks.integer, value, least=least, most=most)

    return read


def seconds(text: str) -> float:
    """Reads a duration."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    return _checked(checks.number_within, value, above=0)


def _checked(check: Callable[..., Any], value: Any, **limits: Any) -> Any:
    """A check of :mod:`snnfast._arguments.checks`; argparse says itself which argument it is that is refused."""
    try:
        return check("", value, **limits)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).strip()) from None
