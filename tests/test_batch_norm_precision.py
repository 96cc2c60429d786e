"""Batch-normalized neurons in float32 and the half types: how near to exact arithmetic, and where that is hardest."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from batch_norm_cases import NAMED, apart, draw_normalized, fused, make_normalized, run_case
from naming import each

import snnfast as sf

# The delay moves spikes, not numbers; without, a spike's potential is at its own step.
CONFIGURATIONS = [{**o, "delay": False} for o in draw_normalized(160, seed=36)]


def first_flips(found, wanted, potential, threshold, time_dim):
    """Which neurons' spikes differ, and how far from the threshold the wanted potential is where they first do."""
    different = found.double() != wanted.double()
    first = different.int().argmax(time_dim, keepdim=True)
    distance = (potential.gather(time_dim, first).squeeze(time_dim) - threshold).abs()
    return different.any(time_dim), distance


def broadcast(threshold, sizes):
    threshold = torch.as_tensor(threshold).detach().double()
    return threshold.view(-1, *[1] * (len(sizes) - 2)) if threshold.dim() else threshold


BAND = 1e-4  # around the threshold: there, and there alone, float32 may decide otherwise


@functools.cache  # for the test of all of them together, which would compute them again
def compare_with_float64(seed: int, kernels: str, device: torch.device) -> tuple[int, int, bool]:
    """How many neurons a configuration has, how many decide otherwise, and whether its gradients were compared."""
    configuration = CONFIGURATIONS[seed]
    single = make_normalized(configuration, device, torch.float32)
    double = make_normalized(configuration, device, torch.float64, torch.float32)
    outputs, gradients = run_case(single, fused)
    expected, expected_gradients = run_case(double, apart)
    time_dim, threshold = configuration["time_dim"], double.neuron.arguments["threshold"]
    at = broadcast(threshold, configuration["sizes"]).to(device)
    differ, distance = first_flips(outputs[0], expected[0], expected[2], at, time_dim)
    assert not differ.any() or distance[differ].max() <= BAND
    same = ~differ.unsqueeze(time_dim).expand(expected[2].shape)
    largest = expected[2].detach().abs().max()
    assert (outputs[2].double() - expected[2])[same].abs().max() <= 2e-5 * largest
    # A flip changes its whole channel's gradients, and the rectangle has edges of its own.
    comparable = not differ.any() and configuration["surrogate"] != "Rectangle"
    for name, found in gradients.items() if comparable else ():
        wanted = expected_gradients[name]
        scale = max(wanted.abs().max().item(), 0.1)
        assert (found.double() - wanted).abs().max() <= 1e-3 * scale, f"gradient of {name}"
    return differ.numel(), int(differ.sum()), comparable


@each(CONFIGURATIONS, NAMED)
def test_float32_is_float64_but_for_spikes_at_the_threshold(kernels, configuration):
    compare_with_float64(configuration["seed"], kernels.name, kernels.device)


def test_hardly_any_spike_of_float32_is_at_the_threshold(kernels):
    found = [compare_with_float64(o["seed"], kernels.name, kernels.device) for o in CONFIGURATIONS]
    neurons, flipped, compared = (sum(column) for column in zip(*found, strict=True))
    assert flipped <= max(1, 1e-4 * neurons) and neurons > 10_000 and compared > 100


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_of_many_neurons_hardly_any_decides_otherwise(kernels, layout):
    rng = torch.Generator().manual_seed(1)
    x = (torch.randn(6, 4, 8, 27, 31, generator=rng) * 3 + 5).to(kernels.device)
    if layout == "channels last":
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    call = {"weight": torch.rand(8, generator=rng).to(x), "bias": torch.rand(8, generator=rng).to(x), "training": True}
    found = sf.functional.batch_norm_integrate_and_fire(x, **call)[0]
    norm = torch.nn.functional.batch_norm(
        x.double().flatten(0, 1), None, None, call["weight"].double(), call["bias"].double(), True
    )
    wanted, _, h = sf.reference.integrate_and_fire(norm.unflatten(0, (6, 4)), return_potential=True)
    differ, distance = first_flips(found, wanted, h, 1.0, 0)
    assert 0.05 < wanted.mean() < 0.95
    assert not differ.any() or distance[differ].max() <= 1e-5
    assert differ.sum() <= 1e-4 * differ.numel()


