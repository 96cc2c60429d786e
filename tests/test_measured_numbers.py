"""Thresholds that the package's tools measured are in checkpoints, and what a checkpoint does not bring is said."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

import snnfast as sf
from snnfast import models, tuning
from snnfast.convert import to_spiking
from snnfast.models.residual import Convolution
from snnfast.surrogate import FastSigmoid, Triangle

pytestmark = pytest.mark.usefixtures("one_thread")
FEATURES = 4


@pytest.fixture(autouse=True)
def no_other_warnings() -> Iterator[None]:
    """What a test does not expect to warn must not."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="torch")
        warnings.filterwarnings("ignore", message="torch.distributed is")
        yield


def currents(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 8, FEATURES, generator=torch.Generator().manual_seed(seed)) * 3


def plain() -> nn.Module:
    torch.manual_seed(0)
    linear = [sf.OverTime(nn.Linear(FEATURES, FEATURES)) for _ in range(3)]
    return nn.Sequential(linear[0], sf.IF(), linear[1], sf.LIF(tau=3.0), linear[2])


def normalized() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        sf.OverTime(nn.Linear(FEATURES, FEATURES)), sf.BatchNormIF(FEATURES),
        sf.OverTime(nn.Linear(FEATURES, FEATURES)), sf.BatchNormLIF(FEATURES, decay_input=False),
    )  # fmt: skip


def to_be_fused() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        sf.OverTime(nn.Linear(FEATURES, FEATURES)), sf.OverTime(nn.BatchNorm1d(FEATURES)), sf.IF(),
        sf.OverTime(nn.Linear(FEATURES, FEATURES)), sf.OverTime(nn.BatchNorm1d(FEATURES)), sf.LIF(decay_input=False),
    )  # fmt: skip


def fused() -> nn.Module:
    model = to_be_fused()
    assert len(sf.fuse(model).fused) == 2
    return model


NETWORKS = {"plain": plain, "normalized": normalized, "to be fused": to_be_fused, "fused": fused}
KEYS = {
    "plain": {"1.threshold", "3.threshold"},
    "normalized": {"1.threshold", "3.threshold"},
    "to be fused": {"2.threshold", "5.threshold"},
    "fused": {"2.threshold", "5.threshold"},
}
networks = pytest.mark.parametrize("name", NETWORKS)


def measured(name: str = "plain") -> nn.Module:
    """A network with other weights than a new one's, and thresholds from data."""
    model = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    model(currents(1))  # running statistics
    tuning.normalize_thresholds(model, [(currents(), None)])
    return model.eval()


def through_a_file(value: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def thresholds(model: nn.Module) -> list[Any]:
    return [m.threshold for m in model.modules() if isinstance(m, sf.IF | sf.LIF)]


def assert_the_same(model: nn.Module, other: nn.Module) -> None:
    assert thresholds(model) == thresholds(other)
    assert all(type(threshold) is float for threshold in thresholds(other))
    x = currents(2) * 4
    spikes = model.eval()(x)
    assert spikes.any() and torch.equal(spikes, other.eval()(x))


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


# torch.distributed.checkpoint


def save(model: nn.Module, folder: Path) -> None:
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder, no_dist=True)


@networks
def test_a_distributed_checkpoint_brings_thresholds_to_a_network_that_holds_them(name: str, tmp_path: Path) -> None:
    model, new = measured(name), NETWORKS[name]()
    tuning.hold_thresholds(new)
    save(model, tmp_path)
    state = {"model": get_model_state_dict(new)}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    with pytest.warns(UserWarning, match=r"own at '.'.*gamma and beta did not come"):
        set_model_state_dict(new, state["model"])
    assert_the_same(model, new)


@networks
@pytest.mark.parametrize("options", [None, StateDictOptions(full_state_dict=True), StateDictOptions(cpu_offload=True)],
                         ids=["own", "full", "on the CPU"])  # fmt: skip
def test_no_distributed_checkpoint_loses_a_surrogate_in_silence(
    name: str, options: StateDictOptions | None, tmp_path: Path
) -> None:
    model, new = NETWORKS[name](), NETWORKS[name]()
    save(model, tmp_path)
    state = {"model": get_model_state_dict(new, options=options)}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    with pytest.warns(UserWarning, match="gamma and beta did not come") as caught:
        set_model_state_dict(new, state["model"], options=options)
    assert len(caught) == 1


def test_a_module_loaded_as_it_stands_says_it_too(tmp_path: Path) -> None:
    model, new = plain(), plain()
    dcp.save({"model": model}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.warns(UserWarning, match="gamma and beta did not come"):
        dcp.load({"model": new}, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(new[0].module.weight, model[0].module.weight)


@networks
def test_metadata_saved_beside_the_tensors_brings_the_surrogates(name: str, tmp_path: Path) -> None:
    model, new = measured(name), NETWORKS[name]()
    for layer in (layer for layer in model.modules() if isinstance(layer, sf.IF | sf.LIF)):
        layer.surrogate = Triangle(gamma=0.123, beta=4.5)
    tuning.hold_thresholds(new)
    for network, act in ((model, dcp.save), (new, dcp.load)):
        state = network.state_dict()
        act({"model": state, "metadata": state._metadata}, checkpoint_id=tmp_path, no_dist=True)
    new.load_state_dict(state)
    assert_the_same(model, new)
    assert {m.surrogate for m in new.modules() if isinstance(m, sf.IF | sf.LIF)} == {Triangle(gamma=0.123, beta=4.5)}


def test_a_distributed_checkpoint_made_a_file_brings_thresholds_to_any_network(tmp_path: Path) -> None:
    model, new = measured(), plain()
    save(model, tmp_path)
    dcp_to_torch_save(tmp_path, tmp_path / "file.pt")
    with pytest.warns(UserWarning, match="no metadata for '1'"):
        new.load_state_dict(torch.load(tmp_path / "file.pt")["model"])
    assert_the_same(model, new)


def test_an_own_state_dict_that_was_kept_still_restores_a_surrogate() -> None:
    layer = sf.IF(surrogate=Triangle())
    kept = layer.state_dict()
    layer.surrogate = FastSigmoid(gamma=2.0)
    layer.load_state_dict(kept)
    assert layer.surrogate == Triangle()
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))  # a copy is another: no warning
