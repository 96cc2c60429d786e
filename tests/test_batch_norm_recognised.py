"""Batch norm and neuron in one layer is a batch norm to torch, which does to it what it does to nn.BatchNorm.

Each network is here in three forms that must end up the same: nn.BatchNorm and neuron, fused, and written with layers.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn

import snnfast as sf
from snnfast import models
from snnfast.fusion.reshape import of_module

pytestmark = pytest.mark.usefixtures("one_thread")
C = 5


def apart(**options) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        sf.OverTime(nn.Linear(4, C)),
        sf.OverTime(nn.BatchNorm1d(C, **options)),
        sf.IF(0.3),
        sf.OverTime(nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C, **options))),
        sf.LIF(threshold=0.3),
        sf.OverTime(nn.Linear(C, 3)),
    ).double()


def fused(**options) -> nn.Module:
    model = apart(**options)
    assert len(sf.fuse(model).fused) == 2
    return model


def written(**options) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        sf.OverTime(nn.Linear(4, C)),
        sf.BatchNormIF(C, threshold=0.3, **options),
        sf.OverTime(nn.Linear(C, C)),
        sf.BatchNormLIF(C, threshold=0.3, **options),
        sf.OverTime(nn.Linear(C, 3)),
    ).double()


FORMS: dict[str, Callable[..., nn.Module]] = {"fused": fused, "written": written}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(4, 6, 4, generator=generator, dtype=torch.float64) * (1 + i) + i for i in range(count)]


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def train(model: nn.Module, steps: int = 3) -> list[float]:
    """The losses of some steps of gradient descent, in the modes in which the modules are."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    losses = []
    for x in batches(steps):
        loss = (model(x).mean(0) - 0.7).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_the_same(model: nn.Module, plain: nn.Module) -> None:
    """Batch norms with equal parameters, statistics, options and modes, and equal outputs."""
    assert len(norms(model)) == len(norms(plain)) == 2
    for ours, theirs in zip(norms(model), norms(plain), strict=True):
        for name in ("running_mean", "running_var", "num_batches_tracked", "weight", "bias"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert (one is None) == (other is None), name
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
                assert one.requires_grad == other.requires_grad
        for name in ("momentum", "track_running_stats", "training"):
            assert getattr(ours, name) == getattr(theirs, name), name
    for x in batches():
        outputs, expected = model(x), plain(x)
        assert expected.std() > 0
        torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [sf.BatchNormIF, sf.BatchNormLIF])
def test_the_layers_are_batch_norms_and_neurons(make) -> None:
    layer = make(C)
    assert isinstance(layer, _BatchNorm) and isinstance(layer, sf.IF if make is sf.BatchNormIF else sf.LIF)
    assert not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm)
    assert layer._version == nn.BatchNorm2d(C)._version
    assert {"num_features", "eps", "momentum", "affine", "track_running_stats"} <= vars(layer).keys()


# Averaged weights


@forms
@pytest.mark.parametrize("momentum", [0.1, None])
def test_averaged_weights_get_statistics_of_their_own(form, momentum) -> None:
    averages = []
    for make in (form, apart):
        model = make(momentum=momentum)
        averaged = AveragedModel(model)
        for _ in range(3):
            train(model, 2)
            averaged.update_parameters(model)
        before = copy.deepcopy(averaged)
        update_bn([(x, None) for x in batches()], averaged)
        for norm, old in zip(norms(averaged), norms(before), strict=True):
            assert norm.num_batches_tracked == 3 and norm.momentum == momentum
            assert (norm.running_mean - old.running_mean).abs().max() > 1e-3
        averages.append(averaged.eval())
    assert_the_same(*averages)


@forms
def test_statistics_are_updated_through_a_compiled_network(form) -> None:
    model, plain = form(), apart()
    update_bn(batches(), torch.compile(model, backend="eager", fullgraph=True))
    update_bn(batches(), plain)
    assert_the_same(model.eval(), plain.eval())


