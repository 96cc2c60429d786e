"""A user of snnTorch finds its neurons here: spikes and potentials to the last bit, gradients to rounding."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import error
from torch import nn

import snnfast as sf
from snnfast.compat.snntorch import Leaky, RLeaky, Synaptic, equal_surrogate
from snnfast.dynamics import make_dynamics
from snnfast.reference import loop

pytestmark = pytest.mark.usefixtures("one_thread")

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@pytest.fixture(scope="module")
def snn():
    return pytest.importorskip("snntorch", reason="snntorch is not installed (pip install '.[peers]')")


def currents(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=rng, dtype=torch.float64) * 0.8 + 0.2).to(dtype)


def step_by_step(layer: Any, over_time: torch.Tensor, *states: torch.Tensor) -> list[torch.Tensor]:
    """What the library's loop gives, each stacked over time."""
    states = states or tuple(torch.zeros_like(over_time[0]) for _ in range(2 if hasattr(layer, "alpha") else 1))
    found = []
    for x in over_time:
        spikes, *states = layer(x, *states)
        found.append((spikes, *states))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def weights_like(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    """Small whole numbers: the library rounds the gradients of spikes to float32, which has these."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, tensor.shape, generator=rng).to(tensor.dtype)


def gradients(outputs: list[torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    loss = sum((y * weights_like(y, i)).sum() for i, y in enumerate(outputs))
    return list(torch.autograd.grad(loss, leaves, retain_graph=True))


def assert_equal(theirs: Any, ours: nn.Module, over_time: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
    """The same spikes, states and gradients, of parameters by name; the spikes."""
    found_gradients = []
    found_outputs = []
    for layer, run in ((theirs, step_by_step), (ours, lambda layer, *given: list(layer(*given)))):
        given = [t.detach().clone().requires_grad_() for t in (over_time, *states)]
        outputs = run(layer, *given)
        found_gradients.append(gradients(outputs, [*given, *(p for _, p in sorted(layer.named_parameters()))]))
        found_outputs.append(outputs)
    for theirs_found, ours_found in zip(*found_outputs, strict=True):
        assert torch.equal(theirs_found.to(ours_found.dtype), ours_found)
    # What passes through spikes the library rounds to float32, in float64 too. A parameter's gradient is a sum over
    # time and neurons that may cancel.
    rounding = torch.finfo(torch.float32).eps * over_time.numel()
    for i, (theirs_found, ours_found) in enumerate(zip(*found_gradients, strict=True)):
        assert ours_found.shape == theirs_found.shape
        cancelled = i > len(states) and (ours_found - theirs_found).abs().max() <= rounding
        assert error(ours_found, theirs_found) <= 2e-5 or cancelled
    return found_outputs[1][0]


RESETS = [("subtract", True), ("zero", True), ("zero", False), ("none", True), ("none", False)]


@FLOATS
@pytest.mark.parametrize(("reset", "delay"), RESETS)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sizes", [(40, 3, 20), (5, 2, 3, 4, 2)], ids=["T,B,N", "T,B,C,H,W"])
def test_leaky_is_the_librarys_loop(snn, dtype, reset, delay, beta, sizes):
    options = dict(beta=beta, threshold=0.75, reset_mechanism=reset, reset_delay=delay)
    learned = dict(learn_beta=True, learn_threshold=True)
    theirs, ours = (kind(**options, **learned).to(dtype) for kind in (snn.Leaky, Leaky))
    spikes = assert_equal(theirs, ours, currents(*sizes, dtype=dtype))
    assert 0.02 < spikes.mean() < 0.98


def test_float64_gradients_of_currents_are_equal_to_its_own_rounding(snn):
    theirs, ours = snn.Leaky(beta=0.5), Leaky(beta=0.5)
    x = currents(40, 3, 20, dtype=torch.float64).requires_grad_()
    wanted, found = (gradients([y], [x])[0] for y in (step_by_step(theirs, x)[1], ours(x)[1]))
    assert error(found, wanted) <= 1e-14


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("shape", ["feature", "channel", "neuron", "one"])
def test_betas_and_thresholds_given_as_tensors_broadcast_as_they_do_there(snn, reset, shape):
    sizes = {"feature": (4,), "channel": (3, 1, 1), "neuron": (3, 2, 4), "one": (1, 1, 1)}[shape]
    beta, threshold = torch.linspace(-0.2, 1.1, math.prod(sizes)).view(sizes), torch.rand(sizes) + 0.3
    for tables in (dict(beta=beta, threshold=threshold), dict(beta=0.8, threshold=threshold), dict(beta=beta)):
        options = dict(**tables, reset_mechanism=reset, learn_beta=True, learn_threshold=True)
        theirs, ours = (kind(**copy.deepcopy(options)) for kind in (snn.Leaky, Leaky))
        assert_equal(theirs, ours, currents(20, 2, 3, 2, 4), torch.rand(2, 3, 2, 4) * 2)


@pytest.mark.parametrize(("reset", "delay"), RESETS)
def test_a_sequence_goes_on_where_another_ended(snn, reset, delay):
    options = dict(beta=0.8, reset_mechanism=reset, reset_delay=delay)
    whole, (first, second) = currents(37, 2, 30), currents(37, 2, 30).split([17, 20])
    ours = Leaky(**options)
    wanted = step_by_step(snn.Leaky(**options), whole)
    spikes, mem = ours(first)
    assert (mem[-1] > 1).any() == (delay or reset == "none")  # a reset is due that has not come
    later = ours(second, mem[-1])
    assert torch.equal(wanted[0], torch.cat([spikes, later[0]]))
    assert torch.equal(wanted[1], torch.cat([mem, later[1]]))
    assert_equal(snn.Leaky(**options), ours, second, mem[-1])


@FLOATS
@pytest.mark.parametrize(("reset", "delay"), [("subtract", True), ("zero", False), ("none", True)])
@pytest.mark.parametrize("sizes", [(3,), (1,)], ids=["per neuron", "one value"])
def test_synaptic_is_the_librarys_loop(snn, dtype, reset, delay, sizes):
    decays = dict(alpha=torch.full(sizes, 0.7), beta=torch.full(sizes, 0.6), threshold=torch.full(sizes, 0.75))
    learned = dict(learn_alpha=True, learn_beta=True, learn_threshold=True)
    options = dict(**decays, **learned, reset_mechanism=reset, reset_delay=delay)
    theirs, ours = (kind(**copy.deepcopy(options)).to(dtype) for kind in (snn.Synaptic, Synaptic))
    start = torch.rand(2, 5, 3, dtype=dtype) if delay else torch.zeros(2, 5, 3, dtype=dtype)
    spikes = assert_equal(theirs, ours, currents(20, 2, 5, 3, dtype=dtype), start, start * 0.5)
    assert 0.02 < spikes.mean() < 0.98


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_reset_to_zero_is_lif(snn, beta):
    """What docs/guide/coming-from.md says; and that the library's default reset is none of LIF's."""
    lif = sf.LIF(tau=1 / (1 - beta), decay_input=False, surrogate=sf.surrogate.Arctangent())
    x = currents(50, 4, 32).requires_grad_()
    wanted, found = step_by_step(snn.Leaky(beta=beta, reset_mechanism="zero"), x)[0], lif(x)
    assert torch.equal(wanted, found)
    assert error(gradients([found], [x])[0], gradients([wanted], [x])[0]) <= 1e-5
    lif.reset = "soft"
    assert not torch.equal(step_by_step(snn.Leaky(beta=beta), x)[0], lif(x))


def test_prompt_subtraction_is_lif_up_to_twice_the_threshold(snn):
    """What the refusal of reset_delay=False says."""
    x = currents(50, 4, 32).clamp(max=1.0)
    theirs = snn.Leaky(beta=0.5, reset_delay=False)
    lif = sf.LIF(tau=2.0, decay_input=False, reset="soft", detach_reset=False, surrogate=sf.surrogate.Arctangent())
    x.requires_grad_()
    wanted, found = step_by_step(theirs, x)[0], lif(x)
    assert torch.equal(wanted, found)
    assert wanted.mean() > 0.02
    assert error(gradients([found], [x])[0], gradients([wanted], [x])[0]) <= 1e-5


SURROGATES = {
    "atan": [{}, {"alpha": 3.0}],
    "fast_sigmoid": [{}, {"slope": 4}],
    "sigmoid": [{}, {"slope": 3}],
    "straight_through_estimator": [{}],
}


@pytest.mark.parametrize(("name", "numbers"), [(name, given) for name, many in SURROGATES.items() for given in many])
def test_surrogates_are_the_librarys(snn, name, numbers):
    spike_grad = getattr(snn.surrogate, name)(**numbers)
    options = dict(beta=0.5, spike_grad=spike_grad, learn_threshold=True)
    x = currents(20, 3, 20).clamp(min=-0.2)  # far below the threshold the library's sigmoid has NaN
    assert assert_equal(snn.Leaky(**options), Leaky(**options), x).any()


def test_a_surrogate_of_ours_is_taken_and_a_disabled_one_has_no_gradient(snn):
    shape = sf.surrogate.Gaussian()
    assert Leaky(beta=0.5, spike_grad=shape).spike_grad == equal_surrogate(shape) == shape
    options = dict(beta=0.5, surrogate_disable=True, learn_beta=True)
    spikes = assert_equal(snn.Leaky(**options), Leaky(**options), currents(20, 3, 20))
    assert spikes.any()
    x = currents(20, 3, 20).requires_grad_()
    assert not torch.autograd.grad(Leaky(beta=0.5, surrogate_disable=True)(x)[0].sum(), x)[0].any()


def test_what_a_call_returns_is_what_the_librarys_does(snn):
    x = currents(10, 3, 20)
    for init_hidden, output in [(False, False), (False, True), (True, False), (True, True)]:
        options = dict(beta=0.5, init_hidden=init_hidden, output=output)
        theirs, ours = snn.Leaky(**options)(x[0]), Leaky(**options)(x)
        assert isinstance(theirs, tuple) == isinstance(ours, tuple)
        synaptic = dict(alpha=0.5, **options)
        assert isinstance(snn.Synaptic(**synaptic)(x[0]), tuple) == isinstance(Synaptic(**synaptic)(x), tuple)
    hidden = Leaky(beta=0.5, init_hidden=True)
    assert torch.equal(hidden(x), hidden(x))
    for reset, delay in RESETS:
        made = dict(beta=torch.rand(4), reset_mechanism=reset, reset_delay=delay)
        given = currents(20, 3, 5, 4)
        assert torch.equal(Leaky(**made, init_hidden=True)(given), Leaky(**made)(given)[0])
    with pytest.raises(TypeError, match="mem cannot be given with init_hidden=True"):
        hidden(x, x[0])


@pytest.mark.parametrize("kind", ["Leaky", "Synaptic"])
@pytest.mark.parametrize("learn", [False, True])
def test_state_dicts_are_the_librarys(snn, kind, learn):
    def made(module: Any, beta: float) -> nn.Module:
        options = dict(learn_beta=learn, learn_threshold=learn, reset_mechanism="subtract")
        return getattr(module, kind)(**({"alpha": 0.3} if kind == "Synaptic" else {}), beta=beta, **options)

    theirs, ours = made(snn, 0.4), made(sf_compat(), 0.6)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert [n for n, _ in theirs.named_parameters()] == [n for n, _ in ours.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    x = currents(20, 3, 20)
    assert torch.equal(step_by_step(theirs, x)[0], ours(x)[0])
    theirs.load_state_dict(made(sf_compat(), 0.7).state_dict())
    assert theirs.beta == torch.tensor(0.7)


def sf_compat() -> Any:
    from snnfast.compat import snntorch

    return snntorch


def test_a_state_dict_of_another_reset_is_refused():
    layer, other = Leaky(beta=0.5, reset_mechanism="zero"), Leaky(beta=0.6).state_dict()
    with pytest.raises(RuntimeError, match=r"reset_mechanism_val is 0 there, .* reset_mechanism='zero', which is 1"):
        layer.load_state_dict(other)
    assert layer.reset_mechanism_val == 1
    with pytest.raises(RuntimeError, match="graded_spikes_factor is not 1"):
        Leaky(beta=0.5).load_state_dict({**other, "graded_spikes_factor": torch.tensor(2.0)})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(reset_delay=False), r"reset_delay=False is not covered: .* snnfast\.LIF\("),
        (dict(inhibition=True), "inhibition=True is not covered"),
        (dict(state_quant=lambda mem: mem), "state_quant is not covered"),
        (dict(learn_graded_spikes_factor=True), "learn_graded_spikes_factor=True is not covered"),
        (dict(graded_spikes_factor=2.0), "graded_spikes_factor not 1 is not covered"),
        (dict(spike_grad=torch.sigmoid), "spike_grad .*sigmoid.* has no equal"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_covered_is_refused_by_name(options, named):
    with pytest.raises((NotImplementedError, TypeError), match=named):
        Leaky(beta=0.5, **options)


@pytest.mark.parametrize("name", ["triangular", "heaviside", "spike_rate_escape", "SSO", "LSO", "SFS"])
def test_surrogates_without_an_equal_are_refused_by_name(snn, name):
    with pytest.raises(TypeError, match=f"spike_grad {name} has no equal .* atan, fast_sigmoid, sigmoid"):
        Leaky(beta=0.5, spike_grad=getattr(snn.surrogate, name)())


def test_neurons_that_are_not_covered_are_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"snntorch\.RLeaky: .* is not covered"):
        RLeaky(beta=0.5)
    with pytest.raises(NotImplementedError, match="Synaptic: reset_mechanism='zero' with reset_delay=True"):
        Synaptic(alpha=0.5, beta=0.5, reset_mechanism="zero")


def test_a_loop_that_is_still_there_is_refused_by_name():
    layer = Leaky(beta=0.5)
    mem = layer.init_leaky()
    _, mem = layer(currents(4, 3, 20), mem)
    with pytest.raises(ValueError, match=r"mem must have the shape of one step, .* takes no loop around it"):
        layer(currents(4, 3, 20), mem)


@pytest.mark.parametrize(
    ("beta", "named"),
    [
        (torch.rand(2, 20), "beta of shape .2, 20. differs within the batch"),
        (torch.rand(7), "beta of shape .7. does not broadcast against one step"),
    ],
)
def test_tables_that_no_kernel_reads_are_refused_by_name(beta, named):
    with pytest.raises(ValueError, match=named):
        Leaky(beta=beta)(currents(4, 2, 20))


def test_a_held_current_is_the_same_current_at_every_step(snn):
    x = currents(3, 20)
    for layer in (Leaky(beta=0.7), Synaptic(alpha=0.5, beta=0.7), Leaky(beta=torch.rand(2, 5))):
        given = x.view(3, 2, 10)[..., :5] if layer.beta.dim() else x
        for held, repeated in zip(layer(given, steps=6), layer(given.expand(6, *given.shape)), strict=True):
            assert torch.equal(held, repeated)
    assert torch.equal(Leaky(beta=0.7)(x, steps=6)[1], step_by_step(snn.Leaky(beta=0.7), x.expand(6, 3, 20))[1])


DYNAMICS = dict(decay_input=False, surrogate=sf.surrogate.Arctangent(), leak_given=True, detach_reset=True)


@FLOATS
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("steps", [3, 16, 37])
def test_kernels_are_the_reference_loop(kernels, dtype, late, channels, steps):
    """A late reset and a leak given as its factor, on every backend, with every gradient."""
    reset = dict(reset="soft" if late else "hard", late=late)
    x = currents(steps, 2, 8, 4, dtype=dtype).to(kernels.device).requires_grad_()
    rng = torch.Generator().manual_seed(1)
    beta, threshold = (torch.rand(channels, generator=rng, dtype=dtype) * 0.9 + 0.1 for _ in range(2))
    v0 = torch.rand(2, 8, 4, generator=rng, dtype=dtype) * 2
    v0, beta, threshold = leaves = [t.to(kernels.device).requires_grad_() for t in (v0, beta, threshold)]
    dynamics = make_dynamics("layer", threshold=threshold, tau=beta, **DYNAMICS, **reset)
    from snnfast.autograd.integrate import run
    from snnfast.ops.options import LAST, POTENTIAL, states_of

    found = run(dynamics, x, states_of(v0, threshold, beta), None, 0, LAST | POTENTIAL)
    spread = (t.view(-1, 1) if channels > 1 else t.squeeze() for t in (threshold, beta))
    wanted = loop(dynamics, x, v0, *spread, None, 0)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)
    alone = run(dynamics, x, states_of(v0, threshold, beta), None, 0, 0)[0]
    assert torch.equal(alone, found[0])
    bound = 1e-12 if dtype == torch.float64 else 1e-4
    for outputs in (zip(found, wanted, strict=True), [(alone, wanted[0])]):
        ours, theirs = zip(*outputs, strict=True)
        for a, b in zip(gradients(list(ours), [x, *leaves]), gradients(list(theirs), [x, *leaves]), strict=True):
            assert error(a, b) <= bound
    (only,) = gradients([alone], [x])
    assert error(only, gradients([wanted[0]], [x])[0]) <= bound


def test_it_compiles_in_one_graph():
    layer = Leaky(beta=0.7, learn_beta=True)
    x = currents(10, 3, 20)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(compiled(x), layer(x), strict=True):
        assert torch.equal(found, wanted)


def test_the_guides_network_is_the_loop_that_it_comes_from(snn):
    """docs/guide/coming-from.md: its example, with the checkpoint of the network with a loop."""
    page = Path(__file__).resolve().parent.parent / "docs" / "guide" / "coming-from.md"
    examples = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    (example,) = (text for text in examples if "class Net" in text)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, str(page), "exec"), names)

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(64, 32)
            self.lif1 = snn.Leaky(beta=0.9, learn_beta=True)
            self.fc2 = nn.Linear(32, 10)
            self.lif2 = snn.Leaky(beta=0.8)

        def forward(self, x):
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            spikes, potentials = [], []
            for step in range(len(x)):
                spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
                spikes.append(spk2)
                potentials.append(mem2)
            return torch.stack(spikes), torch.stack(potentials)

    torch.manual_seed(0)
    theirs, ours = Loop(), names["Net"]()
    with torch.no_grad():  # numbers whose products and sums are exact, whatever the order
        for parameter in (*theirs.fc1.parameters(), *theirs.fc2.parameters()):
            parameter.copy_((parameter * 3 * 64).round() / 64)
    ours.load_state_dict(theirs.state_dict())
    x = (currents(25, 8, 64) * 4).round() / 4
    found = []
    for network in (theirs, ours):
        spikes, potentials = network(x)
        found.append((spikes, potentials, gradients([spikes, potentials], list(network.parameters()))))
    assert found[0][0].mean() > 0.05
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    for a, b in zip(found[0][2], found[1][2], strict=True):
        assert error(b, a) <= 2e-5
