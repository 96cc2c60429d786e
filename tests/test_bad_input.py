"""Bad input is refused before any kernel runs, by a message that names the argument, what came and what is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import snnfast as sf
from snnfast import backends

X = torch.zeros(4, 2, 3, 5)
IF, LIF = sf.functional.integrate_and_fire, sf.functional.leaky_integrate_and_fire


@pytest.fixture(autouse=True)
def no_kernel_runs(monkeypatch):
    def of(tensor):
        raise AssertionError("a kernel was about to run")

    monkeypatch.setattr(backends, "of", of)


def refused(error: type[Exception], *words: str):
    """The error is of exactly this type, and its message has every word."""

    class Check:
        def __enter__(self):
            self.raises = pytest.raises(error)
            self.info = self.raises.__enter__()

        def __exit__(self, *exception):
            done = self.raises.__exit__(*exception)
            assert self.info.type is error
            for word in words:
                assert word in str(self.info.value), f"{word!r} is not in the message {str(self.info.value)!r}"
            return done

    return Check()


EVERYWHERE = [IF, LIF, sf.reference.integrate_and_fire, sf.reference.leaky_integrate_and_fire]
everywhere = pytest.mark.parametrize("call", EVERYWHERE, ids=["IF", "LIF", "reference IF", "reference LIF"])


@everywhere
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.complex128], ids=str
)
def test_integer_and_complex_currents(call, dtype):
    with refused(TypeError, "current", str(dtype), "float32, float64, float16 or bfloat16"):
        call(torch.zeros(4, 2, 3).to(dtype))


@everywhere
def test_what_is_not_a_tensor(call):
    for current, name in (([[1.0]], "list"), (None, "NoneType"), (1.0, "float"), (X.numpy(), "ndarray")):
        with refused(TypeError, "current", "tensor", name):
            call(current)
    with refused(TypeError, "v0", "tensor", "float"):
        call(X, 0.5)


def test_layers_refuse_what_is_not_a_tensor_or_not_floating_point():
    for layer in (sf.IF(), sf.LIF(), sf.IF(carry_state=True), sf.LIF(learn_tau=True)):
        with refused(TypeError, "current", "list"):
            layer([1.0])
        with refused(TypeError, "current", "torch.int64", "float32"):
            layer(torch.ones(3, 2, dtype=torch.int64))


@everywhere
def test_sparse_currents(call):
    with refused(TypeError, "current", "torch.sparse_coo", "dense"):
        call(torch.zeros(3, 4).to_sparse())
    with refused(TypeError, "v0", "torch.sparse_coo", "dense"):
        call(X, torch.zeros(2, 3, 5).to_sparse())
    with refused(TypeError, "threshold", "torch.sparse_coo", "dense"):
        call(X, threshold=torch.ones(3).to_sparse())


def test_sparse_time_constants_and_what_a_batch_norm_takes_besides():
    with refused(TypeError, "tau", "torch.sparse_coo", "dense"):
        LIF(X, tau=torch.full((3,), 2.0).to_sparse())
    for name, shape in (("residual", X.shape), ("weight", (3,)), ("bias", (3,))):
        with refused(TypeError, name, "torch.sparse_coo", "dense"):
            sf.functional.batch_norm_integrate_and_fire(X, **{name: torch.zeros(shape).to_sparse()})


@everywhere
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_currents(call, layout):
    nested = torch.nested.nested_tensor([torch.zeros(3, 4), torch.zeros(2, 4)], layout=layout)
    with refused(TypeError, "current", "dense", "nested"):
        call(nested)


@everywhere
def test_no_time_steps(call):
    with refused(ValueError, "current", "0 time steps", "[0, 2, 3]", "at least 1"):
        call(torch.zeros(0, 2, 3))
    with refused(ValueError, "current", "0 time steps", "[2, 0, 3]", "dimension 1"):
        call(torch.zeros(2, 0, 3), time_dim=1)
    with refused(ValueError, "current", "[T, B, ...]", "[]"):
        call(torch.tensor(1.0))
    with refused(ValueError, "current", "[B, T, ...]", "[7]"):
        call(torch.zeros(7), time_dim=1)


@everywhere
def test_steps_that_a_current_cannot_be_held_for(call):
    for steps in (0, -3, 2**31, 2**63, 10**400):
        with refused(ValueError, "steps", f"got {steps}", "at least 1" if steps < 1 else f"at most {2**31 - 1}"):
            call(X, steps=steps)
    for steps in (2.0, "4", True, torch.tensor(3)):
        with refused(TypeError, "steps", "int", type(steps).__name__):
            call(X, steps=steps)
    with refused(ValueError, "current", "[B, ...]", "0-d"):
        call(torch.tensor(1.0), steps=3)


@everywhere
def test_time_dimensions_that_are_not_supported(call):
    for time_dim in (2, -1, True, None, 1.0, torch.tensor(1), np.array([0, 1])):
        with refused(ValueError, "time_dim", "0 or 1", repr(time_dim)):
            call(X, time_dim=time_dim)
    for layer in (sf.IF, sf.LIF, sf.Readout):
        for time_dim in (2, 1.0, np.array([0, 1])):
            with refused(ValueError, "time_dim", "0 or 1", repr(time_dim)):
                layer(time_dim=time_dim)


def makers():
    """All that takes neuron options: functions on X, the reference, and layers."""
    return [*[lambda f=f, **o: f(X, **o) for f in EVERYWHERE], sf.IF, sf.LIF]


@pytest.mark.parametrize("make", makers(), ids=["IF()", "LIF()", "reference IF", "reference LIF", "IF", "LIF"])
class TestOptions:
    def test_negative_and_nan_thresholds(self, make):
        for threshold in (-1.0, -1e-9, math.nan, -math.inf):
            with refused(ValueError, "threshold", str(threshold), "at least 0"):
                make(threshold=threshold)

    def test_thresholds_that_are_no_number(self, make):
        for threshold in ("1", None, True, [1.0]):
            with refused(TypeError, "threshold", "number or a tensor", type(threshold).__name__):
                make(threshold=threshold)

    def test_unknown_resets(self, make):
        for reset in ("zero", "Hard", None, 0, np.array(["hard", "soft"])):
            with refused(ValueError, "reset", "'hard', 'soft'", repr(reset)):
                make(reset=reset)

    def test_a_reset_value_with_the_soft_reset(self, make):
        with refused(ValueError, "reset_value", "0.25", "soft", "must be 0"):
            make(reset="soft", reset_value=0.25)

    def test_reset_values_that_are_no_finite_number(self, make):
        for value in (math.nan, math.inf):
            with refused(ValueError, "reset_value", "between -3.4028235e+38 and 3.4028235e+38", str(value)):
                make(reset_value=value)
        for value in ("0", True, torch.tensor(0.0)):
            with refused(TypeError, "reset_value must be a number, got", type(value).__name__):
                make(reset_value=value)

    def test_integers_that_no_float_holds(self, make):
        for name in ("threshold", "reset_value"):
            with refused(ValueError, name, "float64", "int"):
                make(**{name: 10**400})

    def test_flags_that_are_not_true_or_false(self, make):
        for name in ("detach_reset", "fire_on_equal", "delay"):
            for value in (1, "yes", *([] if name == "detach_reset" else [None])):
                with refused(TypeError, name, "True or False", repr(value)):
                    make(**{name: value})

    def test_unknown_surrogates(self, make):
        for value in ("fast_sigmoid", 10.0):
            with refused(TypeError, "surrogate", "snnfast.surrogate", repr(value)):
                make(surrogate=value)
        with refused(TypeError, "surrogate", "instance", "Triangle()"):
            make(surrogate=sf.surrogate.Triangle)


def test_a_custom_surrogate_runs_in_the_reference_only():
    def my_slope(d):
        return torch.exp(-d.abs())

    for name, make in (("integrate_and_fire", lambda **o: IF(X, **o)), ("IF", sf.IF), ("LIF", sf.LIF)):
        with refused(TypeError, "surrogate", name, "my_slope", "snnfast.surrogate", "snnfast.reference"):
            make(surrogate=my_slope)
    layer = sf.IF()
    with refused(TypeError, "surrogate", "IF", "my_slope"):
        layer.surrogate = my_slope
    x = torch.randn(4, 7, requires_grad=True)
    sf.reference.integrate_and_fire(x, surrogate=my_slope)[0].sum().backward()
    wanted = torch.autograd.grad(
        sf.reference.integrate_and_fire(x, surrogate=sf.surrogate.Exponential(gamma=1, beta=1))[0].sum(), x
    )
    assert torch.equal(x.grad, wanted[0])


@dataclass(frozen=True, kw_only=True)
class Steep(sf.surrogate.FastSigmoid):
    def derivative(self, d):
        return 2 * super().derivative(d)


@dataclass(frozen=True, kw_only=True)
class Own(sf.surrogate.Surrogate):
    def derivative(self, d):
        return self.beta * torch.exp(-self.gamma * d.abs())


@pytest.mark.parametrize("own", [Steep(), Own(gamma=2.0)], ids=["of a shape", "of the base"])
def test_a_subclassed_surrogate_runs_in_the_reference_only(own):
    layer = sf.IF()
    for make in (
        lambda **o: IF(X, **o),
        sf.IF,
        sf.LIF,
        lambda **o: sf.BatchNormIF(3, **o),
        lambda surrogate: setattr(layer, "surrogate", surrogate),
    ):
        with refused(TypeError, "surrogate", type(own).__name__, "snnfast.surrogate", "snnfast.reference"):
            make(surrogate=own)
    x = torch.randn(4, 7, requires_grad=True)
    sf.reference.integrate_and_fire(x, surrogate=own)[0].sum().backward()
    wanted = torch.autograd.grad(sf.reference.integrate_and_fire(x, surrogate=own.derivative)[0].sum(), x)
    assert torch.equal(x.grad, wanted[0])
    assert not torch.equal(x.grad, torch.autograd.grad(sf.reference.integrate_and_fire(x)[0].sum(), x)[0])


@pytest.mark.parametrize("make", [lambda **o: LIF(X, **o), sf.LIF], ids=["functional", "LIF"])
def test_time_constants_of_one_step_or_less(make):
    for tau in (1.0, 0.5, 0, -2.0, math.nan, -math.inf):
        with refused(ValueError, "tau", "greater than 1", str(float(tau))):
            make(tau=tau)
    for tau in ("2", True, [2.0]):
        with refused(TypeError, "tau", "number or a tensor", type(tau).__name__):
            make(tau=tau)
    with refused(ValueError, "tau", "float64", "int"):
        make(tau=10**400)
    with refused(TypeError, "decay_input", "True or False", "1"):
        make(decay_input=1)


@pytest.mark.parametrize("tau", [math.inf, 1 + 1e-9, 1e39])
def test_a_learned_time_constant_is_one_that_its_dtype_can_hold(tau):
    layer = sf.LIF(2.0, learn_tau=True)
    for value in (tau, torch.tensor([2.0, tau], dtype=torch.float64)):
        with refused(ValueError, "tau", "at least 1 + 1.19e-07", "at most 1.7e+38", "torch.float32", "got "):
            sf.LIF(value, learn_tau=True)
        with refused(ValueError, "tau", "at least 1 + 1.19e-07", "at most 1.7e+38", "torch.float32", "got "):
            layer.tau = value
    with refused(ValueError, "tau", "shape []", "[2]"):
        layer.tau = torch.tensor([2.0, 3.0])
    assert layer.tau.item() == 2.0


def test_no_time_constant_is_not_taken_for_no_leak():
    for make in (
        lambda: LIF(X, tau=None),
        lambda: sf.reference.leaky_integrate_and_fire(X, tau=None),
        lambda: sf.LIF(None),
        lambda: sf.LIF(None, learn_tau=True),
        lambda: sf.BatchNormLIF(3, tau=None),
    ):
        with refused(TypeError, "tau", "number or a tensor", "NoneType"):
            make()
    for layer in (sf.LIF(3.0), sf.LIF(3.0, learn_tau=True), sf.LIF(torch.tensor(3.0)), sf.BatchNormLIF(3)):
        before = repr(layer)
        with refused(TypeError, "tau", "number or a tensor", "NoneType"):
            layer.tau = None
        assert repr(layer) == before


@pytest.mark.parametrize("make", [sf.IF, lambda: sf.BatchNormIF(3)], ids=["IF", "BatchNormIF"])
def test_a_layer_without_leak_takes_no_time_constant(make):
    layer = make()
    for name, value in (("tau", 3.0), ("tau", None), ("tau", torch.tensor(3.0)), ("decay_input", True)):
        with refused(TypeError, name, "IF has no leak"):
            setattr(layer, name, value)
        assert not hasattr(layer, name)
    layer.threshold = 0.5
    assert not layer._dynamics.leaky


@pytest.mark.parametrize("tau", [1.0, 0.5, math.nan])
def test_a_learned_time_constant_starts_above_one_step(tau):
    with refused(ValueError, "tau", "greater than 1", str(tau)):
        sf.LIF(tau, learn_tau=True)
    layer = sf.LIF(2.0, learn_tau=True)
    with refused(ValueError, "tau", "greater than 1", str(tau)):
        layer.tau = tau
    assert layer.tau.item() == 2.0


@pytest.mark.parametrize("name", ["carry_state", "learn_threshold", "learn_tau"])
def test_layer_flags_that_are_not_true_or_false(name):
    with refused(TypeError, name, "True or False", "1"):
        sf.LIF(**{name: 1})


def test_delay_with_a_carried_state():
    for layer in (sf.IF, sf.LIF):
        with refused(ValueError, "delay=True", "carry_state=True"):
            layer(delay=True, carry_state=True)


@everywhere
def test_initial_potentials_of_the_wrong_shape_or_dtype(call):
    for shape in ((4, 2, 3, 5), (3, 5), (1, 3, 5), (), (2, 3, 5, 1)):
        with refused(ValueError, "v0", "[2, 3, 5]", str(list(shape))):
            call(X, torch.zeros(shape))
    with refused(ValueError, "v0", "[4, 2, 3, 5]", "[2, 3, 5]"):
        call(X, torch.zeros(2, 3, 5), steps=2)
    with refused(ValueError, "v0", "[4, 3, 5]", "[2, 3, 5]"):
        call(X, torch.zeros(2, 3, 5), time_dim=1)
    for dtype in (torch.int64, torch.complex64):
        with refused(TypeError, "v0", str(dtype), "float32"):
            call(X, torch.zeros(2, 3, 5, dtype=dtype))


@pytest.mark.parametrize("name", ["threshold", "tau"])
def test_tables_of_the_wrong_shape_or_dtype(name):
    for shape in ((2,), (5,), (1, 3), (3, 1), (0,)):
        with refused(ValueError, name, "0-d", "length 3", str(list(shape))):
            LIF(X, **{name: torch.full(shape, 2.0)})
        with refused(ValueError, name, "length 3", str(list(shape))):
            sf.LIF(**{name: torch.full(shape, 2.0)})(X)
    for dtype in (torch.int64, torch.complex64):
        with refused(TypeError, name, str(dtype), "float32"):
            LIF(X, **{name: torch.full((3,), 2).to(dtype)})
    with refused(ValueError, name, "channel dimension", "[2]"):
        LIF(torch.zeros(4, 2), **{name: torch.full((2,), 2.0)})


@everywhere
def test_tensors_on_several_devices(call):
    other = torch.device("meta")
    with refused(ValueError, "v0", "meta", "cpu", "one device"):
        call(X, torch.zeros(2, 3, 5, device=other))
    with refused(ValueError, "threshold", "meta", "cpu", "one device"):
        call(X, threshold=torch.ones(3, device=other))
    if call in (LIF, sf.reference.leaky_integrate_and_fire):
        with refused(ValueError, "tau", "meta", "cpu", "one device"):
            call(X, tau=torch.tensor(2.0, device=other))


def test_a_layer_on_another_device_than_its_current():
    for layer in (sf.IF(learn_threshold=True), sf.LIF(threshold=torch.ones(3))):
        with refused(ValueError, "threshold", "meta", "cpu"):
            layer.to("meta")(X)
    with refused(ValueError, "tau", "meta", "cpu"):
        sf.LIF(learn_tau=True).to("meta")(X)


@pytest.mark.parametrize("name", ["mps", "xpu", "hpu", "xla"])
def test_devices_without_kernels(name):
    with refused(RuntimeError, name, "cpu and cuda"):
        backends.check_device(torch.device(name))


def test_a_gpu_tensor_where_cuda_was_not_compiled(monkeypatch):
    monkeypatch.setattr(backends, "core", SimpleNamespace(with_cuda=False))
    with refused(RuntimeError, "CUDA", "nvcc", "SNNFAST_CUDA=1", "build_info()"):
        backends.check_device(torch.device("cuda"))


@pytest.mark.skipif(backends.core.with_cuda, reason="this build has CUDA kernels")
def test_layers_name_the_device_they_cannot_run():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for device, word in (("cuda", "SNNFAST_CUDA=1"), ("xpu", "xpu")):
        with FakeTensorMode():  # a tensor without memory, of a device that need not exist
            x = torch.empty(4, 2, 3, device=device)
            for call in (sf.IF(), sf.LIF(), IF, LIF):
                with refused(RuntimeError, word):
                    call(x)


def test_values_of_tensors_are_not_read():
    """Reading them would wait for the device: they compute what they compute."""
    meta = torch.zeros(4, 2, 3, device="meta")
    assert IF(meta, threshold=torch.tensor(-1.0, device="meta"))[0].shape == (4, 2, 3)
    assert LIF(meta, tau=torch.tensor(0.5, device="meta"))[0].shape == (4, 2, 3)
    assert sf.IF(torch.tensor(math.nan)).threshold.isnan()


def test_invalid_options_after_construction_leave_the_layer_as_it_was():
    layer = sf.LIF(3.0, 0.7, reset_value=0.25)
    before = repr(layer)
    for name, value, error in [
        ("threshold", -1.0, ValueError),
        ("threshold", "1", TypeError),
        ("tau", 1.0, ValueError),
        ("reset", "soft", ValueError),
        ("reset", "none", ValueError),
        ("reset_value", math.inf, ValueError),
        ("surrogate", "atan", TypeError),
        ("surrogate", sf.surrogate.Triangle, TypeError),
        ("detach_reset", 1, TypeError),
        ("fire_on_equal", None, TypeError),
        ("delay", 0, TypeError),
        ("decay_input", 1, TypeError),
    ]:
        with refused(error, name):
            setattr(layer, name, value)
        assert repr(layer) == before
    for name in ("time_dim", "carry_state"):
        with refused(AttributeError, name, "fixed"):
            setattr(layer, name, 1)
    carrying = sf.IF(carry_state=True)
    with refused(ValueError, "delay=True", "carry_state=True"):
        carrying.delay = True
    assert carrying.delay is False


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_tables_of_a_layer_are_floating_point(dtype):
    table = torch.tensor([2, 3, 4]).to(dtype)
    for learn in (True, False):
        with refused(TypeError, "threshold", str(dtype), "float32"):
            sf.IF(table, learn_threshold=learn)
        with refused(TypeError, "tau", str(dtype), "float32"):
            sf.LIF(table, learn_tau=learn)
    layer = sf.LIF(torch.full((3,), 2.0), learn_tau=True)
    with refused(TypeError, "tau", str(dtype), "float32"):
        layer.tau = table


def test_readout_and_overtime_say_what_they_need():
    with refused(ValueError, "mode", "'sum' or 'mean'", "'max'"):
        sf.Readout("max")
    with refused(TypeError, "module", "torch.nn.Module", "function"):
        sf.OverTime(refused)
    with refused(ValueError, "[T, B, ...]", "[5]"):
        sf.OverTime(nn.ReLU())(torch.zeros(5))
    for module in (sf.OverTime(nn.ReLU()), sf.Readout()):
        with refused(TypeError, type(module).__name__, "tensor", "list"):
            module([1.0])
    with refused(ValueError, "Readout", "dimension 1", "[3]"):
        sf.Readout(time_dim=1)(torch.ones(3))
    with refused(ValueError, "Readout", "dimension 0", "[]"):
        sf.Readout()(torch.tensor(1.0))


def test_options_go_by_name():
    for layer in (lambda: sf.IF(1.0, "hard"), lambda: sf.LIF(2.0, 1.0, True), lambda: IF(X, None, 1.0)):
        with pytest.raises(TypeError, match="positional"):
            layer()
