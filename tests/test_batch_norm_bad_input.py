"""Bad input of batch-normalized neurons: the message names the argument, what came and what is allowed."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from naming import shown
from refusals import X, each_of, no_kernel_runs, on, refused  # noqa: F401
from torch import nn

import snnfast as sf

C = 3
CALL = sf.functional.batch_norm_integrate_and_fire
LAYERS = {"BatchNormIF": sf.BatchNormIF, "BatchNormLIF": sf.BatchNormLIF}
layers = each_of(LAYERS)

# The function and both layers, on the same arguments.
CALLS = {
    "function": lambda x=X, residual=None, **options: CALL(x, residual=residual, training=True, **options),
    "BatchNormIF": lambda x=X, residual=None, **options: sf.BatchNormIF(C)(x, residual, **options),
    "BatchNormLIF": lambda x=X, residual=None, **options: sf.BatchNormLIF(C)(x, residual, **options),
}
everywhere = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


# Currents and residuals


@everywhere
@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([1.0], ["list"]),
        (None, ["NoneType"]),
        (X.long(), ["torch.int64", "float32"]),
        (X.to_sparse(), ["torch.sparse_coo", "dense"]),
    ],
    ids=["list", "None", "integers", "sparse"],
)
def test_currents_that_are_no_floating_point_tensors(call, x, words):
    with refused(TypeError, "current", *words):
        call(x)


@everywhere
def test_currents_without_a_channel_dimension(call):
    with refused(ValueError, "current", "channel", "[T, B, C, ...]", "[4, 2]"):
        call(torch.zeros(4, 2))
    with refused(ValueError, "current", "channel", "[B, C, ...]", "[4]"):
        call(torch.zeros(4), steps=3)


def test_currents_without_a_channel_dimension_and_time_second():
    with refused(ValueError, "current", "channel", "[B, T, C, ...]", "[4, 2]"):
        CALL(torch.zeros(4, 2), training=True, time_dim=1)


@layers
@pytest.mark.parametrize(
    ("shape", "steps"), [((4, 2, 7, 5), None), ((2, 7, 5), 4), ((4, 2, 1), None)], ids=["over time", "held", "fewer"]
)
def test_another_number_of_channels_than_the_layers(make, shape, steps):
    got = f"got {shape[1 if steps else 2]}"
    with refused(ValueError, "current", f"{C} channels", "num_features", got, str(list(shape))):
        make(C)(torch.zeros(shape), steps=steps)


@layers
def test_another_number_of_channels_than_those_of_a_layer_without_tensors(make):
    with refused(ValueError, "current", f"{C} channels", "got 7"):
        make(C, affine=False, track_running_stats=False)(torch.zeros(4, 2, 7, 5))


@everywhere
@pytest.mark.parametrize("shape", [(4, 2, C, 4), (2, C, 5), (1, 2, C, 5), (4, 2, C, 5, 1), (4, 2, 1, 5), ()], ids=str)
def test_residuals_of_another_shape(call, shape):
    with refused(ValueError, "residual", "[4, 2, 3, 5]", str(list(shape))):
        call(residual=torch.zeros(shape))


@everywhere
def test_residuals_of_another_shape_beside_a_held_current(call):
    with refused(ValueError, "residual", "[2, 3, 5] or [4, 2, 3, 5]", "got [5, 2, 3, 5]"):
        call(X[0], torch.zeros(5, 2, C, 5), steps=4)


def test_residuals_of_another_shape_beside_a_held_current_and_time_second():
    with refused(ValueError, "residual", "[2, 3, 5] or [2, 4, 3, 5]", "got [4, 2, 3, 5]"):
        CALL(X[0], residual=X, training=True, steps=4, time_dim=1)


@everywhere
class TestResiduals:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64], ids=str)
    def test_of_another_dtype(self, call, dtype):
        with refused(TypeError, "residual", "torch.float32", str(dtype)):
            call(residual=X.to(dtype))

    def test_on_another_device(self, call):
        with refused(ValueError, "residual", "meta", "cpu"):
            call(residual=X.to("meta"))

    def test_that_are_sparse(self, call):
        with refused(TypeError, "residual", "dense", "torch.sparse_coo"):
            call(residual=X.to_sparse())

    @pytest.mark.parametrize("residual", [1.0, [1.0], X.numpy()], ids=lambda value: type(value).__name__)
    def test_that_are_no_tensor(self, call, residual):
        with refused(TypeError, "residual", "tensor", type(residual).__name__):
            call(residual=residual)


@everywhere
@pytest.mark.parametrize("steps", [None, 4], ids=["over time", "held"])
@pytest.mark.parametrize("shape", [(1, 1, C), (1, 1, C, 1, 1)], ids=str)
def test_one_value_per_channel_is_refused_in_training_in_torchs_words(call, shape, steps):
    with refused(ValueError, words_of_torch(shape), "got input size"):
        call(torch.zeros(shape[1:] if steps else shape), steps=steps)


@pytest.mark.parametrize("shape", [(1, 1, C), (1, 1, C, 1, 1)], ids=str)
def test_one_value_per_channel_is_refused_in_evaluation_without_running_statistics(shape):
    with refused(ValueError, words_of_torch(shape)):
        sf.BatchNormIF(C, track_running_stats=False).eval()(torch.zeros(shape))


def words_of_torch(shape: tuple[int, ...]) -> str:
    """What torch's batch norm says of one step of one value per channel, without the sizes."""
    with pytest.raises(ValueError) as of_torch:
        nn.functional.batch_norm(torch.zeros(shape[1:]), None, None, training=True)
    return str(of_torch.value).split(", got")[0]


