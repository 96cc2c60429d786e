"""Networks that are written down rather than run: torch.jit, torch.export, torch.fx, and whoever watches the ops."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from versions import TORCH

import snnfast as sf
from snnfast.ops.options import CHECKPOINTS, LAST, POTENTIAL, NormalizedOptions, Options

C = 3
STEPS = torch.export.Dim("steps", min=2, max=100)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYERS = {
    "IF": sf.IF,
    "soft IF": lambda: sf.IF(0.4, reset="soft", surrogate=sf.surrogate.Triangle(gamma=0.5)),
    "learned IF": lambda: sf.IF(torch.tensor([0.2, 0.4, 0.9]), learn_threshold=True),
    "LIF": lambda: sf.LIF(3.0, 0.3, delay=True, detach_reset=False),
    "learned LIF": lambda: sf.LIF(2.0, 0.3, learn_tau=True),
    "BatchNormIF": lambda: sf.BatchNormIF(C),
    "cumulative BatchNormIF": lambda: sf.BatchNormIF(C, momentum=None, affine=False),
    "evaluated BatchNormIF": lambda: sf.BatchNormIF(C).eval(),
    "untracked BatchNormIF": lambda: sf.BatchNormIF(C, track_running_stats=False),
    "learned BatchNormLIF": lambda: sf.BatchNormLIF(C, learn_tau=True, learn_threshold=True, reset="soft"),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


def network(layer: nn.Module) -> nn.Module:
    """A layer with parameters before and behind it."""
    torch.manual_seed(0)
    mode = layer.training
    whole = nn.Sequential(nn.Linear(4, C), layer, sf.OverTime(nn.Linear(C, 2)), sf.Readout())
    return whole.train(mode)


def assert_same(recorded, original: nn.Module, x: torch.Tensor, names=lambda name: name) -> None:
    """Outputs, all gradients and all buffers, of two calls."""
    own = {names(name): p for name, p in recorded.named_parameters()}
    parameters = dict(original.named_parameters())
    assert own.keys() == parameters.keys()
    for _ in range(2):
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = recorded(inputs[0]), original(inputs[1])
        assert torch.equal(*outputs)
        sent = normal(*outputs[0].shape, seed=5)
        found = torch.autograd.grad(outputs[0], [inputs[0], *(own[name] for name in parameters)], sent)
        wanted = torch.autograd.grad(outputs[1], [inputs[1], *parameters.values()], sent)
        for name, ours, theirs in zip(("input", *parameters), found, wanted, strict=True):
            assert torch.equal(ours, theirs), name
    buffers = dict(original.named_buffers())
    for name, buffer in recorded.named_buffers():
        assert torch.equal(buffer, buffers[names(name)]), name


# torch.jit


@every_layer
def test_a_traced_network_is_the_network_also_when_saved(make):
    net, x = network(make()), normal(6, 2, 4)
    other = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=torch.jit.TracerWarning)  # a shape that the trace would freeze
        traced = torch.jit.trace(net, x, check_trace=False)
    other.load_state_dict(net.state_dict())
    saved = io.BytesIO()
    torch.jit.save(traced, saved)
    saved.seek(0)
    loaded = torch.jit.load(saved)
    assert_same(loaded, other, normal(20, 3, 4, seed=1) * 2)
    other.load_state_dict(net.state_dict())
    assert_same(traced, other, normal(20, 3, 4, seed=2) * 2)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.neuron = nn.Conv1d(C, C, 3, padding=1), nn.BatchNorm1d(C), sf.IF()

    def forward(self, x):
        y = self.norm(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.neuron(y + x)


def test_a_traced_network_with_a_fused_residual_is_the_network_without_a_warning():
    net = Residual().eval()
    assert sf.fuse(net).fused[0].residual
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=torch.jit.TracerWarning)
        traced = torch.jit.trace(net, normal(6, 2, C, 5), check_trace=False)
    assert_same(traced, net, normal(20, 3, C, 7, seed=1) * 2)


def test_a_traced_layer_holds_its_current_and_takes_the_batch_first():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = sf.BatchNormIF(C, time_dim=1)

        def forward(self, x):
            return self.layer(x, residual=x, steps=7)

    held, x = Held().eval(), normal(4, C, 5)
    assert torch.equal(torch.jit.trace(held, x)(x * 2), held(x * 2))
    assert held(x).shape == (4, 7, C, 5)


def test_a_traced_function_returns_potentials_and_takes_initial_ones():
    def call(x, v0):
        return sf.functional.leaky_integrate_and_fire(x, v0, threshold=0.3, return_potential=True)

    x, v0 = normal(6, 2, C), normal(2, C)
    traced = torch.jit.trace(call, (x, v0))
    for ours, theirs in zip(traced(2 * x, -v0), call(2 * x, -v0), strict=True):
        assert torch.equal(ours, theirs)


def test_a_traced_network_can_be_frozen():
    net, x = network(sf.BatchNormLIF(C, threshold=0.3)).eval(), normal(6, 2, 4)
    frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(net, x)))
    x = normal(20, 5, 4, seed=1) * 2
    for _ in range(3):  # the executor optimizes after the first calls
        torch.testing.assert_close(frozen(x), net(x))


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_draws_a_network(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(network(sf.BatchNormIF(C)), normal(6, 2, 4))
    assert b"snnfast::normalized_forward" in next(tmp_path.glob("events*")).read_bytes()


REFUSING = {
    "IF": sf.IF,
    "LIF": sf.LIF,
    "BatchNormIF": lambda: sf.BatchNormIF(C),
    "BatchNormLIF": lambda: sf.BatchNormLIF(C),
    "OverTime": lambda: sf.OverTime(nn.Linear(C, C)),
    "Readout": sf.Readout,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSING)
def test_torch_jit_script_is_refused_by_the_layers_name(name):
    with pytest.raises(NotImplementedError, match=rf"torch.jit.script cannot compile {name}, .*torch.jit.trace"):
        torch.jit.script(nn.Sequential(nn.Linear(C, C), REFUSING[name]()))


@pytest.mark.parametrize("make", [sf.IF, lambda **o: sf.BatchNormIF(C, **o)], ids=["IF", "BatchNormIF"])
def test_a_carried_state_is_not_recorded_in_silence(make):
    layer, x = make(carry_state=True), normal(6, 2, C)
    name = type(layer).__name__
    with pytest.raises(NotImplementedError, match=rf"{name} cannot be recorded by torch.jit.trace: it carries"):
        torch.jit.trace(layer, x)
    with pytest.raises(Exception, match=rf"{name} cannot be recorded by torch.export: it carries"):
        torch.export.export(layer, (x,), strict=False)


# torch.export


@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
@every_layer
def test_an_exported_network_trains_as_the_network_does_with_any_number_of_steps(make, strict):
    if strict and TORCH < (2, 7):
        pytest.skip("torch 2.6 cannot export a Function with a dynamic number of steps; strict=False can")
    net, x = network(make()), normal(6, 2, 4)
    original = copy.deepcopy(net)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: STEPS},), strict=strict).module()
    for steps in (6, 20):  # beyond 16 the gradient needs potentials that only training keeps
        assert_same(exported, original, normal(steps, 2, 4, seed=1) * 2)


def test_an_exported_network_holds_a_current_with_a_residual_for_any_batch():
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = sf.LIF(2.0, 0.3), sf.BatchNormIF(C)

        def forward(self, x):
            return self.second(x, steps=20, residual=self.first(x, steps=20))

    net, batch = Held(), torch.export.Dim("batch", min=2, max=100)
    original = copy.deepcopy(net)
    exported = torch.export.export(net, (normal(4, C),), dynamic_shapes=({0: batch},), strict=False).module()
    for size in (4, 20):
        assert_same(exported, original, normal(size, C, seed=1) * 2)


def test_an_exported_network_is_saved_loaded_and_unflattened():
    net, x = network(sf.BatchNormIF(C)), normal(6, 2, 4)
    saved = io.BytesIO()
    torch.export.save(torch.export.export(net, (x,), strict=False), saved)
    saved.seek(0)
    loaded = torch.export.load(saved)
    assert_same(loaded.module(), copy.deepcopy(net), x)
    assert_same(torch.export.unflatten(torch.export.export(net, (x,), strict=False)), copy.deepcopy(net), x)


def test_an_exported_network_can_be_compiled():
    net, x = network(sf.BatchNormLIF(C, learn_tau=True)), normal(20, 2, 4) * 2
    exported = torch.export.export(copy.deepcopy(net), (x,), strict=False).module()
    assert_same(torch.compile(exported, backend="aot_eager"), net, x, lambda name: name.removeprefix("_orig_mod."))


def test_a_stage_of_a_pipelined_network_trains_as_the_network_does():
    pipelining = pytest.importorskip("torch.distributed.pipelining", reason="torch without torch.distributed")
    if TORCH < (2, 7):
        pytest.skip("the pipelining of torch 2.6 cannot split a network with a Function in it")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, C), sf.IF(0.4), nn.Linear(C, C), sf.BatchNormIF(C), nn.Linear(C, 2))
    x = normal(20, 2, 4) * 2
    split = {"2": pipelining.SplitPoint.BEGINNING}
    pipe = pipelining.pipeline(copy.deepcopy(net), mb_args=(x,), split_spec=split)
    pipe(x)[0].square().sum().backward()
    net(x).square().sum().backward()
    second = {name.split(".", 2)[2]: p for name, p in pipe.named_parameters() if "submod_pp_1" in name}
    assert second.keys() == {"2.weight", "2.bias", "3.weight", "3.bias", "4.weight", "4.bias"}
    for name, parameter in second.items():  # torch cuts the graph between the stages
        assert torch.equal(parameter.grad, net.get_parameter(name).grad), name


def test_an_op_without_a_gradient_of_its_own_says_so():
    x = normal(6, 2, C).requires_grad_()
    dynamics = sf.IF()._dynamics
    options = NormalizedOptions(dynamics.neuron, dynamics.kinds, None, 0, 0, 1e-5, True)
    moments = torch.ops.snnfast.moments(x, *options)
    with pytest.raises(NotImplementedError, match="snnfast::moments has no derivative of its own"):
        moments.sum().backward()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keep", [0, LAST | POTENTIAL | CHECKPOINTS], ids=["spikes", "all outputs"])
def test_the_ops_that_are_recorded_pass_torchs_own_check_with_their_gradients(keep):
    x, v0, table = normal(18, 4, C, 5), normal(4, C, 5), torch.tensor([0.3, 0.6, 0.9])
    dynamics = sf.LIF(reset="soft")._dynamics
    options = Options(dynamics.neuron, dynamics.kinds, None, 0, keep)
    x, *states = [t.requires_grad_() for t in (x, v0, table, table.detach() + 1.5)]
    torch.library.opcheck(torch.ops.snnfast.integrate_forward.default, (x, *states, *options))
    weight, bias, residual = table.detach() + 1, table.detach().clone(), normal(18, 4, C, 5, seed=1)
    affine = [weight.requires_grad_(), bias.requires_grad_(), table.detach().clone(), table.detach() + 0.5]
    for batch in (True, False):
        given = (x, residual.requires_grad_(), *states, *affine, *options, 1e-5, batch)
        torch.library.opcheck(torch.ops.snnfast.normalized_forward.default, given)


# torch.fx


@pytest.mark.parametrize("name", REFUSING)
def test_torch_fx_takes_a_layer_for_a_leaf(name):
    net = nn.Sequential(nn.Linear(C, C), REFUSING[name]())
    traced = fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    x = normal(6, 2, C)
    assert torch.equal(traced(x), net(x))


def test_torch_fx_records_steps_and_residuals():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = sf.IF(), sf.BatchNormIF(C)

        def forward(self, x, residual):
            return self.second(self.first(x, steps=5), residual=residual)

    block, x, residual = Block(), normal(2, C), normal(5, 2, C)
    assert torch.equal(fx.symbolic_trace(block)(x, residual), block(x, residual))


def test_torch_fx_records_the_functions():
    def call(x):
        spikes, v_last = sf.functional.integrate_and_fire(x, threshold=0.5)
        return spikes.mean(0) + v_last

    traced, x = fx.symbolic_trace(call), normal(6, 2, C)
    assert torch.equal(traced(x), call(x))


# Whoever watches


class Seen:
    """What a mode is asked for, by name."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def see(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


