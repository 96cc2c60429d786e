"""What cannot be fused safely is left exactly as it was, and named with the reason."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from fusing import (
    ADDITIONS,
    FORWARDS,
    Block,
    assert_same,
    block,
    cases,
    default_currents,
    flat,
    fused_like,
    left_like,
    over_time,
    reason,
    unlike_the_defaults,
)
from resnet import conv, norm
from torch import nn
from torch.utils.checkpoint import checkpoint

import snnfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")

# What is left, and why --------------------------------------------------------------------------------------------


class OwnBatchNorm(nn.BatchNorm2d):
    pass


class OwnNeuron(sf.IF):
    pass


def hook(*_):
    return None


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


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
    cases(
        {
            "one neuron called twice": (
                lambda self, x: self.sn(self.bn_over_time(self.sn(x))),
                None,
                "bn_over_time.module",
                "'sn' (IF) is shared: it is called at 2 places",
            ),
            "one batch norm called twice": (
                lambda self, x: self.sn(self.bn_over_time(x)) + self.sn_and_more(self.bn_over_time(x)),
                None,
                "bn_over_time.module",
                "is shared: it is called at 2 places",
            ),
            "a neuron with two names": (
                FORWARDS["keywords"],
                second_name,
                "bn_over_time.module",
                "the same object is 'sn', 'again'",
            ),
            "a batch norm with two names": (
                FORWARDS["keywords"],
                second_batch_norm_name,
                "bn_over_time.module",
                "'bn_over_time.module', 'again'",
            ),
            "batch for channels": (lambda self, x: self.sn(self.bn(x[0])), None, "bn", "wrongly ordered"),
            "batch for channels, added": (lambda self, x: self.sn(self.bn(x[0]) + x[0]), None, "bn", "wrongly ordered"),
            "held over time": (
                lambda self, x: self.sn(self.bn_over_time(x), steps=4),
                None,
                "bn_over_time.module",
                "dimension 2",
            ),
            "neuron first": (
                lambda self, x: self.conv_over_time(self.bn_over_time(self.sn(x))),
                None,
                "bn_over_time.module",
                "wrong order, it comes after the neuron 'sn'",
            ),
            "used elsewhere": (
                lambda self, x: (lambda y: self.sn(y) + y)(over_time(self, x)),
                None,
                "bn_over_time.module",
                "used at 2 places",
            ),
            "relu between": (
                lambda self, x: self.sn(over_time(self, x).relu()),
                None,
                "bn_over_time.module",
                "goes to 'relu'",
            ),
            "alpha": (
                lambda self, x: self.sn(torch.add(x, over_time(self, x), alpha=2)),
                None,
                "bn_over_time.module",
                "alpha",
            ),
            "a number": (lambda self, x: self.sn(over_time(self, x) + 0.1), None, "bn_over_time.module", "a number"),
            "a parameter": (
                lambda self, x: self.sn(over_time(self, x) + self.offset),
                None,
                "bn_over_time.module",
                "'offset'",
            ),
            "itself": (
                lambda self, x: (lambda y: self.sn(y + y))(over_time(self, x)),
                None,
                "bn_over_time.module",
                "itself",
            ),
            "two additions": (
                lambda self, x: self.sn(over_time(self, x) + x + x),
                None,
                "bn_over_time.module",
                "second addition",
            ),
            "in place into the input": (
                lambda self, x: self.sn(x.add_(over_time(self, x * 1))),
                None,
                "bn_over_time.module",
                "in place to the argument",
            ),
            "channels mixed": (
                lambda self, x: self.sn(flat(self, x).view(4, 2, -1)),
                None,
                "bn",
                "write unflatten(0, (T, B))",
            ),
            "channels doubled": (
                lambda self, x: (lambda y: self.sn(y.view(2, 2, 6, y.shape[2], y.shape[3])))(flat(self, x)),
                None,
                "bn",
                "write unflatten(0, (T, B))",
            ),
            "asked for its shape": (
                lambda self, x: (lambda y: self.sn(y + x * y.shape[1]))(self.conv_bn_over_time(x)),
                None,
                "conv_bn_over_time.module.1",
                "asked for its shape",
            ),
            "a number by training mode": (
                lambda self, x: self.sn(over_time(self, x) + x * (0.5 if self.training else 2.0)),
                None,
                "bn_over_time.module",
                "reads `training`",
            ),
            "its weight read": (
                lambda self, x: self.sn(over_time(self, x)) * self.bn_over_time.module.weight.sum(),
                None,
                "bn_over_time.module",
                "reads 'bn_over_time.module.weight'",
            ),
            "subclass of batch norm": (
                FORWARDS["keywords"],
                lambda model: model.__setattr__("bn_over_time", sf.OverTime(OwnBatchNorm(3).double())),
                "bn_over_time.module",
                "OwnBatchNorm is a subclass",
            ),
            "subclass of a neuron": (
                FORWARDS["keywords"],
                lambda model: model.__setattr__("sn", OwnNeuron()),
                "bn_over_time.module",
                "OwnNeuron",
            ),
            "parametrized": (
                FORWARDS["keywords"],
                lambda model: nn.utils.parametrize.register_parametrization(
                    model.bn_over_time.module, "weight", nn.Identity()
                ),
                "bn_over_time.module",
                "parametrized",
            ),
            "weight norm as a hook": (
                FORWARDS["keywords"],
                lambda model: model.bn_over_time.module.register_forward_pre_hook(hook),
                "bn_over_time.module",
                "a forward pre-hook",
            ),
        }
    ),
)
def test_what_does_not_fit_is_left_and_named_with_the_reason(forward, change, name, words):
    model = block(forward)
    if change is not None:
        change(model)
    assert words in reason(left_like(model, default_currents()), name)


@pytest.mark.parametrize(
    "write",
    [lambda z: z.mul_(2), lambda z: nn.functional.relu(z, inplace=True), nn.ReLU(inplace=True)],
    ids=["method", "function", "module"],
)
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


def decides_by_an_argument(self, x, shortcut=None):
    y = over_time(self, x)
    return self.sn(y if shortcut is None else y + shortcut)


def decides_by_a_flag(self, x, add=False):
    return self.sn(over_time(self, x) + x) if add is True else x * self.sn(over_time(self, x))


def checkpoints_activations(self, x):
    return checkpoint(lambda x: self.sn(over_time(self, x) + x), x, use_reentrant=False)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (decides_by_an_argument, "depends on the argument 'shortcut'"),
        (decides_by_a_flag, "depends on the argument 'add'"),
        (checkpoints_activations, "cannot be traced"),
        (draws_random_numbers, "random numbers"),
        (sets_an_attribute, "sets or changes the attribute 'last'"),
        (makes_a_tensor, "makes a tensor"),
        (without_gradients, "a grad, autocast or device mode"),
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


def test_a_sequential_is_not_given_a_forward_that_would_forget_its_list():
    model = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm2d(3), nn.Unflatten(0, (4, 2)), sf.IF()).double()
    assert "wrap the batch norm in snnfast.OverTime" in reason(left_like(model, default_currents()), "1")


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
