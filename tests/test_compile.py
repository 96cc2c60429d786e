"""torch.compile(fullgraph=True): the same results, no graph breaks, no recompilation per number of steps."""

from __future__ import annotations

import pytest
import torch
from configurations import error
from torch import nn
from torch.autograd import forward_ad
from versions import told

import snnfast as sf
from snnfast.dynamics import make_dynamics
from snnfast.ops.integrate import integrate_forward
from snnfast.ops.options import CHECKPOINTS, CURRENT, INITIAL, LAST, POTENTIAL, TAU, THRESHOLD, Options, States


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def compiled(module, **options):
    # aot_eager traces, functionalizes and splits forward and backward as inductor does, and generates no code.
    return torch.compile(module, fullgraph=True, **{"backend": "aot_eager", **options})


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def results(call, x: torch.Tensor, parameters) -> list[torch.Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = call(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sent = [normal(*y.shape, seed=i + 1).to(y) for i, y in enumerate(outputs)]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, [x, *parameters], sent)]


def same(found, wanted) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)


LAYERS = {
    "IF": sf.IF,
    "soft IF": lambda: sf.IF(0.4, reset="soft", surrogate=sf.surrogate.Triangle()),
    "learned LIF": lambda: sf.LIF(
        torch.tensor([1.5, 2.0, 5.0]), torch.tensor([0.2, 0.4, 0.9]), learn_tau=True, learn_threshold=True
    ),
    "LIF with a table": lambda: sf.LIF(torch.tensor(3.0), delay=True, fire_on_equal=True, detach_reset=False),
    "batch first": lambda: sf.LIF(2.0, 0.3, time_dim=1, learn_tau=True),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("steps", [6, 18])
def test_a_compiled_layer_is_the_layer(make, steps):
    layer, x = make(), normal(steps, steps, 3, 5)
    same(results(compiled(layer), x, list(layer.parameters())), results(layer, x, list(layer.parameters())))


@pytest.mark.parametrize("make", [sf.IF, lambda: sf.LIF(learn_tau=True)], ids=["IF", "learned LIF"])
@pytest.mark.parametrize("steps", [5, 20])
def test_a_compiled_layer_holds_a_current(make, steps):
    layer, x = make(), normal(4, 3, 5) * 0.5
    found = results(lambda x: compiled(layer)(x, steps=steps), x, list(layer.parameters()))
    same(found, results(lambda x: layer(x, steps=steps), x, list(layer.parameters())))


def test_compiled_functions_return_potentials_and_take_initial_ones():
    x, v0 = normal(18, 4, 3), normal(4, 3, seed=5).requires_grad_()

    def call(x):
        return sf.functional.leaky_integrate_and_fire(x, v0, tau=3.0, threshold=0.3, return_potential=True)

    same(results(compiled(call), x, [v0]), results(call, x, [v0]))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_compiled_layer_in_inference(context):
    x = normal(18, 4, 3)
    torch._dynamo.reset()
    with context():
        assert torch.equal(compiled(sf.IF(0.4))(x), sf.IF(0.4)(x))


def test_a_compiled_network_is_the_network_under_inductor():
    torch.manual_seed(0)
    network = nn.Sequential(
        sf.OverTime(nn.Conv2d(2, 3, 3)),
        sf.IF(0.2),
        sf.OverTime(nn.Flatten()),
        sf.OverTime(nn.Linear(27, 4)),
        sf.LIF(learn_tau=True, threshold=0.1, learn_threshold=True),
        sf.Readout(),
    )
    x, parameters = normal(6, 4, 2, 5, 5), list(network.parameters())
    found = results(compiled(network, backend="inductor"), x, parameters)
    wanted = results(network, x, parameters)
    assert torch.equal(found[0], wanted[0])
    for ours, theirs in zip(found, wanted, strict=True):
        assert error(ours, theirs) <= 1e-5


def test_channels_last_stays_channels_last():
    x = normal(12, 3, 4, 6).to(memory_format=torch.channels_last).unflatten(0, (3, 4))
    found, wanted = results(compiled(sf.IF()), x, []), results(sf.IF(), x, [])
    same(found, wanted)
    assert [y.stride() for y in found] == [y.stride() for y in wanted]


def test_currents_that_a_kernel_cannot_read_as_they_are():
    for x in (normal(3, 4, 7).movedim(-1, 0), normal(5, 4, 6)[..., ::2], normal(4, 3).expand(6, 4, 3)):
        torch._dynamo.reset()
        same(results(compiled(sf.LIF(2.0, 0.4)), x, []), results(sf.LIF(2.0, 0.4), x, []))


@pytest.mark.parametrize("how", ["mark_dynamic", "dynamic=True"])
@pytest.mark.parametrize("make", [sf.IF, lambda: sf.LIF(2.0, 0.4, learn_tau=True)], ids=["IF", "learned LIF"])
def test_other_numbers_of_steps_do_not_recompile(make, how):
    layer = make()
    call = compiled(layer, dynamic=True if how == "dynamic=True" else None)

    def run(steps):
        x = normal(steps, 4, 3)
        wanted = results(layer, x, list(layer.parameters()))
        leaf = x.clone().requires_grad_()
        if how == "mark_dynamic":
            torch._dynamo.mark_dynamic(leaf, 0)
        spikes = call(leaf)
        found = torch.autograd.grad(spikes, [leaf, *layer.parameters()], normal(*spikes.shape, seed=1))
        same([spikes.detach(), *found], wanted)

    run(6)
    run(20)  # beyond 16 steps potentials are kept for backward: a second graph, and no third
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps in (5, 9, 16, 17, 33, 40, 2):
            run(steps)


def test_holding_for_other_numbers_of_steps_recompiles_once_at_most():
    layer, x = sf.IF(0.4), normal(4, 3) * 0.3
    call = compiled(layer)
    call(x, steps=5)
    call(x, steps=7)  # the second number makes it symbolic
    with torch._dynamo.config.patch(error_on_recompile=True):
        for steps in (4, 9, 16, 17, 33, 40):
            assert torch.equal(call(x, steps=steps), layer(x, steps=steps))


def test_a_changed_surrogate_is_not_forgotten_by_the_compiled_layer():
    layer, x = sf.IF(), normal(6, 4, 3)
    call = compiled(layer)
    results(call, x, [])
    layer.surrogate = sf.surrogate.FastSigmoid(gamma=1.0)
    layer.threshold = 0.3
    same(results(call, x, []), results(layer, x, []))


def test_a_compiled_layer_carries_its_state():
    layer, x = sf.IF(0.7, reset="soft", carry_state=True), normal(15, 4, 3)
    whole = sf.IF(0.7, reset="soft")(x)
    call = compiled(layer)
    parts = []
    for piece in x.split(5):
        parts.append(call(piece))
        layer.detach_state()
    assert torch.equal(torch.cat(parts), whole)
    layer.reset_state()
    assert torch.equal(call(x[:5]), whole[:5])


def test_gradients_flow_through_a_compiled_layers_carried_state():
    layer = sf.LIF(3.0, 0.3, reset="soft", carry_state=True)

    def in_pieces(x):
        layer.reset_state()
        return torch.cat([layer(x[:5]), layer(x[5:])])

    x = normal(10, 4, 3)
    found, wanted = results(compiled(in_pieces), x, []), results(sf.LIF(3.0, 0.3, reset="soft"), x, [])
    assert torch.equal(found[0], wanted[0]) and error(found[1], wanted[1]) <= 1e-6


def test_a_second_derivative_of_a_compiled_layer_is_refused_too():
    x = normal(6, 4, 3).requires_grad_()
    with pytest.raises((NotImplementedError, RuntimeError), match=r"double backward|second derivative"):
        (gradient,) = torch.autograd.grad(compiled(sf.IF())(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()


def test_bad_input_of_a_compiled_layer_is_refused():
    with pytest.raises(Exception, match=told("current must be float32")):
        compiled(sf.IF())(torch.ones(3, 2, dtype=torch.int64))


def test_a_layer_can_be_exported_for_inference():
    x = normal(6, 4, 3)
    layer = nn.Sequential(sf.LIF(2.0, 0.4, learn_tau=True), sf.Readout())
    steps = torch.export.Dim("steps", min=2, max=100)
    with torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: steps},))
    for steps in (6, 20):
        x = normal(steps, 4, 3)
        assert torch.equal(program.module()(x), layer(x))


