"""A network that exists keeps its results, parameters and checkpoints when its batch norms and neurons are fused."""

from __future__ import annotations

import copy
import io
import pickle
import random

import fused_stand_in
import pytest
import torch
from resnet import BasicBlock, ResNet18, conv, norm
from torch import nn

import snnfast as sf

CHANNELS = 3


@pytest.fixture(autouse=True)
def layers(monkeypatch):
    fused_stand_in.ensure(monkeypatch, sf)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors of a few hundred numbers only lose by more threads, and much on a machine in use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def currents(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def default_currents() -> torch.Tensor:
    return currents(4, 2, CHANNELS, 5, 5)


def unlike_the_defaults(model: nn.Module) -> nn.Module:
    """Batch norms whose every number matters."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.3
            if module.running_mean is not None:
                module.running_mean -= 1
    return model


class Block(nn.Module):
    """Children that the forwards below call in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(CHANNELS)
        self.conv_bn = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS)
        )
        self.conv_over_time = conv(CHANNELS, CHANNELS, 3)
        self.bn_over_time = norm(CHANNELS)
        self.conv_bn_over_time = sf.OverTime(
            nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS))
        )
        self.shortcut = nn.Sequential(conv(CHANNELS, CHANNELS, 1), norm(CHANNELS))
        self.split = nn.Unflatten(0, (4, 2))
        self.sn = sf.IF()
        self.sn_and_more = nn.Sequential(sf.LIF(), sf.OverTime(nn.AvgPool2d(1)))
        self.sn_time_second = sf.IF(time_dim=1)
        self.steps = 4
        self.scale = 0.5
        self.added = True
        self.offset = nn.Parameter(torch.rand(CHANNELS, 1, 1))


def cases(table: dict[str, tuple]) -> list:
    return [pytest.param(*values, id=name) for name, values in table.items()]


def block(forward, **attributes) -> nn.Module:
    torch.manual_seed(0)
    model = type("Net", (Block,), {"forward": forward})().double()
    for name, value in attributes.items():
        setattr(model, name, value)
    return unlike_the_defaults(model)


def reason(report: sf.FuseReport, name: str) -> str:
    assert name not in [entry.batch_norm for entry in report.fused]
    (found,) = [entry.reason for entry in report.left if entry.name == name]
    return found


def run(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, every gradient, every buffer."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(1)
    out = model(x * 1.0)
    (out * currents(*out.shape, seed=9)).sum().backward()
    results = {"output": out.detach(), "gradient of the input": x.grad}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.requires_grad:
            results[name] = tensor.clone()
        elif tensor.grad is not None:
            results[f"gradient of {name}"] = tensor.grad
    return results


def assert_same(model: nn.Module, plain: nn.Module, x: torch.Tensor) -> None:
    for training in (True, False):
        results, expected = run(model.train(training), x), run(plain.train(training), x)
        assert list(results) == list(expected)
        for name, wanted in expected.items():
            scale = max(wanted.abs().max().item(), 1e-30)
            torch.testing.assert_close(results[name], wanted, rtol=0, atol=1e-10 * scale, msg=lambda m, n=name: n + m)
        assert expected["output"].any() and expected["gradient of the input"].any()


def fused_like(model: nn.Module, x: torch.Tensor, count: int = 1) -> sf.FuseReport:
    """Fuses the model, which must then compute what it did, keep its keys, and survive copying."""
    plain = copy.deepcopy(model)
    report = sf.fuse(model)
    assert len(report.fused) == count, str(report)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert_same(copy.deepcopy(model), copy.deepcopy(plain), x)
    assert_same(model, plain, x)
    return report


def left_like(model: nn.Module, x: torch.Tensor) -> sf.FuseReport:
    """A model that fuse leaves alone is left exactly as it was."""
    plain = copy.deepcopy(model)
    modules, attributes = list(model.modules()), set(model.__dict__)
    report = sf.fuse(model)
    assert not report.fused
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert set(model.__dict__) == attributes and type(model) is type(plain)
    assert_same(model, plain, x)
    return report


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
    cases({
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
            lambda: [sf.OverTime(nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))), sf.IF()],
            "0.module.1.1",
        ),
        "time second": (lambda: [norm(3), sf.IF(time_dim=1)], "0.module"),
        "soft reset and delay": (lambda: [norm(3), sf.IF(reset="soft", threshold=0.7, delay=True)], "0.module"),
        "learned threshold per channel": (lambda: [norm(3), sf.IF(torch.rand(3), learn_threshold=True)], "0.module"),
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
    }),
)
def test_a_batch_norm_before_a_neuron_in_a_sequential_is_fused_under_its_name(modules, name):
    model = sequential(*modules())
    report = fused_like(model, default_currents())
    assert report.fused[0].batch_norm == name and not report.left
    assert type(model) is nn.Sequential


