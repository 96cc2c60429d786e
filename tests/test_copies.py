"""A copy of a layer or network, made in any of torch's ways, is its own, whether compiled or not, and goes on alike."""

from __future__ import annotations

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import torch.multiprocessing  # which registers how tensors are sent to other processes
from torch import nn
from torch.optim.swa_utils import AveragedModel

import snnfast as sf

X = torch.rand(6, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.1


def through_a_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def as_a_spawned_process_gets_it(module: nn.Module) -> nn.Module:
    return pickle.loads(bytes(ForkingPickler.dumps(module)))


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": through_a_file,
    "averaged": lambda module: AveragedModel(module).module,
}
ways = pytest.mark.parametrize("duplicate", WAYS.values(), ids=WAYS.keys())
or_sent = pytest.mark.parametrize(
    "duplicate", [*WAYS.values(), as_a_spawned_process_gets_it], ids=[*WAYS, "sent to a process"]
)


class Shortcut(nn.Module):
    """What fuse writes a new forward for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.sn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), sf.LIF(learn_tau=True)

    def forward(self, x):
        normalized = self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.sn(normalized + x)


def fused(module: nn.Module) -> nn.Module:
    assert sf.fuse(module).fused
    return module


def plain(**options) -> dict:
    return {
        "IF": lambda: sf.IF(0.5, learn_threshold=True, **options),
        "LIF": lambda: sf.LIF(2.0, 0.5, learn_tau=True, **options),
        "BatchNormIF": lambda: sf.BatchNormIF(3, threshold=torch.tensor([0.1, 0.5, 0.9]), **options),
        "BatchNormLIF": lambda: sf.BatchNormLIF(3, threshold=0.5, learn_threshold=True, learn_tau=True, **options),
        "fused": lambda: fused(
            nn.Sequential(sf.OverTime(nn.BatchNorm2d(3)), sf.IF(0.5, learn_threshold=True, **options))
        ),
    }


LAYERS = {
    **plain(),
    "Readout": sf.Readout,
    "OverTime": lambda: sf.OverTime(nn.Conv2d(3, 2, 3)),
    "fused with a forward": lambda: fused(Shortcut()),
    "within OverTime": lambda: fused(
        nn.Sequential(sf.OverTime(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))), sf.IF(learn_threshold=True))
    ),
}
NEURONS = [name for name in LAYERS if name not in ("Readout", "OverTime")]


def silence(module: nn.Module) -> None:
    """Makes every neuron's threshold one that nothing reaches, in place where it is a tensor."""
    for layer in module.modules():
        if isinstance(layer, sf.IF | sf.LIF):
            layer.threshold = 1e9


def compiled_layers(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        layer.compile(backend="eager")
    return module


def compiled_network(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


COMPILED = {
    "not compiled": lambda module: module,
    "each layer": compiled_layers,
    "as a whole": compiled_network,
    "torch.compile": lambda module: torch.compile(module, backend="eager"),
}


def called(module: nn.Module) -> torch.Tensor:
    torch.manual_seed(0)
    return module(X)


@ways
@pytest.mark.parametrize("compiled", COMPILED.values(), ids=COMPILED.keys())
@pytest.mark.parametrize("kind", LAYERS)
def test_a_copy_is_its_own(kind, compiled, duplicate):
    torch.manual_seed(1)
    layer = compiled(LAYERS[kind]())
    layer(X)
    other = duplicate(layer)
    spikes = called(layer)
    assert torch.equal(called(other), spikes) and spikes.sum() > 0
    if kind in NEURONS:
        silence(other)
        assert called(other).sum() == 0
        assert torch.equal(called(layer), spikes)
        silence(layer)
        assert called(layer).sum() == 0


@or_sent
@pytest.mark.parametrize("compiled", COMPILED.values(), ids=COMPILED.keys())
@pytest.mark.parametrize("kind", plain())
def test_a_copy_in_the_middle_of_a_graph_goes_on_from_the_same_state(kind, compiled, duplicate):
    layer = compiled(plain(carry_state=True)[kind]())
    x = X.clone().requires_grad_()
    first = layer(x[:3])
    other = duplicate(layer)
    assert torch.equal(other(X[3:]), layer(X[3:]))
    first.sum().backward()  # the graph is the original's
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", NEURONS)
def test_a_shallow_copy_of_a_compiled_layer_has_its_own_options(kind):
    """As copy.copy of any module, it shares parameters, buffers and children."""
    layer = LAYERS[kind]()
    layer.compile(backend="eager")
    layer(X)
    other = copy.copy(layer)
    if isinstance(layer, sf.IF | sf.LIF):
        other.reset = "soft"
        wanted = copy.deepcopy(layer)
        wanted.reset = "soft"
        assert torch.equal(other(X), wanted(X)) and not torch.equal(other(X), layer(X))
    assert type(other) is type(layer) and other._compiled_call_impl is None


@ways
def test_a_compiled_network_of_the_package_copies(duplicate):
    network = sf.models.plain_net(layers=3, width=4, in_channels=3, image_size=8, activation="lif", learn_tau=True)
    compiled_layers(network)
    images = X[0]
    other = duplicate(network)
    assert torch.equal(other(images), network(images))
    before = network(images)
    silence(other)
    assert not torch.equal(other(images), before) and torch.equal(network(images), before)


@pytest.mark.parametrize("compiled", COMPILED.values(), ids=COMPILED.keys())
@pytest.mark.parametrize("kind", NEURONS)
def test_another_process_gets_the_layer_and_shares_its_tensors(kind, compiled):
    torch.manual_seed(1)
    layer = compiled(LAYERS[kind]()).share_memory()
    other = as_a_spawned_process_gets_it(layer)
    spikes = called(layer)
    assert torch.equal(called(other), spikes) and spikes.sum() > 0
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.mul_(0.5)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), layer.parameters(), strict=True))
    assert torch.equal(called(other), called(layer))


def test_a_network_that_version_0_1_pickled_or_saved_goes_on_alike():
    """Its file was made before the package's modules had their rooms."""
    kept = torch.load(Path(__file__).parent / "files" / "network_of_0.1.pt", weights_only=False)
    network, current, spikes = kept["network"], kept["current"], kept["spikes"]
    assert torch.equal(network(current), spikes) and 0 < spikes.mean() < 1
    again = copy.deepcopy(network)
    for parameter in again.parameters():
        nn.init.constant_(parameter, 0.5)
    again.load_state_dict(kept["state_dict"])
    assert torch.equal(again(current), spikes)
    network.train()(current).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
