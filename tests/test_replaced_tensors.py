"""A learned tensor may be stood for by another: a parametrization, a pruned one, a plain tensor in a replica, a sharded
one. The layer computes with what stands there, trains what is behind it, and refuses by name what cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import snnfast as sf

X = torch.randn(6, 4, 3, 2, generator=torch.Generator().manual_seed(0))
TAU, THRESHOLD = torch.tensor([1.5, 2.0, 3.0]), torch.tensor([0.3, 0.4, 0.5])


def learned(make=sf.LIF, **options) -> nn.Module:
    first = (3,) if make in (sf.BatchNormIF, sf.BatchNormLIF) else ()
    if make in (sf.LIF, sf.BatchNormLIF):
        options = {"tau": TAU, "learn_tau": True, **options}
    return make(*first, threshold=THRESHOLD, learn_threshold=True, **options)


MAKERS = [sf.IF, sf.LIF, sf.BatchNormIF, sf.BatchNormLIF]
makers = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
LEARNED = [(make, name) for make in MAKERS for name, _ in learned(make).named_parameters()]
each = pytest.mark.parametrize(("make", "name"), LEARNED, ids=[f"{make.__name__} {name}" for make, name in LEARNED])


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


def replica(network: nn.Module) -> nn.Module:
    """One as torch.nn.parallel.replicate makes them, on the same device (that itself needs several GPUs)."""
    replicas = {module: module._replicate_for_data_parallel() for module in network.modules()}
    for module, made in replicas.items():
        for name, child in module._modules.items():
            setattr(made, name, replicas[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                made._parameters[name] = None
            else:
                setattr(made, name, parameter.clone())  # a plain tensor, which sends gradients to the original
        for name, buffer in module._buffers.items():
            setattr(made, name, buffer.clone())
    return replicas[network]


def assert_same_call(found: nn.Module, wanted: nn.Module) -> None:
    assert torch.equal(found(X), wanted(X)) and 0 < found(X).mean() < 1


@makers
def test_a_replica_of_data_parallel_computes_the_same_and_trains_the_original(make):
    network, other = nn.Sequential(learned(make)), nn.Sequential(learned(make))
    made = replica(network)
    assert not list(made.parameters())
    spikes = made(X)
    assert torch.equal(spikes, other(X))
    (spikes.sum() + other(X).sum()).backward()
    for ours, wanted in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, wanted.grad) and ours.grad.abs().sum() > 0
    assert repr(made) == repr(network)


@pytest.mark.parametrize("options", [{"tau": TAU}, {"tau": 3.0}, {"threshold": 0.4}], ids=str)
def test_a_replica_keeps_options_and_tensors_that_are_not_learned(options):
    layer = sf.LIF(**options, reset="soft")
    assert_same_call(replica(layer), layer)


@makers
def test_a_carried_state_in_a_replica_is_refused(make):
    """The replica is thrown away after the call, and the state would be with it."""
    layer = learned(make, carry_state=True)
    with pytest.raises(RuntimeError, match=rf"{make.__name__} with carry_state=True .*DataParallel's replicas"):
        replica(layer)(X)
    layer(X)  # where there is one device, DataParallel calls the layer itself
    assert layer.state is not None


@each
def test_a_parametrized_tensor_is_what_the_layer_uses_and_trains(make, name):
    layer, other = learned(make), learned(make)
    parametrize.register_parametrization(layer, name, Doubled())
    assert_same_call(layer, other)
    for network in (layer, other):
        network.zero_grad()
        network(X).sum().backward()
    ours = layer.parametrizations[name].original.grad
    assert torch.equal(ours, 2 * getattr(other, name).grad) and ours.abs().sum() > 0
    with parametrize.cached():
        assert_same_call(layer, other)
    assert_same_call(copy.deepcopy(layer), other)
    assert layer.extra_repr() == other.extra_repr()
    layer.reset = "soft"  # options may be assigned meanwhile
    other.reset = "soft"
    parametrize.remove_parametrizations(layer, name)
    assert type(layer) is make
    assert_same_call(layer, other)


@pytest.mark.parametrize("module", [nn.Tanh(), nn.Softplus(), nn.Sigmoid()], ids=str)
def test_any_function_may_parametrize_a_learned_tau(module):
    layer = sf.LIF(learn_tau=True)
    parametrize.register_parametrization(layer, "tau_logit", module)
    logit = layer.parametrizations.tau_logit.original
    torch.testing.assert_close(layer.tau, 1 + torch.exp(-module(logit)))
    assert torch.equal(layer(X), sf.LIF(layer.tau.detach())(X))
    layer(X).sum().backward()
    assert logit.grad != 0


def test_a_parametrized_buffer_is_used_too():
    layer = sf.LIF(TAU, THRESHOLD)
    for name in ("tau", "threshold"):
        parametrize.register_parametrization(layer, name, Doubled(), unsafe=True)
        with torch.no_grad():
            layer.parametrizations[name].original.mul_(2)
    assert_same_call(layer, sf.LIF(2 * TAU, 2 * THRESHOLD))


@makers
def test_assigning_to_a_parametrized_tensor_goes_through_its_inverse(make):
    layer = learned(make)
    parametrize.register_parametrization(layer, "threshold", Doubled())
    layer.threshold = 0.7
    assert torch.equal(layer.parametrizations.threshold.original.detach(), torch.full((3,), 0.35))
    layer.threshold = 2 * THRESHOLD
    assert torch.equal(layer.threshold, 2 * THRESHOLD)
    layer.reset_parameters()
    assert torch.equal(layer.threshold, THRESHOLD)
    if "tau_logit" in dict(layer.named_parameters()):
        parametrize.register_parametrization(layer, "tau_logit", Doubled())
        for value in (4.0, torch.tensor([2.0, 4.0, 5.0]), torch.tensor(6.0)):
            layer.tau = value
            torch.testing.assert_close(layer.tau.detach(), torch.as_tensor(value).expand(3))
        layer.reset_parameters()
        torch.testing.assert_close(layer.tau.detach(), TAU)


def test_assigning_to_what_has_no_inverse_is_refused_and_changes_nothing():
    layer = sf.LIF(learn_tau=True, threshold=0.4, learn_threshold=True)
    for name in ("tau_logit", "threshold"):
        parametrize.register_parametrization(layer, name, nn.Softplus())
    before = layer(X)
    for name in ("tau", "threshold"):
        with pytest.raises(RuntimeError, match=r"Softplus does not implement right_inverse"):
            setattr(layer, name, 3.0)
    assert torch.equal(layer(X), before)


@each
def test_a_pruned_tensor_is_what_the_layer_uses_and_trains(make, name):
    layer, other = learned(make), learned(make)
    prune.random_unstructured(layer, name, amount=1)
    with torch.no_grad():
        getattr(other, name).mul_(getattr(layer, f"{name}_mask"))
    assert_same_call(layer, other)
    layer(X).sum().backward()
    assert getattr(layer, f"{name}_orig").grad is not None
    assert layer.extra_repr() == other.extra_repr()
    prune.remove(layer, name)
    assert_same_call(layer, other)


@each
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "normalize", [torch.nn.utils.weight_norm, parametrizations.weight_norm], ids=["hooks", "parametrization"]
)
def test_weight_normalization_in_both_forms_leaves_the_values(make, name, normalize):
    layer, other = learned(make), learned(make)
    if name == "bias":
        for network in (layer, other):
            nn.init.constant_(network.bias, 0.5)
    normalize(layer, name, dim=None)
    torch.testing.assert_close(getattr(layer, name), getattr(other, name))
    spikes = layer(X)
    assert (spikes != other(X)).float().mean() < 0.1  # rounding
    spikes.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("name", ["threshold", "tau"])
def test_assigning_to_a_computed_tensor_is_refused_by_name(name):
    layer = learned()
    prune.random_unstructured(layer, "threshold", amount=1)
    prune.random_unstructured(layer, "tau_logit", amount=1)
    before = layer(X)
    with pytest.raises(RuntimeError, match=rf"{name}.* of LIF cannot be set: it is computed from other tensors"):
        setattr(layer, name, 3.0)
    with pytest.raises(RuntimeError, match="cannot be set"):
        layer.reset_parameters()
    assert torch.equal(layer(X), before)


@each
def test_functional_call_uses_the_tensor_given(make, name):
    layer, other = learned(make), learned(make)
    value = (getattr(layer, name).detach() + 0.25).requires_grad_()
    with torch.no_grad():
        getattr(other, name).add_(0.25)
    spikes = torch.func.functional_call(layer, {name: value}, X)
    assert torch.equal(spikes, other(X))
    spikes.sum().backward()
    assert value.grad.abs().sum() > 0 and getattr(layer, name).grad is None
    assert_same_call(layer, learned(make))


@makers
def test_converting_by_swapping_tensors_converts_all_of_them(make):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer = learned(make)
        parameters = dict(layer.named_parameters())
        layer.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    for name, parameter in layer.named_parameters():
        assert parameter is parameters[name] and parameter.dtype == torch.float64
    assert torch.equal(layer(X.double()), learned(make).double()(X.double()))


# Numbers, buffers and parameters in each other's place


@pytest.mark.parametrize("learn", [True, False], ids=["learned", "fixed"])
def test_a_number_assigned_to_a_tensor_is_written_into_it(learn):
    layer = sf.LIF(TAU, THRESHOLD, learn_tau=learn, learn_threshold=learn)
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    layer.threshold, layer.tau = 0.7, 4.0
    assert layer.threshold is tensors["threshold"]
    assert {**dict(layer.named_parameters()), **dict(layer.named_buffers())}.keys() == tensors.keys()
    torch.testing.assert_close(layer.threshold.detach(), torch.full((3,), 0.7))
    torch.testing.assert_close(layer.tau.detach(), torch.full((3,), 4.0))
    for name in ("threshold", "tau"):
        with pytest.raises(ValueError, match=name):
            setattr(layer, name, -1.0)


def test_a_tensor_assigned_in_place_of_a_number_moves_and_is_saved_with_the_layer():
    layer, given = sf.LIF(), THRESHOLD.clone()
    layer.threshold, layer.tau = given, torch.tensor(4.0)
    assert {**layer.state_dict()}.keys() == {"threshold", "tau"}
    given.fill_(9.0)  # the layer has its own copy, as when it is made
    assert layer.double().threshold.dtype == torch.float64
    assert torch.equal(layer(X), sf.LIF(torch.tensor(4.0), THRESHOLD)(X))
    with pytest.raises(TypeError, match=r"threshold must be float32.*int64"):
        sf.IF().threshold = torch.tensor(1)


def test_a_tensor_that_another_network_computes_may_be_the_threshold():
    layer, made_of = sf.IF(), torch.tensor(0.2, requires_grad=True)
    layer.threshold = made_of * 2
    layer(X).sum().backward()
    assert made_of.grad != 0 and not layer.state_dict()
    layer.threshold = 0.5
    assert torch.equal(layer(X), sf.IF(0.5)(X))


@pytest.mark.parametrize("trained", [True, False])
def test_a_parameter_assigned_in_place_of_a_number_is_one(trained):
    layer = sf.LIF()
    layer.threshold = nn.Parameter(THRESHOLD.clone(), requires_grad=trained)
    layer.tau = nn.Parameter(TAU.clone(), requires_grad=trained)
    assert dict(layer.named_parameters()).keys() == {"threshold", "tau"}
    assert torch.equal(layer(X), sf.LIF(TAU, THRESHOLD)(X))
    layer.tau = 2.5
    assert torch.equal(layer.tau, torch.full((3,), 2.5))


def test_a_tensor_in_place_of_an_infinite_number_fires_on_equal_as_told():
    layer, one = sf.IF(float("inf"), fire_on_equal=True), torch.ones(2, 1, 1)
    layer.threshold = torch.tensor(1.0)
    assert torch.equal(layer(one), one)
    layer = sf.IF(torch.tensor(1.0), fire_on_equal=True)
    layer.threshold = float("inf")  # written into the tensor: values of tensors are not looked at
    layer.threshold = 1.0
    assert torch.equal(layer(one), one)


def test_a_threshold_may_be_deleted_and_registered_anew():
    layer = sf.IF(0.9)
    with pytest.raises(KeyError, match="already exists"):
        layer.register_parameter("threshold", nn.Parameter(THRESHOLD.clone()))
    del layer.threshold
    layer.register_parameter("threshold", nn.Parameter(THRESHOLD.clone()))
    assert torch.equal(layer(X), sf.IF(THRESHOLD)(X)) and "learn_threshold=True" in repr(layer)
    del layer.threshold
    layer.threshold = 0.4
    assert torch.equal(layer(X), sf.IF(0.4)(X)) and not list(layer.parameters())
