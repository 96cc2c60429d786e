"""A network of SpikingJelly's is on these kernels after one line, and goes on being one of SpikingJelly's."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import spikingjelly
from replacing import currents, same, swapped
from torch import Tensor, nn

import snnfast as sf
from snnfast.compat.spikingjelly import without_cupy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def jelly() -> Any:
    names = ("neuron", "functional", "surrogate", "layer", "monitor")

    class Modules:
        pass

    for name, module in zip(names, spikingjelly(*(f"activation_based.{name}" for name in names)), strict=True):
        setattr(Modules, name, module)
    return Modules


NODES = {
    "IF": ("IFNode", {}),
    "IF, soft reset": ("IFNode", {"v_reset": None}),
    "IF, another reset value": ("IFNode", {"v_reset": -0.25, "v_threshold": 0.75}),
    "LIF": ("LIFNode", {}),
    "LIF, whole input": ("LIFNode", {"tau": 3.0, "decay_input": False}),
    "LIF, soft reset, detached": ("LIFNode", {"v_reset": None, "detach_reset": True}),
    "LIF, another reset value": ("LIFNode", {"v_reset": 0.25, "decay_input": False, "detach_reset": True}),
    "PLIF": ("ParametricLIFNode", {}),
    "PLIF, whole input, soft": ("ParametricLIFNode", {"init_tau": 1.5, "decay_input": False, "v_reset": None}),
    "PLIF, another reset value": ("ParametricLIFNode", {"init_tau": 5.0, "v_reset": 0.1}),
}


def node(jelly: Any, name: str, **options: Any) -> nn.Module:
    kind, own = NODES[name]
    return getattr(jelly.neuron, kind)(**{"step_mode": "m", **own, **options}).double()


@pytest.mark.parametrize("name", NODES)
def test_a_node_has_the_same_spikes_gradients_and_states_from_call_to_call(jelly: Any, name: str) -> None:
    theirs = nn.Sequential(node(jelly, name, store_v_seq=True))
    ours = swapped(theirs)
    assert isinstance(ours[0], sf.LIF if "LIF" in name else sf.IF)
    assert isinstance(ours[0], type(theirs[0]))
    for seed in range(3):
        same(theirs, ours, currents(6, 3, 5, seed=seed, scale=2.0))
        torch.testing.assert_close(ours[0].v, theirs[0].v)
        torch.testing.assert_close(ours[0].v_seq, theirs[0].v_seq)
        for network in (theirs, ours):
            jelly.functional.detach_net(network)
    for network in (theirs, ours):
        jelly.functional.reset_net(network)
    assert ours[0].v == theirs[0].v
    assert ours[0].v_seq is None
    same(theirs, ours, currents(4, 2, 5, seed=7, scale=2.0))  # another batch


def test_a_node_fires_at_its_threshold(jelly: Any) -> None:
    theirs = nn.Sequential(node(jelly, "IF"))
    quarters = (currents(12, 3, 40, scale=4.0).round() / 4).clamp(-1, 1)  # sums that meet the threshold exactly
    found = [network(quarters) for network in (theirs, swapped(theirs))]
    assert torch.equal(*found)
    assert not torch.equal(found[0], sf.IF()(quarters))


def test_a_state_of_another_batch_is_what_it_is_to_the_library(jelly: Any) -> None:
    theirs = nn.Sequential(node(jelly, "LIF"))
    ours = swapped(theirs)
    for network in (theirs, ours):
        network(currents(4, 3, 5, scale=2.0))
    other = currents(4, 2, 5, scale=2.0)
    if hasattr(theirs[0], "materialize_states"):  # forgotten
        assert torch.equal(ours(other), theirs(other))
        return
    for network in (theirs, ours):  # an error, in 0.0.0.0.14
        with pytest.raises((ValueError, RuntimeError)):
            network(other)


@pytest.mark.parametrize("name", NODES)
def test_a_node_takes_one_step_a_call_in_single_step_mode(jelly: Any, name: str) -> None:
    theirs = nn.Sequential(node(jelly, name, step_mode="s", store_v_seq=True))
    ours = swapped(theirs)
    x = currents(7, 3, 5, scale=2.0)
    found = [torch.stack([network(step) for step in x]) for network in (theirs, ours)]
    assert found[0].mean() > 0
    assert torch.equal(*found)
    torch.testing.assert_close(ours[0].v_seq, theirs[0].v_seq)
    for network in (theirs, ours):
        jelly.functional.set_step_mode(network, "m")
        jelly.functional.reset_net(network)
    assert torch.equal(ours(x), found[0])


def test_gradients_of_the_recorded_potentials_are_the_librarys(jelly: Any) -> None:
    for options in ({"v_reset": None}, {"v_reset": 0.1}, {"v_reset": 0.1, "detach_reset": True}):
        theirs = nn.Sequential(jelly.neuron.LIFNode(step_mode="m", store_v_seq=True, **options).double())
        found = []
        for network in (theirs, swapped(theirs)):
            x = currents(5, 3, 4, scale=2.0).requires_grad_()
            network(x)
            network[0].v_seq.square().sum().backward()
            found.append(x.grad)
        assert found[0].abs().max() > 0
        torch.testing.assert_close(found[1], found[0])


SURROGATES = ("Sigmoid", "ATan", "SoftSign", "SuperSpike", "PiecewiseQuadratic", "PiecewiseExp", "Erf", "Rect")


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_every_surrogate_that_has_a_shape_here(jelly: Any, name: str, alpha: float) -> None:
    if not hasattr(jelly.surrogate, name):
        pytest.skip(f"this version of spikingjelly has no {name}")
    function = getattr(jelly.surrogate, name)(alpha=alpha)
    theirs = nn.Sequential(jelly.neuron.LIFNode(step_mode="m", surrogate_function=function).double())
    same(theirs, swapped(theirs), currents(6, 3, 50, scale=2.0))


def test_a_surrogate_without_a_tail_is_a_rectangle(jelly: Any) -> None:
    function = jelly.surrogate.PiecewiseLeakyReLU(w=0.7, c=0.0)
    theirs = nn.Sequential(jelly.neuron.IFNode(step_mode="m", surrogate_function=function).double())
    same(theirs, swapped(theirs), currents(6, 3, 50))


def network(jelly: Any, **options: Any) -> nn.Sequential:
    """Convolutions, batch norms, three kinds of neuron."""
    torch.manual_seed(0)
    layer, neuron = jelly.layer, jelly.neuron
    made = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        layer.BatchNorm2d(4),
        neuron.IFNode(surrogate_function=jelly.surrogate.ATan(), **options),
        layer.Conv2d(4, 4, 3),
        layer.BatchNorm2d(4),
        neuron.LIFNode(v_reset=None, decay_input=False, **options),
        layer.Flatten(),
        layer.Linear(4 * 16, 5),
        neuron.ParametricLIFNode(v_threshold=0.1, detach_reset=True, **options),
    )
    jelly.functional.set_step_mode(made, "m")
    return made.double()


def test_a_network_goes_on_with_its_parameters_keys_hooks_and_tools(jelly: Any) -> None:
    theirs = network(jelly)
    ours, seen = copy.deepcopy(theirs), []
    ours[2].register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    parameters, keys = dict(ours.named_parameters()), list(ours.state_dict())
    report = sf.replace_neurons(ours)
    assert [entry.name for entry in report.replaced] == ["2", "5", "8"]
    assert [entry.now for entry in report.replaced] == ["IF", "LIF", "LIF"]
    assert "2  spikingjelly.IFNode -> IF" in str(report)
    assert "0 left" in str(report)
    assert list(ours.state_dict()) == keys
    assert all(parameters[name] is parameter for name, parameter in ours.named_parameters())
    same(theirs, ours, currents(4, 3, 2, 6, 6))
    assert seen == ["IFNode"]
    before = ours[8].w.item()
    optimizer.step()
    assert ours[8].w.item() != before
    ours.load_state_dict(theirs.state_dict())  # of a network that was not changed: no warning either
    assert ours[8].w.item() == theirs[8].w.item()
    monitor = jelly.monitor.OutputMonitor(ours, jelly.neuron.IFNode)
    ours(currents(4, 3, 2, 6, 6))
    assert monitor.records[0].shape == (4, 3, 4, 6, 6)
    monitor.remove_hooks()
    names = []
    ours.apply(lambda module: names.append(type(module).__name__))
    assert "ParametricLIFNode" in names
    jelly.functional.reset_net(ours)
    assert [sf.reset_state(ours), ours[2].state] == [3, None]


def test_copies_pickles_and_moves_keep_the_layer_and_its_state(jelly: Any) -> None:
    ours = swapped(network(jelly, store_v_seq=True))
    x = currents(4, 3, 2, 6, 6)
    ours(x)  # states in the middle of a graph
    stored = io.BytesIO()
    torch.save(ours, stored)
    stored.seek(0)
    others = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(stored, weights_only=False)]
    expected = ours(x)
    for other in others:
        assert [type(module) for module in other.modules()] == [type(module) for module in ours.modules()]
        assert torch.equal(other(x), expected)
        assert other[8].tau_logit is other[8].w
    assert others[0].float()[2].v.dtype == torch.float32


def test_a_pickle_is_read_where_no_layer_was_made_before(jelly: Any, tmp_path: Path) -> None:
    ours = swapped(nn.Sequential(jelly.layer.BatchNorm2d(2, step_mode="m"), node(jelly, "IF"), node(jelly, "PLIF")))
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(ours))
    read = "import pickle, pathlib; m = pickle.loads(pathlib.Path('model.pkl').read_bytes()); print(*map(repr, m))"
    done = subprocess.run([sys.executable, "-P", "-c", read], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == " ".join(map(repr, ours)).splitlines()


def test_options_under_the_librarys_names_and_ours_are_the_same(jelly: Any) -> None:
    theirs = nn.Sequential(node(jelly, "LIF"))
    ours = swapped(theirs)
    for network in (theirs, ours):
        network[0].v_threshold, network[0].v_reset, network[0].tau = 0.6, None, 4.0
        network[0].surrogate_function = jelly.surrogate.ATan()
        network[0].detach_reset = True
    assert (ours[0].threshold, ours[0].reset, ours[0].tau) == (0.6, "soft", 4.0)
    # TorchScript rounds a threshold to float32, in the version that uses it.
    same(theirs, ours, currents(6, 3, 5, scale=2.0), rtol=1e-6, atol=1e-8)
    for network in (theirs, ours):
        jelly.functional.reset_net(network)
        network[0].v_reset = 0.2
        network[0].v = 0.3  # the potential to begin with
    same(theirs, ours, currents(6, 3, 5, scale=2.0), rtol=1e-6, atol=1e-8)
    ours[0].threshold = 0.5
    assert ours[0].v_threshold == 0.5
    with pytest.raises(ValueError, match=r"has a surrogate, .*S2NN.*, that is none of the kernels' shapes"):
        ours[0].surrogate_function = jelly.surrogate.S2NN()


def test_without_spikes_the_surrogate_itself_is_given(jelly: Any) -> None:
    # One of its own: the library's default is one object for all nodes.
    theirs = nn.Sequential(node(jelly, "IF", surrogate_function=jelly.surrogate.Sigmoid()))
    ours = swapped(theirs)
    for network in (theirs, ours):
        network[0].surrogate_function.set_spiking_mode(False)
    x = currents(5, 2, 3)
    found = [network(x) for network in (theirs, ours)]
    assert torch.equal(*found)
    assert ((found[0] > 0) & (found[0] < 1)).any()


class Own:
    """Classes made from the library's, once it is there."""

    @staticmethod
    def node(jelly: Any) -> nn.Module:
        class HalfIF(jelly.neuron.IFNode):
            def neuronal_charge(self, x: Tensor) -> None:
                self.v = self.v + x / 2

        return HalfIF(step_mode="m")


