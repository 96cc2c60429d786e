"""A network that exists keeps its results, parameters and checkpoints when its batch norms and neurons are fused."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys

import pytest
import torch
from fusing import assert_same, cases, currents, default_currents, fused_like, run, unlike_the_defaults
from resnet import BasicBlock, ResNet18, conv, norm
from torch import nn

import snnfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")

# A ResNet as users write it --------------------------------------------------------------------------------------


def resnet() -> ResNet18:
    torch.manual_seed(0)
    return unlike_the_defaults(ResNet18().double())


def images() -> torch.Tensor:
    return currents(3, 2, 3, 16, 16)


def test_every_batch_norm_that_feeds_a_neuron_of_a_resnet18_is_fused():
    model = resnet()
    report = fused_like(model, images(), count=17)
    assert [entry.name for entry in report.left] == [f"layer{i}.0.downsample.1.module" for i in (2, 3, 4)]
    for entry in report.left:
        block_name = entry.name.partition(".downsample")[0]
        assert f"{block_name}.bn2.module" in entry.reason
        assert type(model.get_submodule(entry.name)) is nn.BatchNorm2d
    assert [entry.batch_norm for entry in report.fused if entry.residual] == [
        f"layer{i}.{j}.bn2.module" for i in (1, 2, 3, 4) for j in (0, 1)
    ]
    for entry in report.fused:
        assert isinstance(model.get_submodule(entry.batch_norm), sf.BatchNormIF)
    assert isinstance(model.layer1[0], BasicBlock) and type(model) is ResNet18


def test_parameters_and_buffers_are_the_same_objects_in_the_same_order():
    model = resnet()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    kept = list(model.state_dict(keep_vars=True).items())
    sf.fuse(model)
    for before, after in ((parameters, model.named_parameters()), (buffers, model.named_buffers())):
        after = dict(after)
        assert list(before) == list(after)
        assert all(before[name] is after[name] for name in before)
    for (name, tensor), (name_after, after) in zip(kept, model.state_dict(keep_vars=True).items(), strict=True):
        assert name == name_after and tensor is after


def test_an_optimizer_made_before_fusing_trains_the_network_as_it_would_have():
    model, plain = resnet(), resnet()
    labels = torch.tensor([1, 3])
    losses = []
    for network in (model, plain):
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        if network is model:
            assert len(sf.fuse(network).fused) == 17
        losses.append([])
        for step in range(20):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(currents(3, 2, 3, 16, 16, seed=step)), labels)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-8) and losses[0][-1] < losses[0][0]
    for trained, wanted in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(trained, wanted, rtol=0, atol=1e-8)


def test_checkpoints_go_both_ways_between_fused_and_unfused_networks():
    source = resnet()
    for module in source.modules():
        if isinstance(module, sf.IF):
            module.surrogate = sf.surrogate.Triangle(gamma=0.7)
    target = copy.deepcopy(source)
    sf.fuse(source)
    run(source, images())  # moves the running statistics
    for _ in range(2):  # fused to plain, then plain to fused
        with torch.no_grad():
            for tensor in target.state_dict().values():
                tensor.zero_()
        for module in target.modules():
            if hasattr(module, "surrogate"):
                module.surrogate = None
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert_same(target, copy.deepcopy(source), images())
        source, target = target, source


def test_a_fused_network_can_be_copied_pickled_and_saved_whole():
    model = resnet()
    sf.fuse(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for other in copies:
        assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
        other.layer1[0].sn2.surrogate = sf.surrogate.Triangle(gamma=0.3)
        assert other.layer1[0].bn2.module.surrogate.gamma == 0.3  # its own layer, not the original's
        assert model.layer1[0].bn2.module.surrogate.gamma == 10.0
        other.layer1[0].sn2.surrogate = None
        assert_same(other, copy.deepcopy(model), images())


def test_a_fused_network_can_be_loaded_in_a_new_process(tmp_path):
    model = resnet().eval()
    sf.fuse(model)
    torch.save((model, images(), model(images())), tmp_path / "model.pt")
    code = f"""
