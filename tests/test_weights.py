"""Weights of an ANN, of another library's network, and of wrapped ones load into networks of these layers."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import snnfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")


def ann() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(2, 4, 3),
            norm=nn.BatchNorm2d(4),
            relu=nn.ReLU(),
            head=nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, 3)),
        )
    )
    made(torch.rand(5, 2, 6, 6))  # so that running statistics are its own
    return made


def over_time(grouped: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, 3))
    conv, norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
    if grouped:
        return nn.Sequential(
            OrderedDict(body=sf.OverTime(nn.Sequential(conv, norm)), neuron=sf.IF(), head=sf.OverTime(head))
        )
    return nn.Sequential(
        OrderedDict(conv=sf.OverTime(conv), norm=sf.OverTime(norm), relu=sf.IF(), head=sf.OverTime(head))
    )


def tensors(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(model), tensors(other), strict=True))


def test_the_keys_of_a_network_without_time_load() -> None:
    model, source = over_time(), ann()
    assert not same(model, source)
    assert str(model.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
    assert same(model, source)
    again = over_time()
    again.load_state_dict(model.state_dict())  # and its own, as ever
    assert same(again, source)


def test_what_is_missing_or_unexpected_is_still_said() -> None:
    state = ann().state_dict()
    del state["conv.bias"]
    state["conv.scale"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*conv\.module\.bias.*Unexpected.*conv\.scale"):
        over_time().load_state_dict(state)
    result = over_time().load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["conv.module.bias"], ["conv.scale"])


def test_a_module_that_has_a_child_called_module_is_not_taken_for_a_wrapper() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    source = nn.Sequential(Wrapped())
    model = nn.Sequential(sf.OverTime(Wrapped()))
    for state in (source.state_dict(), copy.deepcopy(model).state_dict()):
        model.load_state_dict(state)
        assert torch.equal(model[0].module.module.weight, next(iter(state.values())))


def test_a_networks_own_keys_come_before_others_that_look_the_same() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(2))
            self.module = nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x) * self.weight

    source, model = nn.Sequential(sf.OverTime(Both())), nn.Sequential(sf.OverTime(Both()))
    model.load_state_dict(source.state_dict())  # "0.module.weight" is Both's, and would be Linear's of a bare Both
    assert same(model, source)


def test_fused_networks_take_them_too() -> None:
    model, source = over_time(), ann()
    assert len(sf.fuse(model).fused) == 1
    model.load_state_dict(source.state_dict())
    assert same(model, source)


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_weights_come_by_name_but_for_wrappers(wrapper: str) -> None:
    source = ann()
    state = {wrapper + name: tensor for name, tensor in source.state_dict().items()}
    model = over_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a surrogate that did not come, say
        report = sf.load_weights(model, state)
    assert same(model, source)
    assert report.by_name["conv.module.weight"] == f"{wrapper}conv.weight"
    assert (len(report.by_name), report.by_place, report.missing, report.unused) == (9, {}, (), ())
    back = ann()
    nn.init.zeros_(back.conv.weight)
    sf.load_weights(back, model.state_dict())
    assert same(back, source)


def test_what_has_other_names_comes_by_its_place() -> None:
    source, model = ann(), over_time(grouped=True)
    report = sf.load_weights(model, source.state_dict())
    assert same(model, source)
    assert report.by_name == {f"head.module.1.{name}": f"head.1.{name}" for name in ("weight", "bias")}
    assert report.by_place["body.module.1.running_var"] == "norm.running_var"
    assert "2 by name, 7 by place" in str(report)


def test_a_state_dict_that_does_not_fit_is_refused_and_nothing_is_loaded() -> None:
    source, model = ann(), over_time(grouped=True)
    before = copy.deepcopy(model)
    state = source.state_dict()
    state["conv.weight"] = torch.zeros(5, 2, 3, 3)
    with pytest.raises(ValueError, match=r"does not fit Sequential: missing: body.module.0.weight \[4, 2, 3, 3\]"):
        sf.load_weights(model, state)
    assert same(model, before)
    report = sf.load_weights(model, state, strict=False)
    assert "conv.weight" in report.unused
    assert len(report.missing) == 7
    assert torch.equal(model.head.module[1].weight, source.head[1].weight)


def test_two_of_one_name_are_not_chosen_between() -> None:
    state = {**ann().state_dict(), **{f"module.{name}": tensor for name, tensor in ann().state_dict().items()}}
    with pytest.raises(ValueError, match=r"unused: module\.conv\.weight"):
        sf.load_weights(ann(), state)
    with pytest.raises(ValueError, match=r"missing: conv\.module\.weight"):
        sf.load_weights(over_time(), state)


def test_thresholds_that_were_measured_are_not_missed() -> None:
    model, source = over_time(), ann()
    sf.tuning.hold_thresholds(model)
    report = sf.load_weights(model, source.state_dict(), strict=False)
    assert report.missing == ("relu.threshold",)
    assert torch.equal(model.conv.module.weight, source.conv.weight)


def test_what_is_no_state_dict_is_refused() -> None:
    with pytest.raises(TypeError, match="state_dict must be a mapping of names to tensors, got list"):
        sf.load_weights(ann(), [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got one with other values"):
        sf.load_weights(ann(), {"model": ann().state_dict()})
