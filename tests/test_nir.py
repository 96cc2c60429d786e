"""A network becomes a graph of NIR and comes back the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from nir_cases import busy, dense
from torch import Tensor, nn

import snnfast as sf
from snnfast import models

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "guide" / "nir.md"


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


def maps(neuron: nn.Module) -> nn.Module:
    return nn.Sequential(sf.OverTime(nn.Conv2d(2, 4, (3, 3), stride=2)), neuron)


TAUS = torch.tensor([1.5, 2.0, 3.7, 20.0, 1.01])
pytestmark = [pytest.mark.usefixtures("seeded"), pytest.mark.filterwarnings("ignore:NIR knows the hard reset only")]
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


def blocks() -> list[str]:
    """The guide's code, which is not ```python as that is run everywhere, and nir is not."""
    return re.findall(r"^```py\n(.*?)^```", GUIDE.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_guides_examples_run(nir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(blocks()) >= 2
    for block in blocks():
        exec(compile(block, str(GUIDE), "exec"), {"__name__": "example"})