import sys
sys.path[:0] = {[os.path.dirname(__file__), os.path.dirname(os.path.dirname(sf.__file__))]!r}
import fusing, torch
model, images, output = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
assert torch.equal(model(images), output) and "FusedBasicBlock" in repr(model)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_fusing_again_changes_nothing():
    model = resnet()
    first = sf.fuse(model)
    modules = list(model.modules())
    second = sf.fuse(model)
    assert not second.fused
    assert [entry.name for entry in second.left] == [entry.name for entry in first.left]
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))


def test_the_report_and_the_fused_network_print_what_happened():
    model = resnet()
    lines = str(sf.fuse(model)).splitlines()
    assert lines[0] == "17 fused:"
    assert "  layer1.0.bn2.module + layer1.0.sn2  (residual)" in lines
    assert any(line.startswith("  layer2.0.downsample.1.module  the other operand") for line in lines)
    shown = repr(model)
    assert "FusedBasicBlock(" in shown and "BatchNormIF(4" in shown
    assert "(sn2): FusedNeuron(runs in 'layer1.0.bn2.module')" in shown
    assert str(sf.fuse(nn.Linear(2, 2))) == "0 fused\n0 left"


def test_torch_compile_takes_a_fused_network_whole():
    model = resnet()
    model.layer2 = model.layer3 = model.layer4 = nn.Identity()
    model.fc = sf.OverTime(nn.Linear(4, 5).double())
    plain = copy.deepcopy(model)
    sf.fuse(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), plain(images()), rtol=0, atol=1e-10)


# Sequentials ------------------------------------------------------------------------------------------------------


def sequential(*modules: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return unlike_the_defaults(nn.Sequential(*modules).double())


@pytest.mark.parametrize(
    ("modules", "name"),
    cases(
        {
            "batch norm alone over time": (lambda: [conv(3, 3, 3), norm(3), sf.IF()], "1.module"),
            "convolution and batch norm over time": (
                lambda: [sf.OverTime(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), sf.LIF(tau=3.0)],
                "0.module.1",
            ),
            "nested in Sequentials": (
                lambda: [nn.Sequential(conv(3, 3, 3), nn.Sequential(norm(3))), nn.Sequential(sf.IF(), nn.Identity())],
                "0.1.0.module",
            ),
            "deep inside OverTime": (
                lambda: [
                    sf.OverTime(nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))),
                    sf.IF(),
                ],
                "0.module.1.1",
            ),
            "time second": (lambda: [norm(3), sf.IF(time_dim=1)], "0.module"),
            "soft reset and delay": (lambda: [norm(3), sf.IF(reset="soft", threshold=0.7, delay=True)], "0.module"),
            "learned threshold per channel": (
                lambda: [norm(3), sf.IF(torch.rand(3), learn_threshold=True)],
                "0.module",
            ),
            "buffers per channel": (lambda: [norm(3), sf.LIF(torch.rand(3) + 1.5, torch.rand(3))], "0.module"),
            "learned tau": (
                lambda: [norm(3), sf.LIF(2.5, 0.4, learn_tau=True, learn_threshold=True, decay_input=False)],
                "0.module",
            ),
            "3d": (lambda: [nn.Unflatten(4, (1, 5)), sf.OverTime(nn.BatchNorm3d(3)), sf.IF()], "1.module"),
            "1d of [N, C]": (
                lambda: [sf.OverTime(nn.Sequential(nn.Flatten(), nn.Linear(75, 6), nn.BatchNorm1d(6))), sf.IF()],
                "0.module.2",
            ),
            "1d of [N, C, L]": (lambda: [nn.Flatten(3), sf.OverTime(nn.BatchNorm1d(3)), sf.IF()], "1.module"),
            "without parameters": (lambda: [sf.OverTime(nn.BatchNorm2d(3, affine=False)), sf.IF(0.3)], "0.module"),
            "cumulative average": (lambda: [sf.OverTime(nn.BatchNorm2d(3, momentum=None)), sf.IF()], "0.module"),
            "another momentum and eps": (
                lambda: [sf.OverTime(nn.BatchNorm2d(3, eps=0.5, momentum=0.7)), sf.IF()],
                "0.module",
            ),
            "batch statistics always": (
                lambda: [sf.OverTime(nn.BatchNorm2d(3, track_running_stats=False)), sf.IF()],
                "0.module",
            ),
        }
    ),
)
def test_a_batch_norm_before_a_neuron_in_a_sequential_is_fused_under_its_name(modules, name):
    model = sequential(*modules())
    report = fused_like(model, default_currents())
    assert report.fused[0].batch_norm == name and not report.left
    assert type(model) is nn.Sequential