@each(CONFIGURATIONS[:120], NAMED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_the_float32_result_rounded_once(kernels, dtype, configuration):
    half = make_normalized(configuration, kernels.device, dtype)
    full = make_normalized(configuration, kernels.device, torch.float32, dtype)
    outputs, gradients = run_case(half, fused)
    expected, expected_gradients = run_case(full, fused)
    assert outputs[0].dtype == dtype and outputs[1].dtype == torch.float32
    for found, wanted in zip([*outputs, *half.running], [*expected, *full.running], strict=True):
        assert torch.equal(found, wanted.to(found.dtype))
    for name, found in gradients.items():
        assert torch.equal(found, expected_gradients[name].to(found.dtype)), name


# Statistics that are hard


def normalized_values(x: torch.Tensor, **call) -> torch.Tensor:
    """The normalized current of every step: the differences of a potential that nothing resets."""
    _, _, h = sf.functional.batch_norm_integrate_and_fire(
        x, threshold=math.inf, training=True, return_potential=True, **call
    )
    return torch.cat([h[:1], h.diff(dim=0)])


def exact(x: torch.Tensor, eps: float = 1e-5) -> tuple[torch.Tensor, ...]:
    x = x.double()
    dims = [d for d in range(x.dim()) if d != 2]
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
    return (x - mean) / (variance + eps).sqrt(), mean.flatten(), variance.flatten()


def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, variance = (torch.zeros(x.shape[2], dtype=torch.float32, device=x.device) for _ in range(2))
    sf.functional.batch_norm_integrate_and_fire(x, running_mean=mean, running_var=variance, training=True, momentum=1.0)
    count = x.numel() / x.shape[2]
    return mean.double(), variance.double() * (count - 1) / count


layouts = pytest.mark.parametrize("layout", ["contiguous", "channels last"])


def spread(shape, layout, device, scale=1.0, shift=0.0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * scale + shift
    return (x.movedim(2, -1).contiguous().movedim(-1, 2) if layout == "channels last" else x).to(device)


@layouts
@pytest.mark.parametrize("steps", [1, 4, 18])
def test_a_mean_a_million_times_the_deviation_leaves_the_digits_that_the_values_have(kernels, layout, steps):
    # Every channel's own mean: the pivot of another would do as badly as none.
    means = torch.tensor([1e4, -3e4, 0.0, 2e4, -1e4]).view(5, 1, 1)
    x = spread((steps, 7, 5, 9, 11), layout, kernels.device, 1e-2) + means.to(kernels.device)
    wanted, mean, variance = exact(x)
    assert (normalized_values(x).double() - wanted).abs().max() <= 0.02
    found_mean, found_variance = statistics(x)
    assert ((found_mean - mean).abs() <= 1e-7 * mean.abs() + 1e-8).all()
    torch.testing.assert_close(found_variance, variance, rtol=1e-3, atol=0)


@layouts
def test_gradients_at_a_large_mean_are_those_of_exact_arithmetic(kernels, layout):
    x = spread((4, 7, 5, 9, 11), layout, kernels.device, 1e-2, 1e4)
    sent = spread((4, 7, 5, 9, 11), layout, kernels.device) + 3.0 + (x - 1e4) * 100
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        weight, bias = (torch.full((5,), value).to(leaf).requires_grad_() for value in (0.7, 0.2))
        _, _, h = sf.functional.batch_norm_integrate_and_fire(
            leaf, weight=weight, bias=bias, threshold=math.inf, training=True, return_potential=True
        )
        results.append(torch.autograd.grad(h, [leaf, weight, bias], sent.to(dtype)))
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@layouts
@pytest.mark.parametrize("outlier", [1e3, -1e6])
def test_an_outlier_as_the_first_value_of_a_channel_does_not_take_the_digits_of_the_others(kernels, layout, outlier):
    x = spread((4, 6, 3, 21, 23), layout, kernels.device)
    x[0, 0, 1, 0, 0] = outlier
    wanted, mean, variance = exact(x)
    assert (normalized_values(x).double() - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    found_mean, found_variance = statistics(x)
    assert ((found_mean - mean).abs() <= 1e-5 * variance.sqrt()).all()
    torch.testing.assert_close(found_variance, variance, rtol=1e-4, atol=0)


@layouts
@pytest.mark.parametrize("value", [0.0, 0.1, -12345.678])
def test_a_constant_channel_is_its_bias_and_has_finite_gradients(kernels, layout, value):
    x = spread((3, 4, 3, 5, 7), layout, kernels.device)
    x[:, :, 1] = value
    x.requires_grad_()
    weight, bias = torch.full((3,), 2.0).to(x).requires_grad_(), torch.tensor([0.1, 0.2, 0.3]).to(x).requires_grad_()
    _, _, h = sf.functional.batch_norm_integrate_and_fire(
        x, weight=weight, bias=bias, threshold=math.inf, training=True, return_potential=True
    )
    assert torch.equal(h[0, :, 1], torch.full_like(h[0, :, 1], 0.2))
    gradients = torch.autograd.grad(h.sum(), [x, weight, bias])
    assert all(g.isfinite().all() for g in gradients) and gradients[1][1] == 0
    assert statistics(x.detach())[1][1] == 0


@layouts
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("training", [True, False])
def test_a_bad_value_stays_in_its_channel(kernels, layout, value, training):
    x = spread((3, 4, 3, 5, 7), layout, kernels.device)
    sent = spread((3, 4, 3, 5, 7), layout, kernels.device, 0.5, 0.1)
    bad = x.clone()
    bad[1, 2, 1, 3, 4] = value
    results = []
    for values in (x, bad):
        leaf = values.clone().requires_grad_()
        weight, bias = (torch.full((3,), v).to(x).requires_grad_() for v in (1.5, 0.3))
        running = torch.zeros(3).to(x), torch.ones(3).to(x)
        spikes, last = sf.functional.batch_norm_integrate_and_fire(
            leaf, weight=weight, bias=bias, running_mean=running[0], running_var=running[1], training=training
        )
        results.append(
            [
                spikes,
                last.unsqueeze(0),
                *(
                    g.unsqueeze(0).unsqueeze(0) if g.dim() == 1 else g
                    for g in torch.autograd.grad(spikes, [leaf, weight, bias], sent)
                ),
                *(r.view(1, 1, 3) for r in running),
            ]
        )
    for fine, found in zip(*results, strict=True):
        for channel in (0, 2):
            assert torch.equal(found[:, :, channel], fine[:, :, channel])
    mean = results[1][-2].flatten()
    assert mean.isfinite().tolist() == [True, not training, True]
    if not training:  # then it stays with its neuron, too
        others = torch.ones(4, 5, 7, dtype=torch.bool, device=x.device)
        others[2, 3, 4] = False
        assert torch.equal(results[0][0][:, :, 1][:, others], results[1][0][:, :, 1][:, others])
