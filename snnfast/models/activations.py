"""What stands between two linear maps of a network: spiking neurons, or ReLU in its ANN twin.

All kinds are called alike, ``layer(current, residual=…, steps=…)``, and keep their parameters under the same names, so
that one network class serves them all and state dicts interchange.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnfast._arguments.checks import word
from snnfast.dynamics import flag
from snnfast.layers import IF, LIF, BatchNormIF, BatchNormLIF, BatchNormNeuron
from snnfast.layers.state_dict import takes_keys
from snnfast.models.batch_norm import BatchNorm2d

__all__ = ["ACTIVATIONS", "Activation", "BatchNormReLU", "ReLU", "ResidualIF", "ResidualLIF"]


class _WithResidual:
    """The residual current of a neuron without batch normalization, ahead of the neuron in the order of their bases."""

    def forward(self, current: Tensor, steps: int | None = None, residual: Tensor | None = None) -> Tensor:
        """Spikes of ``current + residual``, as the base class's forward gives them.

        Args:
            current: [T, B, ...], or with ``steps`` a [B, ...] current to hold.
            steps: number of steps T that a current without time axis is held for.
            residual: the output's shape, or the current's where that is held.

        Raises:
            ValueError: a residual of another shape; and what the base class raises.
        """
        if residual is not None:
            over_time = steps is not None and tuple(residual.shape) == (steps, *current.shape)
            if residual.shape != current.shape and not over_time:
                allowed = f"{list(current.shape)}" + (f" or {[steps, *current.shape]}" if steps is not None else "")
                raise ValueError(f"residual must have the shape {allowed}, got {list(residual.shape)}")
            current = current + residual
            steps = None if over_time else steps
        return super().forward(current, steps)  # type: ignore[misc]  # the neuron's, the next base


class ResidualIF(_WithResidual, IF):
    """:class:`snnfast.IF` that takes a residual current too; same arguments and errors."""


class ResidualLIF(_WithResidual, LIF):
    """:class:`snnfast.LIF` that takes a residual current too; same arguments and errors."""


class ReLU(nn.Module):
    """ReLU of ``current + residual``: the twin of :class:`ResidualIF`, without time. ``steps`` is not used."""

    def forward(self, current: Tensor, steps: int | None = None, residual: Tensor | None = None) -> Tensor:
        """``max(0, current + residual)``, [B, ...], in the current's dtype."""
        return F.relu(current if residual is None else current + residual)


class BatchNormReLU(BatchNorm2d):
    """ReLU of ``BatchNorm(current) + residual``: the twin of :class:`snnfast.BatchNormIF`, without time.

    Parameters, buffers and arguments are those of :class:`BatchNorm2d`; [B, C] currents of linear layers are taken too.
    For several processes there are :func:`synchronize` and ``nn.SyncBatchNorm.convert_sync_batchnorm``.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"current must have a channel dimension, [B, C, ...], got {list(input.shape)}")

    def forward(self, current: Tensor, residual: Tensor | None = None, steps: int | None = None) -> Tensor:
        """``max(0, BatchNorm(current) + residual)``, [B, C, ...], in the current's dtype. ``steps`` is not used."""
        normalized = super().forward(current)
        return F.relu(normalized if residual is None else normalized + residual)


def refuse_placement(neuron: dict[str, Any]) -> None:
    """TypeError for a device or dtype among a neuron's options: the rest of the network would be elsewhere."""
    for name in ("device", "dtype"):
        if neuron.get(name) is not None:
            raise TypeError(
                f"{name} is no option of a network, whose neurons alone would have it: make the network in "
                f"`with torch.device(...)`, or call its .to(), got {name}={neuron[name]!r}"
            )


_LAYERS = {  # by kind, without and with batch normalization
    "if": (ResidualIF, BatchNormIF),
    "lif": (ResidualLIF, BatchNormLIF),
    "relu": (ReLU, BatchNormReLU),
}
ACTIVATIONS: tuple[str, ...] = tuple(_LAYERS)


@dataclass(frozen=True)
class Activation:
    """Makes the layers after a network's linear maps: ``activation(channels)`` is a new one.

    Args:
        kind: "if", "lif" or "relu".
        batch_norm: whether the currents are batch-normalized (the paper's section 2.6).
        neuron: options of :class:`snnfast.IF` ("if") or :class:`snnfast.LIF` ("lif"), such as reset, surrogate,
            threshold and tau; with "relu" they are checked as LIF's and not used, so that a network and its twin can
            be made from the same options.

    Raises:
        TypeError, ValueError: another kind; an option that the neuron does not have or take; ``time_dim=1``, since
            networks keep time in dimension 0; a device or dtype, which are a network's as a whole.
    """

    kind: str = "if"
    batch_norm: bool = True
    neuron: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        word("activation", self.kind, ACTIVATIONS)
        if not isinstance(self.neuron, dict):
            raise TypeError(f"neuron must be a dict of the neuron's options, got {type(self.neuron).__name__}")
        flag("batch_norm", self.batch_norm)
        refuse_placement(self.neuron)
        if self.neuron.get("time_dim", 0) != 0:
            raise ValueError(f"time_dim must be 0 in a network, got {self.neuron['time_dim']!r}")
        (IF if self.kind == "if" else LIF)(**self.neuron)

    @property
    def spiking(self) -> bool:
        """Whether the layers have a time axis."""
        return self.kind != "relu"

    def __call__(self, channels: int) -> nn.Module:
        """A layer for currents [T, B, channels, ...], or [B, channels, ...] for ReLU and held currents."""
        features = (channels,) if self.batch_norm else ()
        return _LAYERS[self.kind][self.batch_norm](*features, **(self.neuron if self.spiking else {}))

    def replacing(self, layer: nn.Module) -> nn.Module:
        """A layer of this kind with the parameters, running statistics, device and mode of one of another kind.

        The process group that statistics are taken over is the other's too, and, between spiking kinds, a threshold
        that was measured (:func:`snnfast.tuning.hold_thresholds`).
        """
        values = layer.state_dict()
        measured = {name: getattr(layer, name) for name in getattr(layer, "_held", ()) if name in values}
        example = next(
            (value for name, value in values.items() if value.is_floating_point() and name not in measured),
            torch.empty(0),
        )
        # A network may have neurons on currents that are normalized elsewhere, behind an addition.
        normalized = isinstance(layer, BatchNormNeuron | BatchNorm2d)
        made = replace(self, batch_norm=normalized)(getattr(layer, "num_features", 0)).to(example)
        own = made.state_dict()
        known = {*own, *takes_keys(made)}
        state = OrderedDict({**own, **{name: value for name, value in values.items() if name in known}})
        # Metadata without a surrogate: the replaced layer's is not to come along.
        state._metadata = {"": {"version": made._version, "numbers": measured}}  # type: ignore[attr-defined]  # torch's
        made.load_state_dict(state)
        if isinstance(made, BatchNormNeuron | BatchNorm2d):
            made.process_group = getattr(layer, "process_group", None)
        return made.train(layer.training)


LAYER_TYPES = (IF, LIF, ReLU, BatchNormReLU)
"""Every layer that an :class:`Activation` makes is one of these."""
