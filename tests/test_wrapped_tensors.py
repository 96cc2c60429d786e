"""A tensor that is not its memory (a wrapper of others, a view with the negative bit) counts for what it stands for."""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import snnfast as sf

GIVEN = {
    "current": torch.rand(6, 2, 3),
    "v0": torch.rand(2, 3),
    "threshold": torch.rand(3) + 0.3,
    "tau": torch.rand(3) + 1.5,
    "residual": torch.rand(6, 2, 3),
    "weight": torch.rand(3) + 1,
    "bias": torch.rand(3),
    "running_mean": torch.rand(3),
    "running_var": torch.rand(3) + 0.5,
}


def wrapped(tensor: torch.Tensor) -> torch.Tensor:
    return TwoTensor(tensor, tensor.clone())


def negative_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, in memory the negative ones."""
    return torch._neg_view(-tensor)


def integrate(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    given = dict(given)
    return sf.functional.batch_norm_integrate_and_fire(
        given.pop("current"), given.pop("v0"), training=False, return_potential=True, **given
    )


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("form", [wrapped, negative_view])
def test_what_a_tensor_stands_for_is_what_counts(name, form):
    expected = integrate(GIVEN)
    found = integrate({**GIVEN, name: form(GIVEN[name])})
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.a if isinstance(ours, TwoTensor) else ours, theirs)


@pytest.mark.parametrize("form", [wrapped, negative_view])
def test_a_gradient_that_is_not_its_memory_arrives(form):
    x = GIVEN["current"].clone().requires_grad_()
    sent = torch.rand(6, 2, 3)
    spikes = sf.IF(0.4)(x)
    (expected,) = torch.autograd.grad(spikes, x, sent, retain_graph=True)
    (found,) = torch.autograd.grad(spikes, x, form(sent))
    assert expected.abs().sum() > 0
    assert torch.equal(found.a if isinstance(found, TwoTensor) else found, expected)


def test_the_core_refuses_a_tensor_without_memory():
    from snnfast.backends import DTYPE_CODES, core, of

    x = torch.zeros(8)
    call = core.PackBitsCall(
        dtype=DTYPE_CODES[x.dtype], count=8, spikes=wrapped(x), bits=torch.zeros(1, dtype=torch.uint8)
    )
    with pytest.raises(RuntimeError, match=r"PackBitsCall.spikes is a tensor without memory of its own \(TwoTensor\)"):
        of(x).pack_bits(call)