def test_learned_thresholds_and_time_constants_keep_their_keys_and_load_from_old_checkpoints():
    def make():
        return sequential(norm(3), sf.LIF(torch.rand(3) + 1.5, torch.rand(3), learn_tau=True), nn.Identity(),
                          norm(3), sf.IF(0.4, learn_threshold=True))  # fmt: skip

    model = make()
    learned = {name: model.state_dict(keep_vars=True)[name] for name in ("1.tau_logit", "4.threshold")}
    old = {key: torch.rand_like(value) + 1 if value.is_floating_point() else value + 7
           for key, value in model.state_dict().items()}  # fmt: skip
    sf.fuse(model)
    assert model[0].module.tau_logit is learned["1.tau_logit"]
    assert model[3].module.threshold is learned["4.threshold"]
    for assign in (False, True):
        assert not any(model.load_state_dict(old, strict=True, assign=assign))
        assert all(torch.equal(value, old[key]) for key, value in model.state_dict().items())
        plain = make()
        plain.load_state_dict(model.state_dict(), strict=True)
        assert_same(copy.deepcopy(model), plain, default_currents())
    del old["4.threshold"], old["1.threshold"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"1.threshold", "4.threshold"'):
        model.load_state_dict(old)


def test_tensors_follow_to_another_dtype_and_load_afterwards():
    model = sequential(norm(3), sf.LIF(torch.rand(3) + 1.5, torch.rand(3)))
    sf.fuse(model)
    model.float()
    state = {key: torch.rand_like(value) + 1 if value.is_floating_point() else value
             for key, value in model.state_dict().items()}  # fmt: skip
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
    assert torch.equal(model[2].state, plain[2].state)
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


# Forwards of their own --------------------------------------------------------------------------------------------


def flat(self, x):
    return self.bn(self.conv(x.flatten(0, 1)))


def over_time(self, x):
    return self.bn_over_time(self.conv_over_time(x))


def unpacked(self, x):
    steps, batch = x.shape[:2]
    return self.sn(flat(self, x).unflatten(0, (steps, batch)))


def sizes_as_view(self, x):
    steps, batch, _, height, width = x.shape
    return self.sn(self.bn(x.flatten(0, 1)).view(steps, batch, CHANNELS, height, width))


def sizes_of_the_output(self, x):
    y = flat(self, x)
    return self.sn(y.reshape(-1, x.size(1), y.size(1), y.shape[2], y.shape[3]))


def in_place_addition(self, x):
    y = over_time(self, x)
    y += x
    return self.sn(y)


def shortcut_computed_in_between(self, x):
    y = over_time(self, x)
    shortcut = self.shortcut(x)
    return self.sn(shortcut + y)


def dropped_shortcut(self, x):
    return self.sn(over_time(self, x) + nn.functional.dropout(x, 0.5, self.training))


def two_in_one_forward(self, x):
    y = self.sn_and_more(self.bn_over_time(x) + x)
    return self.sn(self.bn(self.conv(y.flatten(0, 1))).unflatten(0, (4, 2)) + x)


FORWARDS = {
    "flatten and unflatten": unpacked,
    "unflatten to a shape": lambda self, x: self.sn(flat(self, x).unflatten(0, x.shape[:2])),
    "torch.unflatten": lambda self, x: self.sn(torch.unflatten(flat(self, x), 0, (4, 2))),
    "nn.Unflatten": lambda self, x: self.sn(self.split(flat(self, x))),
    "a Sequential that ends in batch norm": lambda self, x: self.sn(self.conv_bn(x.flatten(0, 1)).unflatten(0, (4, 2))),
    "view of sizes": sizes_as_view,
    "view as a shape": lambda self, x: self.sn(self.bn(x.flatten(0, 1)).view(x.shape)),
    "view_as": lambda self, x: self.sn(self.bn(x.flatten(0, 1)).view_as(x)),
    "reshape to the output's own sizes": sizes_of_the_output,
    "keywords": lambda self, x: self.sn(current=self.bn_over_time(over_time=x), steps=None),
    "neuron in a Sequential": lambda self, x: self.sn_and_more(over_time(self, x)),
    "time second": lambda self, x: self.sn_time_second(over_time(self, x)),
}
ADDITIONS = {
    "shortcut last": lambda self, x: self.sn(over_time(self, x) + x),
    "shortcut first": lambda self, x: self.sn(x + over_time(self, x)),
    "+=": in_place_addition,
    ".add": lambda self, x: self.sn(over_time(self, x).add(x)),
    ".add_": lambda self, x: self.sn(over_time(self, x).add_(x)),
    "torch.add": lambda self, x: self.sn(torch.add(x, over_time(self, x), alpha=1)),
    "torch.add with names": lambda self, x: self.sn(torch.add(input=over_time(self, x), other=x)),
    "convolution and batch norm over time": lambda self, x: self.sn(self.conv_bn_over_time(x) + x),
    "Sequential of OverTime": lambda self, x: self.sn(self.shortcut(x) + x),
    "before unflatten": lambda self, x: self.sn((flat(self, x) + x.flatten(0, 1)).unflatten(0, (4, 2))),
    "after unflatten": lambda self, x: self.sn(flat(self, x).unflatten(0, (4, 2)) + x),
    "broadcast": lambda self, x: self.sn(over_time(self, x) + x.mean((3, 4), keepdim=True)),
    "broadcast after unflatten": lambda self, x: self.sn(flat(self, x).unflatten(0, (4, 2)) + x.mean(0, keepdim=True)),
    "neuron in a Sequential": lambda self, x: self.sn_and_more(over_time(self, x) + x),
    "time second": lambda self, x: self.sn_time_second(over_time(self, x) + x),
    "a scaled shortcut": lambda self, x: self.sn(over_time(self, x) + self.scale * x),
    "a shortcut with dropout": dropped_shortcut,
}
HELD = {
    "held": lambda self, x: self.sn(self.bn(self.conv(x[0])), steps=4),
    "held by an attribute": lambda self, x: self.sn(self.bn(x[0]), self.steps),
    "held with an addition": lambda self, x: self.sn(self.bn(x[0]) + x[1], steps=4),
    "held, time second": lambda self, x: self.sn_time_second(self.bn(x[0]), steps=4),
}


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_a_batch_norm_before_a_neuron_in_a_forward_is_fused(forward):
    report = fused_like(block(forward), default_currents())
    assert (report.fused[0].residual, report.fused[0].held) == (False, False)


@pytest.mark.parametrize("forward", ADDITIONS.values(), ids=ADDITIONS)
def test_an_addition_between_the_two_is_fused_too(forward):
    model = block(forward)
    report = fused_like(model, default_currents())
    assert report.fused[0].residual
    assert isinstance(model, Block) and model.scale == 0.5


@pytest.mark.parametrize("forward", HELD.values(), ids=HELD)
def test_a_held_current_is_fused_with_its_batch_norm(forward):
    report = fused_like(block(forward), default_currents())
    assert report.fused[0].held


def test_two_batch_norms_that_are_added_give_one_fused_layer_and_a_reason():
    model = block(shortcut_computed_in_between)
    report = fused_like(model, default_currents())
    assert report.fused[0].batch_norm == "bn_over_time.module"
    assert "'bn_over_time.module'" in reason(report, "shortcut.1.module")


def test_several_patterns_in_one_forward_are_all_fused():
    fused_like(block(two_in_one_forward), default_currents(), count=2)


def test_a_module_called_several_times_is_fused_inside():
    inner = block(ADDITIONS["shortcut last"])
    model = block(lambda self, x: self.inner(self.inner(x)), inner=inner)
    fused_like(model, default_currents())


def test_a_forward_without_addition_stays_the_users_own():
    model = block(FORWARDS["keywords"])
    kind = type(model)
    sf.fuse(model)
    assert type(model) is kind


def test_numbers_and_training_mode_still_matter_in_a_rewritten_forward():
    model = block(dropped_shortcut)
    sf.fuse(model)
    assert not torch.equal(model.train()(default_currents()), model.eval()(default_currents()))
    scaled, unscaled = block(ADDITIONS["a scaled shortcut"]), block(ADDITIONS["a scaled shortcut"])
    held = block(HELD["held by an attribute"])
    for network in (scaled, held):
        sf.fuse(network)
    scaled.scale = unscaled.scale = 3.0
    assert_same(scaled, unscaled, default_currents())
    held.steps = 9
    assert held(default_currents()).shape[0] == 9


def test_an_attribute_that_decided_the_graph_cannot_change_in_silence():
    def forward(self, x):
        y = over_time(self, x)
        return self.sn(y + x if self.added else y - x)

    model = block(forward)
    sf.fuse(model)
    model.added = True
    with pytest.raises(AttributeError, match=r"added cannot be False.*before fusing"):
        model.added = False


def test_another_method_that_adds_between_the_two_by_itself_is_refused():
    model = block(ADDITIONS["shortcut last"])
    sf.fuse(model)
    with pytest.raises(RuntimeError, match=r"bn_over_time\.module.*only that forward"):
        ADDITIONS["shortcut last"](model, default_currents())


def test_a_residual_larger_than_the_current_is_an_error_with_both_shapes():
    model = block(ADDITIONS["shortcut last"])
    model.conv_over_time = sf.OverTime(nn.AdaptiveAvgPool2d(1))
    sf.fuse(model)
    with pytest.raises(ValueError, match=r"residual of shape \[4, 2, 3, 5, 5\].*\[4, 2, 3, 1, 1\]"):
        model(default_currents())


# What is left, and why --------------------------------------------------------------------------------------------


class OwnBatchNorm(nn.BatchNorm2d):
    pass


class OwnNeuron(sf.IF):
    pass


def hook(*_):
    return None


HOOKS = ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
         "register_full_backward_pre_hook"]  # fmt: skip


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("hooked", ["bn_over_time", "bn_over_time.module", "sn"])
@pytest.mark.parametrize("forward", [ADDITIONS["shortcut last"], FORWARDS["keywords"]], ids=["added", "direct"])
def test_hooked_modules_are_left_and_named(forward, hooked, register):
    model = block(forward)
    getattr(model.get_submodule(hooked), register)(hook)
    why = reason(left_like(model, default_currents()), "bn_over_time.module")
    assert repr(hooked) in why and "hook" in why


