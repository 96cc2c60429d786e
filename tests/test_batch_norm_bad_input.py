"""Bad input of batch-normalized neurons: the message names the argument, what came and what is allowed."""

from __future__ import annotations

import math

import pytest
import torch
from test_bad_input import no_kernel_runs, refused  # noqa: F401
from torch import nn

import snnfast as sf

C = 3
X = torch.zeros(4, 2, C, 5)
CALL = sf.functional.batch_norm_integrate_and_fire
LAYERS = [sf.BatchNormIF, sf.BatchNormLIF]
layers = pytest.mark.parametrize("make", LAYERS, ids=lambda make: make.__name__)


def everywhere(x=X, residual=None, **options):
    """The function and both layers on the same arguments, as calls."""
    return [
        lambda: CALL(x, residual=residual, training=True, **options),
        *[lambda make=make: make(C)(x, residual, **options) for make in LAYERS],
    ]


# Currents and residuals


def test_currents_that_are_no_floating_point_tensors():
    for x, words in (
        ([1.0], ("TypeError", "list")),
        (None, ("NoneType",)),
        (X.long(), ("torch.int64", "float32")),
        (X.to_sparse(), ("torch.sparse_coo", "dense")),
    ):
        for call in everywhere(x):
            with refused(TypeError, "current", *words[-2:] if words[0] != "TypeError" else words[1:]):
                call()


def test_currents_without_a_channel_dimension():
    for call in everywhere(torch.zeros(4, 2)):
        with refused(ValueError, "current", "channel", "[T, B, C, ...]", "[4, 2]"):
            call()
    for call in everywhere(torch.zeros(4), steps=3):
        with refused(ValueError, "current", "channel", "[B, C, ...]", "[4]"):
            call()
    with refused(ValueError, "current", "channel", "[B, T, C, ...]", "[4, 2]"):
        CALL(torch.zeros(4, 2), training=True, time_dim=1)


@layers
def test_another_number_of_channels_than_the_layers(make):
    for x, steps in ((torch.zeros(4, 2, 7, 5), None), (torch.zeros(2, 7, 5), 4), (torch.zeros(4, 2, 1), None)):
        with refused(
            ValueError,
            "current",
            f"{C} channels",
            "num_features",
            f"got {x.shape[1 if steps else 2]}",
            str(list(x.shape)),
        ):
            make(C)(x, steps=steps)
    with refused(ValueError, "current", f"{C} channels", "got 7"):
        make(C, affine=False, track_running_stats=False)(torch.zeros(4, 2, 7, 5))


def test_residuals_of_another_shape():
    for shape in ((4, 2, C, 4), (2, C, 5), (1, 2, C, 5), (4, 2, C, 5, 1), (4, 2, 1, 5), ()):
        for call in everywhere(residual=torch.zeros(shape)):
            with refused(ValueError, "residual", "[4, 2, 3, 5]", str(list(shape))):
                call()
    for call in everywhere(X[0], torch.zeros(5, 2, C, 5), steps=4):
        with refused(ValueError, "residual", "[2, 3, 5] or [4, 2, 3, 5]", "got [5, 2, 3, 5]"):
            call()
    with refused(ValueError, "residual", "[2, 3, 5] or [2, 4, 3, 5]", "got [4, 2, 3, 5]"):
        CALL(X[0], residual=X, training=True, steps=4, time_dim=1)


def test_residuals_of_another_dtype_device_or_type():
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        for call in everywhere(residual=X.to(dtype)):
            with refused(TypeError, "residual", "torch.float32", str(dtype)):
                call()
    for call in everywhere(residual=X.to("meta")):
        with refused(ValueError, "residual", "meta", "cpu"):
            call()
    for call in everywhere(residual=X.to_sparse()):
        with refused(TypeError, "residual", "dense", "torch.sparse_coo"):
            call()
    for what, name in ((1.0, "float"), ([1.0], "list"), (X.numpy(), "ndarray")):
        for call in everywhere(residual=what):
            with refused(TypeError, "residual", "tensor", name):
                call()


@pytest.mark.parametrize("shape", [(1, 1, C), (1, 1, C, 1, 1)], ids=str)
def test_one_value_per_channel_is_refused_in_training_in_torchs_words(shape):
    with pytest.raises(ValueError) as of_torch:
        nn.functional.batch_norm(torch.zeros(shape[1:]), None, None, training=True)
    words = str(of_torch.value).split(", got")[0]
    for call in (*everywhere(torch.zeros(shape)), *everywhere(torch.zeros(shape[1:]), steps=4)):
        with refused(ValueError, words, "got input size"):
            call()
    with refused(ValueError, words):
        sf.BatchNormIF(C, track_running_stats=False).eval()(torch.zeros(shape))


# The function's tensors


PER_CHANNEL = ["weight", "bias", "running_mean", "running_var"]


def given(**changed):
    values = {
        "weight": torch.ones(C),
        "bias": torch.zeros(C),
        "running_mean": torch.zeros(C),
        "running_var": torch.ones(C),
    }
    return {**values, **changed}


