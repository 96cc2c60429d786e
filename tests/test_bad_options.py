"""Neuron options that cannot be are refused by name, wherever they are given: functions, reference and layers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from naming import shown
from refusals import MAKERS, NORMALIZED, X, each_of, no_kernel_runs, on, refused  # noqa: F401

import snnfast as sf

IF, LIF = sf.functional.integrate_and_fire, sf.functional.leaky_integrate_and_fire


@each_of({**MAKERS, **NORMALIZED, "Readout": sf.Readout})
@pytest.mark.parametrize("time_dim", [2, -1, True, None, 1.0, torch.tensor(1), np.array([0, 1])], ids=shown)
def test_time_dimensions_that_are_not_supported(make, time_dim):
    with refused(ValueError, "time_dim", "0 or 1", repr(time_dim)):
        make(time_dim=time_dim)


@each_of(MAKERS)
class TestOptions:
    @pytest.mark.parametrize("threshold", [-1.0, -1e-9, math.nan, -math.inf], ids=shown)
    def test_negative_and_nan_thresholds(self, make, threshold):
        with refused(ValueError, "threshold", str(threshold), "at least 0"):
            make(threshold=threshold)

    @pytest.mark.parametrize("threshold", ["1", None, True, [1.0]], ids=shown)
    def test_thresholds_that_are_no_number(self, make, threshold):
        with refused(TypeError, "threshold", "number or a tensor", type(threshold).__name__):
            make(threshold=threshold)

    @pytest.mark.parametrize("reset", ["zero", "Hard", None, 0, np.array(["hard", "soft"])], ids=shown)
    def test_unknown_resets(self, make, reset):
        with refused(ValueError, "reset", "'hard', 'soft'", repr(reset)):
            make(reset=reset)

    def test_a_reset_value_with_the_soft_reset(self, make):
        with refused(ValueError, "reset_value", "0.25", "soft", "must be 0"):
            make(reset="soft", reset_value=0.25)

    @pytest.mark.parametrize("value", [math.nan, math.inf], ids=shown)
    def test_reset_values_that_are_not_finite(self, make, value):
        with refused(ValueError, "reset_value", "between -3.4028235e+38 and 3.4028235e+38", str(value)):
            make(reset_value=value)

    @pytest.mark.parametrize("value", ["0", True, torch.tensor(0.0)], ids=shown)
    def test_reset_values_that_are_no_number(self, make, value):
        with refused(TypeError, "reset_value must be a number, got", type(value).__name__):
            make(reset_value=value)

    @pytest.mark.parametrize("name", ["threshold", "reset_value"])
    def test_integers_that_no_float_holds(self, make, name):
        with refused(ValueError, name, "float64", "int"):
            make(**{name: 10**400})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *itertools.product(["detach_reset", "fire_on_equal", "delay"], [1, "yes"]),
            ("fire_on_equal", None),  # of detach_reset it is a value
            ("delay", None),
        ],
    )
    def test_flags_that_are_not_true_or_false(self, make, name, value):
        with refused(TypeError, name, "True or False", repr(value)):
            make(**{name: value})

    @pytest.mark.parametrize("value", ["fast_sigmoid", 10.0])
    def test_unknown_surrogates(self, make, value):
        with refused(TypeError, "surrogate", "snnfast.surrogate", repr(value)):
            make(surrogate=value)

    def test_a_surrogate_that_was_not_made(self, make):
        with refused(TypeError, "surrogate", "instance", "Triangle()"):
            make(surrogate=sf.surrogate.Triangle)


def my_slope(d):
    return torch.exp(-d.abs())


@pytest.mark.parametrize(
    ("name", "make"), [("integrate_and_fire", on(IF)), ("IF", sf.IF), ("LIF", sf.LIF)], ids=["IF()", "IF", "LIF"]
)
def test_a_custom_surrogate_is_refused_by_kernels(name, make):
    with refused(TypeError, "surrogate", name, "my_slope", "snnfast.surrogate", "snnfast.reference"):
        make(surrogate=my_slope)


def test_a_custom_surrogate_is_refused_where_it_is_assigned():
    layer = sf.IF()
    with refused(TypeError, "surrogate", "IF", "my_slope"):
        layer.surrogate = my_slope


def test_a_custom_surrogate_runs_in_the_reference():
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


subclasses = pytest.mark.parametrize("own", [Steep(), Own(gamma=2.0)], ids=["of a shape", "of the base"])
WITH_KERNELS = {name: MAKERS[name] for name in ("IF()", "IF", "LIF")} | {"BatchNormIF": NORMALIZED["BatchNormIF"]}


@subclasses
@each_of({**WITH_KERNELS, "assigned": lambda surrogate: setattr(sf.IF(), "surrogate", surrogate)})
def test_a_subclassed_surrogate_is_refused_by_kernels(own, make):
    with refused(TypeError, "surrogate", type(own).__name__, "snnfast.surrogate", "snnfast.reference"):
        make(surrogate=own)


@subclasses
def test_a_subclassed_surrogate_runs_in_the_reference(own):
    x = torch.randn(4, 7, requires_grad=True)
    sf.reference.integrate_and_fire(x, surrogate=own)[0].sum().backward()
    wanted = torch.autograd.grad(sf.reference.integrate_and_fire(x, surrogate=own.derivative)[0].sum(), x)
    assert torch.equal(x.grad, wanted[0])
    assert not torch.equal(x.grad, torch.autograd.grad(sf.reference.integrate_and_fire(x)[0].sum(), x)[0])


@each_of({"LIF()": on(LIF), "LIF": sf.LIF})
class TestTimeConstants:
    @pytest.mark.parametrize("tau", [1.0, 0.5, 0, -2.0, math.nan, -math.inf], ids=shown)
    def test_of_one_step_or_less(self, make, tau):
        with refused(ValueError, "tau", "greater than 1", str(float(tau))):
            make(tau=tau)

    @pytest.mark.parametrize("tau", ["2", True, [2.0]], ids=shown)
    def test_that_are_no_number(self, make, tau):
        with refused(TypeError, "tau", "number or a tensor", type(tau).__name__):
            make(tau=tau)

    def test_that_no_float_holds(self, make):
        with refused(ValueError, "tau", "float64", "int"):
            make(tau=10**400)

    def test_and_a_flag_beside_them_that_is_no_flag(self, make):
        with refused(TypeError, "decay_input", "True or False", "1"):
            make(decay_input=1)


@pytest.mark.parametrize("tau", [math.inf, 1 + 1e-9, 1e39])
@pytest.mark.parametrize("per_channel", [False, True], ids=["a number", "per channel"])
def test_a_learned_time_constant_is_one_that_its_dtype_can_hold(tau, per_channel):
    layer = sf.LIF(2.0, learn_tau=True)
    value = torch.tensor([2.0, tau], dtype=torch.float64) if per_channel else tau
    with refused(ValueError, "tau", "at least 1 + 1.19e-07", "at most 1.7e+38", "torch.float32", "got "):
        sf.LIF(value, learn_tau=True)
    with refused(ValueError, "tau", "at least 1 + 1.19e-07", "at most 1.7e+38", "torch.float32", "got "):
        layer.tau = value
    assert layer.tau.item() == 2.0


def test_a_learned_time_constant_keeps_its_shape():
    layer = sf.LIF(2.0, learn_tau=True)
    with refused(ValueError, "tau", "shape []", "[2]"):
        layer.tau = torch.tensor([2.0, 3.0])
    assert layer.tau.item() == 2.0


@each_of(
    {
        "LIF()": on(LIF),
        "reference LIF": on(sf.reference.leaky_integrate_and_fire),
        "LIF": sf.LIF,
        "LIF, learned": lambda tau: sf.LIF(tau, learn_tau=True),
        "BatchNormLIF": NORMALIZED["BatchNormLIF"],
    }
)
def test_no_time_constant_is_not_taken_for_no_leak(make):
    with refused(TypeError, "tau", "number or a tensor", "NoneType"):
        make(tau=None)


@each_of(
    {
        "LIF": lambda: sf.LIF(3.0),
        "LIF, learned": lambda: sf.LIF(3.0, learn_tau=True),
        "LIF, a tensor": lambda: sf.LIF(torch.tensor(3.0)),
        "BatchNormLIF": lambda: sf.BatchNormLIF(3),
    }
)
def test_no_time_constant_cannot_be_assigned(make):
    layer = make()
    before = repr(layer)
    with refused(TypeError, "tau", "number or a tensor", "NoneType"):
        layer.tau = None
    assert repr(layer) == before


@each_of({"IF": sf.IF, "BatchNormIF": lambda: sf.BatchNormIF(3)})
@pytest.mark.parametrize(
    ("name", "value"), [("tau", 3.0), ("tau", None), ("tau", torch.tensor(3.0)), ("decay_input", True)], ids=shown
)
def test_a_layer_without_leak_takes_no_time_constant(make, name, value):
    layer = make()
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


@pytest.mark.parametrize("layer", [sf.IF, sf.LIF])
def test_delay_with_a_carried_state(layer):
    with refused(ValueError, "delay=True", "carry_state=True"):
        layer(delay=True, carry_state=True)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
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
    ],
)
def test_invalid_options_after_construction_leave_the_layer_as_it_was(name, value, error):
    layer = sf.LIF(3.0, 0.7, reset_value=0.25)
    before = repr(layer)
    with refused(error, name):
        setattr(layer, name, value)
    assert repr(layer) == before


@pytest.mark.parametrize("name", ["time_dim", "carry_state"])
def test_options_that_are_fixed_after_construction(name):
    layer = sf.LIF()
    with refused(AttributeError, name, "fixed"):
        setattr(layer, name, 1)


def test_a_delay_is_not_assigned_to_a_layer_that_carries_its_state():
    carrying = sf.IF(carry_state=True)
    with refused(ValueError, "delay=True", "carry_state=True"):
        carrying.delay = True
    assert carrying.delay is False


@pytest.mark.parametrize(
    "make",
    [lambda: sf.IF(1.0, "hard"), lambda: sf.LIF(2.0, 1.0, True), lambda: IF(X, None, 1.0)],
    ids=["IF", "LIF", "IF()"],
)
def test_options_go_by_name(make):
    with pytest.raises(TypeError, match="positional"):
        make()
