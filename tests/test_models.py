"""The paper's networks compute what a plain loop over the steps does, and have ANN twins of the same parameters."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
from configurations import error
from torch import nn
from torch.nn import functional as F

import snnfast as sf
from snnfast import models
from snnfast.models import FeedForwardNet, Network
from snnfast.models.residual import Convolution
from snnfast.surrogate import Triangle

pytestmark = pytest.mark.usefixtures("one_thread")


def narrow(
    blocks,
    num_classes=10,
    in_channels=3,
    *,
    stem="3x3",
    hidden=None,
    activation="if",
    batch_norm=True,
    steps=10,
    **neuron,
):
    """A ResNet of the given blocks with the stem and readout of the named ones, and few channels."""
    made = models.Activation(activation, batch_norm, neuron)
    first, pool = (
        (nn.Conv2d(in_channels, 6, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
        if stem == "7x7"
        else (nn.Conv2d(in_channels, 6, 3, 1, 1), nn.AvgPool2d(2))
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) if hidden is None else nn.Identity()
    return models.ResNet(first, pool, blocks, hidden, head, num_classes, made, steps)


BASIC = [[Convolution(6), Convolution(6)], *[[Convolution(8), Convolution(8, 3, 2)]] * 2]
BOTTLENECKS = [[Convolution(4, 1), Convolution(4, 3, stride), Convolution(12, 1)] for stride in (1, 2, 1)]

# How a network is made, its options, and images [B, C, H, W] that suit a quick test.
SMALL = {
    "mnist_net": (models.mnist_net, {"image_size": 16}, (3, 1, 16, 16)),
    "mnist_net, batch norm": (models.mnist_net, {"image_size": 16, "batch_norm": True}, (3, 1, 16, 16)),
    "plain_net 3": (models.plain_net, {"layers": 3, "image_size": 9}, (3, 3, 9, 9)),
    "plain_net 9": (models.plain_net, {"layers": 9, "image_size": 16}, (3, 3, 16, 16)),
    "basic blocks": (partial(narrow, BASIC), {"hidden": (32, 20)}, (3, 3, 16, 16)),
    "basic blocks, no batch norm": (partial(narrow, BASIC), {"batch_norm": False}, (3, 3, 16, 16)),
    "bottlenecks": (partial(narrow, BOTTLENECKS), {"stem": "7x7"}, (3, 3, 32, 32)),
}
each_small_network = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)


# The networks of releases, which keep their names. All others are read from models.names().
RELEASED = ("digits", "mnist_net", "plain_net", "resnet11", "resnet18", "resnet50")


def taking(option: str) -> list[str]:
    """The networks with an option of their own."""
    return [name for name in models.names() if models.takes(name, option)]


def on_meta(name: str, **options) -> Network:
    """A network without values: for what it is made of."""
    with torch.device("meta"):
        return models.build(name, **options)


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def settled(make, shape: tuple[int, ...], **options) -> Network:
    """A float64 network in evaluation mode in which all layers fire.

    Its running statistics are those of one batch; without any, its thresholds are low.
    """
    torch.manual_seed(0)
    network = make(**options).double()
    for module in network.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0
            nn.init.normal_(module.bias, 0.0, 0.3)
    if network.activation.spiking and not network.activation.batch_norm:
        for neuron in network.neurons():
            neuron.threshold = 0.1
    network(uniform(*shape, dtype=torch.float64))
    return network.eval()


# What is computed: a plain loop over the steps, written out with torch's own functions.


class Loop:
    """One step of a settled network at a time; ``potentials`` by neuron. Without spikes for its twin."""

    def __init__(self, network: Network, decay: float = 1.0, gain: float = 1.0, soft: bool = False) -> None:
        self.network, self.decay, self.gain, self.soft = network, decay, gain, soft
        self.potentials: dict[nn.Module, torch.Tensor] = {}

    def neuron(self, layer: nn.Module, current: torch.Tensor, residual: torch.Tensor | float = 0.0) -> torch.Tensor:
        if hasattr(layer, "running_mean"):
            current = F.batch_norm(current, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-5)
        current = current + residual
        if not self.network.activation.spiking:
            return current.relu()
        charged = self.decay * self.potentials.get(layer, torch.zeros_like(current)) + self.gain * current
        spikes = (charged > layer.threshold).double()
        self.potentials[layer] = charged - layer.threshold * spikes if self.soft else charged * (1 - spikes)
        return spikes

    def step(self, images: torch.Tensor) -> torch.Tensor:
        net = self.network
        if isinstance(net, FeedForwardNet):
            x = images
            for layer, neuron in zip(net.layers, net.activations, strict=True):
                x = self.neuron(neuron, layer(x))
        else:
            x = net.pool(self.neuron(net.stem_activation, net.stem(images)))
            for block in net.blocks:
                y = x
                for convolution, neuron in zip(block.convolutions[:-1], block.activations[:-1], strict=True):
                    y = self.neuron(neuron, convolution(y))
                y = block.convolutions[-1](y)
                x = self.neuron(block.activations[-1], y, block.shortcut.projection(x))
            if net.hidden is not None:
                x = self.neuron(net.hidden_activation, net.hidden(x))
        return F.linear(net.head(x), net.classifier.weight, net.classifier.bias)

    @torch.no_grad()
    def logits(self, images: torch.Tensor, steps: int) -> torch.Tensor:
        return sum(self.step(images) for _ in range(steps))


@each_small_network
def test_logits_are_the_currents_of_a_loop_over_the_steps_summed(case):
    make, options, shape = case
    network = settled(make, shape, **{"reset": "hard", "steps": 6, **options})
    images = uniform(*shape, dtype=torch.float64)
    logits = network(images)
    assert logits.shape == (shape[0], 10)
    wanted = Loop(network).logits(images, 6)
    assert error(logits, wanted) <= 1e-10
    assert (wanted - 6 * network.classifier.bias).abs().max() > 0  # the last neurons fire


@pytest.mark.parametrize("name, size", [("resnet11", 4), ("resnet18", 4)])
def test_the_papers_residual_networks_are_that_loop_too(name, size):
    shape = (2, 3, size, size)
    network = settled(getattr(models, name), shape, **({"image_size": size} if name == "resnet11" else {}))
    images = uniform(*shape, dtype=torch.float64)
    wanted = Loop(network).logits(images, 3)
    assert error(network(images, steps=3), wanted) <= 1e-10
    assert (wanted - 3 * network.classifier.bias).abs().max() > 0


def test_lif_networks_leak_and_the_soft_reset_subtracts():
    make, options, shape = SMALL["basic blocks"]
    network = settled(make, shape, activation="lif", tau=3.0, reset="soft", steps=6, **options)
    images = uniform(*shape, dtype=torch.float64)
    wanted = Loop(network, decay=1 - 1 / 3, gain=1 / 3, soft=True).logits(images, 6)
    assert error(network(images), wanted) <= 1e-10


@each_small_network
def test_the_twin_is_the_same_network_with_relu(case):
    make, options, shape = case
    network = settled(make, shape, activation="relu", **options)
    images = uniform(*shape, dtype=torch.float64)
    wanted = Loop(network).logits(images, 1)
    assert error(network(images), wanted) <= 1e-10
    assert torch.equal(network(images, steps=7), network(images))  # it has no time


@each_small_network
def test_state_dicts_interchange_with_the_twin(case):
    make, options, shape = case
    network = settled(make, shape, **options)
    twin = make(activation="relu", **options).double()
    assert list(twin.state_dict()) == list(network.state_dict())
    twin.load_state_dict(network.state_dict())
    same = network.with_activation(models.Activation("relu", network.activation.batch_norm))
    images = uniform(*shape, dtype=torch.float64)
    assert torch.equal(twin.eval()(images), same(images))
    back = settled(make, shape, **options)
    for value in back.state_dict().values():
        value.zero_()
    back.load_state_dict(twin.state_dict())
    assert torch.equal(back(images), network(images))


def test_a_seed_means_the_same_weights_in_network_and_twin():
    drawn = []
    for activation in ("if", "relu"):
        torch.manual_seed(3)
        drawn.append(models.plain_net(activation=activation).state_dict())
    assert all(torch.equal(value, drawn[1][key]) for key, value in drawn[0].items())


@each_small_network
def test_steps_of_a_call_override_the_networks(case):
    make, options, shape = case
    network = settled(make, shape, steps=2, **options)
    images = uniform(*shape, dtype=torch.float64)
    longer = network(images, steps=5)
    assert not torch.equal(longer, network(images))
    network.steps = 5
    assert torch.equal(network(images), longer)


@each_small_network
def test_what_precedes_the_first_neuron_is_computed_once(case):
    make, options, shape = case
    network = make(steps=4, **options)
    batches = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    network(uniform(*shape))
    assert batches[0] == batches[-1] == shape[0]  # the first convolution, and the linear map of the sums
    assert set(batches[1:-1]) == {4 * shape[0]}


@each_small_network
def test_neurons_are_listed_in_the_order_in_which_they_run(case):
    make, options, shape = case
    network = make(steps=2, **options)
    ran = []
    for neuron in network.neurons():
        neuron.register_forward_hook(lambda layer, inputs, output: ran.append(layer))
    network(uniform(*shape))
    assert ran == list(network.neurons())
    assert len(ran) == sum(isinstance(module, sf.IF) for module in network.modules())


@each_small_network
def test_every_parameter_gets_a_gradient(case):
    make, options, shape = case
    torch.manual_seed(0)
    network = make(steps=3, threshold=0.1, **options)
    F.cross_entropy(network(uniform(*shape)), torch.arange(shape[0])).backward()
    without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


# Options


def test_options_of_the_neuron_reach_every_neuron():
    surrogate = Triangle(gamma=0.5)
    network = models.resnet18(activation="lif", tau=4.0, reset="soft", threshold=0.7, surrogate=surrogate)
    assert len(network.neurons()) == 17
    for neuron in network.neurons():
        assert isinstance(neuron, sf.BatchNormLIF)
        assert (neuron.tau, neuron.reset, neuron.threshold, neuron.surrogate) == (4.0, "soft", 0.7, surrogate)
    # The twin takes the same options, and has no use for them.
    models.resnet18(activation="relu", tau=4.0, reset="soft", threshold=0.7, surrogate=surrogate)


def test_only_the_mnist_network_has_the_soft_reset_and_no_batch_norm_by_default():
    assert {type(n) for n in models.mnist_net().neurons()} == {models.ResidualIF}
    assert {n.reset for n in models.mnist_net().neurons()} == {"soft"}


@pytest.mark.parametrize("name", [name for name in RELEASED if name in taking("batch_norm") and name != "mnist_net"])
def test_the_others_of_the_paper_have_the_hard_reset_and_batch_norm_by_default(name):
    network = on_meta(name)
    assert {type(n) for n in network.neurons()} == {sf.BatchNormIF}
    assert {n.reset for n in network.neurons()} == {"hard"}


@pytest.mark.parametrize("name", taking("batch_norm"))
@pytest.mark.parametrize("batch_norm", [True, False], ids=["batch norm", "none"])
def test_layers_have_a_bias_where_no_batch_norm_has_one(name, batch_norm):
    network = on_meta(name, batch_norm=batch_norm)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m is not network.classifier]
    assert {layer.bias is None for layer in layers} == {batch_norm}
    assert any(key.endswith("running_mean") for key in network.state_dict()) == batch_norm
    assert network.classifier.bias is not None


def test_dropout_has_one_mask_for_all_steps():
    network = models.mnist_net(threshold=0.02, steps=6).train()
    seen = []
    network.head.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    network(uniform(2, 1, 28, 28))
    ((counts, dropped),) = seen
    assert counts.shape == (2, 1024) and counts.max() > 1
    kept = dropped != 0
    assert torch.equal(dropped[kept], 2 * counts[kept]) and 0.3 < kept[counts > 0].float().mean() < 0.7
    network.eval()(uniform(2, 1, 28, 28))
    assert torch.equal(*seen[1])


def test_convolutions_start_with_the_weights_of_he_et_al():
    for network in (models.resnet18(), models.plain_net(layers=9, batch_norm=False)):
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 10000]
        assert len(convolutions) >= 3
        for convolution in convolutions:
            wanted = (2 / (convolution.out_channels * convolution.kernel_size[0] ** 2)) ** 0.5
            assert convolution.weight.std().item() == pytest.approx(wanted, rel=0.05)
            assert convolution.bias is None or not convolution.bias.any()


def test_a_network_learns():
    torch.manual_seed(0)
    network = models.plain_net(layers=3, image_size=8, in_channels=1, num_classes=3, steps=4)
    images, labels = torch.rand(24, 1, 8, 8), torch.arange(24) % 3
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_copy_with_another_activation_has_the_weights_and_is_a_copy():
    make, options, shape = SMALL["basic blocks"]
    ann = settled(make, shape, activation="relu", **options)
    before = {key: value.clone() for key, value in ann.state_dict().items()}
    copy = ann.with_activation(models.Activation("lif", True, {"surrogate": Triangle(), "tau": 5.0}))
    assert {(type(n), n.tau, n.surrogate) for n in copy.neurons()} == {(sf.BatchNormLIF, 5.0, Triangle())}
    assert not any(neuron.training for neuron in copy.neurons())
    with torch.no_grad():
        for key, value in copy.state_dict().items():
            assert torch.equal(value, before[key])
            value.zero_()
    assert all(torch.equal(value, before[key]) for key, value in ann.state_dict().items())
    # The surrogate is the new one also where a spiking network is copied.
    again = copy.with_activation(models.Activation("if", True))
    assert {n.surrogate for n in again.neurons()} == {sf.surrogate.FastSigmoid()}


@pytest.mark.parametrize("kind, make", [("if", sf.IF), ("lif", sf.LIF)])
def test_neurons_without_batch_norm_take_a_residual_current(kind, make):
    layer, plain = models.Activation(kind, False)(3), make()
    current, residual = uniform(5, 2, 3, 4), uniform(5, 2, 3, 4) - 0.3
    assert torch.equal(layer(current, residual=residual), plain(current + residual))
    assert torch.equal(layer(current), plain(current))
    held = current[0]
    assert torch.equal(layer(held, steps=5, residual=residual[0]), plain(held + residual[0], steps=5))
    assert torch.equal(layer(held, steps=5, residual=residual), plain(held + residual))
    with pytest.raises(ValueError, match=r"residual must have the shape \[2, 3, 4\] or \[5, 2, 3, 4\], got \[4, 2"):
        layer(held, steps=5, residual=residual[:4])
    with pytest.raises(ValueError, match=r"residual must have the shape \[5, 2, 3, 4\], got \[2, 3, 4\]"):
        layer(current, residual=residual[0])


# By name


@pytest.mark.parametrize("name", models.names())
def test_build_makes_every_network_by_name(name):
    assert on_meta(name, num_classes=7, in_channels=2, steps=3).steps == 3


def test_the_networks_of_releases_keep_their_names():
    assert set(RELEASED) <= set(models.names())
    assert all(name in models.__all__ for name in models.names())


def test_the_digits_network_is_built_by_name_for_other_images_too():
    assert isinstance(models.build("digits"), models.DigitsNet)
    assert models.build("digits", num_classes=4, image_size=12)(uniform(2, 1, 12, 12)).shape == (2, 4)
    assert {neuron.reset for neuron in models.build("digits").neurons()} == {"soft"}


REFUSED = {
    f"unknown network 'resnet34'; known: {', '.join(models.names())}": ("resnet34", {}),
    "activation must be one of 'if', 'lif', 'relu', got 'tanh'": ("resnet18", {"activation": "tanh"}),
    "activation must be 'if' or 'lif' for digits, got 'relu'": ("digits", {"activation": "relu"}),
    "layers must be one of 3, 4, 5, 9, 13, got 6": ("plain_net", {"layers": 6}),
    "stem must be one of '3x3', '7x7', got '5x5'": ("resnet50", {"stem": "5x5"}),
    "steps must be at least 1, got 0": ("mnist_net", {"steps": 0}),
    "image_size is too small for mnist_net, got 8": ("mnist_net", {"image_size": 8}),
    "image_size must be at least 2, got 1": ("resnet11", {"image_size": 1}),
    "width must be an int, got float": ("resnet11", {"width": 2.5}),
    "width must be at least 1, got -64": ("resnet18", {"width": -64}),
    "width must be an int, got bool": ("resnet50", {"width": True}),
    "reset must be": ("plain_net", {"reset": "firm"}),
    "time_dim must be 0 in a network, got 1": ("plain_net", {"time_dim": 1}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_network_cannot_be_is_named(message):
    name, options = REFUSED[message]
    with pytest.raises((TypeError, ValueError)) as caught:
        models.build(name, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", taking("width"))
def test_a_width_of_zero_is_refused_by_name(name):
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        models.build(name, width=0)


def test_takes_says_which_options_are_a_networks_own():
    options = ("steps", "image_size", "width", "layers", "stem", "batch_norm", "widths")
    assert {option: [name for name in RELEASED if models.takes(name, option)] for option in options} == {
        "steps": list(RELEASED),
        "image_size": ["digits", "mnist_net", "plain_net", "resnet11"],
        "width": ["plain_net", "resnet11", "resnet18", "resnet50"],
        "layers": ["plain_net"],
        "stem": ["resnet18", "resnet50"],
        "batch_norm": ["mnist_net", "plain_net", "resnet11", "resnet18", "resnet50"],
        "widths": ["digits"],
    }
    # Not the neurons' options, nor the name that collects them, nor what no one has.
    for option in ("reset", "surrogate", "neuron", "depth", ""):
        assert not any(models.takes(name, option) for name in models.names())
    with pytest.raises(ValueError, match=f"unknown network 'resnet34'; known: {', '.join(models.names())}"):
        models.takes("resnet34", "steps")


@pytest.mark.parametrize("activation", ["if", "relu"])
def test_options_that_do_not_exist_are_refused_by_the_twin_too(activation):
    with pytest.raises(TypeError, match="gamma"):
        models.plain_net(gamma=1.0, activation=activation)
    with pytest.raises(TypeError, match="batch_norm"):
        models.plain_net(batch_norm="yes", activation=activation)


def test_a_call_refuses_images_without_a_batch_and_steps_below_one():
    network = models.plain_net(layers=3)
    with pytest.raises(ValueError, match=r"images must have the shape \[B, C, H, W\], got \[3, 32, 32\]"):
        network(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        network(torch.rand(2, 3, 32, 32), steps=0)
    with pytest.raises(ValueError, match="batch_norm must be True"):
        network.with_activation(models.Activation("relu", False))
    with pytest.raises(ValueError, match=r"current must have a channel dimension, \[B, C, ...\], got \[3\]"):
        models.BatchNormReLU(3)(torch.rand(3))


@pytest.mark.parametrize("name", taking("width"))  # with and without a size of its own
def test_a_network_for_a_data_sets_images_fits_them(name) -> None:
    network = models.for_images(name, (1, 12, 12), 7, width=2, steps=2)
    assert network(torch.rand(2, 1, 12, 12)).shape == (2, 7)


def test_an_unknown_network_for_images_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown network 'resnet'"):
        models.for_images("resnet", (1, 12, 12), 7)


def test_networks_that_version_0_1_pickled_whole_find_their_batch_norm():
    pickled = pickle.dumps(models.BatchNorm2d(3), protocol=0)
    formerly = pickled.replace(b"snnfast.models.batch_norm", b"snnfast.models.normalization")
    assert formerly != pickled and type(pickle.loads(formerly)) is models.BatchNorm2d
