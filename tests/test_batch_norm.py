"""Neurons on batch-normalized currents are torch's batch norm, the residual and the reference loop, one by one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from batch_norm_cases import NORMALIZED, apart, can_be, draw_normalized, fused, make_normalized, run_case
from configurations import error
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

CONFIGURATIONS = draw_normalized(420, seed=20150211)
PARTS = 6
NAMES = ("spikes", "v_last", "potential")


def test_every_option_occurs_with_every_kind_of_residual_in_training_and_evaluation():
    for about in ("residual", "training", "affine"):
        seen = {(o[about], name, o[name]) for o in CONFIGURATIONS for name in NORMALIZED}
        for name, values in NORMALIZED.items():
            for kind, value in itertools.product(NORMALIZED[about], values):
                only_held = about == "residual" and kind == "held" and (name in ("held", "layout", "residual layout"))
                assert (kind, name, value) in seen or only_held or name == about, (about, kind, name, value)
    assert len(CONFIGURATIONS) >= 400


def agree(found: torch.Tensor, wanted: torch.Tensor, bound: float) -> bool:
    """Within ``bound`` of the largest wanted value, or of 1e-2: of terms near 1 that cancel, only rounding is left."""
    scale = max(wanted.double().abs().max().item(), 1e-2)
    return (found.double() - wanted.double()).abs().max().item() <= bound * scale


def compare(options, device) -> None:
    """The fused call on a configuration against the layers apart."""
    case, other = (make_normalized(options, device, torch.float64) for _ in range(2))
    outputs, gradients = run_case(case, fused)
    expected, expected_gradients = run_case(other, apart)
    assert torch.equal(outputs[0], expected[0]), f"spikes differ: {options}"
    for name, found, wanted in zip(NAMES, outputs, expected, strict=True):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        assert agree(found, wanted, 1e-10), f"{name}: {options}"
    for name, found in gradients.items():
        assert found.shape == expected_gradients[name].shape
        assert agree(found, expected_gradients[name], 1e-10), f"gradient of {name}: {options}"
    for name, found, wanted in zip(("mean", "variance"), case.running, other.running, strict=True):
        assert error(found, wanted) <= 1e-12, f"running {name}: {options}"


@pytest.mark.parametrize("part", range(PARTS))
def test_outputs_and_all_gradients_are_those_of_the_layers_apart(kernels, part):
    for options in CONFIGURATIONS[part::PARTS]:
        compare(options, kernels.device)


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(
    options=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in NORMALIZED.items()}),
    batch=st.integers(2, 7),
    channels=st.integers(1, 19),
    space=st.lists(st.integers(1, 6), max_size=3),
    steps=st.integers(1, 40),
    seed=st.integers(0, 10_000),
)
def test_any_shape_layout_and_option(kernels, options, batch, channels, space, steps, seed):
    options = {**options, "sizes": (batch, channels, *space), "steps": steps, "seed": seed}
    assume(can_be(options))
    compare(options, kernels.device)


LARGE = [(1, 1300), (1, 5, 33, 41), (1, 1100, 3), (2, 2, 1050)]  # more neurons in a row than a kernel takes at once


@pytest.mark.parametrize("sizes", LARGE, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "batch sliced"])
def test_sizes_beyond_a_kernels_tiles(kernels, sizes, layout):
    per_channel = {"time_dim": 1, "neuron": "LIF", "threshold": "per channel"}
    for changed in ({}, {"held": True, "residual": "held"}, per_channel):
        options = {
            **CONFIGURATIONS[1],
            "sizes": sizes,
            "steps": 3,
            "layout": layout,
            "residual layout": layout,
            "held": False,
            "affine": "weight and bias",
            "training": True,
            "residual": "like the output",
            "gradient": "like spikes",
            "outputs": "all",
            "surrogate": "FastSigmoid",
            **changed,
        }
        if sizes[0] * math.prod(sizes[2:]) == 1 and options["held"]:
            continue  # one value per channel
        compare(options, kernels.device)
