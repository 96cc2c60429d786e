"""A first mistake is answered with what was meant: other libraries' options, a forgotten time axis, unlike data."""

from __future__ import annotations

import functools
import inspect
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import snnfast as sf
from snnfast import models
from snnfast.training import TrainOptions

LAYERS = {
    "IF": lambda **options: sf.IF(**options),
    "LIF": lambda **options: sf.LIF(**options),
    "BatchNormIF": lambda **options: sf.BatchNormIF(3, **options),
    "BatchNormLIF": lambda **options: sf.BatchNormLIF(3, **options),
    "integrate_and_fire": lambda **options: sf.functional.integrate_and_fire(torch.rand(2, 2, 3), **options),
    "leaky_integrate_and_fire": lambda **options: sf.functional.leaky_integrate_and_fire(
        torch.rand(2, 2, 3), **options
    ),
    "batch_norm_integrate_and_fire": lambda **options: sf.functional.batch_norm_integrate_and_fire(
        torch.rand(2, 2, 3), **options
    ),
    "reference.integrate_and_fire": lambda **options: sf.reference.integrate_and_fire(torch.rand(2, 2, 3), **options),
    "reference.leaky_integrate_and_fire": lambda **options: sf.reference.leaky_integrate_and_fire(
        torch.rand(2, 2, 3), **options
    ),
    "resnet18": lambda **options: models.build("resnet18", **options),
    "mnist_net": lambda **options: models.mnist_net(**options),
    "digits": lambda **options: models.digits(**options),
}

OPTIONS = {  # another library's option, with what the message must have of ours
    "v_threshold": (0.5, "threshold"),
    "v_reset": (None, "reset='soft'"),
    "surrogate_function": (torch.sigmoid, "surrogate"),
    "spike_grad": (torch.sigmoid, "surrogate"),
    "step_mode": ("m", "[T, B, ...]"),
    "backend": ("cupy", "the current's device"),
    "store_v_seq": (True, "return_potential=True"),
    "beta": (0.9, "tau=10 with decay_input=False"),
    "learn_beta": (True, "learn_tau"),
    "alpha": (2.0, "gamma"),
    "slope": (25.0, "gamma"),
    "gamma": (10.0, "surrogate=snnfast.surrogate.FastSigmoid(gamma=10.0)"),
    "init_hidden": (True, "carry_state"),
    "reset_mechanism": ("zero", "reset='hard'"),
    "reset_delay": (False, "has no counterpart here"),
    "inhibition": (True, "has no counterpart here"),
    "batch_first": (True, "time_dim=1"),
    "num_steps": (10, "layer(current, steps=10)"),
    "v_th": (1.0, "threshold"),
}


def message(call, kind: type[Exception]) -> str:
    with pytest.raises(kind) as raised:
        call()
    return str(raised.value)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_another_library_is_refused_with_ours_beside_it(layer, option):
    value, ours = OPTIONS[option]
    said = message(lambda: LAYERS[layer](**{option: value}), TypeError)
    name = layer.rpartition(".")[2]
    assert said.startswith(f"{name} has no argument {option!r}; {option}"), said
    assert ours in said
    assert "__init__" not in said


@pytest.mark.parametrize("layer", ["IF", "LIF", "BatchNormIF", "BatchNormLIF"])
@pytest.mark.parametrize("option", OPTIONS)
def test_assigning_an_option_of_another_library_is_refused_too_and_left_to_subclasses(layer, option):
    value, ours = OPTIONS[option]
    made = LAYERS[layer]()
    assert ours in message(lambda: setattr(made, option, value), TypeError)

    class Own(getattr(sf, layer)):
        pass

    own = Own(*(3,) * layer.startswith("Batch"))
    setattr(own, option, value)
    assert getattr(own, option) is value


@pytest.mark.parametrize("layer", LAYERS)
def test_a_misspelt_option_is_refused_with_the_nearest_name_and_an_unlike_one_with_all(layer):
    name = layer.rpartition(".")[2]
    assert message(lambda: LAYERS[layer](thresold=1.0), TypeError) == (
        f"{name} has no argument 'thresold'; did you mean 'threshold'?"
    )
    said = message(lambda: LAYERS[layer](qqqq=1.0), TypeError)
    assert said.startswith(f"{name} has no argument 'qqqq'; it takes ")
    assert "threshold, " in said and "unknown" not in said


