"""A batch's statistics, of this process or of several, and the running statistics that follow them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnfast.dynamics import state_dtype
from snnfast.normalization import BatchNorm, channels_of
from snnfast.ops.normalize import batch_norm_tables_op, normalization_gradients_op, normalization_tables_op

__all__ = [
    "batch_statistics",
    "moments_of_all",
    "runs_alone",
    "tables_of_all",
    "track",
    "tracked_of_all",
    "update_running",
    "values_per_channel",
]


def tables_of_all(sums: Tensor, moments: Tensor, tables: Tensor, norm: BatchNorm, count: Tensor) -> Tensor:
    """The tables for the gradient through statistics of several processes: of the sums over all of them.

    The parameters' gradients are of this process's own sums (as with nn.SyncBatchNorm: DistributedDataParallel averages
    parameters' gradients itself).
    """
    shared = sums.clone()
    torch.distributed.all_reduce(shared, group=norm.process_group)
    return normalization_gradients_op(shared / count, moments, tables, norm.eps, 1, tables.dtype)[0]


def moments_of_all(moments: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor]:
    """The moments of every process's batch together, and their number of values per channel (a 0-d float64 tensor)."""
    mine = torch.cat([moments.flatten(), moments.new_full((1,), float(count))])
    gathered = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, mine, group=group)
    everyone = torch.stack(gathered)
    counts = everyone[:, -1]
    present = (counts > 0)[:, None]  # an empty batch has no moments
    means, variances = (half.where(present, 0.0) for half in everyone[:, :-1].chunk(2, 1))
    total = counts.sum()
    share = (counts / total.clamp(min=1))[:, None]
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    return torch.stack([mean, variance]), total


def tracked_of_all(moments: Tensor, count: Tensor, mean: Tensor | None, variance: Tensor | None) -> Tensor:
    """What running statistics move towards, [2, C]: the mean and the unbiased variance of every process's batch.

    ``mean``, ``variance``: the running statistics, which stay where no process has values.
    """
    tracked = torch.stack([moments[0], moments[1] * (count / (count - 1).clamp(min=1))])
    return tracked if mean is None else tracked.where(count > 0, torch.stack([mean, variance]).to(tracked))


def track(mean: Tensor, variance: Tensor, found: Tensor, momentum: float | Tensor) -> None:
    """Moves running statistics towards what a batch had, [2, C].

    As nn.BatchNorm does: lerp would take the difference of two infinities. Each product is rounded on its own, so that
    compiled code gives the same. A momentum that is a tensor is the share of a cumulative mean, taken exactly.
    """
    exact = isinstance(momentum, Tensor)
    share = (found.double() if exact else found) * momentum
    for running, part in ((mean, share[0]), (variance, share[1])):
        if exact:
            running.copy_(running.double() * (1 - momentum) + part)
        elif momentum == 1:
            running.copy_(part)  # whatever was before
        else:
            running.mul_(1 - momentum).add_(part)


def values_per_channel(current: Tensor, held: bool) -> int:
    return current.numel() // max(channels_of(current, held), 1)


def batch_statistics(
    norm: BatchNorm,
    current: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    steps: int,
    time_dim: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """What the currents are normalized by: moments, the tables made of them, what the running statistics move towards
    (None in evaluation) and the number of values of all processes (None for one process alone)."""
    state = state_dtype(current.dtype)
    if not norm.batch:
        moments = torch.stack([mean, variance]).double()
        return moments, normalization_tables_op(moments, weight, bias, norm.eps, state), None, None
    moments, tables, tracked = batch_norm_tables_op(current, weight, bias, norm.eps, steps, time_dim)
    if runs_alone(norm):
        return moments, tables, tracked, None
    moments, count = moments_of_all(moments, values_per_channel(current, steps > 0), norm.process_group)
    tables = normalization_tables_op(moments, weight, bias, norm.eps, state)
    return moments, tables, tracked_of_all(moments, count, mean, variance), count


def runs_alone(norm: BatchNorm) -> bool:
    return norm.process_group is None or torch.distributed.get_world_size(norm.process_group) == 1


def update_running(
    mean: Tensor | None,
    variance: Tensor | None,
    batches: Tensor | None,
    momentum: float | Tensor | None,
    tracked: Tensor | None,
    present: bool,
) -> None:
    """Counts a batch, and moves the running statistics towards its own where it had values (``present``)."""
    if momentum is None:
        return
    if batches is not None:
        batches.add_(1)
    if mean is not None and present:
        track(mean, variance, tracked, momentum)
