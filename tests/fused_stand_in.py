"""BatchNormIF and BatchNormLIF in plain torch, in float64 and float32, for where the package has none."""

from __future__ import annotations

from torch import nn

import snnfast
from snnfast.layers import IF, LIF


class _BatchNorm:
    """The batch norm of a fused layer; the neuron's class comes after it in the bases."""

    _version = 2

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, *,
                 process_group=None, **neuron):  # fmt: skip
        super().__init__(**neuron)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        norm = nn.BatchNorm2d(num_features, eps, momentum, affine, track_running_stats)
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)

    def forward(self, current, residual=None, steps=None):
        flat = current if steps is not None else current.flatten(0, 1)
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        flat = nn.functional.batch_norm(
            flat,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            factor,
            self.eps,
        )
        normal = flat if steps is not None else flat.unflatten(0, current.shape[:2])
        if residual is not None:
            if residual.shape != normal.shape:
                raise ValueError(f"residual must have the shape {list(normal.shape)}, got {list(residual.shape)}")
            normal = normal + residual
        return super().forward(normal, steps)

    def extra_repr(self):
        return f"{self.num_features}, {super().extra_repr()}"


class BatchNormIF(_BatchNorm, IF):
    pass


class BatchNormLIF(_BatchNorm, LIF):
    pass


def ensure() -> None:
    """Puts the stand-ins where the package has no such layers."""
    for kind in (BatchNormIF, BatchNormLIF):
        if not hasattr(snnfast, kind.__name__):
            setattr(snnfast, kind.__name__, kind)