def test_type_checkers_see_that_no_other_option_is_taken():
    for function in (sf.IF, sf.LIF, sf.BatchNormIF, sf.BatchNormLIF, sf.functional.integrate_and_fire):
        others = [p for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_KEYWORD]
        assert [p.annotation for p in others] == ["Never"]


RESETS = {"subtract": "reset='soft'", "zero": "reset='hard'", "none": "no counterpart", None: "reset='soft'"}


@pytest.mark.parametrize("value", RESETS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_reset_of_another_library_is_refused_with_ours_beside_it(layer, value):
    said = message(lambda: LAYERS[layer](reset=value), ValueError)
    assert said.startswith(f"reset must be one of 'hard', 'soft', got {value!r}; ")
    assert RESETS[value] in said


@pytest.mark.parametrize("beta", [0.9, 0.5, 0.99])
@pytest.mark.parametrize(
    "make",
    [sf.LIF, lambda tau: sf.BatchNormLIF(3, tau=tau), lambda tau: models.build("digits", activation="lif", tau=tau)],
    ids=["LIF", "BatchNormLIF", "network"],
)
def test_a_decay_given_for_tau_is_told_the_tau_that_has_it(beta, make):
    said = message(lambda: make(tau=beta), ValueError)
    assert said.startswith(f"tau must be greater than 1 step, got {beta}; ")
    tau = float(said.rpartition("= ")[2])
    # And it is that tau: a potential that decays by beta a step, the current added whole.
    current = torch.tensor([0.25, 0.0, 0.5], dtype=torch.float64)
    potential = sf.functional.leaky_integrate_and_fire(
        current[:, None], tau=tau, decay_input=False, return_potential=True
    )[2]
    expected = [0.25, 0.25 * beta, 0.25 * beta**2 + 0.5]
    torch.testing.assert_close(potential[:, 0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("tau", [1.0, 0.0, -3.0, math.nan])
def test_a_tau_that_is_no_decay_is_told_nothing_of_one(tau):
    assert "beta" not in message(lambda: sf.LIF(tau), ValueError)


class Sigmoid:
    """As SpikingJelly's surrogates are: callable, with a number alpha."""

    alpha = 3.0

    def __call__(self, x):
        return x


def atan(alpha=2.0):
    def inner(x):
        return x

    return inner


@pytest.mark.parametrize(
    ("given", "ours"),
    [(Sigmoid(), "Sigmoid(gamma=3, beta=3)"), (atan(), "Arctangent(gamma=3.14159, beta=1)")],
    ids=["SpikingJelly", "snnTorch"],
)
def test_a_surrogate_of_another_library_is_refused_with_ours_beside_it(given, ours):
    assert f"snnfast.surrogate.{ours}" in message(lambda: sf.IF(surrogate=given), TypeError)


def test_a_shape_by_its_name_elsewhere_is_told_its_name_here():
    assert "Arctangent(gamma=3.14159, beta=1)" in message(lambda: sf.surrogate.ATan, AttributeError)
    assert "FastSigmoid(gamma=25, beta=1)" in message(lambda: sf.surrogate.fast_sigmoid, AttributeError)
    assert "did you mean 'Triangle'?" in message(lambda: sf.surrogate.Triangel, AttributeError)
    assert not hasattr(sf.surrogate, "quite_another")


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("by_name", [True, False], ids=["build", "function"])
def test_an_unknown_argument_of_a_network_names_the_network_and_the_nearest_argument(name, by_name):
    make = functools.partial(models.build, name) if by_name else getattr(models, name)
    assert message(lambda: make(num_class=10), TypeError) == (
        f"{name} has no argument 'num_class'; did you mean 'num_classes'?"
    )


def test_an_unknown_option_of_training_names_the_nearest():
    assert message(lambda: TrainOptions.for_data("digits", epoch=3), TypeError) == (
        "TrainOptions has no argument 'epoch'; did you mean 'epochs'?"
    )


ELSEWHERE = {
    "LIFNode": "LIF",
    "IFNode": "IF",
    "ParametricLIFNode": "LIF(learn_tau=True)",
    "Leaky": "compat.snntorch.Leaky here",
    "reset_net": "reset_state",
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_layer_by_its_name_elsewhere_is_told_its_name_here(name):
    assert f"{name} elsewhere is snnfast.{ELSEWHERE[name]}" in message(lambda: getattr(sf, name), AttributeError)


def test_a_misspelt_layer_is_told_the_nearest_and_an_unlike_one_nothing():
    assert "did you mean 'BatchNormIF'?" in message(lambda: sf.BatchnormIF, AttributeError)
    assert message(lambda: sf.quite_another, AttributeError) == "module 'snnfast' has no attribute 'quite_another'"


TIMELESS = {  # modules behind OverTime, and a sample without time axis
    "Conv1d": (nn.Conv1d(3, 6, 3), (6, 3, 9), "[T, B, C, L]"),
    "Conv2d": (nn.Conv2d(3, 6, 3), (6, 3, 8, 8), "[T, B, C, H, W]"),
    "Conv2d, as many images times channels": (nn.Conv2d(3, 3, 3, padding=1), (1, 3, 8, 8), "[T, B, C, H, W]"),
    "Conv3d": (nn.Conv3d(3, 6, 3), (6, 3, 5, 5, 5), "[T, B, C, D, H, W]"),
    "ConvTranspose2d": (nn.ConvTranspose2d(3, 6, 3), (6, 3, 8, 8), "[T, B, C, H, W]"),
    "BatchNorm1d": (nn.BatchNorm1d(3), (6, 3), "[T, B, C, ...]"),
    "BatchNorm2d": (nn.BatchNorm2d(3), (6, 3, 8, 8), "[T, B, C, H, W]"),
    "InstanceNorm2d": (nn.InstanceNorm2d(3), (6, 3, 8, 8), "[T, B, C, H, W]"),
    "Linear": (nn.Linear(5, 2), (6, 5), "[T, B, ..., features]"),
    "Linear, silently": (nn.Linear(5, 5), (1, 5), "[T, B, ..., features]"),
    "first of nn.Sequential": (
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3)), nn.ReLU()),
        (6, 3, 8, 8),
        "[T, B, C, H, W]",
    ),
}


@pytest.mark.parametrize("name", TIMELESS)
def test_over_time_says_where_the_time_axis_is_missing(name):
    module, shape, axes = TIMELESS[name]
    said = message(lambda: sf.OverTime(module)(torch.randn(shape)), ValueError)
    assert f"needs {axes}, got shape {list(shape)}" in said
    assert "without time axis" in said and "steps=T" in said
    sf.OverTime(module)(torch.randn(2, *shape))  # with one it runs


def test_over_time_names_its_axes_for_any_other_number_of_dimensions_and_leaves_a_users_module_alone():
    said = message(lambda: sf.OverTime(nn.Conv2d(3, 6, 3))(torch.randn(2, 2, 2, 3, 8, 8)), ValueError)
    assert said == "OverTime(Conv2d) needs [T, B, C, H, W], got shape [2, 2, 2, 3, 8, 8]"

    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x[:, :, None, None])

    assert sf.OverTime(Own(3, 6, 1))(torch.randn(2, 4, 3)).shape == (2, 4, 6, 1, 1)


