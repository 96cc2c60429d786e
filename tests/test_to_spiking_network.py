"""snnfast.to_spiking: a plain PyTorch network becomes the spiking network in its place."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from ann_networks import MLP, VGG, BasicBlock, Plain, ResNet
from libraries import without_torchvisions_operators
from torch import nn
from torch.nn import functional as F

import snnfast as sf

T = 4


def images(batch: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def made(kind, **options):
    torch.manual_seed(0)
    ann = kind(**options)
    for module in ann.modules():  # so that neurons fire
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, 0.0, 1.0)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.6)
    return ann


def spikes(current: torch.Tensor) -> torch.Tensor:
    return sf.reference.integrate_and_fire(current)[0]


def each_step(module, over_time):
    return module(over_time.flatten(0, 1)).unflatten(0, over_time.shape[:2])


# The same networks over time, written by hand on the plain loop of snnfast.reference.


def resnet_by_hand(ann: ResNet, x: torch.Tensor) -> torch.Tensor:
    s = spikes(ann.bn1(ann.conv1(x)).expand(T, -1, -1, -1, -1))
    for block in ann.layer1:
        identity = s if block.downsample is None else each_step(block.downsample, s)
        s_in = spikes(each_step(block.bn1, each_step(block.conv1, s)))
        s = spikes(each_step(block.bn2, each_step(block.conv2, s_in)) + identity)
    return sum(ann.fc(ann.avgpool(step).flatten(1)) for step in s)


def vgg_by_hand(ann: VGG, x: torch.Tensor) -> torch.Tensor:
    conv1, bn1, _, pool1, conv2, bn2, _, pool2 = ann.features
    s = each_step(pool1, spikes(bn1(conv1(x)).expand(T, -1, -1, -1, -1)))
    s = each_step(pool2, spikes(each_step(bn2, each_step(conv2, s))))
    s = spikes(ann.classifier[0](s.flatten(2)))
    return sum(ann.classifier[3](step) for step in s)


def mlp_by_hand(ann: MLP, x: torch.Tensor) -> torch.Tensor:
    s = spikes(ann.fc1(x.flatten(1)).expand(T, -1, -1))
    s = spikes(ann.fc2(s))
    return F.log_softmax(sum(ann.fc3(step) for step in s), dim=1)


BY_HAND = [(ResNet, resnet_by_hand), (VGG, vgg_by_hand), (MLP, mlp_by_hand)]


def without_dropout(ann: nn.Module) -> nn.Module:
    for module in ann.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return ann


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "not fused"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("kind", "by_hand"), BY_HAND, ids=[kind.__name__ for kind, _ in BY_HAND])
def test_logits_gradients_and_statistics_are_those_of_the_network_written_by_hand(kind, by_hand, training, fuse):
    ann = without_dropout(made(kind)).train(training).double()
    x = images().double()
    net = sf.to_spiking(ann, x, T, fuse=fuse)
    expected = by_hand(ann, x)
    result = net(x)
    assert expected.detach().std() > 0.1, "neurons must fire for this to say anything"
    torch.testing.assert_close(result, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).double()
    (expected * weights).sum().backward()
    (result * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert gradients.keys() == dict(ann.named_parameters()).keys()
    for name, parameter in ann.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")
    for name, buffer in ann.named_buffers():
        torch.testing.assert_close(net.get_buffer(name), buffer)


def test_a_plain_network_is_the_one_of_snnfast_models():
    ann = made(Plain)
    twin = sf.models.plain_net(5, layers=4, width=4, image_size=8, steps=T)
    twin.load_state_dict(ann.state_dict())
    net = sf.to_spiking(ann, images(), T)
    x = images(seed=1)
    torch.testing.assert_close(net(x), twin(x))
    torch.testing.assert_close(net(x, steps=7), twin(x, steps=7))
    assert len(net.report.fused.fused) == 3 and not net.report.fused.left


def test_the_part_before_the_first_neuron_runs_once_and_the_last_linear_layer_too():
    ann = made(ResNet)
    net = sf.to_spiking(ann, images(), T)
    sizes = {}
    for name in ("conv1", "layer1.0.conv1", "fc"):
        net.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: sizes.setdefault(name, []).append(len(args[0]))
        )
    net(images(batch=3))
    assert sizes == {"conv1": [3], "layer1.0.conv1": [3 * T], "fc": [3]}
    assert net.report.first == ("relu",)


def test_a_relu_that_is_called_twice_becomes_two_neurons():
    net = sf.to_spiking(made(ResNet), images(), T, fuse=False)
    names = [entry.neuron for entry in net.report.replaced]
    assert names == ["relu", "layer1.0.relu", "layer1.0.relu_2", "layer1.1.relu", "layer1.1.relu_2"]
    neurons = [net.get_submodule(name) for name in names]
    assert all(type(neuron) is sf.IF for neuron in neurons) and len(set(neurons)) == 5


def test_a_residual_is_fused_with_the_batch_norm_and_the_neuron():
    report = sf.to_spiking(made(ResNet), images(), T).report
    residual = {entry.batch_norm: entry.residual for entry in report.fused.fused}
    assert residual == {
        **{"bn1": False, "layer1.0.bn1": False, "layer1.0.bn2": True},
        **{"layer1.1.bn1": False, "layer1.1.bn2": True},
    }
    assert [left.name for left in report.fused.left] == ["layer1.1.downsample.1"]
    held = [entry.batch_norm for entry in report.fused.fused if entry.held]
    assert held == ["bn1"]


def test_the_report_names_neurons_max_pools_and_the_first_neuron():
    report = sf.to_spiking(made(VGG), images(), T).report
    text = str(report)
    assert [left.name for left in report.left] == ["features.3", "features.7"]
    assert all("MaxPool2d of spikes" in left.reason for left in report.left)
    assert "features.2    ReLU  (first: its current is held)" in text
    assert "summed over time: what goes into classifier.2" in text
    assert "batch norms: 2 fused:" in text


def test_the_ann_stays_as_it_is():
    ann = made(ResNet)
    before, text = copy.deepcopy(ann.state_dict()), repr(ann)
    net = sf.to_spiking(ann, images(), T)
    net(images()).sum().backward()
    assert repr(ann) == text and ann.training
    assert all(torch.equal(value, before[key]) for key, value in ann.state_dict().items())
    assert all(parameter.grad is None for parameter in ann.parameters())


@pytest.mark.parametrize("kind", [ResNet, VGG, MLP, Plain])
def test_state_dicts_interchange_without_a_warning(kind):
    ann, other = made(kind), kind()
    net = sf.to_spiking(other, images(), T)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.load_state_dict(ann.state_dict())
    ann.load_state_dict(net.state_dict())
    again = sf.to_spiking(kind(), images(), T)
    again.load_state_dict(net.state_dict())
    x = images(seed=2)
    assert torch.equal(again.eval()(x), net.eval()(x))


def test_copies_and_pickles_are_the_same_network():
    net = sf.to_spiking(made(ResNet), images(), T).eval()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(images()), net(images()))
        assert str(other.report) == str(net.report)


@pytest.mark.parametrize("kind", [ResNet, VGG, MLP])
def test_a_few_steps_of_training_lower_the_loss(kind):
    x, labels = images(batch=10), torch.arange(10) % 5
    net = sf.to_spiking(without_dropout(made(kind)), x, T)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_gamma_is_tuned_where_asked():
    batches = [(images(seed=seed), torch.tensor([0, 1, 2])) for seed in range(2)]
    net = sf.to_spiking(made(ResNet), images(), T, tune=True, batches=batches)
    gamma = net.report.tuning.gamma
    assert {module.surrogate.gamma for module in net.modules() if isinstance(module, sf.IF | sf.BatchNormIF)} == {gamma}
    assert f"γ = {gamma:.4g}, tuned" in str(net.report)


def test_neurons_have_the_options_that_were_given():
    shape = sf.surrogate.Triangle(gamma=2.0)
    net = sf.to_spiking(made(MLP), images(), T, reset="soft", surrogate=shape, threshold=0.5, fire_on_equal=True)
    for neuron in (net.relu, net.relu_2):
        assert (neuron.reset, neuron.surrogate, neuron.threshold, neuron.fire_on_equal) == ("soft", shape, 0.5, True)
    leaky = sf.to_spiking(made(MLP), images(), T, activation="lif", tau=3.0)
    assert type(leaky.relu) is sf.LIF and leaky.relu.tau == 3.0


def test_dropout_between_neurons_draws_one_mask_for_all_steps():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.fc = nn.Dropout(0.5), nn.Linear(6, 6)

        def forward(self, x):
            return F.relu(self.fc(self.drop(F.relu(x))))

    ann = Net()
    nn.init.eye_(ann.fc.weight)
    nn.init.zeros_(ann.fc.bias)
    net = sf.to_spiking(ann, torch.rand(2, 6), steps=9, threshold=1.0)
    # A neuron fires at every step; dropped, its reader never does, kept, with 2 a step, always.
    assert set(net(torch.full((50, 6), 1.5)).flatten().tolist()) == {0.0, 9.0}
    assert set(net.eval()(torch.full((50, 6), 1.5)).flatten().tolist()) == {4.0}


class InPlace(nn.Module):
    """What comes after a ReLU in place reads the changed tensor, under its old name too."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.relu = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.fc1(x)
        out = self.fc2(self.relu(x))
        out += x
        return F.relu_(out)