@pytest.mark.parametrize("name", PER_CHANNEL)
@pytest.mark.parametrize("training", [True, False])
def test_tensors_per_channel_of_another_shape_dtype_device_or_type(name, training):
    for shape in ((C + 1,), (1,), (), (C, 1)):
        with refused(ValueError, name, f"[{C}]", f"got {list(shape)}"):
            CALL(X, training=training, **given(**{name: torch.ones(shape)}))
    for dtype in (torch.int64, torch.complex64):
        with refused(TypeError, name, "float32, float64, float16 or bfloat16", str(dtype)):
            CALL(X, training=training, **given(**{name: torch.ones(C, dtype=dtype)}))
    with refused(ValueError, name, "meta", "cpu"):
        CALL(X, training=training, **given(**{name: torch.ones(C, device="meta")}))
    with refused(TypeError, name, "tensor", "list"):
        CALL(X, training=training, **given(**{name: [1.0] * C}))


def test_running_statistics_that_are_missing():
    with refused(ValueError, "running_mean", "running_var", "training=False"):
        CALL(X, training=False)
    for name in ("running_mean", "running_var"):
        for training in (True, False):
            with refused(ValueError, "running_mean", "running_var", "both or neither"):
                CALL(X, training=training, **given(**{name: None}))


# Options


def makers():
    """All that takes options of a normalization."""
    return [lambda **o: CALL(X, training=True, **o), *[lambda make=make, **o: make(C, **o) for make in LAYERS]]


@pytest.mark.parametrize("make", makers(), ids=["function", "BatchNormIF", "BatchNormLIF"])
def test_eps_and_momentum_out_of_range(make):
    for eps in (-1e-5, math.nan, math.inf):
        with refused(ValueError, "eps", "finite and not negative", str(eps)):
            make(eps=eps)
    for momentum in (-0.1, 1.1, math.nan, math.inf):
        with refused(ValueError, "momentum", "between 0 and 1", str(momentum)):
            make(momentum=momentum)
    for name in ("eps", "momentum"):
        for value in ("0.1", True, [0.1]):
            with refused(TypeError, name, "number", type(value).__name__):
                make(**{name: value})


@pytest.mark.parametrize("make", makers(), ids=["function", "BatchNormIF", "BatchNormLIF"])
def test_process_groups_without_torch_distributed(make):
    assert not torch.distributed.is_initialized()
    for group in ("world", "nonsense", 3):
        with refused(ValueError, "process_group", repr(group), "not initialised", "init_process_group"):
            make(process_group=group)


@layers
def test_features_that_are_no_number_of_channels(make):
    for value in (3.0, "3", None, True, torch.tensor(3)):
        with refused(TypeError, "num_features", "int", type(value).__name__):
            make(value)
    with refused(ValueError, "num_features", "negative", "-3"):
        make(-3)


@layers
def test_options_of_a_layer_that_are_no_flags(make):
    for name in ("affine", "track_running_stats", "carry_state", "learn_threshold", "fire_on_equal"):
        with refused(TypeError, name, "True or False", "1"):
            make(C, **{name: 1})


@pytest.mark.parametrize("make", makers(), ids=["function", "BatchNormIF", "BatchNormLIF"])
def test_neuron_options_are_checked_as_everywhere(make):
    with refused(ValueError, "reset", "'hard', 'soft'", "'soft-ish'"):
        make(reset="soft-ish")
    with refused(ValueError, "threshold", "-1"):
        make(threshold=-1.0)
    with refused(TypeError, "surrogate", "snnfast.reference"):
        make(surrogate=lambda d: d)
    with refused(ValueError, "time_dim", "0 or 1", "2"):
        make(time_dim=2)


def test_states_and_tables_that_do_not_fit():
    with refused(ValueError, "v0", "[2, 3, 5]", "[2, 3]"):
        CALL(X, torch.zeros(2, 3), training=True)
    with refused(ValueError, "threshold", "length 3", "[4]"):
        CALL(X, training=True, threshold=torch.ones(4))
    with refused(ValueError, "tau", "length 3", "[4]"):
        CALL(X, training=True, tau=torch.ones(4))
    with refused(ValueError, "steps", "at least 1", "0"):
        CALL(X[0], training=True, steps=0)


def test_a_refused_call_leaves_the_running_statistics():
    running = torch.zeros(C), torch.ones(C)
    for bad in ({"residual": X[0]}, {"weight": torch.ones(1)}, {"v0": X}, {"momentum": 2.0}):
        with pytest.raises((TypeError, ValueError)):
            CALL(X + 5, training=True, running_mean=running[0], running_var=running[1], **bad)
    assert torch.equal(running[0], torch.zeros(C)) and torch.equal(running[1], torch.ones(C))


def test_converting_what_is_no_module_or_without_torch_distributed():
    with refused(TypeError, "module", "torch.nn.Module", "list"):
        sf.BatchNormIF.convert_sync([])
    model = nn.Sequential(sf.BatchNormIF(C))
    with refused(ValueError, "process_group", "not initialised"):
        sf.BatchNormIF.convert_sync(model)
    with refused(ValueError, "process_group", "None"):
        sf.BatchNormLIF.convert_sync(model, None)
    assert model[0].process_group is None
