"""carry_state: a sequence given in pieces is the sequence given at once, and nothing else happens silently."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from configurations import error
from torch import nn
from torch.utils.checkpoint import checkpoint

import snnfast as sf

MAKERS = {
    "IF": lambda **o: sf.IF(0.7, **o),
    "soft IF": lambda **o: sf.IF(0.7, reset="soft", **o),
    "LIF": lambda **o: sf.LIF(3.0, 0.3, reset_value=-0.1, **o),
    "learned LIF": lambda **o: sf.LIF(torch.tensor([1.5, 2.0, 5.0]), 0.3, learn_tau=True, learn_threshold=True, **o),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def currents(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


@makers
@pytest.mark.parametrize("pieces", [(5, 5), (1, 9), (16, 17, 7)], ids=str)
@pytest.mark.parametrize("time_dim", [0, 1])
def test_pieces_of_a_sequence_are_the_whole(kernels, make, pieces, time_dim):
    x = currents(sum(pieces), 4, 3, 5).to(kernels.device).transpose(0, time_dim)
    layer = make(carry_state=True, time_dim=time_dim).to(kernels.device)
    whole = make(time_dim=time_dim).to(kernels.device)(x)
    parts = [layer(piece) for piece in x.split(pieces, time_dim)]
    assert torch.equal(torch.cat(parts, time_dim), whole)
    layer.reset_state()
    assert layer.state is None
    assert torch.equal(layer(x), whole)


@makers
def test_gradients_flow_through_the_carried_state(kernels, make):
    dtype = torch.float64
    x = currents(12, 4, 3, 5, dtype=dtype).to(kernels.device).requires_grad_()
    sent = torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).to(x)
    layer = make(carry_state=True).to(kernels.device, dtype)
    parameters = list(layer.parameters())
    in_pieces = torch.autograd.grad(torch.cat([layer(x[:7]), layer(x[7:])]), [x, *parameters], sent)
    layer.reset_state()
    at_once = torch.autograd.grad(layer(x), [x, *parameters], sent)
    for ours, wanted in zip(in_pieces, at_once, strict=True):
        assert error(ours, wanted) <= 1e-12


def test_the_second_piece_alone_sends_gradients_into_the_first():
    x = currents(10, 4, 3).requires_grad_()
    layer = sf.LIF(3.0, 0.3, reset="soft", carry_state=True)
    layer(x[:5])
    layer(x[5:]).sum().backward()
    assert x.grad[:5].abs().sum() > 0


def test_detach_state_cuts_the_graph_and_keeps_the_values():
    x = currents(10, 4, 3).requires_grad_()
    layer = sf.LIF(3.0, 0.3, reset="soft", carry_state=True)
    first = layer(x[:5])
    state = layer.state
    assert state.requires_grad
    layer.detach_state()
    assert torch.equal(layer.state, state) and not layer.state.requires_grad
    second = layer(x[5:])
    assert torch.equal(torch.cat([first, second]), sf.LIF(3.0, 0.3, reset="soft")(x))
    second.sum().backward()
    assert x.grad[:5].abs().sum() == 0 and x.grad[5:].abs().sum() > 0
    first.sum().backward()  # its graph was left alone
    layer.reset_state()
    layer.detach_state()  # nothing to detach is no error


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_truncated_backpropagation_is_the_references_with_a_detached_potential(reset, detach_reset):
    options = {"reset": reset, "detach_reset": detach_reset}
    layers = [sf.LIF(3.0, 0.3, learn_tau=True, learn_threshold=True, carry_state=True, **options) for _ in range(2)]
    first = nn.Linear(5, 4).double()
    network = nn.Sequential(sf.OverTime(first), layers[0], sf.OverTime(nn.Linear(4, 3)), layers[1]).double()
    x = currents(40, 2, 5, dtype=torch.float64)
    sent = currents(40, 2, 3, dtype=torch.float64)
    parameters = list(network.parameters())
    chunks = list(zip(x.split((17, 3, 20)), sent.split((17, 3, 20)), strict=True))

    for chunk, gradient in chunks:
        (network(chunk) * gradient).sum().backward()
        assert sf.detach_state(network) == 2
    found = [parameter.grad for parameter in parameters]

    v: list[torch.Tensor | None] = [None, None]
    wanted = [torch.zeros_like(parameter) for parameter in parameters]
    for chunk, gradient in chunks:
        spikes = chunk
        for i, layer in enumerate(layers):
            spikes, v[i] = sf.reference.leaky_integrate_and_fire(
                network[2 * i].module(spikes), v[i], tau=layer.tau, threshold=layer.threshold, **options
            )
        for total, part in zip(wanted, torch.autograd.grad((spikes * gradient).sum(), parameters), strict=True):
            total += part
        v = [potential.detach() for potential in v]
    assert all(gradient.abs().sum() > 0 for gradient in wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert error(ours, theirs) <= 1e-12
    sf.reset_state(network)
    at_once = torch.autograd.grad((network(x) * sent).sum(), parameters)
    assert any(error(ours, theirs) > 1e-3 for ours, theirs in zip(found, at_once, strict=True))  # it was truncated


def test_training_on_without_detach_state_is_torchs_error():
    layer = sf.IF(0.3, carry_state=True, learn_threshold=True)
    layer(currents(5, 4, 3)).sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        layer(currents(5, 4, 3)).sum().backward()
    layer.reset_state()
    layer(currents(5, 4, 3)).sum().backward()


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 4, 1), (5, 1, 3), (5, 4), (5, 4, 3, 1)], ids=str)
def test_another_batch_is_refused_until_the_state_is_reset(shape):
    layer = sf.IF(0.7, carry_state=True)
    layer(currents(5, 4, 3))
    state = layer.state
    with pytest.raises(ValueError, match=r"v0 must have the shape .* \[4, 3\].*reset_state\(\)"):
        layer(currents(*shape))
    assert layer.state is state  # the refused call changed nothing
    layer.reset_state()
    assert torch.equal(layer(currents(5, 2, 3)), sf.IF(0.7)(currents(5, 2, 3)))


@pytest.mark.parametrize("first", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("second", [torch.float32, torch.float64, torch.float16], ids=str)
def test_the_state_follows_the_current_to_another_dtype(first, second):
    x, y = currents(5, 4, 3, dtype=first), currents(6, 4, 3, dtype=second)
    layer = sf.LIF(3.0, 0.3, carry_state=True)
    layer(x)
    v = layer.state
    assert v.dtype == (torch.float64 if first == torch.float64 else torch.float32)
    found = layer(y)
    wanted, v_last = sf.reference.leaky_integrate_and_fire(y, v, tau=3.0, threshold=0.3)
    assert found.dtype == second and torch.equal(found, wanted)
    assert torch.equal(layer.state, v_last) and layer.state.dtype == v_last.dtype


def test_a_held_current_may_follow_a_sequence():
    x, held = currents(5, 4, 3), currents(4, 3)
    layer = sf.IF(0.7, carry_state=True)
    found = torch.cat([layer(x), layer(held, steps=6)])
    assert torch.equal(found, sf.IF(0.7)(torch.cat([x, held.expand(6, 4, 3)])))


def test_without_gradients_the_state_has_none():
    layer = sf.IF(0.7, carry_state=True)
    with torch.no_grad():
        layer(currents(5, 4, 3).requires_grad_())
    assert not layer.state.requires_grad
    with torch.inference_mode():
        layer(currents(5, 4, 3))


def test_a_state_from_inference_mode_does_not_stop_training():
    layer = sf.IF(0.7, carry_state=True)
    with torch.inference_mode():
        layer(currents(5, 4, 3))
    layer.reset_state()
    x = currents(5, 4, 3).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0


@makers
def test_a_state_from_inference_mode_is_where_training_goes_on(make):
    layer, x = make(carry_state=True), currents(10, 4, 3)
    whole = make()(x)
    with torch.inference_mode():
        layer(x[:5])
    after = x[5:].clone().requires_grad_()
    spikes = layer(after)
    assert torch.equal(spikes, whole[5:])
    spikes.sum().backward()
    assert after.grad.abs().sum() > 0
    with torch.inference_mode():
        layer(x)


@pytest.mark.parametrize("make", [*MAKERS.values(), lambda **o: sf.BatchNormIF(3, **o)], ids=[*MAKERS, "BatchNormIF"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_of_a_carried_state_is_refused(make, reentrant):
    """It calls the layer once more during backward, from the state that the first call left."""
    layer, x = make(carry_state=True), currents(5, 4, 3).requires_grad_()
    spikes = checkpoint(layer, x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=r"carry_state=True.*v0 as an argument"):
        spikes.sum().backward()


def test_the_functional_form_can_be_checkpointed_with_its_state():
    x = currents(10, 4, 3, dtype=torch.float64).requires_grad_()

    def run(x, v0):
        return sf.functional.integrate_and_fire(x, v0, threshold=0.7, reset="soft")

    def in_pieces(call):
        first, v = call(x[:5], torch.zeros(4, 3, dtype=torch.float64))
        second, _ = call(x[5:], v)
        return torch.autograd.grad(first.sum() + second.square().sum(), x)[0]

    assert torch.equal(in_pieces(lambda *a: checkpoint(run, *a, use_reentrant=False)), in_pieces(run))


def test_assigned_options_keep_the_state():
    layer = sf.IF(0.7, carry_state=True)
    layer(currents(5, 4, 3))
    v = layer.state
    layer.threshold = 0.2
    wanted, _ = sf.functional.integrate_and_fire(currents(5, 4, 3), v, threshold=0.2)
    assert torch.equal(layer(currents(5, 4, 3)), wanted)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy], ids=["deepcopy", "pickle", "copy"]
)
@makers
def test_a_copy_in_the_middle_of_a_graph_goes_on_from_the_same_values(make, duplicate):
    x = currents(10, 4, 3, 5).requires_grad_()
    layer = make(carry_state=True)
    first = layer(x[:5])
    other = duplicate(layer)
    assert torch.equal(other.state, layer.state)
    assert layer.state.requires_grad
    assert torch.equal(other(x[5:]), layer(x[5:]))
    other.reset_state()
    assert layer.state is not None
    first.sum().backward()


def test_the_state_is_in_no_checkpoint():
    layer = sf.IF(0.7, carry_state=True)
    before = layer.state_dict()
    layer(currents(5, 4, 3))
    assert layer.state_dict() == before == {}
    fresh = sf.IF(0.7, carry_state=True)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.state is None


@pytest.mark.parametrize(
    "wrapped",
    [lambda model: model, lambda model: torch.compile(model, backend="eager"), lambda model: nn.ModuleList([model])],
    ids=["fused", "compiled", "in a list"],
)
def test_a_whole_model_is_reset_and_detached_at_once_fused_compiled_or_wrapped(wrapped):
    model = nn.Sequential(
        sf.OverTime(nn.Conv2d(2, 3, 3, padding=1)),
        sf.OverTime(nn.BatchNorm2d(3)),
        sf.IF(0.3, carry_state=True),
        nn.Sequential(sf.LIF(carry_state=True), sf.IF()),
    )
    sf.fuse(model)
    x = currents(5, 4, 2, 6, 6)
    whole = wrapped(model)
    first = model(x)
    carried = [module for module in model.modules() if getattr(module, "state", None) is not None]
    values = [module.state.clone() for module in carried]
    assert all(module.state.requires_grad for module in carried)
    assert sf.detach_state(whole) == 2
    assert not any(module.state.requires_grad for module in carried)
    assert all(torch.equal(module.state, value) for module, value in zip(carried, values, strict=True))
    assert sf.reset_state(whole) == 2
    assert all(module.state is None for module in carried)
    assert torch.equal(model(x), first)


def test_a_single_layer_is_reset_and_what_carries_nothing_has_nothing_to_reset():
    assert sf.reset_state(sf.IF(carry_state=True)) == 1 and sf.reset_state(sf.IF()) == sf.detach_state(nn.ReLU()) == 0


@pytest.mark.parametrize("function", [sf.reset_state, sf.detach_state])
def test_what_is_no_model_is_refused(function):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        function([sf.IF(carry_state=True)])