def test_what_has_no_equal_is_left_with_the_reason_and_refused_if_strict(jelly: Any) -> None:
    tailed = jelly.surrogate.PiecewiseLeakyReLU(c=0.1)
    made = nn.ModuleDict(
        {
            "fine": node(jelly, "IF"),
            "own": Own.node(jelly),
            "other": jelly.neuron.QIFNode(step_mode="m"),
            "tailed": jelly.neuron.IFNode(step_mode="m", surrogate_function=tailed),
            "negative": jelly.neuron.IFNode(step_mode="m", v_threshold=-1.0),
        }
    )
    before = dict(made.named_modules())
    with pytest.raises(ValueError, match=r"neurons without an equal here:\n.*'own' is HalfIF") as refused:
        sf.replace_neurons(made, strict=True)
    assert all(f"'{name}'" in str(refused.value) for name in ("own", "other", "tailed", "negative"))
    assert dict(made.named_modules()) == before  # nothing was replaced
    report = sf.replace_neurons(made)
    assert [entry.name for entry in report.replaced] == ["fine"]
    reasons = {entry.name: entry.reason for entry in report.left}
    assert reasons["own"] == "'own' is HalfIF, whose dynamics are its own"
    assert reasons["other"] == "'other' is QIFNode, whose dynamics are its own"
    assert "PiecewiseLeakyReLU" in reasons["tailed"]
    assert "threshold" in reasons["negative"]
    assert all(made[name] is before[name] for name in ("own", "other", "tailed", "negative"))
    again = sf.replace_neurons(made)
    assert not again.replaced
    assert len(again.left) == 4