def test_over_time_says_what_a_module_must_return():
    x = torch.randn(4, 3, 5, 6)
    said = message(lambda: sf.OverTime(nn.LSTM(6, 2, batch_first=True))(x), TypeError)
    assert said == "OverTime(LSTM) needs a result [T·B, ...] for its 12 steps and samples, got tuple"
    assert sf.OverTime(nn.Flatten())(x[:, :0]).shape == (4, 0, 30)


@pytest.mark.parametrize(
    "module", [nn.Flatten(0), nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, 2))], ids=["0", "0 and 1"]
)
def test_over_time_refuses_what_joins_steps_and_samples(module):
    said = message(lambda: sf.OverTime(module)(torch.randn(4, 3, 5, 6)), ValueError)
    assert "for its 12 steps and samples, got shape [" in said and "must keep the batch" in said


CHANNELS = {
    "no time axis": ((6, 3, 8, 8), None, "steps=T"),
    "no time axis, of a linear layer": ((6, 3), None, "steps=T"),
    "channels last": ((5, 6, 8, 8, 3), None, "movedim(-1, 2)"),
    "held with a time axis": ((5, 6, 3, 8, 8), 5, "leave it out for [T, B, C, ...]"),
}


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("kind", [sf.BatchNormIF, sf.BatchNormLIF])
def test_batch_norm_neurons_say_their_axes_and_what_was_meant(kind, name):
    shape, steps, meant = CHANNELS[name]
    said = message(lambda: kind(3)(torch.randn(shape), steps=steps), ValueError)
    assert ("[B, C, ...]" if steps else "[T, B, C, ...]") in said
    assert str(list(shape)) in said and meant in said
    batch_first = message(lambda: kind(3, time_dim=1)(torch.randn(4, 5, 6)), ValueError)
    assert "[B, T, C, ...]" in batch_first


