"""A network becomes a graph of NIR and comes back the same; other libraries' graphs give those libraries' spikes."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import libraries
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import snnfast as sf
from snnfast import models

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "guide" / "nir.md"


@pytest.fixture(scope="module")
def nir():
    return pytest.importorskip("nir", reason="nir is not installed (pip install '.[nir]')")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Residual(nn.Module):
    """A sum of spikes, a scaled shortcut, and one tensor twice in a sum."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (sf.OverTime(nn.Conv2d(2, 2, 3, padding=1, bias=bias)) for bias in (False, True))
        self.neurons = nn.ModuleList([sf.IF(0.3), sf.LIF(2.0, 0.3)])

    def forward(self, current: Tensor) -> Tensor:
        spikes = self.neurons[0](self.first(current))
        more = self.second(spikes)
        more += 0.5 * spikes
        return self.neurons[1](more + (spikes + spikes)) + spikes


class Held(nn.Module):
    """A current that is computed once."""

    def __init__(self):
        super().__init__()
        self.stem, self.neuron, self.linear = nn.Conv2d(1, 3, 3), sf.IF(0.2), nn.Linear(3 * 16, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.neuron(self.stem(image), steps=6).flatten(2))


def dense(neuron: nn.Module, *after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), neuron, *after)


def maps(neuron: nn.Module) -> nn.Module:
    return nn.Sequential(sf.OverTime(nn.Conv2d(2, 4, (3, 3), stride=2)), neuron)


TAUS = torch.tensor([1.5, 2.0, 3.7, 20.0, 1.01])
pytestmark = pytest.mark.filterwarnings("ignore:NIR knows the hard reset only")
MODELS = {
    "IF": lambda: dense(sf.IF(0.4)),
    "fires at equal": lambda: nn.Sequential(sf.IF(0.25, fire_on_equal=True)),
    "reset value": lambda: dense(sf.IF(0.3, reset_value=-0.2)),
    "soft": lambda: dense(sf.IF(0.3, reset="soft"), nn.Linear(5, 3, bias=False), sf.LIF(2.0, 0.1, reset="soft")),
    "LIF": lambda: dense(sf.LIF(1.1, 0.3)),
    "LIF at rest elsewhere": lambda: dense(sf.LIF(3.3, 0.2, reset_value=0.1)),
    "input does not decay": lambda: dense(sf.LIF(17.3, 0.8, decay_input=False)),
    "per channel": lambda: dense(sf.LIF(TAUS, torch.linspace(0.1, 0.3, 5))),
    "learned": lambda: dense(sf.LIF(TAUS, 0.2, learn_tau=True, learn_threshold=True)),
    "channels of maps": lambda: maps(sf.LIF(TAUS[:4], torch.linspace(0.1, 0.3, 4), decay_input=False)),
    "sum of the steps": lambda: dense(sf.IF(0.4), nn.Dropout(0.5), sf.Readout("sum")),
    "mean of the steps": lambda: dense(sf.IF(0.4), nn.Identity(), sf.Readout("mean")),
    "pools": lambda: nn.Sequential(
        sf.OverTime(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, padding="same"), nn.AvgPool2d(2, padding=1))),
        sf.IF(0.2),
        sf.OverTime(nn.Sequential(nn.AvgPool2d(2, divisor_override=1), nn.Flatten(), nn.Linear(16, 3))),
    ),
    "adaptive pool": lambda: nn.Sequential(sf.OverTime(nn.AdaptiveAvgPool2d(2)), sf.IF(0.2)),
    "Conv1d": lambda: nn.Sequential(sf.OverTime(nn.Conv1d(2, 3, 3, dilation=2, bias=False)), sf.IF(0.2)),
    "residual": Residual,
    "no layer but a neuron": lambda: sf.LIF(2.0),
}
SHAPES = {
    **dict.fromkeys(["channels of maps", "pools", "residual"], (7, 3, 2, 7, 7)),
    "Conv1d": (7, 3, 2, 9),
    "adaptive pool": (7, 3, 2, 8, 4),
}
SHAPES["channels of maps"] = (7, 3, 2, 9, 7)
KINDS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def sample_of(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(SHAPES.get(name, (7, 3, 6)), dtype=dtype)
    return (values * 4).round() / 4 if name == "fires at equal" else values


@KINDS
@pytest.mark.parametrize("name", MODELS)
def test_a_network_comes_back_with_the_same_spikes(nir, name, dtype, tmp_path):
    model = MODELS[name]().to(dtype).eval()
    current = sample_of(name, dtype)
    graph = sf.to_nir(model, current)
    back = sf.from_nir(graph)
    expected = model(current)
    assert torch.equal(back(current), expected)
    assert expected.dtype == dtype and len(expected.unique()) > 1
    nir.write(tmp_path / "graph.nir", graph)
    checked = {"type_check": False} if name == "pools" else {}  # it has groups: see to_nir
    read = nir.read(tmp_path / "graph.nir", **checked)
    assert torch.equal(sf.from_nir(read)(current), expected)


@pytest.mark.parametrize("name", MODELS)
def test_what_comes_back_is_written_as_it_was_read(nir, name):
    current = sample_of(name)
    graph = sf.to_nir(MODELS[name](), current)
    again = sf.to_nir(sf.from_nir(graph), current)
    kinds = [[type(node).__name__ for node in g.nodes.values()] for g in (graph, again)]
    assert kinds[0] == kinds[1]
    for one, other in zip(graph.nodes.values(), again.nodes.values(), strict=True):
        for key, value in vars(one).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(other, key), value, err_msg=key)


