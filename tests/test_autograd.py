"""Gradients: those of the reference, for what was asked only, once, and refused by name where there are none."""

from __future__ import annotations

import itertools

import pytest
import torch
from configurations import error, gradients_of
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast as sf
from snnfast.ops.options import CURRENT
from snnfast.surrogate import Exponential, Gaussian, Triangle

BOUND = 1e-12


def normal(*shape: int, seed: int = 0, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


class Leaves:
    """A LIF call with all that can have a gradient, in float64."""

    def __init__(self, steps: int, device: torch.device | str = "cpu", sizes: tuple[int, ...] = (3, 4, 5)) -> None:
        self.current = (normal(steps, *sizes, device=device) * 0.8 + 0.3).requires_grad_()
        self.v0 = (normal(*sizes, seed=1, device=device) / 2).requires_grad_()
        self.threshold = torch.linspace(0.2, 0.9, sizes[1], dtype=torch.float64, device=device).requires_grad_()
        self.tau = torch.linspace(1.3, 6.0, sizes[1], dtype=torch.float64, device=device).requires_grad_()

    def all(self) -> list[torch.Tensor]:
        return [self.current, self.v0, self.threshold, self.tau]

    def run(self, module, **options):
        return module.leaky_integrate_and_fire(
            self.current,
            self.v0,
            threshold=self.threshold,
            tau=self.tau,
            return_potential=True,
            **{"surrogate": Gaussian(gamma=0.8, beta=1.0), **options},
        )


def agree(found, wanted, bound=BOUND) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.shape == theirs.shape and error(ours, theirs) <= bound


@pytest.mark.parametrize("steps", [1, 2, 15, 16, 17, 32, 33, 1000])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("detached", [True, False], ids=["detached", "attached"])
def test_any_number_of_steps(kernels, reset, steps, detached):
    leaves = Leaves(steps, kernels.device, (2, 3, 3) if steps > 100 else (3, 4, 5))
    results = []
    for module in (sf.functional, sf.reference):
        outputs = leaves.run(module, reset=reset, detach_reset=detached)
        sent = [normal(*y.shape, seed=i + 2, device=kernels.device) for i, y in enumerate(outputs)]
        results.append((outputs, torch.autograd.grad(outputs, leaves.all(), sent)))
    (outputs, gradients), (wanted, wanted_gradients) = results
    assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True))
    agree(gradients, wanted_gradients, 1e-10 if steps == 1000 else BOUND)


USED = [c for n in (1, 2, 3) for c in itertools.combinations(range(3), n)]


@pytest.mark.parametrize("used", USED, ids=lambda u: "+".join(["spikes", "v_last", "potential"][i] for i in u))
@pytest.mark.parametrize("steps", [5, 18])
def test_only_some_outputs_may_be_used(kernels, used, steps):
    leaves = Leaves(steps, kernels.device)
    for options in ({}, {"reset": "soft"}, {"delay": True}):
        results = []
        for module in (sf.functional, sf.reference):
            outputs = [leaves.run(module, **options)[i] for i in used]
            sent = [normal(*y.shape, seed=i, device=kernels.device) for i, y in enumerate(outputs)]
            results.append(gradients_of(outputs, sent, leaves.all()))
        agree(*results)


def test_unused_outputs_of_a_plain_call_give_no_gradient():
    leaves = Leaves(5)
    leaves.run(sf.functional)
    assert all(leaf.grad is None for leaf in leaves.all())


NAMES = ["current", "v0", "threshold", "tau"]


@pytest.mark.parametrize(
    "wanted",
    [c for n in range(1, 5) for c in itertools.combinations(range(4), n)],
    ids=lambda w: "+".join(NAMES[i] for i in w),
)
def test_any_choice_of_arguments_may_require_a_gradient(kernels, wanted):
    leaves = Leaves(18, kernels.device)
    sent = normal(18, 3, 4, 5, seed=9, device=kernels.device)
    all_gradients = torch.autograd.grad(leaves.run(sf.functional)[0], leaves.all(), sent)
    for i, leaf in enumerate(leaves.all()):
        leaf.requires_grad_(i in wanted)
    made = []

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "integrate_backward" in str(func):
                made.append(out)
            return out

    spikes = leaves.run(sf.functional, reset="hard")[0]
    with Made():
        spikes.backward(sent)
    for i, leaf in enumerate(leaves.all()):
        if i in wanted:
            assert torch.equal(leaf.grad, all_gradients[i])
        else:
            assert leaf.grad is None
    (gradients,) = made  # what the op computed, too
    for i in range(1, 4):
        assert i in wanted or gradients[i] is None or gradients[i].numel() == 0


