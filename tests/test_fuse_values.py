"""Forwards that compute with shapes and ask what their values are: fused or left, never a crash or another branch."""

from __future__ import annotations

import collections.abc
import contextlib
import copy
import math
import numbers
import os
import subprocess
import sys

import fuse_sweep
import numpy as np
import pytest
import torch
from fusing import block, default_currents, flat, fused_like, left_like, over_time
from torch import Tensor, nn

import snnfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")
F = nn.functional


@pytest.mark.parametrize("group", fuse_sweep.SPACES)
def test_no_function_of_torch_crashes_on_the_values_of_a_traced_forward(group):
    command = [sys.executable, os.path.join(os.path.dirname(__file__), "fuse_sweep.py"), group]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    calls = done.stdout.splitlines()
    assert done.returncode == 0, f"it ended in {calls[-1:]}: {done.stderr[-2000:]}"
    assert calls[-1] == "done" and len(calls) > 7000


def small(table: Tensor, x: Tensor) -> Tensor:
    """Something of the table's values that can be added to x, whatever the table's shape."""
    return x + table.to(x.dtype).mean() / 64


SHAPES = {
    "arange": lambda x, c: x + torch.arange(x.shape[0]).view(-1, 1, 1, 1, 1),
    "zeros": lambda x, c: x + torch.zeros(x.shape[0], 1, 1, 1, 1),
    "zeros of a size": lambda x, c: x + torch.zeros(x.size()),
    "zeros of a shape and dtype": lambda x, c: x + torch.zeros(x.shape, dtype=x.dtype, device=x.device),
    "ones": lambda x, c: x + torch.ones((x.shape[0], x.size(1), 1, 1, 1)),
    "empty": lambda x, c: x + torch.empty(x.shape[:2]).fill_(0.5)[:, :, None, None, None],
    "linspace": lambda x, c: x + torch.linspace(0, 1, x.shape[0]).view(-1, 1, 1, 1, 1),
    "eye": lambda x, c: small(torch.eye(x.shape[0]), x),
    "full": lambda x, c: x + torch.full((x.shape[0], 1, 1, 1, 1), 0.5),
    "randn": lambda x, c: x + torch.randn(x.shape[3], dtype=x.dtype),
    "tri": lambda x, c: small(torch.tril_indices(x.shape[3], x.shape[4]), x),
    "tile": lambda x, c: x.tile(x.shape[0] // 4, 1, 1, 1, 1),
    "torch.tile": lambda x, c: small(torch.tile(c, (x.shape[0], 1, 1)), x),
    "roll": lambda x, c: torch.roll(x, x.shape[0] - 1, 0),
    "reshape": lambda x, c: small(c.reshape(x.shape[2], -1), x),
    "unflatten": lambda x, c: x + c.flatten().unflatten(0, (x.shape[2], 1, 1)),
    "expand": lambda x, c: x + c.expand(x.shape[2], x.shape[3], x.shape[4]),
    "broadcast_to": lambda x, c: x + torch.broadcast_to(c, x.shape),
    "broadcast_shapes": lambda x, c: x + c.expand(torch.broadcast_shapes(x.shape, (1, 1))),
    "pool": lambda x, c: x + F.avg_pool1d(x.flatten(2), x.shape[3] * x.shape[4]).mean(),
    "interpolate": lambda x, c: F.interpolate(x.flatten(1, 2), size=(x.shape[3], x.shape[4])).view(x.shape),
    "as_tensor": lambda x, c: torch.as_tensor(x) + 1,
    "as_tensor of a number": lambda x, c: x / torch.as_tensor(x.shape[0]),
    "tensor": lambda x, c: x + torch.tensor([x.shape[0], 1, 2, 3, 4], dtype=x.dtype),
    "asarray": lambda x, c: x + torch.asarray(x.shape[0]),
    "new_zeros": lambda x, c: x + x.new_zeros(x.shape[0], 1, 1, 1, 1),
    "new_tensor": lambda x, c: x + x.new_tensor([x.shape[0]]),
    "finfo": lambda x, c: x.clamp(min=torch.finfo(x.dtype).eps),
    "math": lambda x, c: x * math.sqrt(x.shape[0]) / math.prod(x.shape),
    "len": lambda x, c: x / len(x),
    "known slices": lambda x, c: x + x.new_zeros(*x.shape[:2], *x.shape[-3:]),
    "all sizes": lambda x, c: x + torch.zeros(*x.shape, dtype=x.dtype, device=x.device) + x.new_ones(*x.shape),
    "unpacked": lambda x, c: (lambda t, b, *_: x / t / b)(*x.shape[:2]),
}
REFUSED = {
    "range": lambda x, c: x + sum(range(x.shape[0])),
    "int": lambda x, c: x / int(x.shape[0]),
    "a loop over all": lambda x, c: x / sum(n for n in x.shape),
    "torch.Size": lambda x, c: x + torch.zeros(torch.Size((x.shape[0], 1, 1, 1, 1))),
    "torch.Tensor": lambda x, c: x + torch.Tensor(x.shape[0]).zero_().sum(),
    "NumPy's product": lambda x, c: x / float(np.prod(x.shape)),
    "NumPy's array": lambda x, c: x / float(np.array([x.shape[0]]).sum()),
    "NumPy's function": lambda x, c: x / np.sqrt(x.shape[0]),
    "a list of all": lambda x, c: x + torch.zeros(list(x.shape)),
    "a list of all, changed": lambda x, c: x + torch.zeros([1, *x.shape][1:]),
    "an unpacked rest": lambda x, c: (lambda size: x + torch.zeros(*size[:1], 1, 1, 1, 1))([*x.shape]),
    "a helper with a star": lambda x, c: x + (lambda *size: torch.zeros(*size[::-1]).mean())(*x.shape),
    "a helper for a number": lambda x, c: x / (lambda *size: len(size))(*x.shape),
    "the largest": lambda x, c: x / max(*x.shape),
    "a pair": lambda x, c: x.transpose(*x.shape[5:], 3, 4),
    "a text": lambda x, c: x * 2 if str(x.device) == "cpu" else x,
    "part of a text": lambda x, c: x * 2 if "cpu" in str(x.device) else x,
    "a set": lambda x, c: x * 2 if x.shape[0] in {4, 8} else x,
    "a dict": lambda x, c: x * {4: 2.0}.get(x.shape[0], 1.0),
    "a comparison": lambda x, c: x * 2 if x.shape[0] == 4 else x,
    "a copy": lambda x, c: x + copy.copy(x.detach()),
    "an attribute set": lambda x, c: (setattr(x, "data", x.data * 2), x)[1],
    "a class pattern": lambda x, c: by_pattern(x),
}


def by_pattern(x):
    match x:
        case torch.Tensor():
            return x * 2
        case _:
            return x


def tries(self, x):
    try:
        steps = int(x.shape[0])
    except TypeError:
        steps = 1
    return self.sn(over_time(self, x * steps))


def tries_anything(self, x):
    try:
        steps = float(x.shape[0])
    except:  # noqa: E722
        steps = 1.0
    return self.sn(over_time(self, x * steps))


def suppresses(self, x):
    steps = 1
    with contextlib.suppress(TypeError):
        steps = range(x.shape[0])[-1]
    return self.sn(over_time(self, x * steps))


@pytest.mark.parametrize("forward", [tries, tries_anything, suppresses])
def test_a_forward_that_goes_on_after_an_error_is_left(forward):
    report = left_like(block(forward), default_currents())
    assert "it catches errors" in report.left[0].reason


def test_a_forward_that_tidies_up_in_the_end_is_fused():
    def tidies(self, x):
        try:
            return self.sn(over_time(self, x) + x)
        finally:
            del x

    fused_like(block(tidies), default_currents())


def with_shapes(function):
    return block(lambda self, x: self.sn(flat(self, function(x, self.offset)).unflatten(0, x.shape[:2])))


@pytest.mark.parametrize("function", SHAPES.values(), ids=SHAPES)
def test_a_forward_that_computes_with_shapes_is_fused(function):
    fused_like(with_shapes(function), default_currents())


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_a_forward_that_needs_a_shapes_value_is_left_with_the_reason(function):
    report = left_like(with_shapes(function), default_currents())
    assert all("cannot be traced: " in entry.reason for entry in report.left if entry.name in ("", "bn"))


# What a forward asks of its values ----------------------------------------------------------------------------------


QUESTIONS = {
    "a batch norm's output": lambda s, y: isinstance(y, Tensor),
    "is_tensor": lambda s, y: torch.is_tensor(y),
    "one of several": lambda s, y: isinstance(y, (list, Tensor)),
    "a union": lambda s, y: isinstance(y, list | Tensor),
    "not a list": lambda s, y: not isinstance(y, (list, tuple, collections.abc.Mapping)),
    "its type": lambda s, y: type(y) is Tensor,
    "its class": lambda s, y: y.__class__ is Tensor,
    "a size": lambda s, y: isinstance(y.shape, torch.Size) and isinstance(y.shape, tuple),
    "a size is no tensor": lambda s, y: not isinstance(y.size(), Tensor) and not torch.is_tensor(y.shape),
    "a number": lambda s, y: isinstance(y.shape[0], int) and isinstance(y.size(0), numbers.Integral),
    "a number is no tensor": lambda s, y: not isinstance(y.shape[0], Tensor) and type(y.dim()) is int,
    "numbers computed with": lambda s, y: isinstance(2 * y.shape[0] // 3, int),
    "a parameter": lambda s, y: isinstance(s.offset, nn.Parameter) and type(s.offset) is nn.Parameter,
    "a buffer": lambda s, y: not isinstance(s.bn.running_mean, nn.Parameter),
    "a number of the module": lambda s, y: isinstance(s.steps, int) and type(s.scale) is float,
    "an attribute": lambda s, y: hasattr(y, "shape") and not hasattr(y, "spikes"),
    "an attribute with a default": lambda s, y: getattr(y, "spikes", None) is None,
    "callable": lambda s, y: not callable(y) and callable(s.bn),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_a_question_about_a_value_takes_the_branch_that_it_will_take(question):
    answers = []

    def forward(self, x):
        y = self.conv_over_time(x)
        answers.append(question(self, y))
        return self.sn(self.bn_over_time(y if answers[-1] else y * y))

    fused_like(block(forward), default_currents())
    assert all(answers)


def of_an_argument(forward, given):
    model = block(forward)
    plain = copy.deepcopy(model)
    report = sf.fuse(model)
    with torch.no_grad():
        for arguments in given:
            assert torch.equal(model(*arguments), plain(*arguments))
    return report


def test_a_branch_by_the_type_of_an_argument_is_not_guessed():
    x = default_currents()

    def joins(self, x):
        return self.sn(over_time(self, torch.cat(x) if isinstance(x, list) else x))

    def scales(self, x, factor):
        y = over_time(self, x)
        return self.sn(y if isinstance(factor, Tensor) else y * factor)

    def adds(self, x):
        y = over_time(self, x)
        return self.sn(y + x.shortcut if hasattr(x, "shortcut") else y)

    with_shortcut = x.clone()
    with_shortcut.shortcut = x
    for forward, given in ((joins, [(x,), ([x, x],)]), (scales, [(x, x), (x, 2.0)]), (adds, [(x,), (with_shortcut,)])):
        report = of_an_argument(forward, given)
        assert not report.fused and "depends on the type of a value" in report.left[0].reason


def of_a_flag(self, x):
    return self.sn(over_time(self, x) + x) * (2 if x.requires_grad is True else 3)


def of_a_dtype(self, x):
    return self.sn(over_time(self, x) + x) * (2 if x.dtype is torch.float64 else 3)


def of_a_variable(self, x, other):
    return self.sn(over_time(self, x) + x) * (2 if other is x else 3)


def of_an_optional_argument(self, x, **options):
    return self.sn(over_time(self, x) + x) * (2 if options.get("scale") is None else 3)


@pytest.mark.parametrize("forward", [of_a_flag, of_a_dtype, of_a_variable, of_an_optional_argument])
def test_a_forward_that_asks_whether_values_are_the_same_object_is_left(forward):
    arguments = (default_currents(),) * (2 if forward is of_a_variable else 1)
    report = of_an_argument(forward, [arguments])
    assert not report.fused and "asks by `is`" in report.left[0].reason


@pytest.mark.parametrize("needed", [False, True], ids=["with a default", "without a default"])
def test_a_number_that_an_argument_decides_is_not_frozen(needed):
    x = default_currents()

    def optional(self, x, mask=None):
        return self.sn(over_time(self, x) + x) * (2 if mask is None else 3)

    def required(self, x, mask):
        return self.sn(over_time(self, x) + x) * (2 if mask is None else 3)

    report = of_an_argument(required if needed else optional, [(x, None), (x, x)])
    assert not report.fused and "depends on the argument 'mask'" in report.left[0].reason


MODES = {
    "a module in it": lambda self: self.conv.training,
    "gradients": lambda self: torch.is_grad_enabled(),
    "autocast": lambda self: torch.is_autocast_enabled("cpu"),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_number_that_a_mode_decides_is_not_frozen(mode):
    def forward(self, x):
        return self.sn(over_time(self, x) + x) * (2 if MODES[mode](self) else 3)

    model = block(forward)
    report = sf.fuse(model)
    assert not report.fused and f"depends on {'whether ' * (mode == 'a module in it')}{mode}" in report.left[0].reason


@pytest.mark.parametrize("number", [lambda self: self.sn.threshold, lambda self: self.bn.eps], ids=["threshold", "eps"])
def test_a_number_of_a_module_inside_is_not_frozen(number):
    """It may be set after fusing, as all options may."""
    model = block(lambda self, x: self.sn(over_time(self, x) + x) * number(self))
    report = sf.fuse(model)
    assert not report.fused and "depends on a number of a module in it" in report.left[0].reason


def test_a_check_of_an_argument_that_only_raises_does_not_hinder():
    def checked(self, x):
        assert isinstance(x, Tensor), "a tensor is needed"
        if not hasattr(x, "dim"):
            raise TypeError(f"a tensor is needed, got {type(x)}")
        return self.sn(over_time(self, x) + x)

    fused_like(block(checked), default_currents())


def test_the_builtins_are_their_own_again_after_fusing_and_after_an_error():
    kept = [isinstance, hasattr, getattr, callable, len, torch.tensor, torch.as_tensor]
    space = dict(sys.modules[__name__].__dict__)
    sf.fuse(block(lambda self, x: self.sn(over_time(self, x))))
    sf.fuse(block(lambda self, x: self.nothing(x)))
    assert [isinstance, hasattr, getattr, callable, len, torch.tensor, torch.as_tensor] == kept
    assert sys.modules[__name__].__dict__ == space and "type" not in space


def test_a_question_in_a_method_from_another_file_is_answered_too():
    space = {"__name__": "another_file", "Tensor": Tensor}
    exec("def doubled(self, y):\n    return y * y if type(y) is Tensor else y", space)
    model = block(lambda self, x: self.sn(self.bn_over_time(self.doubled(self.conv_over_time(x)))))
    type(model).doubled = space["doubled"]
    fused_like(model, default_currents())
    assert "type" not in space
