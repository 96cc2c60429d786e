"""Neurons on batch-normalized currents are torch's batch norm, the residual and the reference loop, one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from batch_norm_cases import CONFIGURATIONS, NAMED, NORMALIZED, apart, can_be, fused, make_normalized, run_case
from configurations import error
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naming import each

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
    assert torch.equal(outputs[0], expected[0]), "spikes differ"
    for name, found, wanted in zip(NAMES, outputs, expected, strict=True):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        assert agree(found, wanted, 1e-10), name
    for name, found in gradients.items():
        assert found.shape == expected_gradients[name].shape
        assert agree(found, expected_gradients[name], 1e-10), f"gradient of {name}"
    for name, found, wanted in zip(("mean", "variance"), case.running, other.running, strict=True):
        assert error(found, wanted) <= 1e-12, f"running {name}"


@each(CONFIGURATIONS, NAMED)
def test_outputs_and_all_gradients_are_those_of_the_layers_apart(kernels, configuration):
    compare(configuration, kernels.device)


@settings(max_examples=80)
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


CALLS = {
    "time first": {},
    "held": {"held": True, "residual": "held"},
    "batch first": {"time_dim": 1, "neuron": "LIF", "threshold": "per channel"},
}
ONE_VALUE = (1, 1300)  # per channel, where no step has one of its own: statistics need two
BEYOND = [(sizes, call) for sizes in LARGE for call in CALLS if (sizes, call) != (ONE_VALUE, "held")]


@pytest.mark.parametrize(("sizes", "call"), BEYOND, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "batch sliced"])
def test_sizes_beyond_a_kernels_tiles(kernels, sizes, call, layout):
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
        **CALLS[call],
    }
    compare(options, kernels.device)