def test_gradients_accumulate_over_calls():
    x = normal(6, 4, 3).requires_grad_()
    layer = sf.LIF(learn_tau=True).double()
    layer(x).sum().backward()
    once = x.grad.clone(), layer.tau_logit.grad.clone()
    layer(x).sum().backward()
    assert torch.equal(x.grad, 2 * once[0]) and torch.equal(layer.tau_logit.grad, 2 * once[1])


@pytest.mark.parametrize("steps", [4, 20])
def test_an_expanded_gradient_is_what_its_copy_is(kernels, steps):
    """.sum().backward() and .mean() send one number expanded over everything."""
    leaves = Leaves(steps, kernels.device)
    for one in (normal(device=kernels.device), normal(1, 4, 1, device=kernels.device)):
        spikes, _, potential = leaves.run(sf.functional)
        expanded = [one.expand(y.shape) for y in (spikes, potential)]
        found = torch.autograd.grad((spikes, potential), leaves.all(), expanded, retain_graph=True)
        copied = torch.autograd.grad((spikes, potential), leaves.all(), [g.contiguous() for g in expanded])
        agree(found, copied, 0.0)
    x = normal(steps, 3, 4, device=kernels.device).requires_grad_()
    sf.IF()(x).sum().backward()
    wanted = torch.autograd.grad(sf.reference.integrate_and_fire(x)[0].sum(), x)
    agree([x.grad], wanted)


def test_the_gradient_of_an_expanded_current_is_summed(kernels):
    x = normal(4, 5, device=kernels.device).requires_grad_()
    over_time, over_batch = x.expand(7, 4, 5), x.unsqueeze(1).expand(4, 6, 5)
    for current in (over_time, over_batch):
        agree(
            torch.autograd.grad(sf.functional.integrate_and_fire(current)[0].sum(), x),
            torch.autograd.grad(sf.reference.integrate_and_fire(current)[0].sum(), x),
        )


def test_a_network_of_layers_has_the_references_gradients():
    weights = [normal(6, 8, seed=1).requires_grad_(), normal(8, 5, seed=2).requires_grad_()]
    x = normal(10, 4, 6)

    def loss(module):
        s, _ = module.integrate_and_fire(x @ weights[0], reset="soft", surrogate=Triangle(gamma=0.5))
        s, _ = module.leaky_integrate_and_fire(s @ weights[1], surrogate=Exponential())
        return (s.sum(0) - 2).square().sum()

    agree(torch.autograd.grad(loss(sf.functional), weights), torch.autograd.grad(loss(sf.reference), weights))


def test_backward_twice_needs_and_obeys_retain_graph():
    x = normal(6, 4).requires_grad_()
    y = sf.IF()(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@pytest.mark.parametrize("changed", ["current", "threshold", "tau", "v0"])
def test_changing_an_argument_before_backward_is_torchs_error(changed):
    leaves = Leaves(5)
    leaf = getattr(leaves, changed)
    setattr(leaves, changed, leaf * 1.0)
    spikes = leaves.run(sf.functional)[0]
    with torch.no_grad():
        getattr(leaves, changed).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spikes.sum().backward()


def test_changing_the_spikes_in_place_is_fine():
    x = normal(6, 4).requires_grad_()
    spikes = sf.IF()(x)
    spikes.mul_(2)
    spikes.sum().backward()
    agree([x.grad], [2 * torch.autograd.grad(sf.IF()(x).sum(), x)[0]])


def test_hooks_and_anomaly_detection_work():
    x = normal(6, 4).requires_grad_()
    seen = []
    with torch.autograd.detect_anomaly(check_nan=True):
        spikes = sf.IF()(x)
        spikes.register_hook(lambda g: seen.append(g.shape))
        spikes.sum().backward()
    assert seen == [x.shape]


def test_activation_checkpointing_gives_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    x, layer = normal(20, 4, 3).requires_grad_(), sf.LIF(learn_tau=True).double()
    wanted = torch.autograd.grad(layer(x).sum(), [x, layer.tau_logit])
    found = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), [x, layer.tau_logit])
    agree(found, wanted, 0.0)