class Ops(Seen, TorchDispatchMode):
    __torch_dispatch__ = Seen.see


class Functions(Seen, TorchFunctionMode):
    __torch_function__ = Seen.see


def names_in_profile(run) -> set[str]:
    with torch.profiler.profile() as profile:
        run()
    return {event.key for event in profile.key_averages()}


WATCHED = [
    ("IF", "integrate_forward", "integrate_backward"),
    ("BatchNormIF", "normalized_forward", "normalized_backward"),
]


@pytest.mark.parametrize(("name", "forward", "backward"), WATCHED, ids=["IF", "BatchNormIF"])
def test_profilers_and_modes_see_the_ops_by_name_in_training_and_in_inference(name, forward, backward):
    layer, x = LAYERS[name](), normal(6, 2, C).requires_grad_()
    with torch.no_grad():
        assert f"snnfast::{forward}" in names_in_profile(lambda: layer(x))
    assert {f"snnfast::{forward}", f"snnfast::{backward}"} <= names_in_profile(lambda: layer(x).sum().backward())
    for mode in (Ops(), Functions()):
        with mode:
            layer(x)
        assert any(f"snnfast.{forward}" in seen for seen in mode.seen), mode


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize("name", ["IF", "evaluated BatchNormIF"])
def test_make_fx_records_forward_and_backward(name, pre_dispatch):
    layer = LAYERS[name]()

    def call(x):
        spikes = layer(x)
        return spikes, torch.autograd.grad(spikes.sum(), x)[0]

    x = normal(20, 2, C)
    recorded = make_fx(call, pre_dispatch=pre_dispatch)(x.clone().requires_grad_())
    other = (normal(20, 2, C, seed=1) * 2).requires_grad_()
    for ours, theirs in zip(recorded(other), call(other), strict=True):
        assert torch.equal(ours, theirs)
