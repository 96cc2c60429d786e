"""Batch normalization outside the neurons, and statistics over several processes for a whole network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from snnfast.autograd.statistics import moments_of_all, track, tracked_of_all
from snnfast.dynamics import state_dtype
from snnfast.layers import BatchNormIF, BatchNormLIF
from snnfast.normalization import resolve_group

__all__ = ["BatchNorm2d", "synchronize"]


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose statistics in training may be those of several processes together, on CPU and CUDA.

    Without a group, or with one of a single process, this is nn.BatchNorm2d itself. With one, moments and sums are of
    the joined batch, whose parts may differ in size: in float64 where the current is, in float32 otherwise, whatever
    autocast is on. The running variance is the joined batch's unbiased one. As with nn.SyncBatchNorm the parameters'
    gradients are of this process's own part, and there is no second derivative.

    Args:
        args, kwargs: those of nn.BatchNorm2d.
        process_group: a torch.distributed process group, "world" for all processes, or None for this one alone. An
            attribute, not part of the state dict; :func:`synchronize` sets it. Python can copy and pickle "world", but
            no group.

    Raises:
        TypeError, ValueError: something else for the group, or torch.distributed not initialised; and what
            nn.BatchNorm2d raises.
    """

    process_group: Any = None
    only_normalizes = True  # in evaluation; of subclasses, which may do more, a stream does not assume it
    _takes_process_group = True  # nn.SyncBatchNorm.convert_sync_batchnorm keeps it, see snnfast.layers.batch_norm

    def __init__(self, *args: Any, process_group: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        resolve_group(process_group)
        self.process_group = process_group

    def forward(self, current: Tensor) -> Tensor:
        """The normalized current, [B, C, H, W], in the current's dtype and memory format.

        All processes of the group must take part where the batch's statistics are used, with any number of images.
        """
        batch = self.training or self.running_mean is None
        group = resolve_group(self.process_group) if batch else None
        if group is None or torch.distributed.get_world_size(group) == 1:
            return super().forward(current)
        self._check_input_dim(current)
        if current.shape[1] != self.num_features:
            raise ValueError(
                f"current must have {self.num_features} channels (num_features), got {list(current.shape)}"
            )
        moments, count = _joined_moments(current.detach(), group)
        if self.training and self.running_mean is not None:
            self._track(moments, count)
        return _Normalize.apply(current, self.weight, self.bias, moments, count, self.eps, group)

    @torch.no_grad()
    def _track(self, moments: Tensor, count: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        # A tensor, the share of a cumulative mean, is read by no host.
        momentum = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked.double()
        found = tracked_of_all(moments, count, self.running_mean, self.running_var)
        track(self.running_mean, self.running_var, found, momentum)

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.process_group is None else f"{shown}, process_group={self.process_group!r}"


def _all_but_channels(current: Tensor) -> list[int]:
    return [dim for dim in range(current.dim()) if dim != 1]


def _per_channel(values: Tensor, current: Tensor) -> Tensor:
    return values.view([-1 if dim == 1 else 1 for dim in range(current.dim())])


def _joined_moments(current: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel, [2, C] in float64, of every process's current together, and the count, 0-d."""
    channels = current.shape[1]
    count = current.numel() // max(channels, 1)
    if count == 0:
        own = torch.zeros(2, channels, dtype=torch.float64, device=current.device)
    else:
        values = current.to(state_dtype(current.dtype))
        dims = _all_but_channels(current)
        variance, mean = torch.var_mean(values, dims, correction=0)
        # Where there is an infinite value, a running mean of differences is none of the numbers.
        mean = mean.where(mean.isfinite(), values.mean(dims))
        own = torch.stack([mean, variance]).double()
    return moments_of_all(own, count, group)


class _Normalize(Function):
    """``weight · (current − mean) / √(variance + eps) + bias``, the moments being functions of every process's current.

    Nothing as large as the current is kept but the current.
    """

    @staticmethod
    def forward(ctx, current, weight, bias, moments, count, eps, group):
        state = state_dtype(current.dtype)
        mean, variance = moments.to(state)
        inverse = torch.rsqrt(moments[1] + eps).to(state)
        ctx.save_for_backward(current, weight, mean, inverse, count)
        ctx.group = group
        affine = (None if parameter is None else parameter.to(state) for parameter in (weight, bias))
        return F.batch_norm(current, mean, variance, *affine, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        current, weight, mean, inverse, count = ctx.saved_tensors
        grad = grad.to(mean.dtype)
        mean, inverse = _per_channel(mean, current), _per_channel(inverse, current)
        normalized = (current.to(mean.dtype) - mean) * inverse
        dims = _all_but_channels(current)
        sums = torch.stack([grad.sum(dims), (grad * normalized).sum(dims)])
        grad_current = None
        if ctx.needs_input_grad[0]:
            shared = sums.clone()
            torch.distributed.all_reduce(shared, group=ctx.group)
            through_mean, through_variance = (shared / count.clamp(min=1)).to(mean.dtype)
            grad_current = grad - _per_channel(through_mean, current)
            grad_current -= normalized * _per_channel(through_variance, current)
            grad_current *= inverse if weight is None else inverse * _per_channel(weight.to(mean.dtype), current)
            grad_current = grad_current.to(current.dtype)
        # Autograd casts to the parameters' dtype.
        return (
            grad_current,
            sums[1] if ctx.needs_input_grad[1] else None,
            sums[0] if ctx.needs_input_grad[2] else None,
            *(None,) * 4,
        )


def synchronize(model: nn.Module, process_group: Any = "world") -> nn.Module:
    """Makes the batch statistics of every normalization in ``model`` those of all processes together.

    For training with DistributedDataParallel: each process's part of a batch then gives what one process gives on the
    joined batch. In place: BatchNormIF, BatchNormLIF, :class:`BatchNorm2d` and :class:`BatchNormReLU` stay the same
    objects under the same state dict. A model without normalization is left as it is, and so is an nn.SyncBatchNorm.

    Args:
        model: a network of :mod:`snnfast.models`, or any module that holds such layers.
        process_group: a torch.distributed process group, or "world" for all processes.

    Returns:
        The model.

    Raises:
        TypeError: not a module; neither a group nor "world".
        ValueError: torch.distributed is not initialised; a batch normalization of another kind, by name.
    """
    if isinstance(model, nn.Module):
        for name, layer in model.named_modules():
            known = BatchNormIF | BatchNormLIF | BatchNorm2d | nn.SyncBatchNorm
            if isinstance(layer, _BatchNorm) and not isinstance(layer, known):
                raise ValueError(
                    f"{name or 'model'} is {type(layer).__name__}, whose statistics are of one process: make it a "
                    "snnfast.models.BatchNorm2d or an nn.SyncBatchNorm"
                )
    BatchNormIF.convert_sync(model, process_group)
    for layer in model.modules():
        if isinstance(layer, BatchNorm2d):
            layer.process_group = process_group
    return model
