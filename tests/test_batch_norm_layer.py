"""BatchNormIF and BatchNormLIF as torch modules: statistics, checkpoints, options, dtypes and copies."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from configurations import error
from torch import nn

import snnfast as sf
from snnfast.surrogate import FastSigmoid, Triangle

C = 5
SIZES = {nn.BatchNorm1d: (3, 4, C, 6), nn.BatchNorm2d: (3, 4, C, 3, 7), nn.BatchNorm3d: (2, 3, C, 2, 3, 5)}
torch_layers = pytest.mark.parametrize("torch_layer", SIZES, ids=lambda layer: layer.__name__)
makers = pytest.mark.parametrize("make", [sf.BatchNormIF, sf.BatchNormLIF], ids=lambda make: make.__name__)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def trained(make=sf.BatchNormIF, **options):
    """A layer whose parameters and statistics are not the first ones."""
    layer = make(C, **options)
    with torch.no_grad():
        for i, parameter in enumerate(p for p in (layer.weight, layer.bias) if p is not None):
            parameter.copy_(normal(C, seed=i) * 0.3 + 1 - i)
    layer(normal(4, 3, C, 7, seed=3).to(next(layer.buffers()).dtype) * 2 + 1)
    return layer


# Running statistics


@torch_layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_running_statistics_are_torchs_after_ten_steps_of_training(kernels, torch_layer, dtype, momentum):
    layer = sf.BatchNormIF(C, momentum=momentum, dtype=dtype).to(kernels.device)
    other = torch_layer(C, momentum=momentum, dtype=dtype).to(kernels.device)
    bound = 1e-12 if dtype == torch.float64 else 1e-6
    for step in range(10):
        x = (normal(*SIZES[torch_layer], dtype=dtype, seed=step) * (step + 1) + step).to(kernels.device)
        layer(x), other(x.flatten(0, 1))
        assert layer.num_batches_tracked == other.num_batches_tracked == step + 1
    for name in ("running_mean", "running_var"):
        assert getattr(layer, name).dtype == dtype
        assert error(getattr(layer, name), getattr(other, name)) <= bound
    layer.eval(), other.eval()
    kept = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    spikes = layer(x)
    assert torch.equal(spikes, sf.IF()(other(x.flatten(0, 1)).unflatten(0, x.shape[:2]))) and 0 < spikes.mean() < 1
    assert all(torch.equal(buffer, kept[name]) for name, buffer in layer.named_buffers())


def test_a_held_currents_statistics_are_those_of_its_own_values():
    layer, other, x = sf.BatchNormLIF(C, dtype=torch.float64), nn.BatchNorm1d(C).double(), normal(6, C, 4).double()
    assert torch.equal(layer(x, steps=7), sf.LIF()(other(x), steps=7))
    assert error(layer.running_var, other.running_var) <= 1e-12
    assert torch.equal(layer(x, x, 7), sf.LIF()(other(x) + x, steps=7))


@makers
def test_without_running_statistics_evaluation_uses_the_batchs_own(make):
    layer, x = make(C, track_running_stats=False), normal(4, 3, C, 7)
    assert list(layer.buffers()) == [] and list(layer.state_dict()) == ["weight", "bias"]
    in_training = layer(x)
    assert torch.equal(layer.eval()(x), in_training) and in_training.any()
    layer.reset_running_stats()


@makers
def test_a_frozen_layer_in_training_mode_follows_its_statistics_only_in_training(make):
    layer = trained(make)
    before = {name: b.clone() for name, b in layer.named_buffers()}
    layer.eval()(normal(4, 3, C, 7) + 9)
    assert all(torch.equal(b, before[name]) for name, b in layer.named_buffers())
    layer.train()
    with torch.no_grad():
        layer(normal(4, 3, C, 7) + 9)
    assert all((b != before[name]).all() for name, b in layer.named_buffers())


@makers
def test_resetting_brings_the_statistics_and_parameters_of_a_new_layer(make):
    layer, new = trained(make), make(C)
    assert not torch.equal(layer.running_mean, new.running_mean)
    layer.reset_running_stats()
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, dict(new.named_buffers())[name])
    assert not torch.equal(layer.weight, new.weight)
    layer.reset_parameters()
    assert torch.equal(layer.weight, new.weight) and torch.equal(layer.bias, new.bias)


def test_a_refused_call_counts_no_batch():
    layer = sf.BatchNormIF(C)
    with pytest.raises(ValueError):
        layer(normal(1, 1, C))
    with pytest.raises(ValueError):
        layer(normal(3, 2, C), normal(3, 2, 1))
    assert layer.num_batches_tracked == 0 and torch.equal(layer.running_var, torch.ones(C))


# Checkpoints


@torch_layers
@makers
@pytest.mark.parametrize(("affine", "tracked"), [*itertools.product([True, False], repeat=2)])
def test_state_dicts_interchange_with_torchs_both_ways(make, torch_layer, affine, tracked):
    options = {"affine": affine, "track_running_stats": tracked}
    ours, theirs = make(C, **options), torch_layer(C, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_buffers()] == [n for n, _ in theirs.named_buffers()]
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    x = normal(*SIZES[torch_layer])
    theirs(x.flatten(0, 1))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    other = torch_layer(C, **options)
    stored = io.BytesIO()
    torch.save(ours.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored), strict=True)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(C), sf.BatchNormIF(C)], ids=["torch", "BatchNormIF"])
def test_a_state_dict_from_before_torch_counted_batches_loads(layer):
    old = nn.BatchNorm2d(C).state_dict()
    del old["num_batches_tracked"]
    old._metadata[""]["version"] = 1
    layer.load_state_dict(old, strict=True)
    assert layer.num_batches_tracked == 0


def test_the_surrogate_travels_with_the_state_dict():
    layer = sf.BatchNormLIF(C, surrogate=Triangle(gamma=0.3), learn_tau=True, learn_threshold=True)
    assert {"weight", "bias", "threshold", "tau_logit"} == dict(layer.named_parameters()).keys()
    other = sf.BatchNormLIF(C, learn_tau=True, learn_threshold=True)
    other.load_state_dict(layer.state_dict())
    assert other.surrogate == Triangle(gamma=0.3)


# Options


@makers
def test_repr_shows_everything(make):
    text = repr(make(64))
    assert text.startswith(f"{make.__name__}(64, eps=1e-05, momentum=0.1, affine=True, ")
    for part in ("threshold=1.0", "reset='hard'", "FastSigmoid(gamma=10.0, beta=1.0)"):
        assert part in text
    text = repr(make(3, 1e-3, None, False, False, threshold=0.5, reset="soft", delay=True, time_dim=1))
    for part in (
        "3, eps=0.001, momentum=None, affine=False",
        "track_running_stats=False",
        "threshold=0.5",
        "'soft'",
        "delay=True",
        "time_dim=1",
    ):
        assert part in text
    text = repr(make(3, carry_state=True, learn_threshold=True))
    assert "carry_state=True" in text and "learn_threshold=True" in text
    assert "learn_tau=True" in repr(sf.BatchNormLIF(3, learn_tau=True)) and "tau=2.0" in repr(sf.BatchNormLIF(3))


OPTIONS = [
    {},
    {"threshold": 0.3, "reset": "soft", "surrogate": Triangle(gamma=0.7, beta=2.0)},
    {"reset_value": -0.25, "detach_reset": False, "fire_on_equal": True},
    {"threshold": torch.linspace(0.2, 1.3, C), "delay": True, "time_dim": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "defaults")
@pytest.mark.parametrize(
    ("make", "more"),
    [(sf.BatchNormIF, {}), (sf.BatchNormLIF, {"tau": 3.0, "decay_input": False})],
    ids=["BatchNormIF", "BatchNormLIF"],
)
def test_a_layer_is_its_function(options, make, more):
    x, residual = normal(6, 6, C, 4), normal(6, 6, C, 4, seed=1)
    layer = trained(make, eps=1e-2, **{**options, **more})
    for training in (True, False):
        layer.train(training)
        mean, variance = layer.running_mean.clone(), layer.running_var.clone()
        spikes = layer(x, residual)
        wanted, _ = sf.functional.batch_norm_integrate_and_fire(
            x,
            residual=residual,
            weight=layer.weight,
            bias=layer.bias,
            running_mean=mean,
            running_var=variance,
            training=training,
            momentum=0.1,
            eps=1e-2,
            **options,
            **more,
        )
        assert torch.equal(spikes, wanted) and 0 < spikes.mean() < 1
        assert torch.equal(layer.running_mean, mean) and torch.equal(layer.running_var, variance)


def test_a_surrogate_and_a_threshold_may_be_assigned():
    layer, x = sf.BatchNormIF(C), normal(6, 3, C).requires_grad_()
    for change in ({"surrogate": FastSigmoid(gamma=1.0)}, {"threshold": 0.3}, {"reset": "soft"}):
        for name, value in change.items():
            setattr(layer, name, value)
        assert f"{next(iter(change))}={next(iter(change.values()))!r}" in repr(layer)
        new = sf.BatchNormIF(C, threshold=layer.threshold, surrogate=layer.surrogate, reset=layer.reset)
        found, wanted = (torch.autograd.grad(one(x).sum(), x)[0] for one in (layer, new))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("make", [sf.BatchNormIF, sf.BatchNormLIF])
def test_pieces_of_a_sequence_carry_the_state_in_evaluation(time_dim, make):
    layer = trained(make, threshold=0.7, carry_state=True, time_dim=time_dim).eval()
    layer.reset_state()
    x, residual = (normal(12, 3, C, 2, seed=i).transpose(0, time_dim) for i in range(2))
    whole = layer(x, residual)
    layer.reset_state()
    pieces = zip(x.split(5, time_dim), residual.split(5, time_dim), strict=True)
    assert torch.equal(torch.cat([layer(*piece) for piece in pieces], time_dim), whole)
    assert layer.state is not None and layer.state.shape == (3, C, 2)
    with pytest.raises(ValueError, match=r"reset_state\(\)"):
        layer(x.narrow(1 - time_dim, 0, 2))


def test_thresholds_and_time_constants_are_learned():
    layer = sf.BatchNormLIF(C, threshold=torch.full((C,), 0.5), learn_threshold=True, learn_tau=True).double()
    norm, x = nn.BatchNorm1d(C).double(), normal(6, 4, C, 3, dtype=torch.float64)
    sent = normal(*x.shape, dtype=torch.float64, seed=1)
    layer(x).backward(sent)
    logit, threshold = (p.detach().clone().requires_grad_() for p in (layer.tau_logit, layer.threshold))
    spikes, _ = sf.reference.leaky_integrate_and_fire(
        norm(x.flatten(0, 1)).unflatten(0, (6, 4)), tau=1 + torch.exp(-logit), threshold=threshold
    )
    spikes.backward(sent)
    for ours, theirs in ((layer.tau_logit, logit), (layer.threshold, threshold), (layer.weight, norm.weight)):
        assert error(ours.grad, theirs.grad) <= 1e-10


# Dtypes, devices and copies


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_layer_in_another_dtype_has_its_parameters_and_statistics_in_it(kernels, dtype, momentum):
    layer = trained(momentum=momentum).to(kernels.device, dtype)
    assert {t.dtype for t in [*layer.parameters(), layer.running_mean, layer.running_var]} == {dtype}
    x = normal(6, 4, C, 3, dtype=dtype).to(kernels.device).requires_grad_()
    wide = copy.deepcopy(layer).to(torch.float64 if dtype == torch.float64 else torch.float32)
    for training in (True, False):
        layer.train(training), wide.train(training)
        found, wanted = layer(x), wide(x)
        assert found.dtype == dtype and torch.equal(found, wanted)
        gradients = [
            torch.autograd.grad(y.sum(), [x, *one.parameters()]) for y, one in ((found, layer), (wanted, wide))
        ]
        for ours, theirs in zip(*gradients, strict=True):
            assert ours.dtype == dtype and torch.equal(ours, theirs.to(dtype))
        layer.running_mean.copy_(wide.running_mean), layer.running_var.copy_(wide.running_var)
        wide.running_mean.copy_(layer.running_mean), wide.running_var.copy_(layer.running_var)


PAIRS = [*itertools.product([torch.float32, torch.bfloat16, torch.float64], repeat=2)]


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_weight_and_bias_may_have_dtypes_of_their_own(kernels, dtypes):
    x = normal(6, 4, C, 3).to(kernels.device)
    given = [(normal(C, seed=i) * 0.3 + 1 - i).bfloat16().to(kernels.device) for i in range(2)]
    results = []
    for cast in (dtypes, (torch.float64, torch.float64)):
        weight, bias = (p.to(dtype).requires_grad_() for p, dtype in zip(given, cast, strict=True))
        spikes, _ = sf.functional.batch_norm_integrate_and_fire(x, weight=weight, bias=bias, training=True)
        results.append([spikes, *torch.autograd.grad(spikes, [weight, bias], normal(*x.shape, seed=2).to(x))])
    (spikes, *found), (wanted_spikes, *wanted) = results
    assert torch.equal(spikes, wanted_spikes)
    for ours, theirs, dtype in zip(found, wanted, dtypes, strict=True):
        assert ours.dtype == dtype and torch.equal(ours, theirs.to(dtype))


LAID = {"every second": lambda p: p.repeat_interleave(2)[::2], "one for all": lambda p: p[:1].expand(C)}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("laid", LAID.values(), ids=LAID)
def test_parameters_and_statistics_may_lie_anyhow_in_memory(kernels, laid, training):
    x = normal(6, 4, C, 3).to(kernels.device)
    given = [laid(normal(C, seed=i).abs() + 0.5).to(kernels.device) for i in range(4)]
    results = []
    for weight, bias, mean, variance in (given, [t.contiguous() for t in given]):
        statistics = {} if training else {"running_mean": mean, "running_var": variance}
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        spikes, _ = sf.functional.batch_norm_integrate_and_fire(
            x, weight=weight, bias=bias, training=training, **statistics
        )
        results.append([spikes, *torch.autograd.grad(spikes, [weight, bias], normal(*x.shape, seed=5).to(x))])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@makers
def test_under_autocast_float32_layers_take_half_currents(make):
    layer, x = trained(make), normal(6, 4, C, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        current = torch.matmul(x, normal(3, 3, seed=1)).requires_grad_()
        assert current.dtype == torch.bfloat16
        spikes = layer(current, current)
    assert spikes.dtype == torch.bfloat16 and spikes.any()
    spikes.sum().backward()
    assert current.grad.dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32
    assert layer.running_var.dtype == torch.float32


@makers
def test_copies_and_pickles_compute_the_same(make):
    layer, x = trained(make, threshold=0.4, carry_state=True, learn_threshold=True), normal(6, 4, C)
    layer.reset_state()
    layer(x)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    wanted = layer(x)
    for other in copies:
        assert repr(other) == repr(layer) and torch.equal(other(x), wanted)
        assert torch.equal(other.running_mean, layer.running_mean)
        assert other.running_mean is not layer.running_mean


def test_layers_are_made_on_a_device_and_in_a_dtype():
    layer = sf.BatchNormLIF(C, device="meta", dtype=torch.bfloat16)
    assert all(t.is_meta for t in [*layer.parameters(), *layer.buffers()])
    assert layer.weight.dtype == layer.running_var.dtype == torch.bfloat16
    assert layer.num_batches_tracked.dtype == torch.int64
    spikes = layer(torch.empty(4, 3, C, 2, device="meta", dtype=torch.bfloat16))
    assert spikes.is_meta and spikes.shape == (4, 3, C, 2)


@pytest.mark.parametrize("shape", [(4, 0, C), (4, 0, C, 3, 3), (4, 2, C, 0, 3), (4, 2, 0), (4, 2, 0, 3, 3)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_empty_batch_is_empty_and_leaves_finite_statistics(kernels, shape, training):
    layer = sf.BatchNormIF(shape[2]).to(kernels.device)
    layer.train(training)
    layer.zero_grad()
    x, residual = (torch.zeros(shape, device=kernels.device, requires_grad=True) for _ in range(2))
    spikes = layer(x, residual)
    assert spikes.shape == shape
    spikes.sum().backward()
    assert x.grad.shape == residual.grad.shape == shape
    for parameter in (layer.weight, layer.bias):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    assert torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean))
    assert torch.equal(layer.running_var, torch.ones_like(layer.running_var))


def test_a_layer_in_evaluation_may_be_shared_by_threads():
    layer, x = trained().eval(), [normal(8, 4, C, 300, seed=i) for i in range(4)]
    wanted = [layer(v) for v in x]
    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(lambda i: layer(x[i % 4]), range(40))):
            assert torch.equal(found, wanted[i % 4])


def test_layers_in_training_may_run_in_several_threads():
    def train(seed: int):
        layer = sf.BatchNormIF(C)
        for i in range(5):
            layer(normal(8, 4, C, 300, seed=10 * seed + i).requires_grad_()).sum().backward()
        return [layer.running_var, layer.weight.grad, layer.bias.grad]

    wanted = [train(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for seed, found in enumerate(pool.map(lambda i: train(i % 4), range(16))):
            assert all(torch.equal(a, b) for a, b in zip(found, wanted[seed % 4], strict=True))