# The function's tensors


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
class TestTensorsPerChannel:
    @pytest.mark.parametrize("shape", [(C + 1,), (1,), (), (C, 1)], ids=str)
    def test_of_another_shape(self, name, training, shape):
        with refused(ValueError, name, f"[{C}]", f"got {list(shape)}"):
            CALL(X, training=training, **given(**{name: torch.ones(shape)}))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
    def test_of_another_dtype(self, name, training, dtype):
        with refused(TypeError, name, "float32, float64, float16 or bfloat16", str(dtype)):
            CALL(X, training=training, **given(**{name: torch.ones(C, dtype=dtype)}))

    def test_on_another_device(self, name, training):
        with refused(ValueError, name, "meta", "cpu"):
            CALL(X, training=training, **given(**{name: torch.ones(C, device="meta")}))

    def test_that_are_no_tensor(self, name, training):
        with refused(TypeError, name, "tensor", "list"):
            CALL(X, training=training, **given(**{name: [1.0] * C}))


def given(**changed):
    values = {
        "weight": torch.ones(C),
        "bias": torch.zeros(C),
        "running_mean": torch.zeros(C),
        "running_var": torch.ones(C),
    }
    return {**values, **changed}


def test_running_statistics_that_are_missing():
    with refused(ValueError, "running_mean", "running_var", "training=False"):
        CALL(X, training=False)


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_one_running_statistic_without_the_other(name, training):
    with refused(ValueError, "running_mean", "running_var", "both or neither"):
        CALL(X, training=training, **given(**{name: None}))


# Options


# All that takes options of a normalization.
NORMALIZED = {"function": on(CALL)} | {name: functools.partial(make, C) for name, make in LAYERS.items()}


@each_of(NORMALIZED)
class TestOptions:
    @pytest.mark.parametrize("eps", [-1e-5, math.nan, math.inf])
    def test_eps_out_of_range(self, make, eps):
        with refused(ValueError, "eps", "finite and not negative", str(eps)):
            make(eps=eps)

    @pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan, math.inf])
    def test_momentum_out_of_range(self, make, momentum):
        with refused(ValueError, "momentum", "between 0 and 1", str(momentum)):
            make(momentum=momentum)

    @pytest.mark.parametrize("name", ["eps", "momentum"])
    @pytest.mark.parametrize("value", ["0.1", True, [0.1]], ids=shown)
    def test_eps_and_momentum_that_are_no_number(self, make, name, value):
        with refused(TypeError, name, "number", type(value).__name__):
            make(**{name: value})

    @pytest.mark.parametrize("group", ["world", "nonsense", 3])
    def test_process_groups_without_torch_distributed(self, make, group):
        assert not torch.distributed.is_initialized()
        with refused(ValueError, "process_group", repr(group), "not initialised", "init_process_group"):
            make(process_group=group)

    def test_neuron_options_are_checked_as_everywhere(self, make):
        with refused(ValueError, "reset", "'hard', 'soft'", "'soft-ish'"):
            make(reset="soft-ish")
        with refused(ValueError, "threshold", "-1"):
            make(threshold=-1.0)
        with refused(TypeError, "surrogate", "snnfast.reference"):
            make(surrogate=lambda d: d)
        with refused(ValueError, "time_dim", "0 or 1", "2"):
            make(time_dim=2)


@layers
@pytest.mark.parametrize("value", [3.0, "3", None, True, torch.tensor(3)], ids=shown)
def test_features_that_are_no_number_of_channels(make, value):
    with refused(TypeError, "num_features", "int", type(value).__name__):
        make(value)


@layers
def test_a_negative_number_of_features(make):
    with refused(ValueError, "num_features", "negative", "-3"):
        make(-3)


@layers
@pytest.mark.parametrize("name", ["affine", "track_running_stats", "carry_state", "learn_threshold", "fire_on_equal"])
def test_options_of_a_layer_that_are_no_flags(make, name):
    with refused(TypeError, name, "True or False", "1"):
        make(C, **{name: 1})


def test_states_and_tables_that_do_not_fit():
    with refused(ValueError, "v0", "[2, 3, 5]", "[2, 3]"):
        CALL(X, torch.zeros(2, 3), training=True)
    with refused(ValueError, "threshold", "length 3", "[4]"):
        CALL(X, training=True, threshold=torch.ones(4))
    with refused(ValueError, "tau", "length 3", "[4]"):
        CALL(X, training=True, tau=torch.ones(4))
    with refused(ValueError, "steps", "at least 1", "0"):
        CALL(X[0], training=True, steps=0)


@pytest.mark.parametrize(
    "bad",
    [{"residual": X[0]}, {"weight": torch.ones(1)}, {"v0": X}, {"momentum": 2.0}],
    ids=lambda bad: next(iter(bad)),
)
def test_a_refused_call_leaves_the_running_statistics(bad):
    running = torch.zeros(C), torch.ones(C)
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
