"""Batch normalization of the currents and the neurons that integrate them, as one layer."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Never

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from snnfast._arguments import hints
from snnfast._arguments.checks import integer
from snnfast.autograd.normalize import run_normalized
from snnfast.dynamics import Dynamics, flag
from snnfast.layers.base import as_leaf
from snnfast.layers.neuron import IF, LIF
from snnfast.layers.tables import reset_tables
from snnfast.normalization import (
    WORLD_ONCE_INITIALISED,
    Affine,
    Normalization,
    check_eps,
    check_momentum,
    resolve_group,
)
from snnfast.ops.options import States
from snnfast.surrogate import Surrogate

__all__ = ["BatchNormIF", "BatchNormLIF"]


MOST_FEATURES = 2**24
"""Beyond, a mistake: torch would be filling memory for minutes."""


class BatchNormNeuron(_BatchNorm):
    """The normalization of BatchNormIF and BatchNormLIF, ahead of the neuron in the order of their bases.

    Parameters, buffers and attributes are named, and behave, as those of nn.BatchNorm1d, 2d and 3d, and so is the base
    class: what looks for batch norms (update_bn, torch.func, freezing) finds these too. Made by ``_add_batch_norm``,
    which checks its arguments, not by the base class's constructor.
    """

    process_group: Any
    time_dim: int  # the neuron's, as _dynamics and _over_time are
    _dynamics: Dynamics
    _takes_process_group = True  # see _keep_in_conversion

    if TYPE_CHECKING:

        def __call__(self, current: Tensor, residual: Tensor | None = None, steps: int | None = None) -> Tensor: ...
        def _over_time(self, current: Tensor, *arguments: Any) -> Tensor: ...

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
        integer("num_features", num_features, least=0, most=MOST_FEATURES)
        resolve_group(process_group)
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
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
        self._reset_normalization()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "eps":
            value = check_eps(value)
        elif name == "momentum" and value is not None:
            value = check_momentum(value)
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, the running statistics as at first, and threshold and tau as :class:`snnfast.IF` does."""
        self._reset_normalization()
        reset_tables(self)

    def _reset_normalization(self) -> None:
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
        self, current: Tensor, states: States, outputs: int, steps: int | None, residual: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch = self.training or self.running_mean is None
        # As in nn.BatchNorm, whose attributes are there to be changed at any time.
        momentum: float | Tensor | None = None
        if self.training and self.track_running_stats:
            if self.momentum is not None:
                momentum = self.momentum
            elif self.num_batches_tracked is not None:
                # The cumulative mean counts this batch in, which run_normalized does once it is checked.
                momentum = 1.0 / (self.num_batches_tracked + 1).double()
        normalization = Normalization(
            self.eps,
            batch,
            Affine(self.weight, self.bias, self.running_mean, self.running_var),
            resolve_group(self.process_group) if batch else None,
            momentum,
            self.num_batches_tracked,
            self.num_features,
        )
        return run_normalized(self._dynamics, normalization, current, residual, states, steps, self.time_dim, outputs)

    def _check_input_dim(self, input: Tensor) -> None:
        # What a call takes depends on its arguments: run_normalized checks it.
        if input.dim() < 2:
            raise ValueError(f"current must have a channel dimension, [T, B, C, ...], got {list(input.shape)}")

    def extra_repr(self) -> str:
        shown = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
        if not self.track_running_stats:
            shown += "track_running_stats=False, "
        if self.process_group is not None:
            shown += f"process_group={self.process_group!r}, "
        return shown + super(_NormBase, self).extra_repr()  # the neuron's

    @staticmethod
    def convert_sync(module: nn.Module, process_group: Any = "world") -> nn.Module:
        """Makes the statistics of every BatchNormIF and BatchNormLIF in ``module`` those of all processes together.

        In the manner of ``nn.SyncBatchNorm.convert_sync_batchnorm``, and as that does with these layers: they stay the
        same objects. That one converts all other batch norms too, and does not ask that torch.distributed is
        initialised: until it is, statistics are of this process alone.

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
            if isinstance(layer, BatchNormNeuron):
                layer.process_group = process_group
        return module


def _keep_in_conversion() -> None:
    """Makes ``nn.SyncBatchNorm.convert_sync_batchnorm``, which frameworks call, keep what does more than normalize.

    torch puts an nn.SyncBatchNorm in the place of everything that is a batch norm, and has no hook for one that is
    more: the neurons would be gone without a word. Layers whose class says ``_takes_process_group`` are given the
    process group, and stay; all else goes to torch's own.
    """
    torchs = vars(nn.SyncBatchNorm)["convert_sync_batchnorm"].__func__
    if hasattr(torchs, "keeps_neurons"):
        return  # this module was imported before

    @functools.wraps(torchs)
    def convert_sync_batchnorm(cls: Any, module: Any, process_group: Any = None) -> Any:
        if getattr(type(module), "_takes_process_group", False):
            module.process_group = WORLD_ONCE_INITIALISED if process_group is None else process_group
            return module
        return torchs(cls, module, process_group)

    vars(convert_sync_batchnorm)["keeps_neurons"] = True
    setattr(nn.SyncBatchNorm, "convert_sync_batchnorm", classmethod(convert_sync_batchnorm))  # noqa: B010  # a method, to a type checker


_keep_in_conversion()


class BatchNormIF(BatchNormNeuron, IF):  # type: ignore[misc]  # a call takes a residual, too
    """Batch normalization of the currents, an optional residual current, and :class:`snnfast.IF`, in one layer.

    ``layer(current, residual=None, steps=None)`` is ``IF(BatchNorm(current) + residual)`` with statistics over time,
    batch and space (the paper's section 2.6; MATH.md section 4), in any number of spatial dimensions. It reads and
    writes memory half as often as the two layers do, and keeps nothing for backward that they would both keep but the
    current. ``state_dict`` interchanges with that of nn.BatchNorm1d, 2d and 3d.

    To torch it is a batch norm, a ``torch.nn.modules.batchnorm._BatchNorm``: what looks for those (update_bn,
    torch.func, freezing) finds it, its attributes may be assigned as theirs (``momentum``, ``track_running_stats``,
    ...), and ``nn.SyncBatchNorm.convert_sync_batchnorm`` makes its statistics those of all processes.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: of the running statistics, in [0, 1]; None is the cumulative mean.
        affine: whether there are a weight and a bias per channel.
        track_running_stats: whether there are running statistics; without, evaluation uses the batch's own too.
        process_group: statistics over all processes of this torch.distributed group, or "world"; see
            :meth:`convert_sync`.
        device, dtype: of parameters, running statistics, and a threshold (and tau) that is a tensor.

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
            raise hints.refuse("BatchNormIF", BatchNormIF, unknown)
        IF.__init__(
            self,
            threshold,
            reset=reset,
            reset_value=reset_value,
            surrogate=surrogate,
            detach_reset=detach_reset,
            fire_on_equal=fire_on_equal,
            delay=delay,
            time_dim=time_dim,
            carry_state=carry_state,
            learn_threshold=learn_threshold,
            device=device,
            dtype=dtype,
        )
        self._add_batch_norm(num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype)


class BatchNormLIF(BatchNormNeuron, LIF):  # type: ignore[misc]  # a call takes a residual, too
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
            raise hints.refuse("BatchNormLIF", BatchNormLIF, unknown)
        LIF.__init__(
            self,
            tau,
            threshold,
            decay_input=decay_input,
            learn_tau=learn_tau,
            reset=reset,
            reset_value=reset_value,
            surrogate=surrogate,
            detach_reset=detach_reset,
            fire_on_equal=fire_on_equal,
            delay=delay,
            time_dim=time_dim,
            carry_state=carry_state,
            learn_threshold=learn_threshold,
            device=device,
            dtype=dtype,
        )
        self._add_batch_norm(num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype)
