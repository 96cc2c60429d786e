"""Graphs that other libraries export give those libraries' spikes, and theirs read ours."""

from __future__ import annotations

from types import SimpleNamespace

import libraries
import pytest
import torch
from nir_cases import busy
from torch import Tensor, nn

import snnfast as sf

pytestmark = pytest.mark.usefixtures("seeded")

# Layers are small; every test says on which options of the library the spikes are the same.


@pytest.fixture(scope="module")
def spikingjelly(nir):
    names = ("functional", "layer", "neuron", "nir_exchange")
    modules = libraries.spikingjelly(*(f"activation_based.{name}" for name in names))
    return SimpleNamespace(**dict(zip(names, modules, strict=True)))


def stepped(step, current: Tensor) -> Tensor:
    """A loop over time of a step that keeps its own state."""
    with torch.no_grad():
        return torch.stack([step(x) for x in current])


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
