"""Gradients of batch-normalized neurons: for what was asked only, what is kept for them, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from configurations import error
from test_memory import Allocated, kept
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast as sf

C = 5
NAMES = ["current", "residual", "weight", "bias", "v0", "threshold", "tau"]


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Leaves:
    """A call with all that can have a gradient, in float64."""

    def __init__(self, steps: int = 6, device: torch.device | str = "cpu") -> None:
        made = {
            "current": normal(steps, 3, C, 4),
            "residual": normal(steps, 3, C, 4, seed=1) / 2,
            "weight": normal(C, seed=2) + 1,
            "bias": normal(C, seed=3) / 2,
            "v0": normal(3, C, 4, seed=4) / 3,
            "threshold": torch.linspace(0.3, 0.9, C).double(),
            "tau": torch.linspace(1.3, 4.0, C).double(),
        }
        self.all = {name: value.to(device).requires_grad_() for name, value in made.items()}

    def run(self, training: bool = True, **options) -> tuple[torch.Tensor, ...]:
        running = (torch.zeros_like(self.all["weight"]), torch.ones_like(self.all["weight"]))
        return sf.functional.batch_norm_integrate_and_fire(
            **self.all,
            running_mean=running[0],
            running_var=running[1],
            training=training,
            return_potential=True,
            **options,
        )


CHOICES = [*[(n,) for n in range(7)], *itertools.combinations(range(5), 2), (0, 1, 2, 3), (2, 3, 4), tuple(range(7))]


@pytest.mark.parametrize("wanted", CHOICES, ids=lambda w: "+".join(NAMES[i] for i in w))
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_any_choice_of_arguments_may_require_a_gradient(kernels, wanted, training):
    leaves = Leaves(18, kernels.device)
    sent = normal(18, 3, C, 4, seed=9).to(kernels.device)
    everything = torch.autograd.grad(leaves.run(training)[0], list(leaves.all.values()), sent)
    for i, leaf in enumerate(leaves.all.values()):
        leaf.requires_grad_(i in wanted)
    leaves.run(training)[0].backward(sent)
    for i, leaf in enumerate(leaves.all.values()):
        if i in wanted:
            assert torch.equal(leaf.grad, everything[i]) and leaf.grad.any()
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_layer_with_frozen_parameters_passes_the_same_gradient_on(training):
    layer, x = sf.BatchNormIF(C).double().train(training), normal(6, 3, C, 4).requires_grad_()
    (wanted,) = torch.autograd.grad(layer(x).sum(), x)
    layer.requires_grad_(False)
    layer(x).sum().backward()
    assert torch.equal(x.grad, wanted) and layer.weight.grad is None and layer.bias.grad is None
    layer.bias.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.bias.grad.any() and layer.weight.grad is None


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_only_some_outputs_may_be_used(kernels, used):
    leaves = Leaves(18, kernels.device)
    outputs = leaves.run()
    sent = [normal(*outputs[i].shape, seed=i).to(kernels.device) for i in used]
    found = torch.autograd.grad([outputs[i] for i in used], list(leaves.all.values()), sent, retain_graph=True)
    zeros = [torch.zeros_like(y) for y in outputs]
    for i, g in zip(used, sent, strict=True):
        zeros[i] = g
    for ours, theirs in zip(found, torch.autograd.grad(outputs, list(leaves.all.values()), zeros), strict=True):
        assert error(ours, theirs) <= 1e-13


def test_an_expanded_gradient_is_what_its_copy_is(kernels):
    leaves = Leaves(18, kernels.device)
    spikes = leaves.run()[0]
    one = normal(1).to(kernels.device)
    found = torch.autograd.grad(spikes, list(leaves.all.values()), one.expand(spikes.shape), retain_graph=True)
    wanted = torch.autograd.grad(spikes, list(leaves.all.values()), one.expand(spikes.shape).contiguous())
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_residual_and_the_current_may_be_one_tensor():
    x = normal(6, 3, C, 4).requires_grad_()
    layer, norm = sf.BatchNormIF(C).double(), torch.nn.BatchNorm1d(C).double()
    (found,) = torch.autograd.grad(layer(x, x).sum(), x)
    current = norm(x.flatten(0, 1)).unflatten(0, (6, 3)) + x
    (wanted,) = torch.autograd.grad(sf.reference.integrate_and_fire(current)[0].sum(), x)
    assert error(found, wanted) <= 1e-10


def test_activation_checkpointing_gives_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    layer, x = sf.BatchNormLIF(C).double(), normal(20, 3, C, 4).requires_grad_()
    leaves = [x, layer.weight, layer.bias]
    wanted = torch.autograd.grad(layer(x).sum(), leaves)
    found = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_gradients_accumulate_and_backward_twice_obeys_retain_graph():
    layer, x = sf.BatchNormIF(C).double(), normal(6, 3, C).requires_grad_()
    y = layer(x).sum()
    y.backward(retain_graph=True)
    once = x.grad.clone(), layer.weight.grad.clone()
    y.backward()
    assert torch.equal(x.grad, 2 * once[0]) and torch.equal(layer.weight.grad, 2 * once[1])
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


# What is kept


N = (4, C, 7)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [1, 4, 16, 17, 33])
@pytest.mark.parametrize("with_residual", [False, True])
def test_current_and_residual_are_kept_and_one_potential_in_sixteen(training, dtype, steps, with_residual):
    layer = sf.BatchNormIF(C).train(training)
    x = normal(steps, *N, dtype=dtype).requires_grad_()
    residual = normal(steps, *N, dtype=dtype, seed=1).requires_grad_() if with_residual else None
    with kept() as found:
        y = layer(x, residual)
    given = x.nbytes * (2 if with_residual else 1)
    checkpoints = (steps - 1) // 16 * math.prod(N) * (8 if dtype == torch.float64 else 4)
    per_channel = sum(t.untyped_storage().nbytes() for t in found.tensors if 0 < t.numel() <= 3 * C)
    assert found.bytes - per_channel == given + checkpoints
    assert per_channel <= 8 * 8 * C
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("steps", [4, 33])
def test_of_a_held_current_no_copy_over_time_is_kept_or_made(steps):
    layer = sf.BatchNormIF(C)
    x, residual = (normal(*N, dtype=torch.float32, seed=i).requires_grad_() for i in range(2))
    with kept() as found:
        y = layer(x, residual, steps)
    small = sum(t.untyped_storage().nbytes() for t in found.tensors if 0 < t.numel() <= 3 * C)
    assert found.bytes - small == 2 * x.nbytes + (steps - 1) // 16 * math.prod(N) * 4
    sent = torch.ones_like(y)
    with Allocated() as backward:
        torch.autograd.grad(y, [x, residual], sent)
    assert backward.largest <= 2 * math.prod(N)  # two sums for every neuron


def test_a_current_that_a_kernel_cannot_read_is_kept_as_it_was_given():
    x = normal(*N, 10, dtype=torch.float32).requires_grad_()
    with kept() as found:
        y = sf.BatchNormIF(C)(x.movedim(-1, 0))
    assert [t.data_ptr() for t in found.tensors if t.numel() > 3 * C] == [x.data_ptr()]
    y.sum().backward()


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "nothing requires grad"])
def test_in_inference_nothing_is_kept_nor_made_but_the_spikes(how):
    x = normal(40, *N, dtype=torch.float32)
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(how, torch.enable_grad)
    layer = sf.BatchNormIF(C).eval().requires_grad_(how != "nothing requires grad")
    outputs = []

    class Outputs(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "normalized_forward" in str(func):
                outputs.append(out)
            return out

    with kept() as found, context(), Outputs(), Allocated() as made:
        y = layer(x, x)
    assert not found.tensors and not y.requires_grad
    assert made.largest == x.numel()
    assert len(outputs) == 1 and sum(t.numel() for t in outputs[0]) == x.numel()


# What is refused


@pytest.mark.parametrize("changed", ["current", "residual", "weight", "v0", "threshold", "tau"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_changing_an_argument_before_backward_is_torchs_error(changed, training):
    leaves = Leaves()
    leaves.all[changed] = leaves.all[changed] * 1.0
    spikes = leaves.run(training)[0]
    with torch.no_grad():
        leaves.all[changed].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spikes.sum().backward()


def test_changing_the_running_statistics_before_backward_changes_no_gradient():
    layer, x = sf.BatchNormIF(C).double(), normal(6, 3, C).requires_grad_()
    for training in (True, False):
        layer.train(training)
        y = layer(x)
        (wanted,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        layer.reset_running_stats()
        layer.running_var.fill_(7.0)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], wanted)


LAYERS = {"BatchNormIF": sf.BatchNormIF, "BatchNormLIF": sf.BatchNormLIF}
layers = pytest.mark.parametrize("name", LAYERS)


@layers
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("of", ["current", "weight"])
def test_a_gradient_penalty_is_refused_by_the_layers_name(name, training, of):
    layer, x = LAYERS[name](C).double().train(training), normal(6, 3, C).requires_grad_(of == "current")
    wanted = x if of == "current" else layer.weight
    (gradient,) = torch.autograd.grad(layer(x).sum(), wanted, create_graph=True)
    assert gradient.requires_grad
    with pytest.raises(NotImplementedError, match=rf"\b{name} has no second derivative"):
        gradient.square().sum().backward()


TRANSFORMS = {
    "grad": lambda layer, x: torch.func.grad(lambda x: layer(x).sum())(x),
    "vmap": lambda layer, x: torch.func.vmap(layer, in_dims=3, out_dims=3)(x),
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
    "vjp": lambda layer, x: torch.func.vjp(layer, x),
    "vjp of the residual": lambda layer, x: torch.func.vjp(lambda r: layer(x, r), x),
}


@layers
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_is_refused_by_the_layers_name(name, transform):
    layer = LAYERS[name](C)
    with pytest.raises(NotImplementedError, match=rf"\b{name}\b.*torch\.func"):
        TRANSFORMS[transform](layer, torch.randn(6, 4, C, 3))
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("which", NAMES)
def test_forward_mode_is_refused_for_every_argument(which):
    leaves = Leaves()
    leaves.all = {name: leaf.detach() for name, leaf in leaves.all.items()}
    with forward_ad.dual_level():
        leaves.all[which] = forward_ad.make_dual(leaves.all[which], torch.ones_like(leaves.all[which]))
        with pytest.raises(NotImplementedError, match=r"batch_norm_integrate_and_fire .*forward-mode"):
            leaves.run()


@pytest.mark.parametrize("which", ["running_mean", "running_var"])
def test_forward_mode_is_refused_for_given_statistics(which):
    given = {"running_mean": torch.zeros(C), "running_var": torch.ones(C)}
    with forward_ad.dual_level():
        given[which] = forward_ad.make_dual(given[which], torch.ones(C))
        with pytest.raises(NotImplementedError, match=r"batch_norm_integrate_and_fire .*forward-mode"):
            sf.functional.batch_norm_integrate_and_fire(torch.randn(6, 4, C), training=False, **given)


def test_functional_call_is_no_transform():
    layer, x = sf.BatchNormIF(C), torch.randn(6, 4, C)
    other = torch.full((C,), 0.3, requires_grad=True)
    found = torch.func.functional_call(layer, {"bias": other}, (x,))
    found.sum().backward()
    assert other.grad.any() and layer.bias.grad is None