@pytest.mark.parametrize("dt", [1e-4, 1e-3, 0.3])
def test_every_time_constant_comes_back_to_the_bit(nir, dt):
    for tau in [*np.random.default_rng(0).uniform(1, 50, 200), 1.1, 2, 3, 1e3, np.nextafter(1.0, 2.0)]:
        layer = sf.from_nir(sf.to_nir(sf.LIF(float(tau)), torch.zeros(2, 1, 1), dt=dt)).layers["LIF"]
        assert layer.tau == tau


def test_time_may_be_the_second_dimension(nir):
    model = nn.Sequential(nn.Linear(6, 5), sf.IF(0.3, time_dim=1), sf.Readout(time_dim=1)).eval()
    current = torch.randn(3, 7, 6)
    graph = sf.to_nir(model, current, time_dim=1)
    assert list(graph.nodes["1"].v_threshold.shape) == [5]
    assert torch.equal(sf.from_nir(graph, time_dim=1)(current), model(current))


def test_a_held_current_is_held(nir):
    model, image = Held().eval(), torch.rand(2, 1, 6, 6)
    back = sf.from_nir(sf.to_nir(model, image, time_dim=None))
    assert torch.equal(back(image, steps=6), model(image))
    with pytest.raises(ValueError, match=r"\[T, B, ...\].*held by steps=T"):
        back(image)


NETWORKS = {
    "mnist_net": {"image_size": 16},
    "plain_net": {"width": 4, "image_size": 8, "layers": 4},
    "resnet18": {"width": 4},
    "ms_resnet18": {"width": 4},
    "sew_resnet18": {"width": 4},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_the_package_come_back(nir, name):
    options = NETWORKS[name]
    model = models.build(name, steps=4, threshold=0.1, **options).double()
    size = options.get("image_size", 16)
    images = torch.rand(2, 1 if name == "mnist_net" else 3, size, size, dtype=torch.float64)
    model(images)  # running statistics that are not 0 and 1
    model.eval()
    back = sf.from_nir(sf.to_nir(model, images))
    torch.testing.assert_close(back(images, steps=4), model(images), rtol=1e-10, atol=1e-12)
    assert len(set(model(images).flatten().tolist())) > 10


def test_the_digits_network_comes_back(nir):
    model, images = models.digits().eval(), torch.rand(2, 1, 8, 8)
    back = sf.from_nir(sf.to_nir(model, images))
    torch.testing.assert_close(back(images, steps=10), model(images))


class Normalized(nn.Module):
    """Batch norms in all the places that they have a layer before them."""

    def __init__(self):
        super().__init__()
        self.conv = sf.OverTime(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)))
        self.first, self.inner = sf.IF(0.4), sf.OverTime(nn.Conv2d(3, 3, 3, padding=1))
        self.second = sf.BatchNormLIF(3, tau=2.0, threshold=0.3)
        self.linear, self.norm = nn.Linear(3 * 16, 4, bias=False), sf.OverTime(nn.BatchNorm1d(4, affine=False))

    def forward(self, current: Tensor) -> Tensor:
        spikes = self.first(self.conv(current))
        return self.norm(self.linear(self.second(self.inner(spikes), spikes).flatten(2)))


