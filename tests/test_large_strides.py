"""Steps and samples that lie more than 2^31 elements apart: offsets are numbers of 64 bits."""

from __future__ import annotations

import pytest
import torch

import snnfast as sf

APART = 2**31 + 64  # elements


@pytest.fixture
def far_apart(tmp_path):
    """Four rows of 64 float32 elements, 8 GiB apart in a file that has holes for all that is between them."""
    count = 3 * APART + 64
    file = tmp_path / "sparse"
    try:
        with file.open("wb") as stream:
            stream.truncate(4 * count)
        flat = torch.from_file(str(file), shared=True, size=count, dtype=torch.float32)
        rows = flat.as_strided((4, 64), (APART, 1))
        rows.copy_(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)))
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no file with holes of 24 GiB can be mapped here: {error}")
    return rows


@pytest.mark.parametrize("shape", [(2, 1, 64), (4, 1, 64), (1, 2, 64)], ids=["steps", "a block of steps", "samples"])
def test_currents_far_apart_are_read_where_they_are(kernels, far_apart, shape):
    if kernels.name == "cuda":
        pytest.skip("Gigabytes of a GPU are not for a test of offsets")
    strides = (APART, 64, 1) if shape[1] == 1 else (APART, APART, 1)
    current = far_apart.as_strided(shape, strides)
    close = current.contiguous()
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = []
    for given in (current, close):
        given = given.detach().requires_grad_()
        spikes = sf.functional.integrate_and_fire(given)[0]
        found.append((spikes, *torch.autograd.grad(spikes, given, gradient)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert found[0][0].any() and not found[0][0].all()


@pytest.mark.parametrize("steps", [2, 4])
def test_batch_statistics_of_currents_far_apart(kernels, far_apart, steps):
    if kernels.name == "cuda":
        pytest.skip("Gigabytes of a GPU are not for a test of offsets")
    current = far_apart.as_strided((steps, 1, 4, 16), (APART, 64, 16, 1))
    found = []
    for given in (current, current.contiguous()):
        given = given.detach().requires_grad_()
        spikes = sf.functional.batch_norm_integrate_and_fire(given, training=True)[0]
        found.append((spikes, *torch.autograd.grad(spikes.sum(), given)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
