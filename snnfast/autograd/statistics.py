"""A batch's statistics, of this process or of several, and the running statistics that follow them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnfast.normalization import Normalization

__all__ = ["means_of_all", "moments_of_all", "runs_alone", "track", "tracked_of_all", "update_running"]


def means_of_all(sums: Tensor, count: Tensor, group: Any) -> Tensor:
    """[2, C] sums of gradients per channel over every process's batch, by their number of values.

    The parameters' gradients are of a process's own sums (as with nn.SyncBatchNorm: DistributedDataParallel averages
    parameters' gradients itself).
    """
    shared = sums.clone()
    torch.distributed.all_reduce(shared, group=group)
    return shared / count


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
    return (
        tracked
        if mean is None or variance is None
        else tracked.where(count > 0, torch.stack([mean, variance]).to(tracked))
    )


def track(mean: Tensor, variance: Tensor, found: Tensor, momentum: float | Tensor) -> None:
    """Moves running statistics towards what a batch had, [2, C].

    As nn.BatchNorm does: lerp would take the difference of two infinities. Each product is rounded on its own, so that
    compiled code gives the same. A momentum that is a tensor is the share of a cumulative mean, taken exactly.
    """
    exact = isinstance(momentum, Tensor)
    share = (found.double() if exact else found) * momentum
    for running, part in zip((mean, variance), share.unbind(), strict=True):
        if exact:
            running.copy_(running.double() * (1 - momentum) + part)
        elif momentum == 1:
            running.copy_(part)  # whatever was before
        else:
            running.mul_(1 - momentum).add_(part)


def runs_alone(normalization: Normalization) -> bool:
    group = normalization.process_group
    return group is None or torch.distributed.get_world_size(group) == 1


def update_running(normalization: Normalization, tracked: Tensor, present: bool) -> None:
    """Counts a batch, and moves the running statistics towards its own where it had values (``present``)."""
    momentum, mean, variance = normalization.momentum, normalization.affine.mean, normalization.affine.variance
    if momentum is None:
        return
    if normalization.batches is not None:
        normalization.batches.add_(1)
    if mean is not None and variance is not None and present:
        track(mean, variance, tracked, momentum)
