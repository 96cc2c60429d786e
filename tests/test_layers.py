"""IF, LIF, Readout and OverTime as torch modules: what they compute, show, learn and let the user change."""

from __future__ import annotations

import functools

import pytest
import torch
from configurations import error
from torch import nn

import snnfast as sf
from snnfast.surrogate import FastSigmoid, Gaussian, Triangle


def currents(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def spikes_and_gradient(call, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    spikes = call(x)
    sent = currents(*spikes.shape, seed=1).to(spikes)
    return spikes.detach(), torch.autograd.grad(spikes, x, sent)[0]


OPTIONS = [
    {},
    {"threshold": 0.3, "reset": "soft", "surrogate": Triangle(gamma=0.7, beta=2.0)},
    {"reset_value": -0.25, "detach_reset": False, "fire_on_equal": True, "surrogate": Gaussian()},
    {"threshold": torch.tensor([0.2, 0.4, 1.3]), "reset": "soft", "detach_reset": True, "delay": True},
    {"threshold": torch.tensor(0.75), "time_dim": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "defaults")
@pytest.mark.parametrize(
    ("make", "function", "leak"),
    [
        (sf.IF, sf.functional.integrate_and_fire, {}),
        (sf.LIF, sf.functional.leaky_integrate_and_fire, {"tau": 3.0, "decay_input": False}),
        (sf.LIF, functools.partial(sf.functional.leaky_integrate_and_fire, tau=2.0), {}),
    ],
    ids=["IF", "LIF with a leak", "LIF"],
)
def test_a_layer_is_its_function(kernels, options, make, function, leak):
    x = currents(6, 5, 3, 7).to(kernels.device)
    options = {k: v.to(kernels.device) if isinstance(v, torch.Tensor) else v for k, v in options.items()} | leak
    spikes, gradient = spikes_and_gradient(make(**options), x)
    wanted, wanted_gradient = spikes_and_gradient(lambda current: function(current, **options)[0], x)
    assert torch.equal(spikes, wanted) and 0 < spikes.mean() < 1
    assert torch.equal(gradient, wanted_gradient)


@pytest.mark.parametrize("layer", [sf.IF(), sf.LIF()], ids=["IF", "LIF"])
def test_each_call_of_a_stateless_layer_starts_at_rest(layer):
    x = currents(5, 2, 4)
    assert torch.equal(layer(x), layer(x))
    assert layer.state is None


def test_repr_shows_the_dynamics():
    assert repr(sf.IF()) == "IF(threshold=1.0, reset='hard', surrogate=FastSigmoid(gamma=10.0, beta=1.0))"
    text = repr(sf.LIF(3.0, 0.5, reset="soft", surrogate=Triangle(), detach_reset=True, delay=True, time_dim=1))
    for part in (
        "tau=3.0",
        "decay_input=True",
        "threshold=0.5",
        "'soft'",
        "Triangle(gamma=1.0, beta=1.0)",
        "detach_reset=True",
        "delay=True",
        "time_dim=1",
    ):
        assert part in text
    text = repr(sf.LIF(4.0, torch.ones(7), learn_tau=True, learn_threshold=True, carry_state=True))
    for part in ("tau=4", "learn_tau=True", "tensor of shape [7]", "learn_threshold=True", "carry_state=True"):
        assert part in text
    assert "fire_on_equal=True" in repr(sf.IF(fire_on_equal=True))
    assert "reset_value=0.25" in repr(sf.IF(reset_value=0.25))
    assert repr(sf.Readout()) == "Readout('sum')" and "time_dim=1" in repr(sf.Readout("mean", time_dim=1))
    assert "Conv2d" in repr(sf.OverTime(nn.Conv2d(1, 2, 3)))
    assert "tau=[3]" in repr(sf.LIF(torch.full((3,), 2.0), learn_tau=True).to("meta"))


@pytest.mark.parametrize("number", [20, 20.0, 2, 2.5, 1.25])
def test_a_number_prints_alike_however_it_was_given(number):
    shown = f"={float(number)}"
    assigned = sf.LIF()
    assigned.tau = assigned.threshold = assigned.reset_value = number
    for layer in (sf.LIF(number, number, reset_value=number), assigned):
        assert all(name + shown + "," in repr(layer) + "," for name in ("tau", "threshold")), repr(layer)
        assert f"reset_value{shown})" in repr(layer)
    learned = repr(sf.LIF(number, number, learn_tau=True, learn_threshold=True))
    assert f"tau{shown}, " in learned and f"threshold{shown}, " in learned
    assert f"threshold{shown}, " in repr(sf.IF(torch.tensor(float(number))))


# Parameters


KINDS_OF_NUMBER = ["number", "0-d", "per channel"]


@pytest.mark.parametrize("start", [1.0, torch.tensor(0.5), torch.tensor([0.5, 1.0, 1.5])], ids=KINDS_OF_NUMBER)
@pytest.mark.parametrize("make", [sf.IF, sf.LIF])
def test_a_threshold_is_learned_as_the_parameter_threshold(start, make):
    x = currents(8, 16, 3, 5)
    layer = make(threshold=start, learn_threshold=True)
    assert dict(layer.named_parameters()).keys() == {"threshold"}
    assert layer.threshold.shape == torch.as_tensor(start).shape
    before = layer.threshold.detach().clone()
    target = 0.1  # spikes a neuron and step; fewer than there are
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        loss = (layer(x).mean((0, 1, 3)) - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert (layer.threshold != before).all()


@pytest.mark.parametrize("start", [2.0, torch.tensor(3.0), torch.tensor([1.5, 2.0, 8.0])], ids=KINDS_OF_NUMBER)
def test_a_time_constant_is_learned_as_the_parameter_tau_logit(start):
    x = currents(8, 16, 3, 5) + 0.5
    layer = sf.LIF(start, 0.4, learn_tau=True)
    assert dict(layer.named_parameters()).keys() == {"tau_logit"}
    torch.testing.assert_close(layer.tau, torch.as_tensor(start))
    torch.testing.assert_close(1 / layer.tau, torch.sigmoid(layer.tau_logit))
    before = layer.tau.detach().clone()
    loss = layer(x).mean()  # fewer spikes: a slower neuron
    loss.backward()
    assert layer.tau_logit.grad.shape == torch.as_tensor(start).shape
    assert (layer.tau_logit.grad != 0).all()
    torch.optim.SGD(layer.parameters(), lr=10.0).step()
    assert (layer.tau > before).all()
    assert layer(x).mean() < loss


def test_learned_gradients_are_those_of_the_reference():
    x = currents(9, 4, 3, 5, dtype=torch.float64)
    layer = sf.LIF(torch.tensor([1.5, 2.0, 8.0]), 0.4, learn_tau=True, learn_threshold=True).double()
    sent = currents(9, 4, 3, 5, dtype=torch.float64, seed=1)
    found = torch.autograd.grad(layer(x), [layer.tau_logit, layer.threshold], sent)
    logit, threshold = (p.detach().clone().requires_grad_() for p in (layer.tau_logit, layer.threshold))
    spikes, _ = sf.reference.leaky_integrate_and_fire(x, tau=1 + torch.exp(-logit), threshold=threshold)
    for ours, theirs in zip(found, torch.autograd.grad(spikes, [logit, threshold], sent), strict=True):
        assert error(ours, theirs) <= 1e-11


EXTREMES = [-200.0, -100.0, -60.0, -12.0, 12.0, 20.0, 60.0, 200.0]


@pytest.mark.parametrize("logit", EXTREMES)
def test_a_learned_tau_stays_above_one_wherever_training_takes_it(logit):
    layer = sf.LIF(2.0, 0.4, learn_tau=True)
    with torch.no_grad():
        layer.tau_logit.fill_(logit)
    assert layer.tau > 1


@pytest.mark.parametrize("logit", EXTREMES)
def test_an_extreme_time_constant_gives_finite_results(logit):
    layer = sf.LIF(2.0, 0.4, learn_tau=True)
    with torch.no_grad():
        layer.tau_logit.fill_(logit)
    x = (currents(6, 8, 3) + 0.5).requires_grad_()
    spikes = layer(x)
    spikes.sum().backward()
    assert spikes.isfinite().all() and x.grad.isfinite().all()
    assert layer.tau_logit.grad.isfinite().all()


@pytest.mark.parametrize(
    ("tau", "dtype"),
    [
        (200.0, torch.bfloat16),
        (2000.0, torch.float16),
        (3e4, torch.float16),
        (1e8, torch.float32),
        (1e30, torch.float32),
        (1 + 1e-6, torch.float32),
        (1 + 1e-12, torch.float64),
        (1e300, torch.float64),
    ],
)
def test_a_learned_tau_of_any_size_is_kept_and_learns(tau, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == torch.float64 else torch.float32)
    try:
        layer = sf.LIF(tau, learn_tau=True).to(dtype)
    finally:
        torch.set_default_dtype(before)
    bound = {torch.bfloat16: 0.02, torch.float16: 0.01}.get(dtype, 1e-4)  # of rounding the logit
    assert (layer.tau - 1).item() == pytest.approx(tau - 1, rel=0.15 if tau < 1.1 else bound)
    layer.tau.backward()
    assert layer.tau_logit.grad.item() == pytest.approx(1 - tau, rel=0.15 if tau < 1.1 else bound)


def test_fixed_tables_are_buffers_and_numbers_stay_numbers():
    given = torch.tensor([0.5, 1.0, 1.5], requires_grad=True)
    layer = sf.LIF(torch.tensor([2.0, 3.0, 4.0]), given)
    assert dict(layer.named_buffers()).keys() == {"threshold", "tau"} and not list(layer.parameters())
    with torch.no_grad():
        given.fill_(9.0)
    assert layer.threshold.tolist() == [0.5, 1.0, 1.5]  # its own copy
    plain = sf.LIF(2, 1)
    assert not list(plain.buffers()) and plain.tau == 2.0 and plain.threshold == 1.0


def test_one_value_per_channel_is_what_each_channel_gets():
    x, thresholds, taus = currents(7, 4, 3, 5), torch.tensor([0.2, 0.6, 1.1]), torch.tensor([1.5, 2.0, 9.0])
    spikes = sf.LIF(taus, thresholds)(x)
    for c in range(3):
        assert torch.equal(spikes[:, :, c], sf.LIF(taus[c].item(), thresholds[c].item())(x[:, :, c]))


# Options after construction


def test_an_assigned_option_takes_effect_at_once():
    x = currents(6, 4, 3)
    assigned = {
        "threshold": 0.4,
        "tau": 5.0,
        "reset": "soft",
        "detach_reset": True,
        "fire_on_equal": True,
        "surrogate": Triangle(gamma=0.5),
        "delay": True,
        "decay_input": False,
    }
    layer = sf.LIF()
    for name, value in assigned.items():
        setattr(layer, name, value)
        assert getattr(layer, name) == value
        so_far = {k: v for k, v in assigned.items() if list(assigned).index(k) <= list(assigned).index(name)}
        fresh = sf.LIF(**so_far)
        for found, wanted in zip(spikes_and_gradient(layer, x), spikes_and_gradient(fresh, x), strict=True):
            assert torch.equal(found, wanted), name
        assert repr(layer) == repr(fresh)
    hard = sf.IF()
    hard.reset_value = -0.5
    assert torch.equal(hard(x), sf.IF(reset_value=-0.5)(x))
    hard.surrogate = None
    assert hard.surrogate == FastSigmoid()


def test_the_papers_rule_follows_an_assigned_reset():
    x = currents(6, 4, 3)
    layer = sf.IF(0.5)
    layer.reset = "soft"
    assert torch.equal(spikes_and_gradient(layer, x)[1], spikes_and_gradient(sf.IF(0.5, reset="soft"), x)[1])
    kept = spikes_and_gradient(sf.IF(0.5, reset="soft", detach_reset=True), x)[1]
    assert not torch.equal(spikes_and_gradient(layer, x)[1], kept)


def test_tau_of_a_layer_that_learns_it_can_be_assigned():
    layer = sf.LIF(2.0, learn_tau=True)
    parameter = layer.tau_logit
    layer.tau = 6.0
    assert layer.tau_logit is parameter
    torch.testing.assert_close(layer.tau.detach(), torch.tensor(6.0))
    assert torch.equal(layer(currents(5, 3, 2)), sf.LIF(layer.tau.detach())(currents(5, 3, 2)))


def test_an_assigned_tensor_is_used():
    x = currents(6, 4, 3)
    layer = sf.LIF()
    layer.threshold = torch.tensor([0.1, 0.5, 2.0])
    layer.tau = torch.tensor(4.0)
    assert torch.equal(layer(x), sf.LIF(torch.tensor(4.0), torch.tensor([0.1, 0.5, 2.0]))(x))
    layer.threshold, layer.tau = 0.7, 3.0
    assert torch.equal(layer(x), sf.LIF(3.0, 0.7)(x))


# Time


@pytest.mark.parametrize("make", [sf.IF, sf.LIF])
def test_time_may_be_the_second_dimension(kernels, make):
    x = currents(4, 9, 3, 5).to(kernels.device)  # [B, T, ...]
    spikes, gradient = spikes_and_gradient(make(time_dim=1), x)

    def time_first(x):
        return make()(x.transpose(0, 1)).transpose(0, 1)

    wanted, wanted_gradient = spikes_and_gradient(time_first, x)
    assert torch.equal(spikes, wanted) and torch.equal(gradient, wanted_gradient)
    assert spikes.is_contiguous()


@pytest.mark.parametrize("steps", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("make", [sf.IF, sf.LIF])
def test_holding_a_current_is_expanding_it(kernels, make, time_dim, steps):
    x = (currents(4, 3, 7, dtype=torch.float64) * 0.4).to(kernels.device)
    layer = make(0.9 if make is sf.IF else 2.5, reset="soft", time_dim=time_dim)

    def expanded(x):
        return layer(x.unsqueeze(time_dim).expand(*x.shape[:time_dim], steps, *x.shape[time_dim:]))

    spikes, gradient = spikes_and_gradient(lambda x: layer(x, steps=steps), x)
    wanted, wanted_gradient = spikes_and_gradient(expanded, x)
    assert spikes.shape == ((steps, 4, 3, 7) if time_dim == 0 else (4, steps, 3, 7))
    assert torch.equal(spikes, wanted)
    assert error(gradient, wanted_gradient) <= 1e-13


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_readout_adds_up_or_averages_over_time(mode):
    x = currents(6, 4, 10).requires_grad_()
    logits = sf.Readout(mode)(x)
    torch.testing.assert_close(logits, x.sum(0) / (6 if mode == "mean" else 1))
    torch.testing.assert_close(sf.Readout(mode, time_dim=1)(x.transpose(0, 1)), logits)
    logits.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 1 if mode == "sum" else 1 / 6))


@pytest.mark.parametrize(
    "module", [nn.Conv2d(3, 6, 3, stride=2), nn.AvgPool2d(2), nn.Flatten(), nn.Flatten(2)], ids=str
)
def test_overtime_applies_a_module_to_every_step(module):
    x = currents(5, 4, 3, 8, 8)
    torch.testing.assert_close(sf.OverTime(module)(x), torch.stack([module(step) for step in x]))


def test_overtime_gives_batch_norm_the_statistics_of_all_steps():
    x = currents(5, 4, 3, 2, 2) * 3 + 1
    normalized = sf.OverTime(nn.BatchNorm2d(3))(x)
    torch.testing.assert_close(normalized.mean((0, 1, 3, 4)), torch.zeros(3), atol=1e-5, rtol=0)
    assert (normalized[0].mean((0, 2, 3)).abs() > 1e-3).any()


# Types and formats


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_spikes_and_gradients_have_the_dtype_of_their_own_tensor(kernels, dtype):
    layer = sf.LIF(torch.tensor([1.5, 2.0, 3.0]), 0.5, learn_tau=True, learn_threshold=True).to(kernels.device)
    x = currents(6, 4, 3, 5, dtype=dtype).to(kernels.device).requires_grad_()
    spikes = layer(x)
    spikes.sum().backward()
    assert spikes.dtype == x.grad.dtype == dtype
    assert layer.threshold.grad.dtype == layer.tau_logit.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_layer_converted_to_a_dtype_computes_with_its_rounded_parameters(kernels, dtype):
    layer = sf.LIF(torch.tensor(3.0), torch.tensor([0.51, 0.77, 1.03]), learn_threshold=True).to(kernels.device)
    converted = layer.half() if dtype == torch.float16 else layer.to(dtype)
    assert converted.threshold.dtype == converted.tau.dtype == dtype
    x = currents(6, 4, 3, 5, dtype=dtype).to(kernels.device)
    spikes = converted(x)
    spikes.sum().backward()
    assert spikes.dtype == converted.threshold.grad.dtype == dtype
    wanted, _ = sf.reference.leaky_integrate_and_fire(x, tau=3.0, threshold=layer.threshold.detach())
    assert torch.equal(spikes, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_changes_nothing(dtype):
    x = currents(6, 4, 3, 5, dtype=dtype)
    layer = sf.LIF(2.0, 0.5, learn_threshold=True, learn_tau=True).to(dtype)

    def all_of_it():
        layer.zero_grad()
        found = spikes_and_gradient(layer, x)
        layer(x).sum().backward()
        return [*found, layer.threshold.grad.clone(), layer.tau_logit.grad.clone()]

    plain = all_of_it()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = all_of_it()
    for a, b in zip(plain, inside, strict=True):
        assert a.dtype == b.dtype == dtype and torch.equal(a, b)


def test_a_mixed_precision_network_trains_under_autocast():
    network = nn.Sequential(nn.Linear(6, 8), sf.IF(0.2, learn_threshold=True), nn.Linear(8, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(currents(5, 4, 6) * 3)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())
    assert network[1].threshold.grad != 0


def test_channels_last_stays_channels_last(kernels):
    x = currents(5 * 4, 3, 6, 8).to(kernels.device).to(memory_format=torch.channels_last)
    over_time = x.unflatten(0, (5, 4))
    spikes, gradient = spikes_and_gradient(sf.IF(0.5), over_time)
    assert torch.equal(spikes, sf.IF(0.5)(over_time.contiguous()))
    for y in (spikes, gradient):
        assert y.stride() == over_time.stride()
        assert y.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    held, gradient = spikes_and_gradient(lambda x: sf.IF(0.5)(x, steps=3), x)
    assert held[0].is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_a_layer_on_the_meta_device_gives_shapes():
    x = torch.empty(20, 4, 3, 5, device="meta", requires_grad=True)
    layer = sf.LIF(learn_tau=True, learn_threshold=True).to("meta")
    spikes = layer(x)
    assert spikes.is_meta and spikes.shape == x.shape
    spikes.sum().backward()
    assert x.grad.shape == x.shape and layer.tau_logit.grad.shape == ()
    assert layer(x[0], steps=7).shape == (7, 4, 3, 5)
