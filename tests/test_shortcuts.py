"""Residual networks with other beginnings and shortcuts than the paper's: the cure of the deep ones, MS and SEW."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import snnfast as sf
from snnfast import models

pytestmark = pytest.mark.usefixtures("one_thread")

CURED = {"zero_init_residual": True, "shortcut_scale": 2.0}
RESNETS = ("resnet11", "resnet18", "resnet50")
OTHERS = ("ms_resnet18", "ms_resnet50", "sew_resnet18", "sew_resnet50")


def small(name: str, **options: object) -> models.Network:
    torch.manual_seed(0)
    made = models.for_images(name, (3, 16, 16), 10, **{"width": 4, "steps": 4, **options})
    assert isinstance(made, models.Network)
    return made


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def identity_blocks(network: models.Network) -> list[nn.Module]:
    return [b for b in network.blocks if isinstance(b.shortcut.projection, nn.Identity)]


# The cure


@pytest.mark.parametrize("name", RESNETS)
def test_an_identity_block_passes_on_its_input_spikes_at_first(name: str) -> None:
    network = small(name, **CURED)
    blocks = [b for b in network.blocks if not isinstance(b.shortcut.projection, nn.Sequential)]
    assert blocks
    for block in blocks:
        spikes = (rand(4, 2, block.in_channels, 6, 6) < 0.3).float()
        assert torch.equal(block(spikes), spikes[..., :: block.stride, :: block.stride])


@pytest.mark.parametrize("name", (*RESNETS, *OTHERS))
@pytest.mark.parametrize("activation", ["if", "relu"])
def test_zero_init_is_of_the_last_batch_norm_of_every_block_and_nothing_else(name: str, activation: str) -> None:
    scale = {"shortcut_scale": 2.0} if name in RESNETS else {}
    ours = small(name, activation=activation, zero_init_residual=True, **scale).state_dict()
    theirs = small(name, activation=activation).state_dict()
    assert ours.keys() == theirs.keys()
    changed = [key for key in ours if not torch.equal(ours[key], theirs[key])]
    count = len({key.split(".")[1] for key in ours if key.startswith("blocks.")})
    assert len(changed) == count and all(key.endswith(".weight") and not ours[key].any() for key in changed)
    # And again where a network is initialized by hand, as one from the meta device is.
    with torch.device("meta"):
        network = small(name, activation=activation, zero_init_residual=True, **scale)
    network.to_empty(device="cpu")
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    network.initialize()
    assert all(not network.state_dict()[key].any() for key in changed)


def test_without_the_cure_blocks_are_the_papers() -> None:
    for name in RESNETS:
        network = small(name)
        assert all(block.shortcut.scale == 1.0 for block in network.blocks)
        assert all(block.last_norm().weight.eq(1).all() for block in network.blocks)


def test_a_spike_is_worth_its_scale_on_shortcuts_without_a_convolution_alone() -> None:
    scales = {
        isinstance(block.shortcut.projection, nn.Sequential): block.shortcut.scale
        for block in small("resnet18", shortcut_scale=1.5).blocks
    }
    assert scales == {False: 1.5, True: 1.0}
    # Not of the twin, whose activations have no threshold to cross.
    twin = small("resnet18", activation="relu", shortcut_scale=1.5)
    assert {block.shortcut.scale for block in twin.blocks} == {1.0}


def test_scale_is_in_what_the_block_computes() -> None:
    network = small("resnet18", shortcut_scale=1.7).double().eval()
    block = identity_blocks(network)[0]
    spikes = (rand(4, 2, block.in_channels, 6, 6) < 0.3).double()
    inner = block.activations[0](block.convolutions[0](spikes.flatten(0, 1)).unflatten(0, (4, 2)))
    current = block.convolutions[1](inner.flatten(0, 1)).unflatten(0, (4, 2))
    assert torch.equal(block(spikes), block.activations[1](current, residual=1.7 * spikes))


def test_a_network_whose_scale_differs_says_so_when_it_is_loaded() -> None:
    with pytest.warns(UserWarning, match=r"scale of 'blocks.0.shortcut' is 2.0 in the network that was saved and 1.0"):
        small("resnet18").load_state_dict(small("resnet18", **CURED).state_dict())


REFUSED = {
    "shortcut_scale=1: a spike on an identity shortcut does not cross the threshold, 1.0": {},
    "shortcut_scale=2: a spike on an identity shortcut does not cross the threshold, 3.0": {
        "shortcut_scale": 2.0,
        "threshold": 3.0,
    },
    "shortcut_scale=1.9: a spike": {"shortcut_scale": 1.9, "activation": "lif", "tau": 2.0},
    "zero_init_residual sets weights of batch normalizations: it needs batch_norm=True": {"batch_norm": False},
    "shortcut_scale must be finite and above 0, got -2.0": {"shortcut_scale": -2.0},
    "shortcut_scale must be finite and above 0, got 0": {"shortcut_scale": 0},
    "shortcut_scale must be finite and above 0, got inf": {"shortcut_scale": float("inf")},
    "shortcut_scale must be finite and above 0, got nan": {"shortcut_scale": float("nan"), "activation": "relu"},
}


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize("message", REFUSED)
def test_a_network_that_no_spike_would_pass_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small(name, zero_init_residual=True, **REFUSED[message])


PASSING = [
    {"shortcut_scale": 2.0},
    {"threshold": 0.5},
    {"fire_on_equal": True},
    {"shortcut_scale": 2.0, "delay": True},
    {"activation": "lif", "tau": 2.0, "shortcut_scale": 2.1},
    {"activation": "lif", "tau": 2.0, "shortcut_scale": 1.1, "decay_input": False},
    {"activation": "relu"},
]


@pytest.mark.parametrize("options", PASSING, ids=str)
def test_a_network_that_spikes_pass_is_made_and_its_last_neurons_fire(options: dict[str, object]) -> None:
    network = small("resnet18", **{"zero_init_residual": True, **options})
    with torch.no_grad():
        assert network.features(rand(4, 3, 16, 16).float(), 8).any()


# Networks of other papers


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_have_as_many_parameters_as_their_papers_say(name: str) -> None:
    # Hu et al. and Fang et al. give 11.69 and 25.56 million for ImageNet, as He et al.'s networks have.
    with torch.device("meta"):
        network = models.build(name, num_classes=1000, stem="7x7")
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == {"18": 11_689_512, "50": 25_557_032}[name[-2:]]
    # A neuron for every convolution but those on shortcuts; SEW has one there too, MS one more before the readout
    # and none behind its stem.
    layers = {"18": 17, "50": 49}[name[-2:]]
    projections = {"18": 3, "50": 4}[name[-2:]]
    assert len(network.neurons()) == layers + (projections if name.startswith("sew") else 0)


class Steps:
    """One step of a network in evaluation mode at a time, by torch's own functions; the neuron is the hard-reset IF."""

    def __init__(self, network: models.Network) -> None:
        self.network = network
        self.potentials: dict[nn.Module, Tensor] = {}

    def norm(self, layer: nn.Module, current: Tensor) -> Tensor:
        return F.batch_norm(current, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)

    def fire(self, layer: nn.Module, current: Tensor) -> Tensor:
        if hasattr(layer, "running_mean"):
            current = self.norm(layer, current)
        if not self.network.activation.spiking:
            return current.relu()
        charged = self.potentials.get(layer, torch.zeros_like(current)) + current
        spikes = (charged > 1).double()
        self.potentials[layer] = charged * (1 - spikes)
        return spikes

    def membrane(self, images: Tensor) -> Tensor:
        net = self.network
        current = net.pool(self.norm(net.norm, net.stem(images)))
        for block in net.blocks:
            x = current
            for neuron, convolution in zip(block.activations, block.convolutions, strict=True):
                x = convolution(self.fire(neuron, x))
            current = self.norm(block.norm, x) + block.shortcut.projection(current)
        return self.fire(net.last_activation, current)

    def element_wise(self, images: Tensor) -> Tensor:
        net = self.network
        spikes = net.pool(self.fire(net.stem_activation, net.stem(images)))
        for block in net.blocks:
            x = spikes
            for neuron, convolution in zip(block.activations, block.convolutions, strict=True):
                x = self.fire(neuron, convolution(x))
            if block.projection is not None:
                spikes = self.fire(block.projection_activation, block.projection(spikes))
            spikes = x + spikes
        return spikes


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("activation", ["if", "relu"])
def test_other_networks_are_their_papers_loops(name: str, activation: str) -> None:
    network = small(name, activation=activation).double()
    for module in network.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0
    images = rand(3, 3, 16, 16)
    network(images)
    network.eval()
    loop = Steps(network)
    step: Callable[[Tensor], Tensor] = loop.membrane if name.startswith("ms") else loop.element_wise
    steps = 4 if activation == "if" else 1
    with torch.no_grad():
        counts = sum(step(images) for _ in range(steps))
        assert counts.any()
        wanted = network.classifier(network.head(counts), steps)
        torch.testing.assert_close(network(images), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_and_their_twins_have_each_others_weights(name: str) -> None:
    network, twin = small(name), small(name, activation="relu", zero_init_residual=True)
    network(rand(2, 3, 16, 16).float())
    twin.load_state_dict(network.state_dict())
    copy = twin.with_activation(models.Activation("if", True))
    images = rand(2, 3, 16, 16).float()
    with torch.no_grad():
        assert torch.equal(copy.eval()(images), network.eval()(images))
        assert torch.equal(network.with_activation(models.Activation("relu", True))(images), twin.eval()(images))


def test_a_membrane_network_without_batch_norm_has_biases_instead() -> None:
    network = small("ms_resnet18", batch_norm=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert all(m.bias is not None for m in network.modules() if isinstance(m, nn.Conv2d))
    assert network(rand(2, 3, 16, 16).float()).shape == (2, 10)


def test_a_membrane_twin_is_converted_and_its_rates_are_the_twins_activations() -> None:
    twin = small("ms_resnet18", activation="relu", width=8)
    for seed in range(20):
        twin(torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
    twin.eval()
    images = rand(16, 3, 16, 16).float()
    spiking = sf.convert.to_spiking(twin, [images], steps=100)
    with torch.no_grad():
        wanted = twin(images)
        errors = [(spiking(images, steps=steps) / steps - wanted).abs().max().item() for steps in (50, 1600)]
    assert errors[1] < 0.1 * wanted.abs().max() and errors[1] < errors[0] / 2


def test_a_network_that_adds_spikes_is_not_converted() -> None:
    twin = small("sew_resnet18", activation="relu")
    with pytest.raises(ValueError, match="got a SpikeElementWiseResNet, which adds the spikes of several"):
        sf.convert.to_spiking(twin, [rand(1, 3, 16, 16)])


@pytest.mark.parametrize("name", ["resnet11", "resnet18", "resnet50"])
def test_a_copy_as_a_twin_and_back_is_what_the_options_make(name: str) -> None:
    options = {"zero_init_residual": True, "shortcut_scale": 2.0}
    torch.manual_seed(0)
    network = small(name, **options)
    torch.manual_seed(0)
    twin = small(name, activation="relu", **options)
    images = rand(2, 3, 16, 16).float()
    with torch.no_grad():
        for copy, made in (
            (network.with_activation(models.Activation("relu")), twin),
            (twin.with_activation(models.Activation("if")), network),
            (network.with_activation(models.Activation("relu")).with_activation(models.Activation("if")), network),
        ):
            assert torch.equal(copy.eval()(images), made.eval()(images))
            assert copy.train()(images).abs().sum() > 0
            made.train()


def test_what_a_spike_must_be_worth_is_told_for_a_neuron_that_divides_its_input() -> None:
    with pytest.raises(ValueError, match=r"shortcut_scale \(8 for a threshold of 1: LIF divides its input by tau, 4\)"):
        small("resnet18", activation="lif", tau=4.0, zero_init_residual=True, shortcut_scale=2.0)
    small("resnet18", activation="lif", tau=4.0, zero_init_residual=True, shortcut_scale=8.0)