def reset_as_lightning_does(model: nn.Module) -> None:
    for norm in norms(model):
        norm.running_mean = torch.zeros_like(norm.running_mean)
        norm.running_var = torch.ones_like(norm.running_var)
        norm.momentum = None
        norm.num_batches_tracked *= 0


# Attributes that may change at any time, as nn.BatchNorm takes them.
CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "momentum": lambda model: [setattr(norm, "momentum", 0.4) for norm in norms(model)],
    "cumulative": lambda model: [setattr(norm, "momentum", None) for norm in norms(model)],
    "reset": lambda model: [norm.reset_running_stats() for norm in norms(model)],
    "reset, cumulative": reset_as_lightning_does,
    "not tracked": lambda model: [setattr(norm, "track_running_stats", False) for norm in norms(model)],
    "not counted": lambda model: [setattr(norm, "num_batches_tracked", None) for norm in norms(model)],
    "not counted, cumulative": lambda model: [
        (setattr(norm, "num_batches_tracked", None), setattr(norm, "momentum", None)) for norm in norms(model)
    ],
    "without statistics": torch.func.replace_all_batch_norm_modules_,
    "frozen": lambda model: [norm.eval() for norm in norms(model)],
    "frozen, parameters too": lambda model: [norm.eval().requires_grad_(False) for norm in norms(model)],
    "parameters alone": lambda model: [norm.requires_grad_(False) for norm in norms(model)],
    "evaluation": lambda model: model.eval(),
    "parameters reset": lambda model: [norm.reset_parameters() for norm in norms(model)],
}


@forms
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_between_steps_does_what_it_does_to_torchs(form, change) -> None:
    model, plain = form(), apart()
    train(model), train(plain)
    change(model), change(plain)
    before = copy.deepcopy(plain.state_dict())
    assert train(model) == pytest.approx(train(plain), rel=1e-9)
    assert any(not torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert_the_same(model, plain)
    assert_the_same(model.eval(), plain.eval())
    # Back again, as after update_bn.
    for norm in (*norms(model), *norms(plain)):
        norm.momentum, norm.training = 0.1, True
    train(model), train(plain)
    assert_the_same(model.eval(), plain.eval())


@forms
def test_a_frozen_network_is_trained_as_its_unfused_self(form) -> None:
    model, plain = form(), apart()
    train(model), train(plain)
    kept = [{name: t.clone() for name, t in norm.state_dict().items()} for norm in norms(model)]
    for network in (model, plain):
        network.train()
        for norm in norms(network):
            norm.eval()
            norm.requires_grad_(False)
    assert train(model) == pytest.approx(train(plain), rel=1e-9)
    assert_the_same(model, plain)
    for norm, before in zip(norms(model), kept, strict=True):
        assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


@forms
def test_replaced_batch_norms_run_in_functional_calls(form) -> None:
    model, plain, x = form(), apart(), batches(1)[0]
    results = []
    for network in (model, plain):
        assert torch.func.replace_all_batch_norm_modules_(network) is network
        assert not any("running" in name or "tracked" in name for name in network.state_dict())
        tensors = {name: tensor * 1.5 for name, tensor in network.named_parameters()}
        output = torch.func.functional_call(network, tensors, (x,))
        results.append((output, torch.func.functional_call(network.eval(), tensors, (x,))))
        assert torch.equal(*results[-1])
    torch.testing.assert_close(*(first for first, _ in results), rtol=1e-10, atol=1e-12)
    for norm in norms(model):
        norm.reset_running_stats()
        assert "track_running_stats=False" in repr(norm)


@forms
def test_functional_calls_take_statistics_and_move_them(form) -> None:
    model, plain, x = form(), apart(), batches(1)[0]
    for network in (model, plain):
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        torch.func.functional_call(network, {**dict(network.named_parameters()), **buffers}, (x,))
        assert all(norm.num_batches_tracked == 0 for norm in norms(network))
        for name, buffer in network.named_buffers():
            assert not torch.equal(buffers[name], buffer)
            buffer.copy_(buffers[name])
    assert_the_same(model.eval(), plain.eval())


# Conversion


@forms
@pytest.mark.parametrize(
    "convert", [nn.SyncBatchNorm.convert_sync_batchnorm, type("Own", (nn.SyncBatchNorm,), {}).convert_sync_batchnorm]
)
def test_torchs_conversion_keeps_the_neurons(form, convert) -> None:
    model, plain = form(), apart()
    modules, keys = list(model.modules()), list(model.state_dict())
    assert convert(model) is model
    assert list(model.modules()) == modules and list(model.state_dict()) == keys
    assert all(norm.process_group == "world, once initialised" for norm in norms(model))
    # As an nn.SyncBatchNorm, a layer is of this process alone until torch.distributed is initialised.
    assert train(model) == pytest.approx(train(plain), rel=1e-9)
    assert_the_same(model.eval(), plain.eval())
    other = pickle.loads(pickle.dumps(model))
    assert [norm.process_group for norm in norms(other)] == [norm.process_group for norm in norms(model)]


def test_torchs_conversion_converts_the_others_and_gives_the_group_to_all() -> None:
    group = object()
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ModuleDict({"a": sf.BatchNormIF(3), "b": nn.BatchNorm2d(3)}))
    weight = model[0].weight
    nn.SyncBatchNorm.convert_sync_batchnorm(model, process_group=group)
    assert type(model[0]) is type(model[1]["b"]) is nn.SyncBatchNorm and model[0].weight is weight
    assert type(model[1]["a"]) is sf.BatchNormIF and model[1]["a"].process_group is group
    assert all(norm.process_group is group for norm in norms(model))
    alone = sf.BatchNormLIF(3)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(alone) is alone
    assert "Converts all" in nn.SyncBatchNorm.convert_sync_batchnorm.__doc__


