"""Checks that several modules share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from snnfast._arguments.hints import to_tensor

LARGEST_COUNT = 2**31 - 1
"""Of anything that is counted, where memory is not what limits it."""


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


LARGEST_FLOAT32 = torch.finfo(torch.float32).max
"""In which most kernels compute."""


def integer(name: str, value: Any, *, least: int, most: int = LARGEST_COUNT) -> int:
    """A Python int within limits; TypeError for anything else, ValueError for another."""
    # A symbolic number stands for an int while torch.compile traces (whose torch 2.6 knows no `int | SymInt`).
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must {'not be negative' if least == 0 else f'be at least {least}'}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
    return value  # type: ignore[return-value]  # a SymInt is what an int is while tracing


def number_within(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    infinite: bool = False,
    allowed: str = "a number",
) -> float:
    """A Python number within limits, NaN never, infinity where ``infinite``; what :func:`number` raises, ValueError.

    ``least`` and ``most`` may be reached, ``above`` and ``below`` not. ``allowed`` says what else would be taken.
    """
    found = number(name, value, allowed)
    inside = (
        (least is None or found >= least)
        and (above is None or found > above)
        and (most is None or found <= most)
        and (below is None or found < below)
    )
    if not inside or not (infinite or math.isfinite(found)):
        raise ValueError(f"{name} must be {_limits(least, above, most, below, infinite)}, got {found}")
    return found


def _limits(least: float | None, above: float | None, most: float | None, below: float | None, infinite: bool) -> str:
    """The limits in words: "finite and not negative", "between 0 and 1", "at least 0 and below 1"."""
    if least is not None and most is not None:
        return f"between {_in_words(least)} and {_in_words(most)}"
    found = []
    if least is not None:
        found.append(f"at least {_in_words(least)}")
    if above is not None:
        found.append(f"above {_in_words(above)}")
    if most is not None:
        found.append(f"at most {_in_words(most)}")
    if below is not None:
        found.append(f"below {_in_words(below)}")
    if len(found) < 2 and not infinite:
        found = ["finite", "not negative"] if found == ["at least 0"] else ["finite", *found]
    return " and ".join(found)


def _in_words(limit: float) -> str:
    return f"{limit:.8g}" + (", the largest float32" if limit == LARGEST_FLOAT32 else "")


def word(name: str, value: Any, allowed: Iterable[str]) -> str:
    """One of the words; ValueError for anything else."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def module(name: str, value: Any) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")
    return value


def function(name: str, value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")
    return value


def dense(name: str, value: Tensor) -> Tensor:
    """A tensor that lies in memory as numbers side by side: not nested, sparse, or in a library's own layout."""
    if value.layout != torch.strided or value.is_nested:
        got = "a nested one" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {got}")
    return value


def generator(name: str, value: Any) -> torch.Generator | None:
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"{name} must be a torch.Generator or None, got {type(value).__name__}")
    return value


def path(name: str, value: Any) -> str | os.PathLike[str]:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {type(value).__name__}")
    return value


def device(name: str, value: Any) -> Any:
    """What torch takes for a device, or None."""
    try:
        if value is not None:
            if isinstance(value, bool | Tensor) or (isinstance(value, int) and value < 0):
                raise TypeError
            torch.device(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        error = ValueError if isinstance(value, str | int) else TypeError
        raise error(
            f"{name} must be a torch.device, its name ('cpu', 'cuda:0'), or a GPU's number, got {value!r}"
        ) from None
    return value


def number(name: str, value: object, allowed: str = "a number") -> float:
    """A Python number as a float; TypeError for anything else, ValueError for an int that no float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):  # torch 2.6 traces no `int | float`
        remedy = to_tensor(name, value, tensors="tensor" in allowed)
        # Where words are allowed, another one is most often a misspelt one.
        got = repr(value) if isinstance(value, str) and "'" in allowed else type(value).__name__
        raise TypeError(f"{name} must be {allowed}, got {got}{remedy}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be within the range of float64, got an int beyond it") from None
