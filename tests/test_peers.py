"""A user of another library finds the same neurons here: the same spikes, and the same gradients to rounding."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch
from configurations import error

import snnfast as sf
from snnfast.surrogate import Arctangent, Exponential, FastSigmoid, Gaussian, Sigmoid, Triangle

ALPHA = 1.7


@pytest.fixture(scope="module")
def spikingjelly():
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed (pip install '.[peers]')")
    from spikingjelly.activation_based import neuron, surrogate

    class Modules:
        pass

    Modules.neuron, Modules.surrogate = neuron, surrogate
    return Modules


@pytest.fixture(scope="module")
def snntorch():
    return pytest.importorskip("snntorch", reason="snntorch is not installed (pip install '.[peers]')")


# SpikingJelly's accelerated seven (MATH.md section 2): its name, its arguments, ours.
SPIKINGJELLY = [
    ("Sigmoid", Sigmoid(gamma=ALPHA, beta=ALPHA)),
    ("ATan", Arctangent(gamma=math.pi * ALPHA / 2, beta=ALPHA / 2)),
    ("PiecewiseQuadratic", Triangle(gamma=ALPHA, beta=ALPHA)),
    ("PiecewiseExp", Exponential(gamma=ALPHA, beta=ALPHA / 2)),
    ("SoftSign", FastSigmoid(gamma=ALPHA, beta=ALPHA / 2)),
    ("SuperSpike", FastSigmoid(gamma=1.0, beta=ALPHA)),
    ("Erf", Gaussian(gamma=ALPHA, beta=ALPHA / math.sqrt(math.pi))),
]


def slope_of(spike, d: torch.Tensor) -> torch.Tensor:
    d = d.clone().requires_grad_()
    return torch.autograd.grad(spike(d), d, torch.ones_like(d))[0]


def kernel_slope(surrogate, d: torch.Tensor) -> torch.Tensor:
    return slope_of(lambda x: sf.IF(threshold=0.0, surrogate=surrogate)(x[None])[0], d)


D = torch.cat([torch.linspace(-4, 4, 401, dtype=torch.float64), torch.tensor([1e-9, -1e-9, 30.0, -30.0]).double()])


@pytest.mark.parametrize(("name", "ours"), SPIKINGJELLY, ids=[name for name, _ in SPIKINGJELLY])
def test_spikingjellys_surrogates_are_ours_under_another_name(spikingjelly, name, ours):
    theirs = slope_of(getattr(spikingjelly.surrogate, name)(alpha=ALPHA), D)
    torch.testing.assert_close(kernel_slope(ours, D), theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.derivative(D), theirs, rtol=1e-12, atol=1e-12)


def test_snntorchs_surrogates_are_ours_under_another_name(snntorch):
    from snntorch import surrogate

    pairs = [
        (surrogate.fast_sigmoid(slope=25), FastSigmoid(gamma=25.0, beta=1.0)),
        (surrogate.atan(alpha=ALPHA), Arctangent(gamma=math.pi * ALPHA / 2, beta=ALPHA / 2)),
    ]
    for theirs, ours in pairs:
        torch.testing.assert_close(kernel_slope(ours, D), slope_of(theirs, D), rtol=1e-12, atol=1e-12)


def compare(ours, theirs, shape=(9, 3, 5, 31)) -> None:
    """Spikes equal, gradients within 1e-10 of the largest, for random currents and gradients in float64."""
    rng = torch.Generator().manual_seed(7)
    values = torch.randn(shape, generator=rng, dtype=torch.float64) * 0.8 + 0.2
    sent = torch.randn(shape, generator=rng).double()  # snnTorch's spikes are float32 whatever its state
    found = []
    for layer in (ours, theirs):
        current = values.clone().requires_grad_()
        spikes = layer(current).double()
        found.append((spikes, torch.autograd.grad(spikes, current, sent)[0]))
    (spikes, grad), (their_spikes, their_grad) = found
    assert torch.equal(spikes, their_spikes)
    assert 0.02 < spikes.mean() < 0.7
    assert error(grad, their_grad) <= 1e-10


RESETS = [("hard", 0.0), ("hard", -0.1), ("soft", 0.0)]


@pytest.mark.parametrize(("name", "ours"), SPIKINGJELLY, ids=[name for name, _ in SPIKINGJELLY])
def test_our_if_is_spikingjellys(spikingjelly, name, ours):
    for (reset, value), detached in itertools.product(RESETS, [True, False]):
        node = spikingjelly.neuron.IFNode(
            v_threshold=0.9,
            v_reset=value if reset == "hard" else None,
            detach_reset=detached,
            step_mode="m",
            surrogate_function=getattr(spikingjelly.surrogate, name)(alpha=ALPHA),
        )
        layer = sf.IF(0.9, reset=reset, reset_value=value, surrogate=ours, detach_reset=detached, fire_on_equal=True)
        compare(layer, node)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("tau", [1.5, 2.0, 20.0])
def test_our_lif_is_spikingjellys(spikingjelly, tau, decay_input):
    threshold = {1.5: 0.6, 2.0: 0.5, 20.0: 0.05}[tau] if decay_input else 0.9
    for (reset, value), detached in itertools.product(RESETS, [True, False]):
        node = spikingjelly.neuron.LIFNode(
            tau=tau,
            decay_input=decay_input,
            v_threshold=threshold,
            v_reset=value if reset == "hard" else None,
            detach_reset=detached,
            step_mode="m",
            surrogate_function=spikingjelly.surrogate.Sigmoid(alpha=ALPHA),
        )
        layer = sf.LIF(
            tau,
            threshold,
            decay_input=decay_input,
            reset=reset,
            reset_value=value,
            detach_reset=detached,
            fire_on_equal=True,
            surrogate=Sigmoid(gamma=ALPHA, beta=ALPHA),
        )
        compare(layer, node)


def test_a_spike_at_exactly_the_threshold_is_spikingjellys_too(spikingjelly):
    current = (torch.randint(-4, 5, (12, 400), generator=torch.Generator().manual_seed(0)) / 4).double()
    node = spikingjelly.neuron.IFNode(v_threshold=1.0, v_reset=0.0, step_mode="m")
    theirs = node(current)
    assert torch.equal(sf.IF(1.0, fire_on_equal=True)(current), theirs)
    assert not torch.equal(sf.IF(1.0)(current), theirs)


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_our_if_is_snntorchs_without_leak(snntorch, reset):
    from snntorch import surrogate

    cell = snntorch.Leaky(
        beta=1.0,
        threshold=1.0,
        spike_grad=surrogate.fast_sigmoid(slope=25),
        reset_mechanism="zero" if reset == "hard" else "subtract",
    ).double()

    def loop(current):
        potential, spikes = torch.zeros_like(current[0]), []
        for x in current.unbind(0):
            spike, potential = cell(x, potential)
            spikes.append(spike)
        return torch.stack(spikes)

    compare(sf.IF(1.0, reset=reset, surrogate=FastSigmoid(gamma=25.0, beta=1.0), detach_reset=True), loop)


# What is refused names ours (tests/test_first_mistakes.py has the messages).


@pytest.mark.parametrize(("name", "ours"), SPIKINGJELLY, ids=[name for name, _ in SPIKINGJELLY])
def test_a_refused_surrogate_of_spikingjelly_is_told_the_numbers_that_are_the_same_here(name, ours):
    given = type(name, (), {"alpha": ALPHA, "__call__": lambda self, d: d})()
    with pytest.raises(TypeError) as refused:
        sf.IF(surrogate=given)
    assert f"{type(ours).__name__}(gamma={ours.gamma:.6g}, beta={ours.beta:.6g})" in str(refused.value)


def foreign(layer: type) -> set[str]:
    """The options of another library's layer that none of ours has."""
    here = inspect.signature(sf.LIF).parameters
    return {name for name in inspect.signature(layer.__init__).parameters if name not in here} - {"self"}


@pytest.mark.parametrize("layer", [sf.IF, sf.LIF])
def test_every_option_of_spikingjellys_and_snntorchs_neurons_is_known_to_the_refusal(spikingjelly, snntorch, layer):
    options = foreign(spikingjelly.neuron.IFNode) | foreign(spikingjelly.neuron.LIFNode) | foreign(snntorch.Leaky)
    assert len(options) >= 12
    for option in options:
        with pytest.raises(TypeError, match=rf"has no argument '{option}'; {option}[ =].* here"):
            layer(**{option: 0.5})