# The ops by themselves


def op_arguments():
    """(name, forward arguments) for both ops: dtypes, layouts, tables, held currents, what is kept."""
    x, v0, table = normal(18, 4, 3, 5), normal(4, 3, 5), torch.tensor([0.3, 0.6, 0.9])
    every = LAST | POTENTIAL | CHECKPOINTS
    plain, leaky = make_dynamics("test"), make_dynamics("test", tau=2.0, reset="soft", delay=True)
    return {
        "plain": (x, None, None, None, plain, None, 0, 0),
        "all outputs": (x, v0, None, None, plain, None, 0, every),
        "tables": (x, v0, table, table + 1.5, leaky, None, 0, every),
        "0-d tables": (x, None, table[0], table[0] + 1.5, leaky, None, 0, CHECKPOINTS),
        "held": (v0, v0, table, None, plain, 20, 0, every),
        "held, batch first": (v0, None, None, None, plain, 7, 1, every),
        "batch first": (x.transpose(0, 1), v0, None, None, leaky, None, 1, every),
        "channels last": (x.movedim(2, -1).contiguous().movedim(-1, 2), v0, None, None, plain, None, 0, every),
        "time innermost": (x.movedim(0, -1).contiguous().movedim(-1, 0), None, None, None, plain, None, 0, every),
        "every second column": (x[..., ::2], None, None, None, plain, None, 0, every),
        "expanded": (v0.expand(18, 4, 3, 5), None, None, None, plain, None, 0, every),
        "bfloat16": (x.bfloat16(), v0, table, None, plain, None, 0, every),
        "float64": (x.double(), v0, table, table + 1.5, leaky, None, 0, every),
        "no neurons": (x[:, :0], None, None, None, plain, None, 0, every),
        "one step": (x[:1], v0, None, None, plain, None, 0, every),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", op_arguments())
def test_the_ops_pass_torchs_own_check(name):
    current, v0, threshold, tau, dynamics, steps, time_dim, keep = op_arguments()[name]
    states = States(v0, threshold, tau)
    options = Options(dynamics.neuron, dynamics.kinds, steps, time_dim, keep)
    torch.library.opcheck(torch.ops.snnfast.integrate_forward.default, (current, *states, *options))
    kept = options._replace(outputs=keep | CHECKPOINTS)
    spikes, v_last, potential, checkpoints = integrate_forward(current, states, kept)
    tables = CURRENT | THRESHOLD * (threshold is not None) | TAU * (tau is not None)
    for wanted, sent in [
        (CURRENT, (torch.ones_like(spikes), None, None)),
        (INITIAL * (v0 is not None) | tables, (normal(1).to(spikes).expand(spikes.shape), None, None)),
        (
            tables,
            (
                None,
                torch.ones_like(v_last) if keep & LAST else None,
                torch.ones_like(potential) if keep & POTENTIAL else None,
            ),
        ),
    ]:
        backward = (*sent, current, *states, checkpoints, *options._replace(outputs=wanted))
        if any(g is not None for g in sent):
            torch.library.opcheck(torch.ops.snnfast.integrate_backward.default, backward)


def test_a_threshold_changed_in_place_compiles_nothing_again():
    layer, x = sf.IF(torch.tensor(1.0)), normal(6, 4, 3)
    call = compiled(layer)
    for threshold in (0.1 * k for k in range(1, 13)):  # more than the compiler's limit
        layer.threshold.fill_(threshold)
        assert torch.equal(call(x), sf.IF(layer.threshold)(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


TRANSFORMS = {
    "grad": lambda call, x: torch.func.grad(lambda x: call(x).sum())(x),
    "vmap": lambda call, x: torch.func.vmap(call, in_dims=1, out_dims=1)(x),
    "jvp": lambda call, x: torch.func.jvp(call, (x,), (x,))[1],
    "forward mode": lambda call, x: forward_mode(call, x),
}


def forward_mode(call, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_compiled_transform_of_a_layer_is_refused(transform):
    layer, x = sf.IF(), normal(6, 4, 3)
    words = "no forward-mode derivative" if transform == "forward mode" else r"torch\.func"
    with pytest.raises(NotImplementedError, match=f"IF .*{words}"):
        torch.compile(lambda x: TRANSFORMS[transform](layer, x), backend="aot_eager")(x)
    # Without graph breaks the compiler wraps the error in its own; what matters is that no gradient is silently 0.
    with pytest.raises(Exception, match=told(f"IF .*{words}")):
        compiled(lambda x: TRANSFORMS[transform](layer, x))(x)