def test_batch_norms_are_folded_into_the_layer_before_them(nir):
    model, current = Normalized().double(), torch.randn(5, 3, 2, 4, 4, dtype=torch.float64)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3, 0.4)
    model(current)
    model.eval()
    graph = sf.to_nir(model, current)
    assert {type(node).__name__ for node in graph.nodes.values()} == {
        *("Input", "Conv2d", "IF", "LIF", "Flatten", "Affine", "Output")
    }
    torch.testing.assert_close(sf.from_nir(graph)(current), model(current), rtol=1e-12, atol=1e-12)


def test_the_model_is_left_as_it_was(nir):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)).train()
    model = nn.Sequential(sf.OverTime(model), sf.IF(0.3, carry_state=True))
    model(torch.randn(4, 3, 6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = model[1].state
    sf.to_nir(model, torch.randn(2, 1, 6))
    assert all(module.training for module in model.modules())
    assert model[1].state is state
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


# The rule, against NIR's equations themselves.


def euler(nir, node, current: np.ndarray, dt: float, exact: bool = False) -> np.ndarray:
    """NIR's differential equations in steps of dt, each neuron for itself."""
    v, spikes = np.broadcast_to(node.v_reset, current.shape[1:]), []
    for x in current:
        if isinstance(node, nir.IF):
            v = v + dt * node.r * x
        else:
            share = -np.expm1(-dt / node.tau) if exact else dt / node.tau
            v = v + share * (node.v_leak - v + node.r * x)
        spikes.append(v > node.v_threshold)
        v = np.where(spikes[-1], node.v_reset, v)
    return np.stack(spikes)


@pytest.mark.parametrize("exact", [False, True], ids=["euler", "exact"])
@pytest.mark.parametrize("shape", [(4,), (4, 3, 2), (1,), ()])
def test_neurons_step_as_nirs_equations_do(nir, shape, exact):
    rng = np.random.default_rng(1)
    current = rng.normal(0.5, 1, (9, 5, *(shape if shape else (4,)))).astype(np.float64)
    tau, r, limit = (np.asarray(rng.uniform(*span, shape)) for span in ((2e-3, 2e-2), (0.5, 4), (0.05, 0.4)))
    rest = np.full(shape, -0.05)
    found = [
        nir.LIF(tau=tau, r=r, v_leak=rest, v_threshold=limit, v_reset=rest),
        nir.LIF(tau=tau, r=np.ones(shape), v_leak=rest, v_threshold=limit, v_reset=rest),
        nir.LIF(tau=np.full(shape, 3e-3), r=np.full(shape, 3.0), v_leak=rest, v_threshold=limit, v_reset=rest),
        nir.IF(r=r * 900, v_threshold=limit, v_reset=rest),
    ]
    for node in found:
        edges = [("in", "neuron"), ("neuron", "out")]
        size = current.shape[2:]
        graph = nir.NIRGraph({"in": nir.Input(size), "neuron": node, "out": nir.Output(size)}, edges, type_check=False)
        options = {"dt": 1e-3, "integration": "exact" if exact else "euler"}
        network = sf.from_nir(graph, **options).double()
        expected = euler(nir, node, current, 1e-3, exact)
        # Tables were float32 before .double(): a graph without weights is float32.
        assert (network(torch.tensor(current)).numpy() == expected).all()
        assert expected.any() and not expected.all()


def test_thresholds_and_time_constants_fold_back(nir):
    model = maps(sf.LIF(TAUS[:4], torch.linspace(0.1, 0.3, 4)))
    graph = sf.to_nir(model, sample_of("channels of maps"))
    assert graph.nodes["1"].tau.shape == graph.nodes["1"].v_threshold.shape == (4, 4, 3)
    layer = sf.from_nir(graph).layers["1"]
    assert torch.equal(layer.tau, TAUS[:4]) and torch.equal(layer.threshold, torch.linspace(0.1, 0.3, 4))
    assert sf.from_nir(sf.to_nir(sf.IF(0.1), torch.zeros(2, 1, 4))).layers["IF"].threshold == 0.1


def test_threshold_nodes_and_sums_of_several_inputs(nir):
    limits = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 2, 2)
    nodes = {
        "input": nir.Input([2, 2, 2]),
        "scale": nir.Scale(np.full((2, 2, 2), 3, np.float32)),
        "threshold": nir.Threshold(limits),
        "output": nir.Output([2, 2, 2]),
    }
    edges = [("input", "scale"), ("scale", "threshold"), ("input", "threshold"), ("threshold", "output")]
    network = sf.from_nir(nir.NIRGraph(nodes, edges))
    current = torch.randn(5, 3, 2, 2, 2, requires_grad=True)
    spikes = network(current)
    assert torch.equal(spikes, (3 * current + current > torch.tensor(limits)).float())
    spikes.sum().backward()
    assert current.grad.count_nonzero() == current.numel()
    again = sf.to_nir(network, current)
    np.testing.assert_array_equal(again.nodes["layers.threshold"].threshold, limits)


def test_a_graph_within_a_graph_is_read(nir):
    inner = nir.NIRGraph.from_list(nir.Linear(np.ones((3, 2), np.float32)), nir.Scale(np.full(3, 2, np.float32)))
    nodes = {"input": nir.Input([2]), "block": inner, "output": nir.Output([3])}
    graph = nir.NIRGraph(nodes, [("input", "block"), ("block", "output")], type_check=False)
    current = torch.randn(4, 3, 2)
    assert torch.allclose(sf.from_nir(graph)(current), 2 * current.sum(-1, keepdim=True).expand(4, 3, 3))


def test_weights_are_copies(nir):
    graph = sf.to_nir(dense(sf.IF()), torch.zeros(2, 1, 6))
    network = sf.from_nir(graph)
    weight = graph.nodes["0"].weight.copy()
    with torch.no_grad():
        network.layers["0"].weight.fill_(7)
    np.testing.assert_array_equal(graph.nodes["0"].weight, weight)


def test_a_network_of_a_graph_trains(nir):
    network = sf.from_nir(sf.to_nir(Residual(), sample_of("residual")), surrogate=sf.surrogate.Arctangent())
    network(sample_of("residual")).sum().backward()
    assert all(parameter.grad.count_nonzero() for parameter in network.parameters())
    assert isinstance(network.layers["neurons_0"].surrogate, sf.surrogate.Arctangent)


# Other libraries' graphs. Layers are small; every test says on which options of the library the spikes are the same.


@pytest.fixture(scope="module")
def spikingjelly(nir):
    names = ("functional", "layer", "neuron", "nir_exchange")
    modules = libraries.spikingjelly(*(f"activation_based.{name}" for name in names))
    return SimpleNamespace(**dict(zip(names, modules, strict=True)))


def stepped(step, current: Tensor) -> Tensor:
    """A loop over time of a step that keeps its own state."""
    with torch.no_grad():
        return torch.stack([step(x) for x in current])


def busy(spikes: Tensor) -> bool:
    return 0.02 < spikes.count_nonzero() / spikes.numel() < 0.9


@pytest.mark.parametrize("decay_input", [True, False])
def test_spikingjellys_graphs_give_its_spikes(spikingjelly, decay_input):
    layer, neuron = spikingjelly.layer, spikingjelly.neuron
    net = nn.Sequential(
        *(layer.Conv2d(1, 4, 3), neuron.IFNode(0.25), layer.AvgPool2d(2), layer.Flatten()),
        *(layer.Linear(16, 5), neuron.LIFNode(3.0, decay_input, v_threshold=0.125, v_reset=-0.125)),
    )
    spikingjelly.functional.set_step_mode(net, "m")
    with torch.no_grad():
        net[4].bias += 0.4
    current = torch.randn(20, 3, 1, 6, 6)
    graph = spikingjelly.nir_exchange.export_to_nir(net, current)
    spikingjelly.functional.reset_net(net)
    network = sf.from_nir(graph, exported_by="spikingjelly")
    expected = net(current)
    assert torch.equal(network(current), expected) and busy(expected)
    assert network.layers["_5"].tau == pytest.approx(3) and network.layers["_5"].decay_input is decay_input


def test_spikingjelly_fires_at_the_threshold(spikingjelly):
    net = nn.Sequential(spikingjelly.layer.Linear(4, 4, bias=False))
    net.append(spikingjelly.neuron.IFNode(step_mode="m"))
    nn.init.eye_(net[0].weight)
    spikingjelly.functional.set_step_mode(net, "m")
    current = torch.randint(-4, 5, (30, 3, 4)) / 4
    graph = spikingjelly.nir_exchange.export_to_nir(net, current)
    spikingjelly.functional.reset_net(net)
    expected = net(current)
    assert torch.equal(sf.from_nir(graph, exported_by="spikingjelly")(current), expected)
    assert not torch.equal(sf.from_nir(graph)(current), expected)  # NIR fires above it


def test_spikingjelly_takes_what_is_written_here(spikingjelly):
    model = nn.Sequential(nn.Linear(6, 5), sf.LIF(3.0, 0.1, fire_on_equal=True), nn.Linear(5, 4))
    model.append(sf.IF(0.2, fire_on_equal=True)).eval()
    with torch.no_grad():
        model[2].bias += 0.3
    current = torch.randn(12, 3, 6)
    net = spikingjelly.nir_exchange.import_from_nir(sf.to_nir(model, current), step_mode="m")
    assert torch.equal(net(current)[0], model(current)) and busy(model(current))


def snntorch_network(snntorch, mechanism: str, delay: bool):
    """A network, currents, and what gives its spikes, and the largest potential that a step leaves, in thresholds."""

    def leaky(size: int, beta: float) -> nn.Module:
        return snntorch.Leaky(
            beta=torch.full((size,), beta),
            threshold=torch.full((size,), 1.2),
            init_hidden=True,
            reset_mechanism=mechanism,
            reset_delay=delay,
        )

    net = nn.Sequential(nn.Linear(6, 8), leaky(8, 0.9), nn.Linear(8, 5), leaky(5, 0.55))
    with torch.no_grad():
        net[0].bias += 0.2
        net[2].weight *= 0.5
        net[2].bias += 0.2
    left = []

    def step(x: Tensor) -> Tensor:
        spikes = net(x)
        left.extend(float(net[i].mem.max()) / 1.2 for i in (1, 3))
        return spikes

    current = 0.3 * torch.randn(30, 4, 6)
    return net, current, lambda: (stepped(step, current), max(left))


@pytest.fixture(scope="module")
def snntorch(nir):
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed (pip install '.[peers]')")
    pytest.importorskip("nirtorch", reason="nirtorch is not installed (pip install nirtorch)")
    return snntorch


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("mechanism", "delay"), [("zero", True), ("zero", False), ("subtract", False), ("subtract", True)]
)
def test_snntorchs_graphs_give_its_spikes_but_for_a_delayed_subtraction(snntorch, mechanism, delay):
    from snntorch import utils
    from snntorch.export_nir import export_to_nir

    net, current, run = snntorch_network(snntorch, mechanism, delay)
    graph = export_to_nir(net, current[0], ignore_dims=[0])
    utils.reset(net)
    with pytest.warns(UserWarning, match=r"reset_mechanism='zero' .* subtracts after the leak .* cannot be matched"):
        network = sf.from_nir(graph, exported_by="snntorch", reset="soft" if mechanism == "subtract" else None)
    assert not network.layers["1"].decay_input
    expected, left = run()
    assert busy(expected)
    assert left <= 1 or delay  # beyond, snnTorch subtracts what is left above the threshold before it fires again
    assert torch.equal(network(current), expected) is not (delay and mechanism == "subtract")


