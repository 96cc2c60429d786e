"""Thresholds that the package's tools measured are in checkpoints, and what a checkpoint does not bring is said."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measured import (
    FEATURES,
    KEYS,
    NETWORKS,
    assert_the_same,
    currents,
    fused,
    measured,
    networks,
    normalized,
    plain,
    thresholds,
    through_a_file,
    to_be_fused,
)
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import snnfast as sf
from snnfast import models, tuning
from snnfast.convert import to_spiking
from snnfast.models.residual import Convolution
from snnfast.surrogate import FastSigmoid, Triangle

pytestmark = pytest.mark.usefixtures("one_thread", "no_other_warnings")


# Saving and loading


@networks
def test_normalized_thresholds_come_back_from_a_file_into_a_new_network(name: str) -> None:
    model, new = measured(name), NETWORKS[name]()
    assert thresholds(model) != thresholds(new)
    assert KEYS[name] == model.state_dict().keys() - new.state_dict().keys()
    result = new.load_state_dict(through_a_file(model.state_dict()), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert_the_same(model, new)
    # The new one's own state dict has them too, and a third network takes them from it.
    third = NETWORKS[name]()
    third.load_state_dict(through_a_file(new.state_dict()))
    assert_the_same(model, third)


@networks
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
def test_they_come_back_however_the_state_dict_is_loaded(name: str, strict: bool, assign: bool) -> None:
    model, new = measured(name), NETWORKS[name]()
    new.load_state_dict(through_a_file(model.state_dict()), strict=strict, assign=assign)
    assert_the_same(model, new)


@networks
def test_they_are_in_a_plain_dict_of_tensors(name: str) -> None:
    model, new = measured(name), NETWORKS[name]()
    with pytest.warns(UserWarning, match="no metadata") as caught:
        new.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    assert len(caught) == 1
    assert_the_same(model, new)


def test_fusing_changes_no_key_and_checkpoints_go_both_ways() -> None:
    apart, together = measured("to be fused"), measured("to be fused")
    sf.fuse(together)
    assert list(apart.state_dict()) == list(together.state_dict())
    assert_the_same(apart, together)
    for model, new in ((apart, fused()), (together, to_be_fused())):
        new.load_state_dict(through_a_file(model.state_dict()))
        assert_the_same(model, new)


@networks
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: through_a_file(m, weights_only=False)],
    ids=["deepcopy", "pickle", "torch.save of the module"],
)
def test_copies_hold_them_too(name: str, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = measured(name)
    other = duplicate(model)
    assert KEYS[name] <= other.state_dict().keys()
    assert list(other.state_dict()) == list(model.state_dict())
    assert_the_same(model, other)


@networks
def test_averaged_weights_keep_them_under_their_prefix(name: str) -> None:
    model = measured(name)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    assert {f"module.{key}" for key in KEYS[name]} <= averaged.state_dict().keys()
    other = torch.optim.swa_utils.AveragedModel(NETWORKS[name]())
    other.load_state_dict(through_a_file(averaged.state_dict()))
    assert_the_same(model, other.module)


def test_a_prefix_of_data_parallel_may_be_taken_off() -> None:
    model, new = measured(), plain()
    state = through_a_file(nn.DataParallel(model).state_dict())
    torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
    new.load_state_dict(state)
    assert_the_same(model, new)


@pytest.mark.parametrize(
    "wrap",
    [checkpoint_wrapper, lambda m: torch.compile(m, backend="eager")],
    ids=["activation checkpointing", "compiled"],
)
def test_modules_around_a_layer_keep_nothing_from_it(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, new = measured(), plain()
    model[1].surrogate = Triangle(gamma=3.0)
    model[1], model[3] = wrap(model[1]), wrap(model[3])
    state = through_a_file(model.state_dict())
    wrapped = copy.deepcopy(new)
    wrapped[1], wrapped[3] = wrap(wrapped[1]), wrap(wrapped[3])
    wrapped.load_state_dict(state)
    for key in [key for key in state if "_orig_mod" in key]:  # as users do
        state[key.replace("_orig_mod.", "")] = state.pop(key)
    new.load_state_dict(state)
    for network in (new, wrapped):
        assert thresholds(network) == thresholds(model)
        assert [m.surrogate for m in network.modules() if isinstance(m, sf.IF | sf.LIF)] == [
            Triangle(gamma=3.0),
            FastSigmoid(),
        ]


def test_a_layer_alone_holds_its_threshold() -> None:
    layer, new = sf.IF(), sf.IF(surrogate=Triangle())
    tuning.normalize_thresholds(layer, [(currents(), None)])
    assert list(layer.state_dict()) == ["threshold"]
    new.load_state_dict(through_a_file(layer.state_dict()))
    assert new.threshold == layer.threshold and new.surrogate == FastSigmoid()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_network_in_another_dtype_keeps_the_numbers_to_the_last_bit(dtype: torch.dtype) -> None:
    model = measured("normalized")
    wanted = thresholds(model)
    model.to(dtype)
    assert thresholds(model) == wanted
    new = normalized().to(dtype)
    new.load_state_dict(through_a_file(model.state_dict()))
    assert thresholds(new) == wanted
    assert all(model.state_dict()[key].dtype == torch.float64 for key in KEYS["normalized"])


def test_a_threshold_assigned_later_is_the_one_saved() -> None:
    model, new = measured(), plain()
    model[1].threshold = 0.625
    new.load_state_dict(model.state_dict())
    assert new[1].threshold == 0.625


def test_thresholds_assigned_by_hand_can_be_held_too() -> None:
    model = plain()
    model[1].threshold = 0.3
    assert "1.threshold" not in model.state_dict()
    assert tuning.hold_thresholds(model) == {"1": 0.3, "3": 1.0}
    new = plain()
    new.load_state_dict(through_a_file(model.state_dict()))
    assert thresholds(new) == [0.3, 1.0]
    assert tuning.hold_thresholds(sf.IF(0.5, learn_threshold=True)) == {}
    with pytest.raises(ValueError, match="no spiking layer"):
        tuning.hold_thresholds(nn.Linear(2, 2))


def test_a_search_that_fails_leaves_the_state_dict_as_it_was() -> None:
    model = plain()
    with pytest.raises(ValueError, match="largest input current"):
        tuning.normalize_thresholds(model, [(torch.full((2, 2, FEATURES), math.nan), None)])
    assert not KEYS["plain"] & model.state_dict().keys()


def residual(activation: models.Activation) -> nn.Module:
    """A ResNet with an identity shortcut and one with a projection."""
    torch.manual_seed(0)
    blocks = [[Convolution(6), Convolution(6)], [Convolution(8), Convolution(8, 3, 2)]]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stem = nn.Conv2d(3, 6, 3, padding=1, bias=not activation.batch_norm)
    return models.ResNet(stem, nn.AvgPool2d(2), blocks, None, head, 5, activation, 30)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_converted_network_comes_back_with_thresholds_and_shortcuts(batch_norm: bool) -> None:
    kinds = [models.Activation("relu", batch_norm), models.Activation("if", batch_norm, {"reset": "soft"})]
    (ann, new), images = map(residual, kinds), torch.rand(4, 3, 16, 16)
    for _ in range(5):
        ann(images)  # running statistics
    spiking = to_spiking(ann.eval(), [images], steps=30)
    new.load_state_dict(through_a_file(spiking.state_dict()), strict=True)
    logits = spiking(images)
    assert logits.std() > 0 and torch.equal(new.eval()(images), logits)
    assert new.blocks[0].shortcut.scale == spiking.blocks[0].shortcut.scale != 1
    held = {key.rpartition(".")[-1] for key in spiking.state_dict().keys() - ann.state_dict().keys()}
    assert held == {"threshold", "scale"}
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*threshold"):
        residual(kinds[0]).load_state_dict(spiking.state_dict())
    state = spiking.state_dict()
    state["blocks.0.shortcut.scale"].fill_(-1)
    with pytest.raises(RuntimeError, match=r"scale of 'blocks.0.shortcut' must not be negative"):
        residual(kinds[1]).load_state_dict(state)


def test_a_copy_with_other_neurons_keeps_measured_thresholds() -> None:
    network = models.plain_net(layers=3, image_size=16, batch_norm=False, threshold=0.5)
    found = tuning.normalize_thresholds(network, [(torch.rand(4, 3, 16, 16), None)])
    other = network.with_activation(models.Activation("lif", False, {"tau": 3.0}))
    assert [n.threshold for n in other.neurons()] == list(found.values())
    assert list(other.state_dict()) == list(network.state_dict())
    assert network.with_activation(models.Activation("relu", False)).state_dict().keys() < network.state_dict().keys()
    untouched = models.plain_net(layers=3, image_size=16, batch_norm=False, threshold=0.5)
    other = untouched.with_activation(models.Activation("if", False, {"threshold": 0.75}))
    assert [n.threshold for n in other.neurons()] == [0.75, 0.75]


# What does not fit


@pytest.mark.parametrize("value", [-1.0, math.nan], ids=str)
def test_a_threshold_out_of_range_is_an_error_of_the_load(value: float) -> None:
    model, new = measured(), plain()
    state = model.state_dict()
    state["3.threshold"] = torch.tensor(value, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"threshold of '3' must not be negative or NaN"):
        new.load_state_dict(state)
    assert new[3].threshold == 1.0


def test_a_threshold_without_a_value_is_an_error_of_the_load() -> None:
    state = measured().state_dict()
    state["3.threshold"] = state["3.threshold"].to("meta")
    with pytest.raises(RuntimeError, match=r"threshold of '3' cannot be read"):
        plain().load_state_dict(state)


@pytest.mark.parametrize(
    "value", [torch.tensor(0.5), torch.ones(3, dtype=torch.float64), torch.tensor(1), torch.tensor(0.5).half()], ids=str
)
def test_what_no_tool_wrote_stays_an_unexpected_key(value: torch.Tensor) -> None:
    layer, state = sf.IF(0.25), sf.IF(0.25).state_dict()
    state["threshold"] = value
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "threshold"'):
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key"), pytest.warns(UserWarning, match="no metadata"):
        layer.load_state_dict(dict(state))
    assert layer.threshold == 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_learned_threshold_is_not_taken_for_a_number(dtype: torch.dtype) -> None:
    learned = sf.IF(0.5, learn_threshold=True).to(dtype)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        sf.IF().load_state_dict(learned.state_dict())
    tuning.normalize_thresholds(learned, [(currents(), None)])
    other = sf.IF(0.5, learn_threshold=True).to(dtype)
    other.load_state_dict(through_a_file(learned.state_dict()))
    assert torch.equal(other.threshold, learned.threshold) and isinstance(other.threshold, nn.Parameter)


def test_a_network_that_cannot_hold_a_threshold_calls_it_unexpected() -> None:
    twin = nn.Sequential(*(nn.ReLU() if isinstance(m, sf.IF | sf.LIF) else copy.deepcopy(m) for m in plain()))
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "1.threshold", "3.threshold"'):
        twin.load_state_dict(measured().state_dict())


def test_a_load_that_fails_leaves_the_thresholds() -> None:
    state, new = measured("normalized").state_dict(), normalized()
    state["1.weight"] = torch.ones(FEATURES + 1)
    with pytest.raises(RuntimeError, match=r"size mismatch for 1\.weight"):
        new.load_state_dict(state)
    assert new[1].threshold == 1.0


# What does not come


def old_file(model: nn.Module) -> dict[str, Any]:
    """A state dict as it was before there were keys for numbers."""
    state = model.state_dict()
    for key in [key for key in state if key.endswith("threshold")]:
        del state[key]
    for metadata in state._metadata.values():
        metadata.pop("numbers", None)
    return through_a_file(state)


def test_a_file_from_before_loads_and_says_that_thresholds_stay() -> None:
    model = measured()
    wanted = thresholds(model)
    with pytest.warns(UserWarning, match=rf"threshold of '1' was measured to be {wanted[0]!r}, and stays"):
        result = model.load_state_dict(old_file(plain()), strict=True)
    assert not result.missing_keys and thresholds(model) == wanted
    plain().load_state_dict(old_file(plain()))  # no warning: nothing was measured here


@networks
def test_a_file_of_other_numbers_is_said_to_be_one(name: str) -> None:
    model, other = NETWORKS[name](), NETWORKS[name]()
    for layer in (layer for layer in other.modules() if isinstance(layer, sf.IF | sf.LIF)):
        layer.threshold = 0.25  # by hand: not in the state dict
    with pytest.warns(UserWarning, match=r"threshold of '.' is 0.25 in the network that was saved and 1.0") as caught:
        model.load_state_dict(through_a_file(other.state_dict()))
    assert len(caught) == 1 and set(thresholds(model)) == {1.0}
    model.load_state_dict(through_a_file(NETWORKS[name]().state_dict()))  # equal numbers: no warning


@networks
def test_a_plain_dict_brings_no_surrogate_and_says_so_once_in_each_load(name: str) -> None:
    model, new = NETWORKS[name](), NETWORKS[name]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # by which Python shows what one line says twice only once
        for _ in range(2):
            new.load_state_dict(dict(model.state_dict()))
    assert len(caught) == 2
    for warning in caught:
        assert warning.category is UserWarning and warning.filename == __file__
        assert f"no metadata for {min(KEYS[name]).partition('.')[0]!r}" in str(warning.message)  # the neuron's name
        for part in ("shape", "gamma", "beta", "FastSigmoid(gamma=10.0, beta=1.0)", "layer.surrogate", "torch.save"):
            assert part in str(warning.message)


def test_metadata_of_another_prefix_is_none() -> None:
    state = nn.DataParallel(plain()).state_dict()
    for key in list(state):
        state[key.removeprefix("module.")] = state.pop(key)
    with pytest.warns(UserWarning, match="no metadata for '1'"):
        plain().load_state_dict(state)


def test_a_network_of_relu_brings_no_surrogate_and_is_not_asked_for_one() -> None:
    twin = nn.Sequential(*(nn.ReLU() if isinstance(m, sf.IF | sf.LIF) else m for m in plain()))
    plain().load_state_dict(through_a_file(twin.state_dict()))
    sf.BatchNormIF(FEATURES).load_state_dict(through_a_file(nn.BatchNorm1d(FEATURES).state_dict()))
    fused().load_state_dict(through_a_file(to_be_fused().state_dict()))


def test_networks_of_the_package_are_converted_without_a_word() -> None:
    network = models.plain_net(layers=3, image_size=16)
    for kind in ("relu", "lif", "if"):
        network = network.with_activation(models.Activation(kind))
    assert to_spiking(models.plain_net(layers=3, image_size=16, activation="relu"), [torch.rand(2, 3, 16, 16)])


def test_hooks_before_loading_may_rename_and_remove_keys() -> None:
    model, new = measured("to be fused"), fused()
    state = through_a_file(model.state_dict())
    state["2.limit"] = state.pop("2.threshold")

    def rename(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        if prefix + "limit" in state:
            state[prefix + "threshold"] = state.pop(prefix + "limit")

    new[2].register_load_state_dict_pre_hook(rename)
    new.load_state_dict(state)
    assert_the_same(model, new)


def test_an_own_state_dict_that_was_kept_still_restores_a_surrogate() -> None:
    layer = sf.IF(surrogate=Triangle())
    kept = layer.state_dict()
    layer.surrogate = FastSigmoid(gamma=2.0)
    layer.load_state_dict(kept)
    assert layer.surrogate == Triangle()
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))  # a copy is another: no warning
