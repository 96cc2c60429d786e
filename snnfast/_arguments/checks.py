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


def integer(name: str, value: Any, *, least: int, most: int = LARGEST_COUNT) -> int:
    """A Python int within limits; TypeError for anything else, ValueError for another."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must {'not be negative' if least == 0 else f'be at least {least}'}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
    return value


def finite(name: str, value: object) -> float:
    """A Python number that is neither NaN nor infinite."""
    found = number(name, value)
    if not math.isfinite(found):
        raise ValueError(f"{name} must be finite, got {found}")
    return found


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
        raise TypeError(f"{name} must be {allowed}, got {type(value).__name__}{remedy}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be within the range of float64, got an int beyond it") from None