def test_state_dict_hooks_and_hooks_for_all_modules_are_left_too():
    model = block(FORWARDS["keywords"])
    model.sn.register_state_dict_post_hook(hook)
    assert "'sn' (IF) has a state-dict hook" in reason(sf.fuse(model), "bn_over_time.module")
    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        assert "hooks for all modules" in reason(sf.fuse(block(FORWARDS["keywords"])), "bn_over_time.module")
    finally:
        handle.remove()


def test_a_hook_around_the_two_goes_on_seeing_the_same():
    model, plain = block(ADDITIONS["shortcut last"]), block(ADDITIONS["shortcut last"])
    seen = []
    for network in (model, plain):
        network.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    assert sf.fuse(model).fused
    model(default_currents())
    plain(default_currents())
    assert torch.equal(*seen)


def second_name(model):
    model.again = model.sn


def second_batch_norm_name(model):
    model.again = model.bn_over_time.module


@pytest.mark.parametrize(
    ("forward", "change", "name", "words"),
    cases({
        "one neuron called twice": (
            lambda self, x: self.sn(self.bn_over_time(self.sn(x))), None, "bn_over_time.module",
            "'sn' (IF) is shared: it is called at 2 places",
        ),
        "one batch norm called twice": (
            lambda self, x: self.sn(self.bn_over_time(x)) + self.sn_and_more(self.bn_over_time(x)), None,
            "bn_over_time.module", "is shared: it is called at 2 places",
        ),
        "a neuron with two names": (
            FORWARDS["keywords"], second_name, "bn_over_time.module", "the same object is 'sn', 'again'",
        ),
        "a batch norm with two names": (
            FORWARDS["keywords"], second_batch_norm_name, "bn_over_time.module", "'bn_over_time.module', 'again'",
        ),
        "batch for channels": (lambda self, x: self.sn(self.bn(x[0])), None, "bn", "wrongly ordered"),
        "batch for channels, added": (lambda self, x: self.sn(self.bn(x[0]) + x[0]), None, "bn", "wrongly ordered"),
        "held over time": (
            lambda self, x: self.sn(self.bn_over_time(x), steps=4), None, "bn_over_time.module", "dimension 2",
        ),
        "neuron first": (
            lambda self, x: self.conv_over_time(self.bn_over_time(self.sn(x))), None, "bn_over_time.module",
            "wrong order, it comes after the neuron 'sn'",
        ),
        "used elsewhere": (
            lambda self, x: (lambda y: self.sn(y) + y)(over_time(self, x)), None, "bn_over_time.module",
            "used at 2 places",
        ),
        "relu between": (
            lambda self, x: self.sn(over_time(self, x).relu()), None, "bn_over_time.module", "goes to 'relu'",
        ),
        "alpha": (
            lambda self, x: self.sn(torch.add(x, over_time(self, x), alpha=2)), None, "bn_over_time.module", "alpha",
        ),
        "a number": (lambda self, x: self.sn(over_time(self, x) + 0.1), None, "bn_over_time.module", "a number"),
        "a parameter": (
            lambda self, x: self.sn(over_time(self, x) + self.offset), None, "bn_over_time.module", "'offset'",
        ),
        "itself": (
            lambda self, x: (lambda y: self.sn(y + y))(over_time(self, x)), None, "bn_over_time.module", "itself",
        ),
        "two additions": (
            lambda self, x: self.sn(over_time(self, x) + x + x), None, "bn_over_time.module", "second addition",
        ),
        "in place into the input": (
            lambda self, x: self.sn(x.add_(over_time(self, x * 1))), None, "bn_over_time.module",
            "in place to the argument",
        ),
        "channels mixed": (
            lambda self, x: self.sn(flat(self, x).view(4, 2, -1)), None, "bn", "write unflatten(0, (T, B))",
        ),
        "its weight read": (
            lambda self, x: self.sn(over_time(self, x)) * self.bn_over_time.module.weight.sum(), None,
            "bn_over_time.module", "reads 'bn_over_time.module.weight'",
        ),
        "subclass of batch norm": (
            FORWARDS["keywords"],
            lambda model: model.__setattr__("bn_over_time", sf.OverTime(OwnBatchNorm(3).double())),
            "bn_over_time.module", "OwnBatchNorm is a subclass",
        ),
        "subclass of a neuron": (
            FORWARDS["keywords"], lambda model: model.__setattr__("sn", OwnNeuron()), "bn_over_time.module",
            "OwnNeuron",
        ),
        "parametrized": (
            FORWARDS["keywords"],
            lambda model: nn.utils.parametrize.register_parametrization(
                model.bn_over_time.module, "weight", nn.Identity()
            ),
            "bn_over_time.module", "parametrized",
        ),
        "weight norm as a hook": (
            FORWARDS["keywords"],
            lambda model: model.bn_over_time.module.register_forward_pre_hook(hook),
            "bn_over_time.module", "a forward pre-hook",
        ),
    }),
)  # fmt: skip
def test_what_does_not_fit_is_left_and_named_with_the_reason(forward, change, name, words):
    model = block(forward)
    if change is not None:
        change(model)
    assert words in reason(left_like(model, default_currents()), name)


