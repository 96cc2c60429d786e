"""A trained ReLU network becomes a spiking one that answers as it does, the better the more steps it gets."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnfast as sf
from snnfast import data, models
from snnfast.convert import largest_current, to_spiking
from snnfast.models.residual import Convolution

pytestmark = pytest.mark.usefixtures("one_thread")


def trained_looking(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Running statistics of a batch, and scales and shifts as training might leave them; in evaluation mode."""
    for module in network.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, 0.0, 0.1)
    network(torch.rand(shape))
    return network.eval()


def residual(batch_norm: bool, hidden: bool) -> nn.Module:
    """An identity shortcut, a projected one, and, as in ResNet11, a pooled one; few channels."""
    blocks = [[Convolution(6), Convolution(6)], *[[Convolution(8), Convolution(8, 3, 2)]] * 2]
    head = nn.Identity() if hidden else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    activation = models.Activation("relu", batch_norm)
    stem = nn.Conv2d(3, 6, 3, padding=1, bias=not batch_norm)
    return models.ResNet(stem, nn.AvgPool2d(2), blocks, (8 * 2 * 2, 20) if hidden else None, head, 5, activation, 10)


ANNS = {
    "mnist_net": lambda: models.mnist_net(image_size=16, in_channels=3, activation="relu"),
    "plain_net": lambda: models.plain_net(layers=4, image_size=16, activation="relu"),
    "residual": lambda: residual(True, True),
    "residual, no batch norm": lambda: residual(False, False),
}
SHAPE = (4, 3, 16, 16)


@pytest.fixture(params=ANNS.values(), ids=ANNS)
def ann(request):
    torch.manual_seed(0)
    return trained_looking(request.param(), SHAPE)


@torch.no_grad()
def test_logits_over_steps_approach_those_of_the_ann(ann):
    images = torch.rand(SHAPE)
    spiking = to_spiking(ann, [images], steps=60)
    wanted = ann(images)
    spread = (wanted - wanted.mean(0)).abs().max()
    short, long = (((spiking(images, steps=t) / t - wanted).abs().max() / spread).item() for t in (60, 1500))
    assert long < 0.15
    assert long < 0.25 * short  # biases and shortcuts in the wrong units would leave an error that stays


def test_the_result_is_the_same_architecture_of_soft_reset_neurons_ready_to_use(ann):
    before = copy.deepcopy(ann.state_dict())
    spiking = to_spiking(ann, [torch.rand(SHAPE)], steps=30)
    assert type(spiking) is type(ann) and spiking.steps == 30 and not spiking.training
    kind = sf.BatchNormIF if ann.activation.batch_norm else sf.IF
    assert len(spiking.neurons()) == len(ann.neurons())
    assert all(isinstance(neuron, kind) and neuron.reset == "soft" for neuron in spiking.neurons())
    # The ANN is left as it was, and is not what the copy computes with.
    assert all(torch.equal(value, before[key]) for key, value in ann.state_dict().items())
    assert not ann.activation.spiking
    spiking.classifier.weight.data.zero_()
    assert ann.classifier.weight.any()


@torch.no_grad()
def test_what_a_spike_would_be_worth_on_a_twins_shortcuts_has_no_part_in_its_conversion():
    images, found = torch.rand(SHAPE), []
    for scale in (1.0, 2.0):
        torch.manual_seed(0)
        ann = trained_looking(
            models.resnet11(5, width=4, image_size=16, activation="relu", shortcut_scale=scale), SHAPE
        )
        found.append(to_spiking(ann, [images], steps=20))
    scales = [[block.shortcut.scale for block in spiking.blocks] for spiking in found]
    assert scales[0] == scales[1] and any(scale != 1 for scale in scales[0])
    assert torch.equal(*(spiking(images) for spiking in found))


@torch.no_grad()
def test_each_threshold_is_the_largest_current_given_the_earlier_ones(ann):
    images = torch.rand(SHAPE)
    spiking = to_spiking(ann, [images], steps=25)
    # With all set, each layer receives what it did when it was set: nothing after it changes that.
    for neuron in spiking.neurons():
        assert neuron.threshold == pytest.approx(largest_current(spiking, neuron, images), rel=1e-6)
    stem = spiking.layers[0] if isinstance(spiking, models.FeedForwardNet) else spiking.stem
    current = stem(images)
    first = spiking.neurons()[0]
    if ann.activation.batch_norm:
        current = F.batch_norm(current, first.running_mean, first.running_var, first.weight, first.bias)
    assert first.threshold == pytest.approx(current.max().item(), rel=1e-5)