@pytest.mark.parametrize("kind", ["relu", "if"])
def test_torchs_conversion_keeps_the_networks_of_the_package(kind) -> None:
    network = models.resnet11(width=2, image_size=16, activation=kind)
    wanted, modules = copy.deepcopy(network), list(network.modules())
    assert nn.SyncBatchNorm.convert_sync_batchnorm(network) is network
    assert list(network.modules()) == modules
    assert all(norm.process_group is not None for norm in norms(network)) and len(norms(network)) > 9
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network(images), wanted(images))


def test_an_explicit_world_still_asks_that_torch_distributed_is_initialised() -> None:
    with pytest.raises(ValueError, match="not initialised"):
        sf.BatchNormIF.convert_sync(written())
    layer = sf.BatchNormIF(C)
    layer.process_group = "world"
    with pytest.raises(ValueError, match="not initialised"):
        layer(torch.randn(3, 4, C))


# The package's own look at batch norms


@forms
def test_fuse_takes_a_fused_layer_for_no_batch_norm(form) -> None:
    report = sf.fuse(form())
    assert report.fused == () and report.left == ()


def test_fuse_finds_what_stands_beside_a_fused_layer() -> None:
    model = nn.Sequential(sf.BatchNormIF(C), sf.OverTime(nn.BatchNorm1d(C)), sf.IF(), sf.OverTime(nn.BatchNorm1d(C)))
    report = sf.fuse(model)
    assert [entry.batch_norm for entry in report.fused] == ["1.module"]
    assert [entry.name for entry in report.left] == ["3.module"]


def test_a_normalized_current_is_checked_for_its_channels() -> None:
    layer = sf.BatchNormIF(C)
    layer._check_input_dim(torch.ones(2, C))
    with pytest.raises(ValueError, match=r"channel dimension.*\[3\]"):
        layer._check_input_dim(torch.ones(3))


@pytest.mark.parametrize("layer", [sf.BatchNormIF(C), sf.BatchNormLIF(C)], ids=["BatchNormIF", "BatchNormLIF"])
def test_fuse_takes_a_layers_second_dimension_for_the_batch_not_for_channels(layer) -> None:
    def before(i: int) -> tuple[str, int]:
        return "dimension", i

    assert [of_module(layer, before, i) for i in range(3)] == [before(i) for i in range(3)]
    assert of_module(nn.BatchNorm2d(C), before, 1) == (f"={C}",)
