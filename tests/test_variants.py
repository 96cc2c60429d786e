"""Which kernel a call gets, and which kernels are built, have one list (csrc/variants.h)."""

from __future__ import annotations

import re
import shutil

import host_run
import pytest

from snnfast.backends import core
from snnfast.benchmarks.launched import kernels

DTYPES = range(4)  # float32, float64, float16, bfloat16, as the core numbers them
DIRECTIONS = {"forward": 0, "backward": 1}


@pytest.fixture(scope="module")
def built(core_on_host) -> set[str]:
    """The kernels in the module that holds the CUDA source, compiled for the host."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    return {name for name in kernels(host_run.symbols(core_on_host)) if re.search(r"::(for|back)ward_kernel<", name)}


def listed() -> list[str]:
    return [name for code in DIRECTIONS.values() for dtype in DTYPES for name in core.variant_names(code, dtype)]


def test_no_kernel_is_listed_twice():
    assert len(listed()) == len(set(listed()))


def test_the_kernels_that_a_call_can_get_are_those_that_are_built(built):
    assert built == set(listed())


@pytest.mark.parametrize("direction, most", [("forward", 9), ("backward", 43)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_has_no_more_kernels_than_the_build_has_time_for(direction, most, dtype):
    assert 1 <= len(core.variant_names(DIRECTIONS[direction], dtype)) <= most