UNCONVERTED = {
    "NumPy": (np.zeros((2, 3, 1, 8, 8), np.float32), "torch.from_numpy("),
    "uint8": (torch.zeros(2, 3, 1, 8, 8, dtype=torch.uint8), ".float() / 255"),
    "int64": (torch.zeros(2, 3, 1, 8, 8, dtype=torch.int64), ".float()"),
}
TAKERS = {
    "IF": lambda x: sf.IF()(x),
    "LIF": lambda x: sf.LIF()(x),
    "BatchNormIF": lambda x: sf.BatchNormIF(1)(x),
    "OverTime": lambda x: sf.OverTime(nn.Conv2d(1, 2, 3))(x),
    "functional": lambda x: sf.functional.integrate_and_fire(x),
    "reference": lambda x: sf.reference.integrate_and_fire(x),
    "v0": lambda x: sf.functional.integrate_and_fire(torch.rand(4, 2, 3, 1, 8, 8), x),
    "digits": lambda x: models.build("digits")(x[0]),
    "plain_net": lambda x: models.build("plain_net", in_channels=1, layers=3)(x[0]),
}


@pytest.mark.parametrize("data", UNCONVERTED)
@pytest.mark.parametrize("taker", TAKERS)
def test_data_that_is_not_converted_is_refused_with_how_to(taker, data):
    value, remedy = UNCONVERTED[data]
    said = message(lambda: TAKERS[taker](value), TypeError)
    assert ": convert it, " in said and remedy in said


def test_numbers_and_lists_are_refused_with_how_to_convert_them():
    assert "float(threshold)" in message(lambda: sf.IF(np.float32(0.5)), TypeError)
    assert "torch.from_numpy(threshold)" in message(lambda: sf.IF(np.ones(3)), TypeError)
    assert "torch.from_numpy" not in message(lambda: sf.IF(reset_value=np.ones(3)), TypeError)
    assert "torch.stack(current)" in message(lambda: sf.IF()([torch.rand(2), torch.rand(2)]), TypeError)
    assert "torch.tensor(current)" in message(lambda: sf.IF()([[1.0, 0.5]]), TypeError)
    assert "torch.from_numpy(x)" in message(lambda: sf.Readout()(np.ones((2, 3))), TypeError)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sf.surrogate.Arctangent(alpha=2.0), ("Arctangent has no parameter 'alpha'", "gamma=πα/2")),
        (lambda: sf.surrogate.FastSigmoid(slope=25.0), ("FastSigmoid has no parameter 'slope'", "gamma")),
        (lambda: sf.surrogate.Sigmoid(gama=2.0), ("did you mean 'gamma'",)),
    ],
    ids=["alpha", "slope", "gama"],
)
def test_a_surrogates_parameters_are_named_where_others_are_given(make, words):
    with pytest.raises(TypeError) as raised:
        make()
    assert all(word in str(raised.value) for word in words)


def test_spikingjellys_functional_names_are_answered_with_ours():
    with pytest.raises(AttributeError, match=r"reset_net elsewhere is snnfast\.reset_state here"):
        sf.functional.reset_net(sf.IF())


def test_the_source_folder_ahead_of_an_installed_package_says_so(tmp_path):
    (tmp_path / "csrc").mkdir()
    source = Path(sf.__file__).parent
    shutil.copytree(source, tmp_path / "snnfast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # without what finds an editable install's core, as for users
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in str(f)]; import snnfast"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    last = found.stderr.strip().splitlines()[-1]
    assert found.returncode and "run Python in another folder" in last and str(tmp_path) in last
