"""Infinite and enormous currents through a batch norm: the statistics are torch's, and what exact arithmetic gives."""

from __future__ import annotations

import math

import pytest
import torch
import two_processes
from torch import nn

import snnfast as sf

INF, NAN = math.inf, math.nan
SHAPE = (4, 3, 3, 2, 5)
VALUES = [
    [INF],
    [-INF],
    [INF, INF],
    [INF, -INF],
    [NAN],
    [INF, NAN],
    [1e19],
    [1e20],
    [-1e30],
    [1e30, 1e30],
    [3e38],
    [3e38, 3e38, 3e38],
    [3e38, -3e38],
    [1e30, INF],
    [-3e38, -INF],
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Where in the channel: in its first neuron's first step, which the kernels take for a pivot, or elsewhere.
PLACES = {"first": [(0, 0, 0, 0), (0, 1, 0, 0), (2, 1, 1, 3)], "inside": [(2, 1, 1, 3), (3, 2, 0, 1), (1, 0, 1, 4)]}

values = pytest.mark.parametrize("bad", VALUES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def with_values(bad, where, dtype, layout="contiguous"):
    """Currents [T, B, C, ...], and the same with bad values in channel 1."""
    fine = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)).to(dtype)
    x = fine.clone()
    for value, (t, b, *space) in zip(bad, PLACES[where], strict=False):
        x[(t, b, 1, *space)] = value
    if layout == "channels last":
        fine, x = (t.movedim(2, -1).contiguous().movedim(-1, 2) for t in (fine, x))
    return fine, x


def statistics(x, momentum=0.1, batches=1, running=None):
    """Running mean and variance, and the potentials: here sums over time of normalized currents."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, variance = running or (torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype))
    mean, variance = mean.to(x.device), variance.to(x.device)
    for _ in range(batches):
        _, _, h = sf.functional.batch_norm_integrate_and_fire(
            x, running_mean=mean, running_var=variance, momentum=momentum, threshold=INF, return_potential=True
        )
    return mean.cpu(), variance.cpu(), h.cpu()


def of_torch(x, momentum=0.1, batches=1):
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for _ in range(batches):
        y = nn.functional.batch_norm(x.cpu().double().flatten(0, 1), mean, variance, training=True, momentum=momentum)
    return mean, variance, y.unflatten(0, x.shape[:2])


def same(ours, theirs, rtol=1e-4, atol=1e-2):
    """Equal as numbers of our dtype: infinite where that overflows."""
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=rtol, atol=atol, equal_nan=True)


@dtypes
@values
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_running_statistics_are_those_of_exact_arithmetic(kernels, bad, dtype, where, layout):
    fine, x = with_values(bad, where, dtype, layout)
    mean, variance, h = statistics(x.to(kernels.device))
    exact_mean, exact_variance, y = of_torch(x)
    finite = x.double().isfinite().all()
    # Of two enormous values that cancel, any mean near 0 is right: as near as the values have digits.
    slack = 1e-15 * x.double().abs().max().item() if finite else 1e-2
    same(mean[1], exact_mean[1], atol=max(slack, 1e-3))
    same(variance[1], exact_variance[1])
    assert mean[1].isnan() == x.float().mean((0, 1, 3, 4))[1].isnan()
    if finite:
        found = torch.cat([h[:1], h.diff(dim=0)])
        same(found[:, :, 1].double(), y[:, :, 1], atol=1e-4)
    for ours, theirs in zip((mean, variance), statistics(fine.to(kernels.device)), strict=False):
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])  # other channels: bit for bit as ever


@pytest.mark.parametrize("bad", [[INF], [-INF], [1e30], [3e38], [NAN], [1e19]], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.9, 1.0, None], ids=str)
def test_a_statistic_that_is_infinite_stays_as_torch_has_it(bad, momentum):
    """One batch with the value, then ordinary ones."""
    ours, theirs = sf.BatchNormIF(3, momentum=momentum), nn.BatchNorm3d(3, momentum=momentum)
    fine, x = with_values(bad, "inside", torch.float32)
    for batch in (fine, x, fine, fine):
        ours(batch)
        theirs(batch.flatten(0, 1).unsqueeze(2))
        if momentum == 1.0:  # the last batch's, whatever was before; torch multiplies that by 0
            wanted = sf.BatchNormIF(3, momentum=1.0)
            wanted(batch)
            assert torch.equal(ours.running_mean.isnan(), wanted.running_mean.isnan())
            assert torch.equal(ours.running_var.isinf(), wanted.running_var.isinf())
            continue
        same(ours.running_mean, theirs.running_mean, rtol=1e-3)
        same(ours.running_var, theirs.running_var, rtol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("value", [1e19, 1e25, 1e30])
def test_enormous_currents_have_finite_gradients(kernels, dtype, value):
    _, x = with_values([value, -value], "first", dtype)
    results = []
    for t in (x.to(kernels.device), x.double()):
        leaf, weight = t.detach().clone().requires_grad_(), torch.full((3,), 0.5).to(t).requires_grad_()
        _, _, h = sf.functional.batch_norm_integrate_and_fire(leaf, weight=weight, threshold=INF, return_potential=True)
        sent = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4)).to(t)
        results.append(
            [
                g.cpu().double()[..., 1, :, :] if g.dim() > 1 else g.cpu().double()[1]
                for g in torch.autograd.grad(h, [leaf, weight], sent)
            ]
        )
    for ours, theirs in zip(*results, strict=True):
        assert ours.isfinite().all()
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


WORKER = """
import json, sys
import torch
import snnfast as sf
rank, store, cases = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
report = []
for bad, at in cases:
    x = torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    for value, b in zip(bad, at):
        x[2, b, 1, 3] = float(value)
    ours, shortcut = sf.BatchNormIF(3, process_group="world"), sf.models.BatchNorm2d(3, process_group="world")
    alone = sf.BatchNormIF(3)
    own = x[:, 2 * rank : 2 * rank + 2]
    ours(own), alone(x), shortcut(own.flatten(0, 1).unsqueeze(-1))
    of_torch = torch.nn.BatchNorm2d(3).double()
    of_torch(x.double().flatten(0, 1).unsqueeze(-1))
    report.append([[str(v) for v in t.float().tolist()] for bn in (of_torch, ours, alone, shortcut)
                   for t in (bn.running_mean, bn.running_var)])
print("REPORT" + json.dumps(report))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""

TOGETHER = [
    (["inf"], [0]),
    (["-inf"], [3]),
    (["inf", "inf"], [0, 3]),
    (["inf", "-inf"], [0, 3]),
    (["nan"], [2]),
    (["1e30"], [1]),
    (["3e38", "3e38"], [0, 2]),
    (["1e30", "inf"], [0, 3]),
]


def test_statistics_of_several_processes_are_those_of_one(tmp_path):
    for report in two_processes.reports(WORKER, tmp_path, TOGETHER):
        for case, lists in zip(TOGETHER, report, strict=True):
            statistics = [torch.tensor([float(v) for v in numbers]) for numbers in lists]
            for found in (statistics[2:4], statistics[4:6], statistics[6:8]):
                for ours, of_torch in zip(found, statistics[:2], strict=True):
                    torch.testing.assert_close(ours, of_torch, rtol=1e-4, atol=1e-4, equal_nan=True, msg=str(case))