@pytest.fixture(scope="module")
def norse(nir):
    norse = pytest.importorskip("norse.torch", reason="norse is not installed (pip install '.[peers]')")
    pytest.importorskip("nirtorch", reason="nirtorch is not installed (pip install nirtorch)")
    return norse


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dt", [1e-3, 5e-4])
def test_norses_graphs_give_its_spikes(norse, dt):
    from norse.torch.utils.export_nir import to_nir

    box = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(250.0), v_th=torch.tensor(0.1))
    net = norse.SequentialState(
        *(nn.Linear(6, 8), norse.LIFBoxCell(box, dt=dt)),
        *(nn.Linear(8, 5), norse.IAFCell(norse.IAFParameters(v_th=torch.tensor(0.6)), dt=dt)),
    )
    with torch.no_grad():
        net[2].bias += 0.2
    current, state, spikes = torch.randn(30, 4, 6), None, []
    graph = to_nir(net, current[0] if dt == 1e-3 else current[0, 0], dt=dt)  # with the batch in its shape, or without
    with torch.no_grad():
        for x in current:
            out, state = net(x, state)
            spikes.append(out)
    with pytest.warns(UserWarning, match="v_reset nor reset_method"):
        network = sf.from_nir(graph, exported_by="norse", dt=None if dt == 1e-3 else dt**2)
    expected = torch.stack(spikes)
    assert torch.equal(network(current), expected) and busy(expected)
    assert network.layers["1"].tau == pytest.approx(1 / (250 * dt), rel=1e-6)


