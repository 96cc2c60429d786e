"""torch.compile(fullgraph=True) of batch-normalized neurons, and torch's own check of the ops between the passes."""

from __future__ import annotations

import copy

import pytest
import torch
from configurations import error
from test_compile import compiled, fresh_compiler, normal, same  # noqa: F401
from torch import nn
from versions import told

import snnfast as sf
from snnfast.dynamics import make_dynamics
from snnfast.normalization import Affine
from snnfast.ops.normalize import NORMALIZED_OUTPUTS, normalized_forward
from snnfast.ops.options import (
    BIAS,
    CHECKPOINTS,
    CURRENT,
    INITIAL,
    LAST,
    POTENTIAL,
    RESIDUAL,
    TAU,
    THRESHOLD,
    WEIGHT,
    Gradients,
    NormalizedOptions,
    States,
)
from snnfast.ops.registry import complete

C = 3


def train(call, module, x, residual=None, **options):
    """Spikes, gradients, and what the call left in the module's buffers."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    if residual is not None:
        residual = residual.detach().clone().requires_grad_()
        leaves.append(residual)
        options["residual"] = residual
    spikes = call(x, **options)
    gradients = torch.autograd.grad(spikes, leaves, normal(*spikes.shape, seed=1).to(spikes))
    return [spikes.detach(), *gradients, *(b.clone() for b in module.buffers())]


LAYERS = {
    "BatchNormIF": lambda: sf.BatchNormIF(C),
    "cumulative": lambda: sf.BatchNormIF(C, momentum=None, threshold=0.4, reset="soft"),
    "not affine": lambda: sf.BatchNormLIF(C, affine=False, tau=3.0, threshold=0.3, time_dim=1),
    "no statistics": lambda: sf.BatchNormIF(C, track_running_stats=False),
    "learned": lambda: sf.BatchNormLIF(C, threshold=torch.full((C,), 0.4), learn_threshold=True, learn_tau=True),
    "bfloat16 parameters": lambda: sf.BatchNormIF(C, dtype=torch.bfloat16),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


@layers
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_compiled_layer_is_the_layer_and_updates_its_statistics(make, training):
    layer = make().train(training)
    other, call = copy.deepcopy(layer), compiled(layer)
    for step in range(3):
        x = normal(6, 6, C, 5, seed=step) * (step + 1) + step
        same(train(call, layer, x), train(other, other, x))
    if layer.track_running_stats:
        assert layer.num_batches_tracked == (3 if training else 0)
        assert torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean)) != training


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_compiled_layer_adds_a_residual_and_holds_a_current(steps, training):
    layer = sf.BatchNormIF(C).train(training)
    other, call = copy.deepcopy(layer), compiled(layer)
    x, residual = normal(steps, 4, C, 5), normal(steps, 4, C, 5, seed=2)
    same(train(call, layer, x, residual), train(other, other, x, residual))
    same(train(call, layer, x[0], residual, steps=steps), train(other, other, x[0], residual, steps=steps))
    same(train(call, layer, x[0], residual[0], steps=steps), train(other, other, x[0], residual[0], steps=steps))


def test_a_block_is_the_block_under_inductor():
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = sf.BatchNormIF(C), sf.BatchNormLIF(C, threshold=0.4, learn_tau=True)
            self.mix = nn.Linear(5, 5)

        def forward(self, x):
            return self.second(self.mix(self.first(x)), x).mean(0)

    block = Block()
    other, call = copy.deepcopy(block), compiled(block, backend="inductor")
    for step in range(2):
        x = normal(6, 4, C, 5, seed=step)
        found, wanted = train(call, block, x), train(other, other, x)
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.dtype == theirs.dtype and error(ours, theirs) <= 1e-4


@pytest.mark.parametrize(
    ("how", "training", "with_residual"),
    [("mark_dynamic", True, False), ("dynamic=True", True, True), ("dynamic=True", False, False)],
)
def test_other_numbers_of_steps_do_not_recompile(how, training, with_residual):
    layer = sf.BatchNormLIF(C, threshold=0.4).train(training)
    other = copy.deepcopy(layer)
    call = compiled(layer, dynamic=True if how == "dynamic=True" else None)

    def run(steps):
        x, residual = (normal(steps, 4, C, 2, seed=i) for i in range(2))
        wanted = train(other, other, x, residual if with_residual else None)
        leaves = [t.clone().requires_grad_() for t in ((x, residual) if with_residual else (x,))]
        if how == "mark_dynamic":
            for leaf in leaves:
                torch._dynamo.mark_dynamic(leaf, 0)
        spikes = call(*leaves)
        gradients = torch.autograd.grad(
            spikes, [leaves[0], *layer.parameters(), *leaves[1:]], normal(*spikes.shape, seed=1)
        )
        same([spikes.detach(), *gradients, *layer.buffers()], wanted)

    run(6)
    run(20)  # beyond 16 steps potentials are kept for backward: a second graph, and no third
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps in (5, 9, 16, 17, 33, 40, 2):
            run(steps)


def test_channels_last_stays_channels_last():
    x = normal(12, C, 4, 6).to(memory_format=torch.channels_last).unflatten(0, (3, 4))
    layer = sf.BatchNormIF(C)
    other = copy.deepcopy(layer)
    found, wanted = train(compiled(layer), layer, x), train(other, other, x)
    same(found, wanted)
    assert [y.stride() for y in found] == [y.stride() for y in wanted]
    assert found[0].stride() == found[1].stride() == x.stride()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_compiled_layer_in_inference(context):
    x, layer = normal(18, 4, C), sf.BatchNormIF(C).eval()
    torch._dynamo.reset()
    with context():
        assert torch.equal(compiled(layer)(x, x), layer(x, x))


def test_a_layer_can_be_exported_for_inference():
    layer, steps = sf.BatchNormIF(C).eval(), torch.export.Dim("steps", min=2, max=100)
    with torch.no_grad():
        program = torch.export.export(layer, (normal(6, 4, C),), dynamic_shapes=({0: steps},))
    for n in (6, 20):
        assert torch.equal(program.module()(normal(n, 4, C)), layer(normal(n, 4, C)))


def test_bad_input_of_a_compiled_layer_is_refused():
    with pytest.raises(Exception, match=told("residual must have the shape")):
        compiled(sf.BatchNormIF(C))(normal(4, 2, C), normal(4, 2, 1))


# The ops by themselves


def currents():
    """Currents with steps and time_dim, residuals: every layout and dtype."""
    x = normal(18, 4, C, 5)
    return {
        "plain": (x, 0, 0, None),
        "residual": (x, 0, 0, x * 0.5),
        "batch first": (x.transpose(0, 1), 0, 1, x.transpose(0, 1) * 0.5),
        "channels last": (x.movedim(2, -1).contiguous().movedim(-1, 2), 0, 0, x),
        "every second column": (normal(18, 4, C, 10)[..., ::2], 0, 0, None),
        "time innermost": (x.movedim(0, -1).contiguous().movedim(-1, 0), 0, 0, x),
        "held": (x[0], 20, 0, x[1]),
        "held, residual over time": (x[0], 7, 1, normal(4, 7, C, 5)),
        "bfloat16": (x.bfloat16(), 0, 0, x.bfloat16()),
        "float64": (x.double(), 0, 0, None),
        "no space": (normal(6, 4, C), 0, 0, None),
        "no neurons": (x[:, :0], 0, 0, x[:, :0]),
    }


LEAKY = make_dynamics("test", tau=2.0, reset="soft", delay=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", currents())
def test_the_ops_pass_torchs_own_check(name):
    x, steps, time_dim, residual = currents()[name]
    steps = steps or None
    weight, bias, check = normal(C) + 1, normal(C, seed=1), torch.library.opcheck
    threshold, every = torch.tensor([0.3, 0.6, 0.9]), LAST | POTENTIAL | CHECKPOINTS
    parameters = [(weight, bias)] + [(weight, bias.double()), (None, None)] * (name == "plain")
    for given, dynamics, table, tau, v0, keep, batch in (
        *((given, make_dynamics("test"), None, None, None, CHECKPOINTS, True) for given in parameters),
        ((weight, bias), LEAKY, threshold, threshold + 1.5, normal(4, C, 5), every, False),
        ((weight, bias), LEAKY, threshold, threshold + 1.5, normal(4, C, 5), every, True),
    ):
        one_step = x.shape if steps else (*x.shape[:time_dim], *x.shape[time_dim + 1 :])
        states = States(v0 if v0 is not None and v0.shape == one_step else None, table, tau)
        affine = Affine(*given, normal(C), normal(C).square())
        options = NormalizedOptions(dynamics.neuron, dynamics.kinds, steps, time_dim, keep, 1e-5, batch)
        check(torch.ops.snnfast.normalized_forward.default, (x, residual, *states, *affine, *options))
        check(torch.ops.snnfast.moments.default, (x, *options))
        found = complete(normalized_forward(x, residual, states, affine, options), NORMALIZED_OUTPUTS, x)
        spikes, v_last, potential, checkpoints, moments, tables, _ = found
        wanted = CURRENT | RESIDUAL * (residual is not None) | INITIAL * (states.v0 is not None)
        wanted |= WEIGHT * (given[0] is not None) | BIAS * (given[1] is not None)
        sent = Gradients(normal(1).to(spikes).expand(spikes.shape), None, None)
        if table is not None:
            sent, wanted = Gradients(*map(torch.ones_like, (spikes, v_last, potential))), wanted | THRESHOLD | TAU
        options = options._replace(outputs=wanted)
        kept = (*given, moments, tables, checkpoints)
        check(torch.ops.snnfast.normalized_backward.default, (*sent, x, residual, *states, *kept, None, None, *options))
        check(torch.ops.snnfast.gradient_sums.default, (*sent, x, residual, *states, *kept, None, None, *options))
        of_all = (*kept, normal(2, C, seed=3).double(), normal(2, C, seed=4).double())
        check(torch.ops.snnfast.normalized_backward.default, (*sent, x, residual, *states, *of_all, *options))