@pytest.mark.parametrize("write", [lambda z: z.mul_(2), lambda z: nn.functional.relu(z, inplace=True),
                                   nn.ReLU(inplace=True)], ids=["method", "function", "module"])  # fmt: skip
def test_nothing_may_be_written_to_the_batch_norms_input_before_the_neuron_runs(write):
    def forward(self, x):
        y = x * 1
        return self.sn(self.bn_over_time(y) + self.write(y))

    model = block(forward, write=write)
    plain = copy.deepcopy(model)
    assert "written in place between" in reason(sf.fuse(model), "bn_over_time.module")
    with torch.no_grad():
        assert torch.equal(model(default_currents()), plain(default_currents()))


def test_synchronized_and_lazy_batch_norms_are_left_and_named():
    model = nn.Sequential(sf.OverTime(nn.SyncBatchNorm(3)), sf.IF(), sf.OverTime(nn.LazyBatchNorm2d()), sf.IF())
    report = sf.fuse(model)
    assert not report.fused
    assert "SyncBatchNorm" in reason(report, "0.module") and "lazy" in reason(report, "2.module")
    lazy = model[2:].double()
    lazy(default_currents())
    assert len(sf.fuse(lazy).fused) == 1


class ControlFlow(Block):
    def forward(self, x):
        if x.sum() > 0:
            x = self.sn(over_time(self, x))
        return self.stages(x)