def test_a_shared_node_stays_shared(jelly: Any) -> None:
    shared = node(jelly, "IF")
    made = nn.ModuleList([nn.Sequential(shared), nn.Sequential(shared)])
    sf.replace_neurons(made)
    assert made[0][0] is made[1][0]
    assert isinstance(made[0][0], sf.IF)


def test_a_node_by_itself_has_no_network_to_be_replaced_in(jelly: Any) -> None:
    with pytest.raises(ValueError, match=r"model is itself a neuron \(IFNode\)"):
        sf.replace_neurons(node(jelly, "IF"))


def test_networks_without_such_neurons_are_left_alone() -> None:
    made = nn.Sequential(nn.Linear(2, 2), sf.IF())
    report = sf.replace_neurons(made, strict=True)
    assert (report.replaced, report.left) == ((), ())
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        sf.replace_neurons([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="strict must be True or False"):
        sf.replace_neurons(made, strict=1)  # type: ignore[arg-type]


def test_layers_of_ones_own_are_reset_with_the_others(jelly: Any) -> None:
    made = nn.Sequential(sf.IF(threshold=10.0, carry_state=True), node(jelly, "IF"))
    made(torch.ones(2, 3, 4, dtype=torch.float64))
    assert made[0].state is not None
    jelly.functional.reset_net(made)
    assert made[0].state is None
    assert made[0].reset == "hard"


# With batch norms


def test_batch_norms_and_neurons_of_the_library_are_fused(jelly: Any) -> None:
    theirs = network(jelly)
    ours = swapped(theirs)
    report = sf.fuse(ours)
    assert [entry.batch_norm for entry in report.fused] == ["1", "4"]
    for seed in range(2):
        same(theirs, ours, currents(4, 3, 2, 6, 6, seed=seed), rtol=1e-7, atol=1e-9)
        for each in (theirs, ours):
            jelly.functional.detach_net(each) if seed else jelly.functional.reset_net(each)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    jelly.functional.set_step_mode(ours, "m")
    with pytest.raises(ValueError, match="step_mode must be 'm', got 's': the neuron was fused into '1'"):
        jelly.functional.set_step_mode(ours, "s")


def test_what_takes_one_step_or_keeps_potentials_is_not_fused(jelly: Any) -> None:
    for options, reason in (
        ({"step_mode": "s"}, "takes one step a call"),
        ({"store_v_seq": True}, "keeps its potentials (store_v_seq)"),
    ):
        ours = swapped(nn.Sequential(jelly.layer.BatchNorm2d(2, step_mode="m"), node(jelly, "IF", **options)))
        assert [entry.reason for entry in sf.fuse(ours).left] == [f"'1' (IFNode) {reason}"]
    ours = swapped(nn.Sequential(jelly.layer.BatchNorm2d(2, step_mode="m"), node(jelly, "PLIF")))
    assert [entry.reason for entry in sf.fuse(ours).left] == [
        "'1' (ParametricLIFNode) learns its time constant under a name of its own, w"
    ]


def test_a_batch_norm_in_single_step_mode_is_not_taken_for_one_over_time(jelly: Any) -> None:
    ours = swapped(nn.Sequential(jelly.layer.BatchNorm2d(2, step_mode="s"), node(jelly, "IF")))
    assert not sf.fuse(ours).fused


class Residual(nn.Module):
    def __init__(self, jelly: Any) -> None:
        super().__init__()
        container = jelly.layer.SeqToANNContainer
        self.conv_bn = container(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.node = jelly.neuron.LIFNode(step_mode="m")
        self.again = container(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.last = jelly.neuron.LIFNode(step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.node(self.conv_bn(x))) + x)


def test_containers_that_batch_the_steps_are_fused_with_and_without_a_residual(jelly: Any) -> None:
    torch.manual_seed(0)
    theirs = Residual(jelly).double()
    ours = swapped(theirs)
    report = sf.fuse(ours)
    assert [(entry.batch_norm, entry.residual) for entry in report.fused] == [("conv_bn.1", False), ("again.1", True)]
    same(theirs, ours, currents(4, 2, 3, 5, 5, scale=2.0), rtol=1e-7, atol=1e-9)
    assert isinstance(ours.conv_bn, type(theirs.conv_bn))
    x = currents(4, 2, 3, 5, 5, seed=3)
    jelly.functional.reset_net(ours)
    read = pickle.loads(pickle.dumps(ours))
    assert torch.equal(read(x), ours(x))
    assert not sf.fuse(ours).fused


ZOO = {
    "spiking_resnet": ("spiking_resnet18", 17, 17),
    "sew_resnet": ("sew_resnet18", 17, 20),
    "spiking_vgg": ("spiking_vgg11_bn", 10, 8),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_neuron_of_the_librarys_own_networks_is_replaced_and_most_fused(jelly: Any, name: str) -> None:
    (room,) = spikingjelly(f"activation_based.model.{name}")
    kind, neurons, fused = ZOO[name]
    options = {"cnf": "ADD"} if name == "sew_resnet" else {}
    torch.manual_seed(0)
    theirs = getattr(room, kind)(
        pretrained=False,
        num_classes=10,
        spiking_neuron=jelly.neuron.IFNode,
        surrogate_function=jelly.surrogate.ATan(),
        detach_reset=True,
        **options,
    )
    jelly.functional.set_step_mode(theirs, "m")
    ours = copy.deepcopy(theirs)
    report = sf.replace_neurons(ours, strict=True)
    assert len(report.replaced) >= neurons
    x = currents(2, 2, 3, 32, 32, dtype=torch.float32)
    found = []
    for made in (theirs, ours):
        torch.manual_seed(1)  # of dropout
        found.append(made(x))
        jelly.functional.reset_net(made)
    assert torch.equal(*found)
    assert len(sf.fuse(ours).fused) == fused


def test_spikformers_neurons_are_replaced_and_its_perceptrons_fused(jelly: Any) -> None:
    (room,) = spikingjelly("activation_based.model.spikformer")
    if not hasattr(room, "Spikformer"):
        pytest.skip("this version of spikingjelly has no Spikformer")
    torch.manual_seed(0)
    theirs = room.Spikformer(T=2, img_size_h=32, img_size_w=32, patch_size=16, embed_dims=32, num_heads=2, depths=1)
    jelly.functional.set_step_mode(theirs, "m")
    ours = swapped(theirs)
    report = sf.fuse(ours)
    assert [entry.batch_norm for entry in report.fused] == ["blocks.0.mlp.fc1.1", "blocks.0.mlp.fc2.1"]
    x = torch.rand(2, 1, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x))


# SpikingJelly 0.0.0.0.14


@pytest.fixture(scope="module")
def clock_driven() -> Any:
    neuron, functional = spikingjelly("clock_driven.neuron", "clock_driven.functional")

    class Modules:
        pass

    Modules.neuron, Modules.functional = neuron, functional
    return Modules


CLOCK_DRIVEN = {
    "MultiStepIFNode": {"v_reset": None},
    "MultiStepLIFNode": {"tau": 2.0, "detach_reset": True},
    "MultiStepParametricLIFNode": {"init_tau": 3.0},
}


@pytest.mark.parametrize("name", CLOCK_DRIVEN)
def test_multi_step_nodes_of_old_code_run_without_cupys_kernels(clock_driven: Any, name: str) -> None:
    options = CLOCK_DRIVEN[name]
    with without_cupy():
        for_cupy = nn.Sequential(getattr(clock_driven.neuron, name)(backend="cupy", **options).double())
    theirs = nn.Sequential(getattr(clock_driven.neuron, name)(backend="torch", **options).double())
    ours = swapped(for_cupy)
    for seed in range(2):
        same(theirs, ours, currents(6, 3, 5, seed=seed, scale=2.0))
        torch.testing.assert_close(ours[0].v, theirs[0].v)
        for each in (theirs, ours):
            clock_driven.functional.reset_net(each)
    read = pickle.loads(pickle.dumps(ours))
    x = currents(6, 3, 5, scale=2.0)
    assert torch.equal(read(x), ours(x))


def test_single_step_nodes_of_old_code(clock_driven: Any) -> None:
    theirs = nn.Sequential(clock_driven.neuron.LIFNode(tau=2.0).double())
    ours = swapped(theirs)
    x = currents(6, 3, 5, scale=3.0)
    found = [torch.stack([each(step) for step in x]) for each in (theirs, ours)]
    assert found[0].mean() > 0
    assert torch.equal(*found)