@pytest.fixture(scope="module")
def sinabs(nir):
    sinabs = pytest.importorskip("sinabs", reason="sinabs is not installed (pip install sinabs)")
    pytest.importorskip("sinabs.nir", reason="nirtorch is not installed (pip install nirtorch)")
    return sinabs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("single", [True, False], ids=["SingleSpike", "MultiSpike"])
def test_sinabs_graphs_give_its_spikes_of_one_in_a_step(sinabs, single):
    import sinabs.layers as sl
    from sinabs.activation import MultiSpike, SingleSpike

    options = {"batch_size": 4, "spike_fn": SingleSpike if single else MultiSpike}
    lif = sl.LIFSqueeze(tau_mem=5.0, spike_threshold=torch.tensor(0.1), **options)
    net = nn.Sequential(
        *(nn.Conv2d(1, 2, 3), sl.IAFSqueeze(spike_threshold=torch.tensor(0.5), **options), sl.SumPool2d(2)),
        *(nn.Flatten(), nn.Linear(8, 5), lif),
    )
    current = torch.randn(20, 4, 1, 6, 6)
    merged = current.transpose(0, 1).flatten(0, 1)  # [B·T, ...]
    with torch.no_grad():
        graph = sinabs.nir.to_nir(net, merged)
        for module in net.modules():
            if isinstance(module, sl.StatefulLayer):
                module.reset_states()
        expected = net(merged).unflatten(0, (4, 20)).transpose(0, 1)
    with pytest.warns(UserWarning, match="MultiSpike, Sinabs' default, fire several times"):
        network = sf.from_nir(graph, exported_by="sinabs")
    assert torch.equal(network(current), expected) is single
    assert busy(expected)