@torch.no_grad()
def test_the_largest_current_is_over_all_steps_and_counts_the_residual():
    torch.manual_seed(0)
    ann = trained_looking(residual(True, False), SHAPE)
    images = torch.rand(SHAPE)
    spiking = to_spiking(ann, [images], steps=25)
    block = spiking.blocks[1]
    spikes = spiking.blocks[0](
        spiking.pool(spiking.stem_activation(spiking.stem(images), steps=25).flatten(0, 1)).unflatten(0, (25, 4))
    )
    inner = block.activations[0](block.convolutions[0](spikes.flatten(0, 1)).unflatten(0, (25, 4)))
    last = block.activations[1]
    current = F.batch_norm(
        block.convolutions[1](inner.flatten(0, 1)), last.running_mean, last.running_var, last.weight, last.bias
    )
    total = current + block.shortcut(spikes).flatten(0, 1)
    assert last.threshold == pytest.approx(total.max().item(), rel=1e-5)
    assert total.max() > 1.02 * total[:4].max()  # of the first step


@torch.no_grad()
def test_batches_may_be_tensors_pairs_or_a_generator():
    torch.manual_seed(0)
    ann = trained_looking(models.plain_net(layers=3, image_size=16, activation="relu"), SHAPE)
    images = torch.rand(6, 3, 16, 16)
    labels = torch.zeros(2)
    ways = [
        [images],
        [images[:2], images[2:]],
        ((images[i : i + 2], labels) for i in (4, 2, 0)),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=4),
    ]
    thresholds = [[n.threshold for n in to_spiking(ann, way, steps=20).neurons()] for way in ways]
    for found in thresholds[1:]:
        assert found == pytest.approx(thresholds[0], rel=1e-5)


def test_a_network_trained_on_digits_keeps_its_accuracy():
    digits = data.load("digits")
    torch.manual_seed(0)
    ann = models.plain_net(layers=3, in_channels=1, image_size=8, activation="relu")
    optimizer = torch.optim.Adam(ann.parameters(), lr=0.003)
    for _ in range(3):
        for images, labels in digits.train.batches(64, shuffle=torch.Generator().manual_seed(0), drop_last=True):
            optimizer.zero_grad()
            F.cross_entropy(ann(images), labels).backward()
            optimizer.step()
    ann.eval()
    images, labels = next(iter(digits.test.batches(256)))

    @torch.no_grad()
    def accuracy(network, **options) -> float:
        return (network(images, **options).argmax(1) == labels).float().mean().item()

    spiking = to_spiking(ann, list(digits.train.batches(128))[:2], steps=100)
    assert accuracy(ann) > 0.9
    assert accuracy(spiking) > accuracy(ann) - 0.02


def test_a_layer_without_a_positive_current_is_named():
    ann = models.plain_net(layers=4, image_size=16, activation="relu").eval()
    with torch.no_grad():
        ann.activations[1].weight.zero_()
        ann.activations[1].bias.fill_(-0.5)
    with pytest.raises(ValueError, match=r"largest current of activations\.1 must be positive and finite, got -0\.5"):
        to_spiking(ann, [torch.rand(SHAPE)], steps=5)
    broken = models.plain_net(layers=3, image_size=16, activation="relu").eval()
    broken.layers[0].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"largest current of activations\.0 .* got nan"):
        to_spiking(broken, [torch.rand(SHAPE)], steps=5)


def test_what_cannot_be_converted_is_refused():
    ann, images = models.plain_net(layers=3, image_size=16, activation="relu"), torch.rand(SHAPE)
    with pytest.raises(TypeError, match=r"ann must be a network of snnfast\.models, got Linear"):
        to_spiking(nn.Linear(2, 2), [images])
    with pytest.raises(ValueError, match="ann must be made with activation='relu', got 'if'"):
        to_spiking(models.plain_net(layers=3), [images])
    with pytest.raises(ValueError, match="batches is empty"):
        to_spiking(ann, [])
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        to_spiking(ann, [images], steps=0)
    network = models.plain_net(layers=3, image_size=16)
    with pytest.raises(ValueError, match="evaluation mode"):
        largest_current(network, network.neurons()[0], images)
    with pytest.raises(ValueError, match="neuron must be one of"):
        largest_current(network.eval(), ann.neurons()[0], images)
