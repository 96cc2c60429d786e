"""Saved networks come back as they were, gamma and beta included, and interchange with networks of ReLU."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import snnfast as sf
from snnfast.surrogate import Arctangent, FastSigmoid, Rectangle, Triangle


def currents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def saved_and_loaded(state: dict) -> dict:
    """Through torch.save and torch.load as a careful user calls it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def network(first: nn.Module, second: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(sf.OverTime(nn.Linear(6, 5)), first, nn.Sequential(sf.OverTime(nn.Linear(5, 4)), second))


def gradient(layer, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(layer(x).sum(), x)[0]


def test_gamma_beta_and_shape_survive_saving_and_loading():
    saved = network(sf.IF(surrogate=Triangle(gamma=0.123, beta=4.5)), sf.LIF(surrogate=Arctangent(gamma=2.25)))
    loaded = network(sf.IF(surrogate=Rectangle()), sf.LIF())
    x = currents(5, 3, 6)
    assert not torch.equal(gradient(saved, x), gradient(loaded, x))
    loaded.load_state_dict(saved_and_loaded(saved.state_dict()), strict=True)
    assert loaded[1].surrogate == Triangle(gamma=0.123, beta=4.5)
    assert loaded[2][1].surrogate == Arctangent(gamma=2.25, beta=1.0)
    assert torch.equal(gradient(saved, x), gradient(loaded, x))  # the kernels use it, not only repr


def test_a_layer_alone_keeps_its_surrogate_too():
    other = sf.IF()
    other.load_state_dict(saved_and_loaded(sf.IF(surrogate=FastSigmoid(gamma=0.5, beta=2.0)).state_dict()))
    assert other.surrogate == FastSigmoid(gamma=0.5, beta=2.0)


OTHER_OPTIONS = {
    "tau": ({"tau": 2.0}, {"tau": 20.0}, r"had tau=2.0 \(here 20.0\) in the network that was saved"),
    "reset": ({"reset": "soft"}, {}, r"reset='soft' \(here 'hard'\)"),
    "reset_value": ({"reset_value": -0.5}, {}, r"reset_value=-0.5 \(here 0.0\)"),
    "decay_input": ({"decay_input": False}, {}, r"decay_input=False \(here True\)"),
    "fire_on_equal": ({"fire_on_equal": True}, {}, r"fire_on_equal=True \(here False\)"),
    "delay": ({"delay": True}, {}, r"delay=True \(here False\)"),
}


@pytest.mark.parametrize(("saved", "own", "said"), OTHER_OPTIONS.values(), ids=OTHER_OPTIONS)
@pytest.mark.parametrize("fused", [False, True], ids=["neuron", "fused"])
def test_loading_warns_of_options_that_were_others(saved, own, said, fused, tmp_path):
    def network(options):
        net = torch.nn.Sequential(sf.OverTime(torch.nn.BatchNorm1d(4)), sf.LIF(**options))
        if fused:
            assert len(sf.fuse(net).fused) == 1
        return net

    torch.save(network(saved).state_dict(), tmp_path / "file")
    state = torch.load(tmp_path / "file")
    loaded = network(own)
    with pytest.warns(UserWarning, match=said) as given:
        loaded.load_state_dict(state)
    assert len(given) == 1
    for name, value in own.items():
        assert getattr(loaded[1], name) == value


def test_a_neuron_that_leaks_is_no_other_without_a_word():
    with pytest.warns(UserWarning, match=r"'LIF' had leak=False \(here True\)"):
        sf.LIF().load_state_dict(sf.IF().state_dict())


def test_a_learned_tau_and_the_gradients_of_the_reset_are_no_other_options(no_other_warnings):
    sf.LIF(3.0, learn_tau=True).load_state_dict(sf.LIF(2.0, learn_tau=True, detach_reset=False).state_dict())
    sf.LIF(torch.full((3,), 2.0)).load_state_dict(sf.LIF(3.0).state_dict(), strict=False)


def test_a_surrogate_assigned_later_is_the_one_saved():
    layer = sf.IF()
    layer.surrogate = FastSigmoid(gamma=2.0)
    other = sf.IF()
    other.load_state_dict(layer.state_dict())
    assert other.surrogate.gamma == 2.0


def test_learned_parameters_and_tables_survive():
    def make(value):
        table = torch.full((5,), value)
        return network(
            sf.LIF(table + 1.5, table, learn_tau=True, learn_threshold=True), sf.LIF(table[:4] + 2, table[:4])
        )

    saved, loaded = make(0.25), make(0.75)
    state = saved_and_loaded(saved.state_dict())
    assert {k for k in state if "Linear" not in k and "module" not in k} == {
        "1.threshold",
        "1.tau_logit",
        "2.1.threshold",
        "2.1.tau",
    }
    loaded.load_state_dict(state, strict=True)
    x = currents(5, 3, 6)
    assert torch.equal(saved(x), loaded(x)) and torch.equal(gradient(saved, x), gradient(loaded, x))


@pytest.mark.parametrize("make", [sf.IF, sf.LIF])
def test_checkpoints_interchange_with_a_network_of_relu(make):
    spiking, plain = network(make(), make(surrogate=Triangle())), network(nn.ReLU(), nn.ReLU())
    assert list(spiking.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(1.0)
    spiking.load_state_dict(saved_and_loaded(plain.state_dict()), strict=True)
    assert torch.equal(spiking[0].module.weight, plain[0].module.weight)
    assert spiking[2][1].surrogate == Triangle()  # a checkpoint that says nothing changes nothing
    assert spiking[1].surrogate == FastSigmoid()
    plain.load_state_dict(saved_and_loaded(spiking.state_dict()), strict=True)


def test_a_state_dict_copied_into_a_plain_dict_still_loads():
    loaded = sf.IF(0.5, learn_threshold=True, surrogate=Triangle())
    with pytest.warns(UserWarning, match="did not come"):
        loaded.load_state_dict(dict(sf.IF(0.9, learn_threshold=True).state_dict()), strict=True)
    assert loaded.threshold.item() == pytest.approx(0.9) and loaded.surrogate == Triangle()


@pytest.mark.parametrize(
    "saved",
    [
        {"shape": "Parabola", "gamma": 1.0, "beta": 1.0},
        {"shape": "Surrogate", "gamma": 1.0, "beta": 1.0},
        {"shape": "Triangle", "gamma": -1.0, "beta": 1.0},
        {"shape": "Triangle", "gamma": "1", "beta": 1.0},
        {"shape": "Triangle"},
        {"shape": ["Triangle"], "gamma": 1.0, "beta": 1.0},
        "Triangle",
    ],
    ids=str,
)
def test_a_surrogate_that_does_not_exist_is_named_by_the_error(saved):
    net = nn.Sequential(sf.IF(surrogate=Rectangle()))
    state = net.state_dict()
    state._metadata["0"]["surrogate"] = saved
    with pytest.raises(RuntimeError, match=r"surrogate of '0'.*FastSigmoid, Triangle"):
        net.load_state_dict(state)
    assert net[0].surrogate == Rectangle()


def test_a_checkpoint_that_does_not_fit_leaves_the_surrogate():
    state = sf.IF(torch.ones(3), surrogate=Triangle()).state_dict()
    layer = sf.IF(torch.ones(4), surrogate=Rectangle())
    with pytest.raises(RuntimeError, match="size mismatch for threshold"):
        layer.load_state_dict(state)
    assert layer.surrogate == Rectangle()


def test_a_checkpoint_loaded_without_strict_still_brings_its_surrogate():
    layer = sf.IF(0.5, learn_threshold=True)
    layer.load_state_dict(sf.IF(0.5, surrogate=Triangle()).state_dict(), strict=False)
    assert layer.surrogate == Triangle()


def test_an_optimizer_and_its_network_resume_to_the_same_losses():
    def make():
        torch.manual_seed(1)
        net = network(sf.LIF(learn_tau=True, threshold=0.4, learn_threshold=True), sf.IF(0.3))
        return net, torch.optim.Adam(net.parameters(), lr=0.05)

    def train(net, optimizer, count):
        losses = []
        for _ in range(count):
            loss = (net(currents(6, 8, 6)).mean(0) - 0.7).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    net, optimizer = make()
    train(net, optimizer, 3)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    wanted = train(net, optimizer, 3)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other, other_optimizer = make()
    other.load_state_dict(state["net"])
    other_optimizer.load_state_dict(state["optimizer"])
    assert train(other, other_optimizer, 3) == wanted


LAYERS = {
    "IF": lambda: sf.IF(0.5, surrogate=Triangle(gamma=0.3)),
    "learned LIF": lambda: sf.LIF(torch.tensor([1.5, 2.0, 5.0]), 0.4, learn_tau=True, learn_threshold=True),
    "LIF with tables": lambda: sf.LIF(torch.tensor(3.0), torch.tensor([0.3, 0.6, 0.9]), time_dim=1, reset="soft"),
}


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_a_file],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_a_copy_computes_the_same_and_is_its_own(make, duplicate):
    layer, x = make(), currents(4, 4, 3)
    other = duplicate(layer)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x), layer(x)) and torch.equal(gradient(other, x), gradient(layer, x))
    before = layer(x)
    other.surrogate = FastSigmoid(gamma=1.0)
    with torch.no_grad():
        for table in [*other.parameters(), *other.buffers()]:
            table.fill_(20.0)
    other.reset = "hard"
    assert torch.equal(layer(x), before) and layer.surrogate != other.surrogate


def test_readout_and_overtime_have_no_state_of_their_own():
    assert not sf.Readout().state_dict()
    assert list(sf.OverTime(nn.Linear(2, 2)).state_dict()) == ["module.weight", "module.bias"]
