"""Bad input is refused before any kernel runs, by a message that names the argument, what came and what is allowed."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from naming import shown
from refusals import X, no_kernel_runs, refused  # noqa: F401
from torch import nn

import snnfast as sf
from snnfast import backends

IF, LIF = sf.functional.integrate_and_fire, sf.functional.leaky_integrate_and_fire
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
@pytest.mark.parametrize("current", [[[1.0]], None, 1.0, X.numpy()], ids=lambda value: type(value).__name__)
def test_currents_that_are_no_tensor(call, current):
    with refused(TypeError, "current", "tensor", type(current).__name__):
        call(current)


@everywhere
def test_initial_potentials_that_are_no_tensor(call):
    with refused(TypeError, "v0", "tensor", "float"):
        call(X, 0.5)


@pytest.mark.parametrize(
    "make",
    [sf.IF, sf.LIF, lambda: sf.IF(carry_state=True), lambda: sf.LIF(learn_tau=True)],
    ids=["IF", "LIF", "IF with a carried state", "LIF with a learned tau"],
)
def test_layers_refuse_what_is_not_a_tensor_or_not_floating_point(make):
    layer = make()
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


def test_sparse_time_constants():
    with refused(TypeError, "tau", "torch.sparse_coo", "dense"):
        LIF(X, tau=torch.full((3,), 2.0).to_sparse())


@pytest.mark.parametrize(("name", "shape"), [("residual", X.shape), ("weight", (3,)), ("bias", (3,))])
def test_sparse_tensors_that_a_batch_norm_takes_besides(name, shape):
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
@pytest.mark.parametrize("steps", [0, -3, 2**31, 2**63, 10**400], ids=shown)
def test_too_few_or_too_many_steps_to_hold_a_current_for(call, steps):
    with refused(ValueError, "steps", f"got {steps}", "at least 1" if steps < 1 else f"at most {2**31 - 1}"):
        call(X, steps=steps)


@everywhere
@pytest.mark.parametrize("steps", [2.0, "4", True, torch.tensor(3)], ids=shown)
def test_steps_that_are_no_whole_number(call, steps):
    with refused(TypeError, "steps", "int", type(steps).__name__):
        call(X, steps=steps)


@everywhere
def test_a_current_without_a_batch_cannot_be_held(call):
    with refused(ValueError, "current", "[B, ...]", "0-d"):
        call(torch.tensor(1.0), steps=3)


@everywhere
@pytest.mark.parametrize("shape", [(4, 2, 3, 5), (3, 5), (1, 3, 5), (), (2, 3, 5, 1)], ids=str)
def test_initial_potentials_of_the_wrong_shape(call, shape):
    with refused(ValueError, "v0", "[2, 3, 5]", str(list(shape))):
        call(X, torch.zeros(shape))


@everywhere
def test_initial_potentials_of_the_wrong_shape_for_a_held_current_or_time_second(call):
    with refused(ValueError, "v0", "[4, 2, 3, 5]", "[2, 3, 5]"):
        call(X, torch.zeros(2, 3, 5), steps=2)
    with refused(ValueError, "v0", "[4, 3, 5]", "[2, 3, 5]"):
        call(X, torch.zeros(2, 3, 5), time_dim=1)


@everywhere
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_initial_potentials_of_the_wrong_dtype(call, dtype):
    with refused(TypeError, "v0", str(dtype), "float32"):
        call(X, torch.zeros(2, 3, 5, dtype=dtype))


@pytest.mark.parametrize("name", ["threshold", "tau"])
class TestTables:
    @pytest.mark.parametrize("shape", [(2,), (5,), (1, 3), (3, 1), (0,)], ids=str)
    def test_of_the_wrong_shape(self, name, shape):
        with refused(ValueError, name, "0-d", "length 3", str(list(shape))):
            LIF(X, **{name: torch.full(shape, 2.0)})
        with refused(ValueError, name, "length 3", str(list(shape))):
            sf.LIF(**{name: torch.full(shape, 2.0)})(X)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
    def test_of_the_wrong_dtype(self, name, dtype):
        with refused(TypeError, name, str(dtype), "float32"):
            LIF(X, **{name: torch.full((3,), 2).to(dtype)})

    def test_for_a_current_without_channels(self, name):
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


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("threshold", sf.IF(learn_threshold=True)),
        ("threshold", sf.LIF(threshold=torch.ones(3))),
        ("tau", sf.LIF(learn_tau=True)),
    ],
    ids=["learned threshold", "threshold per channel", "learned tau"],
)
def test_a_layer_on_another_device_than_its_current(name, layer):
    with refused(ValueError, name, "meta", "cpu"):
        copy.deepcopy(layer).to("meta")(X)


@pytest.mark.parametrize("name", ["mps", "xpu", "hpu", "xla"])
def test_devices_without_kernels(name):
    with refused(RuntimeError, name, "cpu and cuda"):
        backends.check_device(torch.device(name))


def test_a_gpu_tensor_where_cuda_was_not_compiled(monkeypatch):
    monkeypatch.setattr(backends, "core", SimpleNamespace(with_cuda=False))
    with refused(RuntimeError, "CUDA", "nvcc", "SNNFAST_CUDA=1", "build_info()"):
        backends.check_device(torch.device("cuda"))


@pytest.mark.skipif(backends.core.with_cuda, reason="this build has CUDA kernels")
@pytest.mark.parametrize(("device", "word"), [("cuda", "SNNFAST_CUDA=1"), ("xpu", "xpu")], ids=["cuda", "xpu"])
@pytest.mark.parametrize("call", [sf.IF(), sf.LIF(), IF, LIF], ids=["IF", "LIF", "IF()", "LIF()"])
def test_layers_name_the_device_they_cannot_run(call, device, word):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # a tensor without memory, of a device that need not exist
        x = torch.empty(4, 2, 3, device=device)
        with refused(RuntimeError, word):
            call(x)


def test_values_of_tensors_are_not_read():
    """Reading them would wait for the device: they compute what they compute."""
    meta = torch.zeros(4, 2, 3, device="meta")
    assert IF(meta, threshold=torch.tensor(-1.0, device="meta"))[0].shape == (4, 2, 3)
    assert LIF(meta, tau=torch.tensor(0.5, device="meta"))[0].shape == (4, 2, 3)
    assert sf.IF(torch.tensor(math.nan)).threshold.isnan()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
class TestTablesOfALayer:
    @pytest.mark.parametrize("learn", [True, False], ids=["learned", "fixed"])
    def test_are_floating_point(self, dtype, learn):
        table = torch.tensor([2, 3, 4]).to(dtype)
        with refused(TypeError, "threshold", str(dtype), "float32"):
            sf.IF(table, learn_threshold=learn)
        with refused(TypeError, "tau", str(dtype), "float32"):
            sf.LIF(table, learn_tau=learn)

    def test_stay_floating_point(self, dtype):
        layer = sf.LIF(torch.full((3,), 2.0), learn_tau=True)
        with refused(TypeError, "tau", str(dtype), "float32"):
            layer.tau = torch.tensor([2, 3, 4]).to(dtype)


def test_readout_and_overtime_say_what_they_need():
    with refused(ValueError, "mode", "'sum' or 'mean'", "'max'"):
        sf.Readout("max")
    with refused(TypeError, "module", "torch.nn.Module", "function"):
        sf.OverTime(refused)
    with refused(ValueError, "[T, B, ...]", "[5]"):
        sf.OverTime(nn.ReLU())(torch.zeros(5))
    with refused(TypeError, "OverTime", "tensor", "list"):
        sf.OverTime(nn.ReLU())([1.0])
    with refused(TypeError, "Readout", "tensor", "list"):
        sf.Readout()([1.0])
    with refused(ValueError, "Readout", "dimension 1", "[3]"):
        sf.Readout(time_dim=1)(torch.ones(3))
    with refused(ValueError, "Readout", "dimension 0", "[]"):
        sf.Readout()(torch.tensor(1.0))
