"""Checks that several modules share."""

from __future__ import annotations

from ._hints import to_tensor


def number(name: str, value: object, allowed: str = "a number") -> float:
    """A Python number as a float; TypeError for anything else, ValueError for an int that no float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):  # torch 2.6 traces no `int | float`
        remedy = to_tensor(name, value, tensors="tensor" in allowed)
        raise TypeError(f"{name} must be {allowed}, got {type(value).__name__}{remedy}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be within the range of float64, got an int beyond it") from None
