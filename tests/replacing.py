"""Networks of other libraries, and the same with layers of this package in the place of their neurons."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import snnfast as sf


def currents(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same(
    theirs: nn.Module,
    ours: nn.Module,
    current: Tensor,
    spikes_of: Callable[[Any], Tensor] = lambda result: result,
    **tolerances: float,
) -> None:
    """The same spikes, gradients of currents and of parameters, where the network fires and some gradient flows."""
    found = []
    for network in (theirs, ours):
        network.zero_grad()
        x = current.clone().requires_grad_()
        y = spikes_of(network(x))
        y.backward(currents(*y.shape, seed=1, dtype=y.dtype))
        found.append((y.detach(), x.grad, [parameter.grad for parameter in network.parameters()]))
    (spikes, gradient, gradients), (our_spikes, our_gradient, our_gradients) = found
    assert 0 < spikes.mean() < 1
    assert gradient.abs().max() > 0
    assert torch.equal(spikes, our_spikes)
    options = {"rtol": 1e-9, "atol": 1e-11, **tolerances}
    torch.testing.assert_close(our_gradient, gradient, **options)
    for one, other in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, **options)


def swapped(network: nn.Module) -> nn.Module:
    made = copy.deepcopy(network)
    report = sf.replace_neurons(made, strict=True)
    assert report.replaced
    assert not report.left
    return made
