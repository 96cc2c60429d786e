"""Batch normalization of the currents and the neurons that integrate them, as one layer."""

from __future__ import annotations

from typing import Any, Never

import torch
from torch import Tensor, fx, nn

from . import _hints
from ._tracing import as_leaf
from .dynamics import flag
from .layers import IF, LIF
from .normalized import BatchNorm, check_eps, check_momentum, resolve_group, run_normalized
from .surrogate import Surrogate

__all__ = ["BatchNormIF", "BatchNormLIF"]


class _BatchNormNeuron(nn.Module):
    """The normalization of BatchNormIF and BatchNormLIF, ahead of the neuron in the order of their bases.

    Parameters and buffers are named, and behave, as those of nn.BatchNorm1d, 2d and 3d.
    """

    _version = 2  # nn.BatchNorm's, which since then has num_batches_tracked

    def _add_batch_norm(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        process_group: Any,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        if isinstance(num_features, bool) or not isinstance(num_features, int):
            raise TypeError(f"num_features must be an int, got {type(num_features).__name__}")
        if num_features < 0:
            raise ValueError(f"num_features must not be negative, got {num_features}")
        resolve_group(process_group)
        self.num_features = num_features
        self.eps = check_eps(eps)
        self.momentum = None if momentum is None else check_momentum(momentum)
        self.affine = flag("affine", affine)
        self.track_running_stats = flag("track_running_stats", track_running_stats)
        self.process_group = process_group
        made = {"device": device, "dtype": dtype}
        for name in ("weight", "bias"):
            self.register_parameter(name, nn.Parameter(torch.empty(num_features, **made)) if affine else None)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(num_features, **made) if track_running_stats else None)
        tracked = torch.tensor(0, dtype=torch.long, device=device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", tracked)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Running mean 0, variance 1, and no batch seen."""
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and the running statistics as at first."""
        self.reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, current: Tensor, residual: Tensor | None = None, steps: int | None = None) -> Tensor:
        """Normalizes the currents, adds the residual, and runs the neurons over all time steps.

        Args:
            current: [T, B, C, ...] ([B, T, C, ...] with time_dim=1), or with ``steps`` a [B, C, ...] current to hold.
            residual: added to the normalized current; the output's shape, or the current's where that is held.
            steps: number of steps T that a current without time axis is held for.

        Returns:
            Spikes, zeros and ones: the current's shape, dtype and memory format; [T, B, C, ...] when held.

        Raises:
            TypeError, ValueError, RuntimeError, NotImplementedError: see
                snnfast.functional.batch_norm_integrate_and_fire.
        """
        if isinstance(current, fx.Proxy) or isinstance(residual, fx.Proxy):
            return as_leaf(self, current, residual, steps)
        return self._over_time(current, steps, residual)

    def _run(
        self, current: Tensor, v0: Tensor | None, threshold: Tensor | None, tau: Tensor | None, keep: int,
        steps: int | None, residual: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        batch = self.training or self.running_mean is None
        running = None if self.running_mean is None else (self.running_mean, self.running_var)
        momentum: float | Tensor | None = None
        if self.training and self.num_batches_tracked is not None:
            # The cumulative mean (momentum=None) counts this batch in, which run_normalized does once it is checked.
            momentum = self.momentum if self.momentum is not None else 1.0 / (self.num_batches_tracked + 1).double()
        norm = BatchNorm(self.eps, batch, resolve_group(self.process_group) if batch else None)
        return run_normalized(
            self._dynamics, norm, current, residual, v0, threshold, tau, self.weight, self.bias, running, momentum,
            steps, self.time_dim, keep, self.num_features, self.num_batches_tracked,
        )  # fmt: skip

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        # As nn.BatchNorm does with what was saved before it counted batches.
        counted = prefix + "num_batches_tracked"
        if (local_metadata or {}).get("version", 1) < 2 and self.track_running_stats and counted not in state_dict:
            state_dict[counted] = self.num_batches_tracked
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        shown = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
        if not self.track_running_stats:
            shown += "track_running_stats=False, "
        if self.process_group is not None:
            shown += f"process_group={self.process_group!r}, "
        return shown + super().extra_repr()

    @staticmethod
    def convert_sync(module: nn.Module, process_group: Any = "world") -> nn.Module:
        """Makes the statistics of every BatchNormIF and BatchNormLIF in ``module`` those of all processes together.

        In the manner of ``nn.SyncBatchNorm.convert_sync_batchnorm``, which is for the other batch norms; the layers
        stay the same objects.

        Args:
            module: a module, possibly one of these layers itself.
            process_group: a torch.distributed process group, or "world" for all processes.

        Returns:
            The module.

        Raises:
            TypeError: not a module.
            ValueError: torch.distributed is not initialised.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if process_group is None:
            raise ValueError("process_group must be a torch.distributed process group or 'world', got None")
        resolve_group(process_group)
        for layer in module.modules():
            if isinstance(layer, _BatchNormNeuron):
                layer.process_group = process_group
        return module


class BatchNormIF(_BatchNormNeuron, IF):
    """Batch normalization of the currents, an optional residual current, and :class:`snnfast.IF`, in one layer.

    ``layer(current, residual=None, steps=None)`` is ``IF(BatchNorm(current) + residual)`` with statistics over time,
    batch and space (the paper's section 2.6; MATH.md section 4), in any number of spatial dimensions. It reads and
    writes memory half as often as the two layers do, and keeps nothing for backward that they would both keep but the
    current. ``state_dict`` interchanges with that of nn.BatchNorm1d, 2d and 3d.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: of the running statistics, in [0, 1]; None is the cumulative mean.
        affine: whether there are a weight and a bias per channel.
        track_running_stats: whether there are running statistics; without, evaluation uses the batch's own too.
        process_group: statistics over all processes of this torch.distributed group, or "world"; see
            :meth:`convert_sync`.
        device, dtype: of parameters and running statistics.

    The other arguments, state and errors are those of :class:`snnfast.IF`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range, or ``process_group`` without torch.distributed.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        process_group: Any = None,
        threshold: float | Tensor = 1.0,
        reset: str = "hard",
        reset_value: float = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool | None = None,
        fire_on_equal: bool = False,
        delay: bool = False,
        time_dim: int = 0,
        carry_state: bool = False,
        learn_threshold: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise _hints.refuse("BatchNormIF", BatchNormIF, unknown)
        IF.__init__(
            self, threshold, reset=reset, reset_value=reset_value, surrogate=surrogate, detach_reset=detach_reset,
            fire_on_equal=fire_on_equal, delay=delay, time_dim=time_dim, carry_state=carry_state,
            learn_threshold=learn_threshold,
        )  # fmt: skip
        self._add_batch_norm(num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype)


class BatchNormLIF(_BatchNormNeuron, LIF):
    """Batch normalization of the currents, an optional residual current, and :class:`snnfast.LIF`, in one layer.

    Arguments are those of :class:`BatchNormIF`, and ``tau``, ``decay_input`` and ``learn_tau`` of :class:`snnfast.LIF`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        process_group: Any = None,
        tau: float | Tensor = 2.0,
        decay_input: bool = True,
        learn_tau: bool = False,
        threshold: float | Tensor = 1.0,
        reset: str = "hard",
        reset_value: float = 0.0,
        surrogate: Surrogate | None = None,
        detach_reset: bool | None = None,
        fire_on_equal: bool = False,
        delay: bool = False,
        time_dim: int = 0,
        carry_state: bool = False,
        learn_threshold: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise _hints.refuse("BatchNormLIF", BatchNormLIF, unknown)
        LIF.__init__(
            self, tau, threshold, decay_input=decay_input, learn_tau=learn_tau, reset=reset, reset_value=reset_value,
            surrogate=surrogate, detach_reset=detach_reset, fire_on_equal=fire_on_equal, delay=delay,
            time_dim=time_dim, carry_state=carry_state, learn_threshold=learn_threshold,
        )  # fmt: skip
        self._add_batch_norm(num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype)