def test_what_reads_a_tensor_after_a_relu_in_place_reads_spikes():
    torch.manual_seed(0)
    ann = InPlace()
    x = 3 * torch.rand(5, 6)
    s = spikes(ann.fc1(x).expand(T, -1, -1))
    torch.testing.assert_close(sf.to_spiking(ann, x, T)(x), spikes(ann.fc2(s) + s).sum(0))


class Mixed(nn.Module):
    """Images that meet spikes, a ReLU in a list, ReLU6, concatenation, a gate, a norm of its own, a number to add."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 4, 3, padding=1)])
        self.acts = nn.ModuleList([nn.ReLU(), nn.ReLU6()])
        self.norm, self.gate = nn.GroupNorm(2, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.full((1, 4, 1, 1), 2.0))

    def forward(self, x):
        b = x.shape[0]
        s = self.acts[0](self.norm(self.convs[0](x)) * self.scale + 1)
        s = torch.cat([s, x], dim=1)
        s = self.acts[1](self.convs[1](s))
        gate = torch.sigmoid(self.gate(s.mean((2, 3)))).reshape(b, -1, 1, 1)
        s = F.relu(2 * s * gate)
        return F.adaptive_avg_pool2d(s, 1).reshape(b, -1)


def test_images_beside_spikes_gates_and_sizes_are_right():
    torch.manual_seed(0)
    ann, x = Mixed(), images()
    net = sf.to_spiking(ann, x, T)
    s = spikes((ann.norm(ann.convs[0](x)) * ann.scale + 1).expand(T, -1, -1, -1, -1))
    s = torch.cat([s, x.expand(T, -1, -1, -1, -1)], dim=2)
    s = spikes(each_step(ann.convs[1], s))
    s = spikes(2 * s * torch.sigmoid(ann.gate(s.mean((3, 4))))[..., None, None])
    expected = s.mean((3, 4)).sum(0)
    assert expected.sum() > 0
    torch.testing.assert_close(net(x), expected)
    reasons = {left.name: left.reason for left in net.report.left}
    assert reasons.keys() == {"norm", "sigmoid", "mul"}
    assert "before the first neuron" in reasons["norm"] and "no neuron stands for it" in reasons["sigmoid"]
    assert [entry.neuron for entry in net.report.replaced] == ["acts.0", "acts.1", "relu"]


def test_a_last_layer_can_be_exchanged_and_parts_are_not_called_alone():
    net = sf.to_spiking(made(VGG), images(), T)
    net.classifier[3] = nn.Linear(16, 2)
    assert net(images()).shape == (3, 2)
    with pytest.raises(RuntimeError, match="this Sequential is a part of a spiking network"):
        net.features(images())


def test_it_compiles_and_is_seen_by_the_tools():
    net = sf.to_spiking(made(ResNet), images(), T).eval()
    assert not sf.check(net, images(), steps=T).problems
    assert len(sf.tuning.gradient_profile(net, [(images(), torch.tensor([0, 1, 2]))]).names) == 5
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), net(images()))


# Errors


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            x = x + 1
        return F.relu(x)


class FixedBatch(nn.Module):
    def forward(self, x):
        return F.relu(x).view(3, -1)


class AcrossSamples(nn.Module):
    def forward(self, x):
        return F.relu(x - x.mean(0))


class Turned(nn.Module):
    def forward(self, x):
        return F.relu(x.transpose(0, 1)).transpose(0, 1)


class Two(nn.Module):
    def forward(self, x):
        return F.relu(x), x


@pytest.mark.parametrize(
    ("ann", "said"),
    [
        (nn.Sequential(Branches()), r"'0' \(Branches\) cannot be traced.*line \d+: if x.sum\(\) > 0"),
        (FixedBatch(), "twice as many samples"),
        (AcrossSamples(), "each sample of a batch by itself"),
        (Turned(), "transpose in the forward of the model .* has not the batch for its first dimension"),
        (Two(), "one tensor, got tuple"),
        (nn.Sequential(nn.Linear(6, 3), nn.GELU()), r"no ReLU or ReLU6 .*left as they are would be 1 \(GELU\)"),
        (nn.Sequential(nn.Linear(6, 3)), "no ReLU"),
        (nn.ReLU(), "a network with layers in it, got a ReLU"),
        (nn.Sequential(nn.Linear(5, 3), nn.ReLU()), r"does not run on the sample, \[3, 6\]"),
        (nn.Sequential(nn.Linear(6, 3), sf.IF()), r"'1' \(IF\): it is spiking already"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_cannot_be_made_spiking_is_refused_with_the_reason(ann, said):
    with pytest.raises(ValueError, match=said):
        sf.to_spiking(ann, torch.rand(3, 6))


def test_wrong_arguments_are_named():
    ann, x = made(MLP), images()
    with pytest.raises(TypeError, match="sample must be a tensor, got list"):
        sf.to_spiking(ann, [x])
    with pytest.raises(TypeError, match=r"sample must be float32.*int64"):
        sf.to_spiking(ann, x.long())
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        sf.to_spiking(ann, x, steps=0)
    with pytest.raises(ValueError, match="batches must be given"):
        sf.to_spiking(ann, x, tune=True)
    with pytest.raises(ValueError, match="give tune=True"):
        sf.to_spiking(ann, x, batches=[(x, x)])
    with pytest.raises(TypeError, match="time_dim is no option of to_spiking"):
        sf.to_spiking(ann, x, time_dim=1)
    with pytest.raises(ValueError, match=r"a network of snnfast\.models, a FeedForwardNet"):
        sf.to_spiking(sf.models.plain_net(layers=3, activation="relu"), x)
    net = sf.to_spiking(ann, x)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        net(x, steps=0)
    with pytest.raises(TypeError, match="images must be a tensor"):
        net([x])


# torchvision


@pytest.fixture
def torchvision():
    with without_torchvisions_operators():
        pytest.importorskip("torchvision", reason="torchvision is not installed: its networks are not tried")
        from torchvision import models

    return models


@pytest.mark.parametrize(("name", "neurons", "fused"), [("resnet18", 17, 17), ("vgg11_bn", 10, 8)])
def test_torchvisions_networks_become_spiking(torchvision, name, neurons, fused):
    torch.manual_seed(0)
    ann = getattr(torchvision, name)(num_classes=3)
    x = images(batch=2, size=32)
    net = sf.to_spiking(ann, x, steps=2)
    assert len(net.report.replaced) == neurons and len(net.report.fused.fused) == fused
    net.load_state_dict(ann.state_dict())
    net(x).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_torchvisions_blocks_are_ours(torchvision):
    from torchvision.models.resnet import BasicBlock as Theirs

    torch.manual_seed(0)
    ours, theirs = BasicBlock(4, 4), Theirs(4, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(sf.to_spiking(ours, x, T)(x), sf.to_spiking(theirs, x, T)(x))