def draws_random_numbers(self, x):
    y = over_time(self, x)
    return self.sn(y + x) if random.random() < 2 else y


def sets_an_attribute(self, x):
    self.last = over_time(self, x)
    return self.sn(self.last)


def makes_a_tensor(self, x):
    return self.sn(over_time(self, x) + torch.ones(3, 1, 1))


def without_gradients(self, x):
    with torch.no_grad():
        shortcut = x * 2
    return self.sn(over_time(self, x) + shortcut)


def other_in_training(self, x):
    return self.sn(over_time(self, x) + (x if self.training else x * 2))


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (draws_random_numbers, "random numbers"),
        (sets_an_attribute, "sets or changes the attribute 'last'"),
        (makes_a_tensor, "makes a tensor"),
        (without_gradients, "grad or autocast mode"),
        (other_in_training, "in training and in evaluation"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_forward_that_a_graph_would_falsify_is_left_and_named(forward, words):
    model = block(forward)
    state = random.getstate()
    report = sf.fuse(model)
    assert random.getstate() == state and "last" not in model.__dict__
    assert not report.fused and words in reason(report, "") and words in reason(report, "bn_over_time.module")
    assert_same(model, block(forward), default_currents())


def test_children_of_a_forward_that_cannot_be_traced_are_fused_all_the_same():
    torch.manual_seed(0)
    model = ControlFlow()
    model.stages = nn.Sequential(conv(3, 3, 3), norm(3), sf.IF(), block(ADDITIONS["shortcut last"]))
    unlike_the_defaults(model.double())
    report = fused_like(model, default_currents(), count=2)
    assert [entry.batch_norm for entry in report.fused] == ["stages.1.module", "stages.3.bn_over_time.module"]
    assert "control flow" in reason(report, "") and "control flow" in reason(report, "bn_over_time.module")


def test_a_batch_norm_that_nothing_calls_is_named():
    assert reason(sf.fuse(block(FORWARDS["keywords"])), "bn") == "no forward calls it"
    assert "itself" in reason(sf.fuse(nn.BatchNorm2d(3)), "")


@pytest.mark.parametrize("model", [None, "net", [nn.Linear(2, 2)], nn.Linear])
def test_what_is_no_module_is_a_type_error(model):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got (NoneType|str|list|type)"):
        sf.fuse(model)
