"""NaN and infinite values stay with the neuron they came to; sums over neurons show them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import snnfast as sf
from snnfast import backends
from snnfast import surrogate as shapes

SURROGATES = [shape() for shape in shapes.SHAPES.values()]
surrogates = pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
RESETS = list(itertools.product(["hard", "soft"], [True, False]))
resets = pytest.mark.parametrize(("reset", "detached"), RESETS)
STEPS, SHAPE = 6, (3, 4, 9)


def run(module, x, sent, leaky, **options):
    """Outputs and gradients of current, v0, threshold and, of a leaky neuron, tau."""
    x = x.clone().requires_grad_()
    v0 = torch.zeros_like(x[0]).requires_grad_()
    threshold = torch.tensor([0.2, 0.4, 0.6, 0.8], device=x.device, dtype=x.dtype, requires_grad=True)
    leaves, tables = [x, v0, threshold], {"threshold": threshold}
    if leaky:
        tables["tau"] = torch.tensor([1.5, 2.0, 3.0, 4.0], device=x.device, dtype=x.dtype, requires_grad=True)
        leaves.append(tables["tau"])
    call = module.leaky_integrate_and_fire if leaky else module.integrate_and_fire
    outputs = call(x, v0, return_potential=True, **{**tables, **options})
    return [y.detach() for y in outputs], torch.autograd.grad(outputs[:2], leaves, sent[:2])


@surrogates
@resets
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("leaky", [False, True], ids=["IF", "LIF"])
def test_a_bad_current_stays_within_its_neuron(kernels, surrogate, reset, detached, value, leaky):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, *SHAPE, generator=rng).to(kernels.device)
    sent = [torch.randn(STEPS, *SHAPE, generator=rng).to(x), torch.randn(SHAPE, generator=rng).to(x)]
    bad = x.clone()
    at = (1, 2, 4)  # neuron; channel 2
    bad[2][at] = value
    others = torch.ones(SHAPE, dtype=torch.bool, device=x.device)
    others[at] = False
    options = {"surrogate": surrogate, "reset": reset, "detach_reset": detached}
    outputs, gradients = run(sf.functional, x, sent, leaky, **options)
    found, found_gradients = run(sf.functional, bad, sent, leaky, **options)
    wanted, wanted_gradients = run(sf.reference, bad, sent, leaky, **options)
    # Neighbours: bit for bit as without the bad value.
    for y, fine in zip([*found, *found_gradients[:2]], [*outputs, *gradients[:2]], strict=True):
        assert torch.equal(y[..., others], fine[..., others])
    # The neuron itself: what the loop computes, NaN for NaN, and its past is untouched.
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.nan_to_num(7.0, 8.0, 9.0), theirs.nan_to_num(7.0, 8.0, 9.0))
    for ours, theirs in zip(found_gradients[:2], wanted_gradients[:2], strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-5)
    # Sums over neurons: the other channels as they were, its own channel as the loop's.
    for ours, theirs, fine in zip(found_gradients[2:], wanted_gradients[2:], gradients[2:], strict=True):
        assert torch.equal(ours[[0, 1, 3]], fine[[0, 1, 3]])
        assert ours[2].isfinite() == theirs[2].isfinite()
        if math.isnan(value) and not isinstance(surrogate, shapes.Rectangle):  # the rectangle of NaN is 0
            assert ours[2].isnan()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@surrogates
@pytest.mark.parametrize("detached", [True, False], ids=["detached", "attached"])
def test_an_infinite_current_never_makes_a_nan_of_its_own(kernels, value, surrogate, detached):
    """Hard reset: an infinite potential fires (or never does) and is reset; products with 0 are 0."""
    x = torch.full((4, 3), 0.3, device=kernels.device)
    x[1, 1] = value
    x.requires_grad_()
    spikes, v_last = sf.functional.integrate_and_fire(x, surrogate=surrogate, detach_reset=detached)
    assert spikes[1, 1] == (1 if value > 0 else 0) and not v_last.isnan().any()
    (gradient,) = torch.autograd.grad(spikes.sum() + v_last[[0, 2]].sum(), x)
    assert gradient.isfinite().all()


@surrogates
@resets
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "table"])
@pytest.mark.parametrize("leaky", [False, True], ids=["IF", "LIF"])
@pytest.mark.parametrize("fire_on_equal", [False, True], ids=["fires above", "fires at"])
def test_an_infinite_threshold_never_fires_and_makes_no_nan(
    kernels, surrogate, reset, detached, as_tensor, leaky, fire_on_equal
):
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn(20, 4, 3, 5, generator=rng) * 100).to(kernels.device).requires_grad_()
    threshold = torch.full((3,), math.inf, device=x.device) if as_tensor else math.inf
    call = sf.functional.leaky_integrate_and_fire if leaky else sf.functional.integrate_and_fire
    spikes, v_last, potential = call(
        x,
        threshold=threshold,
        surrogate=surrogate,
        reset=reset,
        detach_reset=detached,
        fire_on_equal=fire_on_equal,
        return_potential=True,
    )
    assert spikes.abs().sum() == 0 and v_last.isfinite().all() and potential.isfinite().all()
    (gradient,) = torch.autograd.grad(spikes.sum() + v_last.sum() + potential.sum(), x)
    # Only the potentials carry a gradient: of an IF neuron each current has 1 for itself and all that follow.
    if leaky:
        assert gradient.isfinite().all() and (gradient > 0).all()
    else:
        after = torch.arange(20, 0, -1, device=x.device).view(20, 1, 1, 1) + 1.0
        assert torch.equal(gradient, after.expand_as(gradient))


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("fire_on_equal", [False, True])
def test_an_infinite_potential_does_not_reach_an_infinite_threshold(kernels, reset, fire_on_equal):
    x = torch.tensor([[0.3, math.inf, -math.inf]] * 5, device=kernels.device)
    outputs = [
        module.integrate_and_fire(
            x, threshold=math.inf, reset=reset, fire_on_equal=fire_on_equal, return_potential=True
        )
        for module in (sf.functional, sf.reference)
    ]
    for ours, theirs in zip(*outputs, strict=True):
        assert torch.equal(ours, theirs) and not ours.isnan().any()
    assert outputs[0][0].sum() == 0


@resets
def test_a_learned_infinite_threshold_makes_no_nan(kernels, reset, detached):
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0)).to(kernels.device).requires_grad_()
    threshold = torch.tensor([0.5, math.inf, 0.7], device=x.device, requires_grad=True)
    spikes, v_last = sf.functional.integrate_and_fire(x, threshold=threshold, reset=reset, detach_reset=detached)
    (spikes.sum() + v_last.sum()).backward()
    assert x.grad.isfinite().all()
    assert threshold.grad.isfinite().all() and threshold.grad[1] == 0
    assert spikes[:, :, 1].sum() == 0 < spikes[:, :, 0].sum()


def test_a_nan_gradient_stays_within_its_neuron_too(kernels):
    x = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0)).to(kernels.device).requires_grad_()
    sent = torch.ones_like(x)
    fine = torch.autograd.grad(sf.LIF()(x), x, sent)[0]
    sent[3, 2, 4] = math.nan
    found = torch.autograd.grad(sf.LIF()(x), x, sent)[0]
    affected = found != fine
    expected = torch.zeros_like(affected)
    expected[:4, 2, 4] = True  # its past, as far as the reset lets it
    assert affected[3, 2, 4] and not (affected & ~expected).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_overflow_to_infinity_in_the_potential_of_their_own_neuron_only(kernels, dtype):
    x = torch.full((40, 3), 0.5, dtype=dtype, device=kernels.device)
    x[:, 1] = torch.finfo(dtype).max
    x[:, 2] = math.inf
    x.requires_grad_()
    for reset in ("hard", "soft"):
        spikes, _ = sf.functional.integrate_and_fire(x, reset=reset)
        spikes.sum().backward()
        assert torch.equal(spikes[:, 0], sf.functional.integrate_and_fire(x[:, :1], reset=reset)[0][:, 0])
        assert (spikes[:, 1:] == 1).all() and x.grad.isfinite().all()
        x.grad = None


@pytest.fixture
def chosen_again():
    best = backends.core.instruction_set()
    yield
    assert backends.core.use_instruction_set(best)


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("steps", [3, 18])
def test_float16_currents_count_where_subnormal_numbers_are_taken_for_zero(
    kernels, chosen_again, steps, instruction_set
):
    """float16's subnormal numbers are ordinary ones in float32, the dtype of the potential."""
    if not backends.core.use_instruction_set(instruction_set):
        pytest.skip(f"no {instruction_set} here")
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values = bits[bits.isfinite()].to(kernels.device)  # all there are
    x = torch.stack([values] * steps)[:, None]

    def run():
        return sf.functional.integrate_and_fire(x, threshold=0.0, reset="soft", return_potential=True)

    wanted = run()
    assert torch.equal(wanted[2][0, 0], values.float())
    available = torch.set_flush_denormal(True)
    try:
        found = run()
    finally:
        torch.set_flush_denormal(False)
    if not available:
        pytest.skip("this processor has no such mode")
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)