@pytest.mark.filterwarnings("ignore:the state dict has no metadata")  # plain dicts
def test_learned_thresholds_and_time_constants_keep_their_keys_and_load_from_old_checkpoints():
    def make():
        return sequential(
            norm(3),
            sf.LIF(torch.rand(3) + 1.5, torch.rand(3), learn_tau=True),
            nn.Identity(),
            norm(3),
            sf.IF(0.4, learn_threshold=True),
        )

    model = make()
    learned = {name: model.state_dict(keep_vars=True)[name] for name in ("1.tau_logit", "4.threshold")}
    sf.fuse(model)
    assert model[0].module.tau_logit is learned["1.tau_logit"]
    assert model[3].module.threshold is learned["4.threshold"]
    for assign in (False, True):
        old = {
            key: torch.rand_like(value) + 1 - 0.4 * assign if value.is_floating_point() else value + 7
            for key, value in make().state_dict().items()
        }
        assert not any(model.load_state_dict(old, strict=True, assign=assign))
        assert all(torch.equal(value, old[key]) for key, value in model.state_dict().items())
        plain = make()
        plain.load_state_dict(model.state_dict(), strict=True)
        assert_same(copy.deepcopy(model), plain, default_currents())
    del old["4.threshold"], old["1.threshold"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"1.threshold", "4.threshold"'):
        model.load_state_dict(old)


@pytest.mark.filterwarnings("ignore:the state dict has no metadata")  # plain dicts
def test_tensors_follow_to_another_dtype_and_load_afterwards():
    model = sequential(norm(3), sf.LIF(torch.rand(3) + 1.5, torch.rand(3)))
    sf.fuse(model)
    model.float()
    state = {
        key: torch.rand_like(value) + 1 if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    assert model[0].module.tau.dtype == torch.float32 and torch.equal(model[0].module.tau, state["1.tau"])
    assert model(default_currents().float()).dtype == torch.float32


def test_frozen_parameters_evaluation_mode_and_carried_state_carry_over():
    model = sequential(conv(3, 3, 3), norm(3), sf.IF(carry_state=True), nn.Identity())
    model[1].module.weight.requires_grad_(False)
    model.eval().train(False)
    model[3].train()
    plain = copy.deepcopy(model)
    for network in (model, plain):
        network(default_currents())
    sf.fuse(model)
    layer = model[1].module
    assert not layer.training and not model[2].training and model[3].training
    assert not layer.weight.requires_grad and layer.bias.requires_grad
    assert torch.equal(layer.state, plain[2].state)
    assert torch.equal(model(default_currents()), plain(default_currents()))
    torch.testing.assert_close(model[2].state, plain[2].state, rtol=0, atol=1e-12)
    model[2].reset_state()
    assert layer.state is None


def test_the_neurons_name_still_reads_and_sets_the_neurons_options():
    model = sequential(norm(3), sf.LIF(tau=3.0))
    sf.fuse(model)
    model[1].surrogate = sf.surrogate.Triangle(gamma=0.5)
    model[1].threshold = 0.25
    assert (model[0].module.surrogate.gamma, model[0].module.threshold, model[1].tau) == (0.5, 0.25, 3.0)
    assert not hasattr(model[1], "weight") and not hasattr(model[1], "running_mean")
    with pytest.raises(ValueError, match="threshold"):
        model[1].threshold = -1.0
