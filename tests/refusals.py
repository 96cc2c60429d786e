"""What the tests of bad input share: how a refusal is recognised, and all that takes a neuron's options."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

import snnfast as sf
from snnfast import backends

X = torch.zeros(4, 2, 3, 5)


@pytest.fixture(autouse=True)
def no_kernel_runs(monkeypatch):
    def of(tensor):
        raise AssertionError("a kernel was about to run")

    monkeypatch.setattr(backends, "of", of)


@contextmanager
def refused(error: type[Exception], *words: str):
    """The error is of exactly this type, and its message has every word."""
    with pytest.raises(error) as info:
        yield
    assert info.type is error
    for word in words:
        assert word in str(info.value), f"{word!r} is not in the message {str(info.value)!r}"


def on(call):
    """A function as a maker: its options, on X."""
    return lambda **options: call(X, **options)


# All that takes neuron options: functions on X, the reference, and layers.
MAKERS = {
    "IF()": on(sf.functional.integrate_and_fire),
    "LIF()": on(sf.functional.leaky_integrate_and_fire),
    "reference IF": on(sf.reference.integrate_and_fire),
    "reference LIF": on(sf.reference.leaky_integrate_and_fire),
    "IF": sf.IF,
    "LIF": sf.LIF,
}
NORMALIZED = {
    "batch norm IF()": on(sf.functional.batch_norm_integrate_and_fire),
    "BatchNormIF": lambda **options: sf.BatchNormIF(3, **options),
    "BatchNormLIF": lambda **options: sf.BatchNormLIF(3, **options),
}


def each_of(makers):
    return pytest.mark.parametrize("make", makers.values(), ids=makers)
