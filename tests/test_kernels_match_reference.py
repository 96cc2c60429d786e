"""The kernels are the reference loop: spikes to the last bit, gradients to rounding, over the whole option space."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from configurations import CONFIGURATIONS, OPTIONS, error, make_case, possible, run, table_gradients_in_float64
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naming import each

import snnfast as sf


def test_every_pair_of_options_occurs():
    seen = {pair for o in CONFIGURATIONS for pair in itertools.combinations(list(o.items())[:-1], 2)}
    for (a, values_a), (b, values_b) in itertools.combinations(OPTIONS.items(), 2):
        for pair in itertools.product([(a, v) for v in values_a], [(b, v) for v in values_b]):
            assert pair in seen or not possible(dict(pair)), f"no configuration has {pair}"
    assert len(CONFIGURATIONS) >= 2000


def reference_of(options: dict[str, Any], device: torch.device):
    """Outputs and gradients of the reference loop, and the tables' gradients summed in float64."""
    case = make_case(options, device)
    outputs, gradients = run(case, sf.reference)
    return [y.detach() for y in outputs], gradients, table_gradients_in_float64(case)


@functools.cache  # for all kernels of a device: the loop takes most of a case's time
def reference_of_drawn(seed: int, device: torch.device):
    return reference_of(CONFIGURATIONS[seed], device)


def compare(options: dict[str, Any], device: torch.device, reference) -> None:
    """The kernels on a configuration against the reference loop."""
    case = make_case(options, device)
    outputs, gradients = run(case, sf.functional)
    expected, expected_gradients, table_gradients = reference
    for name, found, wanted in zip(("spikes", "v_last", "potential"), outputs, expected, strict=True):
        assert torch.equal(found, wanted), f"{name} differs"
        assert found.dtype == wanted.dtype
    if not options["held"] and "expanded" not in options["layout"]:  # those have no memory format to keep
        wanted = torch.empty_like(case.current)
        strides = zip(outputs[0].stride(), wanted.stride(), wanted.shape, strict=True)
        assert all(a == b for a, b, n in strides if n > 1), "memory format"
    state = outputs[1].dtype
    if case.current.dtype == state:
        bound = 1e-12 if state == torch.float64 else 1e-5
        # Threshold and tau in float32 are sums that may cancel; they are compared with a float64 sum below.
        for name in gradients.keys() & ({"current", "v0"} if state == torch.float32 else gradients.keys()):
            found, wanted = gradients[name], expected_gradients[name]
            # Where a neuron stays at rest, tau's gradient is 0, and autograd's a difference of two roundings of it.
            cancelled = name == "tau" and (found - wanted).abs().max() <= 1e-15
            assert error(found, wanted) <= bound or cancelled, f"gradient of {name}"
    if case.tables:
        bound = 1e-11 if state == torch.float64 else 1e-4
        # Potentials near 1 are rounded at every step: where a neuron settles, tau's gradient is a sum of nothing else.
        rounding = torch.finfo(state).eps * outputs[0].numel()
        for name, wanted in table_gradients.items():
            assert gradients[name].shape == case.tables[name].shape
            settled = name == "tau" and (gradients[name] - wanted).abs().max() <= rounding
            assert error(gradients[name], wanted) <= bound or settled, f"gradient of {name}"


@each(CONFIGURATIONS, OPTIONS)
def test_spikes_are_equal_and_gradients_agree(kernels, configuration):
    reference = reference_of_drawn(configuration["seed"], kernels.device)
    compare(configuration, kernels.device, reference)


# Beside the drawn list, which holds every pair of options and is the same for every kernel: hypothesis shrinks what it
# finds to the plainest options and fewest neurons and steps that still fail. A few examples are enough for that where
# an option is wrong altogether; a rare configuration is the list's to find.
@settings(max_examples=40)
@given(
    options=st.fixed_dictionaries(
        {name: st.sampled_from(values) for name, values in OPTIONS.items() if name not in ("steps", "sizes")}
    ),
    batch=st.integers(1, 5),
    channels=st.integers(1, 19),
    space=st.lists(st.integers(1, 4), max_size=3),
    steps=st.integers(1, 40),
    seed=st.integers(0, 10_000),
)
def test_any_size_and_option(kernels, options, batch, channels, space, steps, seed):
    options = {**options, "sizes": (batch, channels, *space), "steps": steps, "seed": seed}
    assume(possible(options))
    compare(options, kernels.device, reference_of(options, kernels.device))


HALF_TYPES = [o for t in (torch.float16, torch.bfloat16) for o in [o for o in CONFIGURATIONS if o["dtype"] == t][:300]]


@each(HALF_TYPES, OPTIONS)
def test_half_types_are_the_float32_result_rounded_once(kernels, configuration):
    half = make_case(configuration, kernels.device)
    full = make_case(configuration, kernels.device, torch.float32)
    outputs, gradients = run(half, sf.functional)
    expected, expected_gradients = run(full, sf.functional)
    for found, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(found, wanted.to(found.dtype))
    for name in gradients:
        if name == "current" and "expanded" in configuration["layout"]:
            continue  # autograd itself sums an expanded current's gradient, in the half type
        assert torch.equal(gradients[name], expected_gradients[name].to(gradients[name].dtype)), name


@pytest.mark.parametrize("table", [False, True], ids=["tau as a number", "tau per channel"])
def test_a_neuron_pulled_to_its_rest_value_fires_where_the_reference_does(kernels, table):
    """In float64, at thresholds equal to the potential: the rest value's pull is rounded alike everywhere."""
    rng = torch.Generator().manual_seed(0)
    channels = 64
    for rest in torch.rand(8, generator=rng, dtype=torch.float64).tolist():
        taus = torch.rand(channels, generator=rng, dtype=torch.float64) * 9 + 1.1
        x = torch.rand(1, 1, channels, generator=rng, dtype=torch.float64)
        reached = sf.reference.leaky_integrate_and_fire(x, tau=taus, reset_value=rest, return_potential=True)[2][0, 0]
        for at in [slice(None)] if table else [slice(c, c + 1) for c in range(channels)]:
            current, tau = x[:, :, at].to(kernels.device), taus[at].to(kernels.device) if table else taus[at].item()
            for fire_on_equal in (True, False):
                call = {"tau": tau, "reset_value": rest, "fire_on_equal": fire_on_equal}
                call["threshold"] = reached[at].to(kernels.device)
                spikes, _ = sf.functional.leaky_integrate_and_fire(current, **call)
                assert (spikes == float(fire_on_equal)).all()