# No second derivative


LAYERS = {"IF": sf.IF, "LIF": sf.LIF}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("steps", [None, 4])
def test_a_gradient_penalty_is_refused_by_the_layers_name(name, steps):
    x = normal(5, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(LAYERS[name]()(x, steps=steps).sum(), x, create_graph=True)
    assert gradient.requires_grad  # not a constant that a penalty would silently ignore
    with pytest.raises(NotImplementedError, match=rf"\b{name} has no second derivative"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("wanted", NAMES)
@pytest.mark.parametrize("output", [0, 1, 2], ids=["of spikes", "of v_last", "of potential"])
def test_a_second_derivative_is_refused_whatever_requires_grad(wanted, output):
    leaves = Leaves(5)
    for name in NAMES:
        getattr(leaves, name).requires_grad_(name == wanted)
    y = leaves.run(sf.functional)[output]
    (gradient,) = torch.autograd.grad(y.sum(), getattr(leaves, wanted), create_graph=True)
    with pytest.raises(NotImplementedError, match="leaky_integrate_and_fire has no second derivative"):
        gradient.sum().backward()


def test_a_penalty_through_weights_before_and_after_is_refused():
    x, before, after = normal(6, 4, 3), normal(3, 5).requires_grad_(), normal(5, 2).requires_grad_()
    loss = (sf.IF()(x @ before) @ after).sum()
    gradients = torch.autograd.grad(loss, [before, after], create_graph=True)
    with pytest.raises(NotImplementedError, match="IF has no second derivative"):
        sum(g.square().sum() for g in gradients).backward()


def test_create_graph_without_a_second_derivative_is_fine():
    x = normal(6, 4).requires_grad_()
    (found,) = torch.autograd.grad(sf.IF()(x).sum(), x, create_graph=True)
    agree([found.detach()], torch.autograd.grad(sf.IF()(x).sum(), x), 0.0)


# No transforms


CALLS = {
    "IF": lambda x: sf.IF()(x),
    "LIF": lambda x: sf.LIF(learn_tau=True)(x),
    "leaky_integrate_and_fire": lambda x: sf.functional.leaky_integrate_and_fire(x)[0],
    "integrate_and_fire": lambda x: sf.functional.integrate_and_fire(x)[0],
}
calls = pytest.mark.parametrize("name", CALLS)


TRANSFORMS = {
    "grad": lambda call, x: torch.func.grad(lambda x: call(x).sum())(x),
    "vmap": lambda call, x: torch.func.vmap(call)(x),
    "vmap over the batch": lambda call, x: torch.func.vmap(call, in_dims=1, out_dims=1)(x),
    "jvp": lambda call, x: torch.func.jvp(call, (x,), (x,)),
    "vjp": lambda call, x: torch.func.vjp(call, x),
    "jacrev": lambda call, x: torch.func.jacrev(call)(x),
    "jacfwd": lambda call, x: torch.func.jacfwd(call)(x),
    "hessian": lambda call, x: torch.func.hessian(lambda x: call(x).sum())(x),
}


@calls
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_is_refused_by_the_layers_name(name, transform):
    with pytest.raises(NotImplementedError, match=rf"\b{name}\b.*torch\.func"):
        TRANSFORMS[transform](CALLS[name], torch.randn(5, 4, 3))


@calls
def test_forward_mode_is_refused_by_the_layers_name(name):
    x = torch.randn(5, 4, 3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match=rf"\b{name}\b.*forward-mode"):
            CALLS[name](dual)
        CALLS[name](x)  # a plain tensor inside a dual level is no dual


@pytest.mark.parametrize("which", ["v0", "threshold", "tau"])
def test_forward_mode_is_refused_for_every_argument(which):
    x, plain = torch.randn(5, 4, 3), {"v0": torch.zeros(4, 3), "threshold": torch.ones(3), "tau": torch.full((3,), 2.0)}
    with forward_ad.dual_level():
        plain[which] = forward_ad.make_dual(plain[which], torch.ones_like(plain[which]))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            sf.functional.leaky_integrate_and_fire(x, **plain)


@calls
def test_a_gradient_that_a_later_layer_made_dual_is_refused(name):
    x, later = torch.randn(5, 4, 3, requires_grad=True), torch.randn(5, 4, 3)
    with forward_ad.dual_level():
        spikes = CALLS[name](x)
        loss = (spikes * forward_ad.make_dual(later, torch.ones_like(later))).sum()
        with pytest.raises(NotImplementedError, match=rf"\b{name}\b.*forward-mode"):
            torch.autograd.grad(loss, x)
        torch.autograd.grad(CALLS[name](x).sum(), x)


def test_functional_call_is_no_transform():
    layer, x = sf.IF(1.0, learn_threshold=True), normal(6, 4)
    other = torch.tensor(0.3, requires_grad=True)
    found = torch.func.functional_call(layer, {"threshold": other}, (x,))
    assert torch.equal(found, sf.IF(other.detach())(x))
    found.sum().backward()
    assert other.grad != 0 and layer.threshold.grad is None


@pytest.mark.parametrize(
    "make", [sf.IF, lambda: sf.LIF(learn_tau=True), lambda: sf.BatchNormIF(4)], ids=["IF", "LIF", "BatchNormIF"]
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients_are_those_of_one_after_the_other(make):
    """torch.autograd.grad(is_grads_batched=True) and torch.func.vmap run backward once for many gradients."""
    x, layer = normal(5, 3, 4).requires_grad_(), make().double()
    sent = normal(3, 5, 3, 4, seed=1)
    spikes = layer(x)
    wanted = torch.stack([torch.autograd.grad(spikes, x, g, retain_graph=True)[0] for g in sent])
    found = torch.autograd.grad(spikes, x, sent, is_grads_batched=True, retain_graph=True)
    agree(found, [wanted])
    found = torch.func.vmap(lambda g: torch.autograd.grad(spikes, x, g, retain_graph=True)[0])(sent)
    agree([found], [wanted])


@pytest.mark.parametrize("make", [sf.IF, sf.LIF, lambda: sf.BatchNormIF(4)], ids=["IF", "LIF", "BatchNormIF"])
def test_a_second_derivative_of_batched_gradients_is_refused(make):
    x, layer = normal(5, 3, 4).requires_grad_(), make().double()
    with pytest.raises(NotImplementedError, match=r"IF has no second derivative.*batched"):
        torch.autograd.functional.jacobian(lambda x: layer(x).sum((0, 1)), x, create_graph=True, vectorize=True)
    spikes = layer(x)
    with pytest.raises(NotImplementedError, match=r"IF has no second derivative.*batched"):
        torch.func.vmap(lambda g: torch.autograd.grad(spikes, x, g, create_graph=True)[0])(normal(2, 5, 3, 4))


def test_calling_an_op_directly_leaves_nothing_behind_for_later_calls():
    """torch marks the outputs of what requires grad. None of those may be an output of another call."""
    x = torch.randn(5, 4, requires_grad=True)
    neuron, kinds = sf.IF()._dynamics.neuron, sf.IF()._dynamics.kinds
    arguments = (None, None, None, neuron, kinds, None, 0, 0)
    torch.ops.snnfast.integrate_forward(x, *arguments)
    later = torch.ops.snnfast.integrate_forward(x.detach(), *arguments)
    assert not any(y.requires_grad for y in later)
    with torch.no_grad():
        again = torch.ops.snnfast.integrate_forward(x, *arguments)
    assert not any(y.requires_grad for y in again)


def test_a_refused_second_derivative_leaves_nothing_behind_for_later_calls():
    x = torch.randn(5, 4, requires_grad=True)
    torch.autograd.grad(sf.IF()(x).sum(), x, create_graph=True)
    tensors = (torch.ones(5, 4), None, None, x.detach(), None, None, None, torch.empty(0))
    later = torch.ops.snnfast.integrate_backward(*tensors, [1.0, 0.0, 0.0, 10.0, 1.0], [0, 0], None, 0, CURRENT)
    assert not any(y.requires_grad for y in later)
