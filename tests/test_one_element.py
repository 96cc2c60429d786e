"""Thresholds and time constants of one element: 0-d or 1-d, they are one value for all neurons, and learn as such.

Sharding (FSDP2) wants 1-d parameters.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from configurations import CONFIGURATIONS, OPTIONS, make_case, run
from naming import each
from torch import nn

import snnfast as sf

SCALARS = [o for o in CONFIGURATIONS if "0-d" in (o["threshold"], o["tau"])]


def currents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def same_with_one_dimension(configuration, device: torch.device, module) -> None:
    """Over the option space, beside thresholds and time constants of every kind."""
    case = make_case(configuration, device)
    one = {name: table.detach().clone().view(-1).requires_grad_() for name, table in case.tables.items()}
    other = replace(case, tables=one, arguments={**case.arguments, **one})
    outputs, gradients = run(case, module)
    found, found_gradients = run(other, module)
    for ours, wanted in zip(found, outputs, strict=True):
        assert torch.equal(ours, wanted)
    for name, wanted in gradients.items():
        leaf = other.leaves[name]
        assert found_gradients[name].shape == leaf.shape
        assert torch.equal(found_gradients[name], wanted.view(leaf.shape)), name


@each(SCALARS[::4], OPTIONS)
def test_one_dimension_is_none_to_the_last_bit(kernels, configuration):
    same_with_one_dimension(configuration, kernels.device, sf.functional)


@each(SCALARS[::40], OPTIONS)
def test_one_dimension_is_none_to_the_last_bit_in_the_reference_too(kernels, configuration):
    same_with_one_dimension(configuration, kernels.device, sf.reference)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 4, 3), (6, 4, 3, 2, 2)], ids=str)
def test_any_shape_of_current_takes_one_element(shape):
    x = currents(*shape)
    one = sf.LIF(torch.tensor([3.0]), torch.tensor([0.2]), learn_tau=True, learn_threshold=True)
    none = sf.LIF(torch.tensor(3.0), torch.tensor(0.2), learn_tau=True, learn_threshold=True)
    spikes, wanted = one(x), none(x)
    assert torch.equal(spikes, wanted) and 0 < spikes.mean() < 1
    (spikes.sum() + wanted.sum()).backward()
    for ours, theirs in zip(one.parameters(), none.parameters(), strict=True):
        assert ours.shape == (1,) and torch.equal(ours.grad, theirs.grad.view(1)) and ours.grad != 0


@pytest.mark.parametrize(
    "make",
    [
        lambda t: sf.BatchNormIF(3, threshold=t - 1.5, learn_threshold=True),
        lambda t: sf.BatchNormLIF(3, threshold=t - 1.5, learn_threshold=True, tau=t, learn_tau=True),
        lambda t: sf.BatchNormLIF(3, threshold=torch.tensor([0.2, 0.4, 0.6]), tau=t, learn_tau=True),
    ],
    ids=["IF", "LIF", "LIF, thresholds per channel"],
)
@pytest.mark.parametrize("held", [False, True], ids=["over time", "held"])
def test_a_fused_batch_norm_takes_one_element(make, held):
    x, one, none = currents(5, 4, 3, 2), make(torch.tensor([2.0])), make(torch.tensor(2.0))
    call = (x[0], None, 5) if held else (x,)
    spikes, wanted = one(*call), none(*call)
    assert torch.equal(spikes, wanted) and 0 < spikes.mean() < 1
    (spikes.sum() + wanted.sum()).backward()
    for ours, theirs in zip(one.parameters(), none.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad.view(ours.shape))


def test_shapes_without_data_are_those_with_it():
    for device in ("meta", "cpu"):
        layer = sf.LIF(torch.tensor([3.0]), torch.tensor([0.2]), learn_tau=True, learn_threshold=True, device=device)
        x = torch.ones(20, 4, 3, device=device, requires_grad=True)
        layer(x).sum().backward()
        assert [p.grad.shape for p in layer.parameters()] == [(1,), (1,)] and x.grad.shape == x.shape


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_element_compiles_and_learns_in_one_graph(dynamic):
    torch._dynamo.reset()  # what other tests compiled counts against the limit of recompilations
    layer = sf.LIF(torch.tensor([3.0]), torch.tensor([0.2]), learn_tau=True, learn_threshold=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for x in (currents(6, 4, 3), currents(9, 5, 3)):
        layer.zero_grad()
        compiled(x).sum().backward()
        found = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        layer(x).sum().backward()
        for ours, p in zip(found, layer.parameters(), strict=True):
            assert ours.shape == (1,) and torch.equal(ours, p.grad)


def test_what_a_network_with_one_element_learns_is_what_one_with_none_learns():
    def trained(start):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(4, 3), sf.LIF(start(2.0), start(0.2), learn_tau=True, learn_threshold=True), sf.Readout("mean")
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            net(currents(6, 8, 4)).square().sum().backward()
            optimizer.step()
        return [p.detach().flatten() for p in net.parameters()]

    for ours, wanted in zip(trained(lambda v: torch.tensor([v])), trained(torch.tensor), strict=True):
        assert torch.equal(ours, wanted)