# What is refused, or warned of.


def lif(nir, **changed):
    fields = {"tau": 1e-3, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changed
    return nir.LIF(**{key: np.broadcast_to(np.float64(value), (3,)).copy() for key, value in fields.items()})


def graph_of(nir, node, **more):
    nodes = {"input": nir.Input([3]), "middle": node, "output": nir.Output([3]), **more}
    return nir.NIRGraph(nodes, [("input", "middle"), ("middle", "output")], type_check=False)


THREE = np.ones(3)
NODES = {
    "CubaLIF": lambda nir: nir.CubaLIF(
        tau_syn=THREE, tau_mem=THREE, r=THREE, v_leak=THREE, v_threshold=THREE, v_reset=THREE
    ),
    "CubaLI": lambda nir: nir.CubaLI(tau_syn=THREE, tau_mem=THREE, r=THREE, v_leak=THREE),
    "LI": lambda nir: nir.LI(tau=THREE, r=THREE, v_leak=THREE),
    "I": lambda nir: nir.I(r=THREE),
    "Delay": lambda nir: nir.Delay(delay=THREE),
}


@pytest.mark.parametrize("kind", NODES)
def test_nodes_without_a_layer_are_refused_by_name(nir, kind):
    with pytest.raises(NotImplementedError, match=rf"node 'middle' is a nir.{kind}: snnfast has no "):
        sf.from_nir(graph_of(nir, NODES[kind](nir)))


def test_an_unknown_node_is_refused_with_those_that_are_read(nir):
    class Resonator(nir.ir.node.NIRNode):
        def __init__(self):
            pass

    with pytest.raises(NotImplementedError, match=r"node 'middle' is a nir.Resonator: snnfast reads IF, LIF, "):
        sf.from_nir(graph_of(nir, Resonator()))


VALUES = [
    ({"tau": -1.0}, ValueError, "node 'middle': tau must be above 0, got -1"),
    ({"tau": [1e-3, 0.0, 1e-3]}, ValueError, "tau must be above 0, got 0"),
    ({"tau": 1e-4}, ValueError, "tau must be above dt, one step, got tau=0.0001 with dt=0.0001"),
    ({"tau": np.nan}, ValueError, "node 'middle': tau must be numbers"),
    ({"v_threshold": -1.0}, ValueError, "v_threshold must not be negative"),
    ({"v_reset": [0.0, 0.1, 0.0]}, NotImplementedError, "v_reset differs between neurons"),
    ({"v_leak": 0.5}, NotImplementedError, "v_leak must be 0, v_reset, got 0.5"),
]


@pytest.mark.parametrize(("changed", "error", "match"), VALUES, ids=[match for _, _, match in VALUES])
def test_values_out_of_range_are_refused_by_node(nir, changed, error, match):
    with pytest.raises(error, match=match):
        sf.from_nir(graph_of(nir, lif(nir, **changed)))


def test_a_reset_value_with_the_soft_reset_is_refused(nir):
    with pytest.raises(ValueError, match=r"v_reset is 0\.5, and reset='soft'"):
        sf.from_nir(graph_of(nir, lif(nir, v_reset=0.5)), reset="soft")


OPTIONS = [
    ({"dt": 0.0}, ValueError, "dt must be finite and above 0"),
    ({"dt": -1e-4}, ValueError, "dt must be finite and above 0"),
    ({"dt": "1e-4"}, TypeError, "dt must be a number"),
    ({"exported_by": "brian"}, ValueError, "exported_by must be one of 'spikingjelly', 'snntorch', 'norse', 'sinabs'"),
    ({"reset": "none"}, ValueError, "reset must be one of 'hard', 'soft'"),
    ({"fire_on_equal": 1}, TypeError, "fire_on_equal must be True or False"),
    ({"integration": "heun"}, ValueError, "integration must be one of 'euler', 'exact'"),
    ({"surrogate": 3}, TypeError, "surrogate must be"),
    ({"carry_state": 1}, TypeError, "carry_state must be True or False"),
    ({"time_dim": 2}, ValueError, "time_dim must be 0 or 1"),
]


@pytest.mark.parametrize(("options", "error", "match"), OPTIONS, ids=[match for _, _, match in OPTIONS])
def test_options_of_from_nir_are_checked(nir, options, error, match):
    with pytest.raises(error, match=match):
        sf.from_nir(graph_of(nir, lif(nir)), **options)


def test_graphs_that_are_no_feed_forward_network_are_refused(nir):
    weight = nir.Linear(np.eye(3, dtype=np.float32))
    recurrent = graph_of(nir, lif(nir), back=weight)
    recurrent.edges += [("middle", "back"), ("back", "middle")]
    with pytest.raises(NotImplementedError, match=r"recurrent: .*'back'"):
        sf.from_nir(recurrent)
    inner = nir.NIRGraph(recurrent.nodes, recurrent.edges, type_check=False)
    with pytest.raises(NotImplementedError, match=r"recurrent: .*'middle\.back'"):
        sf.from_nir(graph_of(nir, inner))
    with pytest.raises(NotImplementedError, match="the graph has 2 Input nodes: 'input', 'second'"):
        sf.from_nir(graph_of(nir, lif(nir), second=nir.Input([3])))
    with pytest.raises(ValueError, match="Input node 'input' has no input type"):
        sf.from_nir(graph_of(nir, lif(nir), input=nir.Input(None)))
    lonely = graph_of(nir, lif(nir))
    lonely.edges = [("middle", "output")]
    with pytest.raises(ValueError, match="node 'middle' has no input"):
        sf.from_nir(lonely)
    lonely.edges = [("input", "nowhere")]
    with pytest.raises(ValueError, match="the graph has no node 'nowhere'"):
        sf.from_nir(lonely)
    with pytest.raises(TypeError, match=r"graph must be a nir.NIRGraph .*, got LIF"):
        sf.from_nir(lif(nir))


def test_numbers_that_rather_count_steps_are_warned_of(nir):
    with pytest.warns(UserWarning, match="tau=20 is 200000 steps of dt=0.0001.*exported_by"):
        sf.from_nir(graph_of(nir, lif(nir, tau=20.0)))
    with pytest.warns(UserWarning, match="R is 1, so that a current of 1 adds 0.0001"):
        sf.from_nir(graph_of(nir, nir.IF(r=THREE, v_threshold=THREE, v_reset=0 * THREE)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.from_nir(graph_of(nir, nir.IF(r=THREE, v_threshold=THREE, v_reset=0 * THREE)), dt=1.0)
        sf.from_nir(graph_of(nir, lif(nir)))


class Loop(nn.Module):
    def forward(self, current: Tensor) -> Tensor:
        return torch.stack([x.relu() for x in current])


class Asks(nn.Module):
    def forward(self, current: Tensor) -> Tensor:
        return current if bool(torch.equal(current, current)) else -current


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, current: Tensor) -> Tensor:
        current = self.linear(current.flatten(0, 1))
        return current + self.norm(current)


class Stale(nn.Module):
    """A view of what is written into later."""

    def forward(self, current: Tensor) -> Tensor:
        view = (2 * current).flatten(2)
        whole = view.flatten(0, 1)
        whole += current.flatten(0, 1).flatten(1)
        return view + current.flatten(2)


class Carried(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron = sf.IF(carry_state=True)

    def forward(self, current: Tensor) -> Tensor:
        return self.neuron(self.neuron(current))


class Two(nn.Module):
    def forward(self, current: Tensor) -> tuple[Tensor, Tensor]:
        return current, current


WITHOUT_NODES = {
    r"torch.nn.ReLU has no node in NIR that snnfast writes, in '1' \(ReLU\)": lambda: dense(nn.ReLU()),
    r"torch.nn.LSTM has no node": lambda: nn.LSTM(6, 6),
    r"__iter__|unbind|__getitem__": Loop,
    r"depends on values of its tensors \(equal\), in 'Asks'": Asks,
    r"batch norm follows no convolution or linear layer .* in '0.module' \(BatchNorm1d\)": lambda: nn.Sequential(
        sf.OverTime(nn.BatchNorm1d(6))
    ),
    r"without running statistics": lambda: dense(sf.OverTime(nn.BatchNorm1d(5, track_running_stats=False))),
    r"'linear' is read before the batch norm": Twice,
    r"adds a tensor that does not come of the sample|add has no node": Stale,
    r"carries one state and is called twice": Carried,
    r"must return one tensor, got tuple": Two,
    r"delay=True has no node, in '1' \(IF\)": lambda: dense(sf.IF(delay=True)),
    r"its time_dim is 1, to_nir's 0": lambda: dense(sf.IF(time_dim=1)),
    r"readout comes last": lambda: dense(sf.IF(), sf.Readout(), nn.Linear(5, 2)),
    r"padding_mode='reflect'": lambda: nn.Sequential(
        nn.Unflatten(2, (1, 6)), sf.OverTime(nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"))
    )[1:],
}


@pytest.mark.parametrize("match", WITHOUT_NODES)
def test_models_without_a_graph_are_refused_by_what_they_do_and_where(nir, match):
    sample = torch.rand(4, 3, 1, 6) if "reflect" in match else torch.rand(4, 3, 6)
    with pytest.raises(NotImplementedError, match=match):
        sf.to_nir(WITHOUT_NODES[match](), sample)
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


def test_pools_that_nir_does_not_have_are_refused(nir):
    for pool, match in (
        (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "count_include_pad"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override=3"),
        (nn.AdaptiveAvgPool2d(4), "its windows differ"),
        (nn.MaxPool2d(2), "torch.nn.MaxPool2d has no node"),
    ):
        with pytest.raises(NotImplementedError, match=match):
            sf.to_nir(sf.OverTime(pool), torch.rand(2, 1, 1, 6, 6))


def test_a_soft_reset_is_warned_of_as_others_do_not_read_it(nir):
    with pytest.warns(UserWarning, match="hard reset only: that '1' reset softly is in the graph's metadata"):
        sf.to_nir(dense(sf.IF(reset="soft")), torch.rand(4, 3, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.to_nir(dense(sf.IF()), torch.rand(4, 3, 6))


def test_a_fused_network_and_a_parametrized_neuron_are_written_too(nir):
    conv, norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
    model = nn.Sequential(sf.OverTime(conv), sf.OverTime(norm), sf.IF(0.2), sf.IF(0.3, learn_threshold=True)).double()
    nn.utils.parametrize.register_parametrization(model[3], "threshold", nn.Softplus())
    current = torch.randn(4, 3, 2, 5, 5, dtype=torch.float64)
    model(current)
    expected = model.eval()(current)
    sf.fuse(model)
    assert isinstance(model[1].module, sf.BatchNormIF)
    assert torch.equal(sf.from_nir(sf.to_nir(model, current))(current), expected) and busy(expected)


def test_what_to_nir_is_given_is_checked(nir):
    sample = torch.rand(4, 3, 6)
    for samples in ([sample, sample], (sample,), None, sample.numpy()):
        with pytest.raises(TypeError, match="sample must be a tensor"):
            sf.to_nir(dense(sf.IF()), samples)
    for dt in (0, -1e-4, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="dt must be finite and above 0"):
            sf.to_nir(dense(sf.IF()), sample, dt=dt)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        sf.to_nir(lambda x: x, sample)
    with pytest.raises(ValueError, match="time_dim must be 0 or 1"):
        sf.to_nir(dense(sf.IF()), sample, time_dim=2)
    with pytest.raises(ValueError, match=r"sample must be \[T, B, ...\]"):
        sf.to_nir(sf.IF(), torch.rand(4))


def test_without_nir_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    for call in (lambda: sf.to_nir(sf.IF(), torch.rand(4, 3, 6)), lambda: sf.from_nir(None)):
        with pytest.raises(ImportError, match=r"needs the package nir.*pip install 'snnfast\[nir\]'"):
            call()


def blocks() -> list[str]:
    """The guide's code, which is not ```python as that is run everywhere, and nir is not."""
    return re.findall(r"^```py\n(.*?)^```", GUIDE.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_guides_examples_run(nir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(blocks()) >= 2
    for block in blocks():
        exec(compile(block, str(GUIDE), "exec"), {"__name__": "example"})
