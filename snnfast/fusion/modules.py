"""The modules that snnfast.fuse puts in place of a batch norm and a neuron."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnfast._arguments.axes import check_over_time
from snnfast._arguments.checks import dense, integer
from snnfast.compat.joined import Joined, joined
from snnfast.dynamics import check_dtype, not_a_tensor
from snnfast.layers import LIF, Neuron, OverTime
from snnfast.layers.neuron import _OPTIONS
from snnfast.layers.state_dict import WithNumbers, read_options, write_options
from snnfast.ops.recording import unrecorded

__all__ = [
    "FusedNeuron",
    "FusedOverTime",
    "check_held",
    "fit_residual",
    "fuse_over_time",
    "fused_layer",
    "join_sizes",
    "laid_out",
    "time_steps",
]

_TABLES = ("threshold", "tau", "tau_logit")  # what of a neuron can be a parameter or a buffer


def fused_layer(batch_norm: _BatchNorm, neuron: Neuron) -> nn.Module:
    """The BatchNormIF or BatchNormLIF that does what the two do, with their own parameters and buffers."""
    from snnfast.layers.batch_norm import BatchNormIF, BatchNormLIF

    options: dict[str, Any] = {name: getattr(neuron, name) for name in (*_OPTIONS, "time_dim", "carry_state")}
    options["threshold"] = neuron.threshold
    options["learn_threshold"] = "threshold" in neuron._learned
    kind: type[BatchNormIF | BatchNormLIF] = BatchNormIF
    if isinstance(neuron, LIF):
        kind = BatchNormLIF
        tau = neuron.tau
        options["tau"] = tau.detach() if isinstance(tau, Tensor) else tau
        options["decay_input"] = neuron.decay_input
        options["learn_tau"] = "tau" in neuron._learned
    layer = kind(
        batch_norm.num_features,
        eps=batch_norm.eps,
        momentum=batch_norm.momentum,
        affine=batch_norm.weight is not None,
        track_running_stats=batch_norm.running_mean is not None,
        **options,
    )
    # The same objects, not copies: optimizers and others that hold them must keep reaching the network. In the order
    # that they had: an optimizer's state is loaded by it.
    layer._parameters.clear()
    layer._buffers.clear()
    for module in (batch_norm, neuron):
        layer._parameters.update(module._parameters)
        layer._buffers.update(module._buffers)
    for name in ("threshold", "tau"):
        if isinstance(neuron.__dict__.get(name), Tensor):  # one that is part of a graph
            layer.__dict__[name] = neuron.__dict__[name]
    layer._state, layer._started = neuron.state, dict(neuron._started)
    layer._held, layer._numbers_elsewhere = neuron._held, True
    layer.training = batch_norm.training
    layer.register_state_dict_post_hook(_drop_tables)
    layer.register_load_state_dict_pre_hook(_fill_in_tables)
    return layer


def _tables(layer: nn.Module) -> dict[str, Tensor]:
    both = {**layer._parameters, **layer._buffers}
    return {name: tensor for name, tensor in both.items() if name in _TABLES and tensor is not None}


def _drop_tables(layer: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
    # Learned thresholds and time constants are saved under the neuron's name, where they were before.
    for name in _tables(layer):
        del state_dict[prefix + name]


def _fill_in_tables(layer: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
    # They are loaded there too; here nothing is missing, and a tensor copied onto itself stays as it is.
    for name, tensor in _tables(layer).items():
        state_dict[prefix + name] = tensor


def fit_residual(residual: Tensor | float, current: Tensor) -> tuple[Tensor, Tensor]:
    """The current and the residual as the fused layer takes them: of one shape and dtype, as ``+`` would make them.

    Raises:
        ValueError: the residual is the larger of the two.
    """
    if not isinstance(residual, Tensor):
        residual = torch.full((), residual, dtype=current.dtype, device=current.device)
    if residual.dtype != current.dtype:
        dtype = torch.result_type(residual, current)
        residual, current = residual.to(dtype), current.to(dtype)
    if unrecorded(operator.ne, residual.shape, current.shape):  # by torch.jit.trace, which would warn of the question
        if torch.broadcast_shapes(residual.shape, current.shape) != current.shape:
            raise ValueError(
                f"residual of shape {list(residual.shape)} does not fit the current of shape "
                f"{list(current.shape)}; fused layers add nothing larger than the current"
            )
        residual = residual.expand(current.shape)
    return current, residual


def laid_out(spikes: Tensor, current: Tensor) -> Tensor:
    """The spikes in memory as behind torch's batch norm, which keeps contiguous and channels-last currents as they are
    and makes others contiguous; what follows may take views that need it."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(current.dim(), torch.contiguous_format)
    if current.is_contiguous() or current.is_contiguous(memory_format=channels_last):
        return spikes
    return spikes.contiguous()


def join_sizes(*parts: int | tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of ``f(a, *b, c)``, which a graph has no other way to write down."""
    return tuple(size for part in parts for size in (part if isinstance(part, tuple) else (part,)))


def check_held(name: str, images: Any) -> None:
    """Raises TypeError or ValueError for what is no current [B, ...] to hold."""
    if not isinstance(images, Tensor):
        raise not_a_tensor(name, images)
    dense(name, images)
    check_dtype(name, images)
    if images.dim() < 2 or images.numel() == 0:
        raise ValueError(f"{name} must have the shape [B, ...], and be not empty, got {list(images.shape)}")


def time_steps(images: Tensor, steps: int | None, own: int) -> int:
    """The number of time steps of a forward pass over images that are held, ``own`` where none are named."""
    check_held("images", images)
    return integer("steps", own if steps is None else steps, least=1)


class FusedOverTime(OverTime):
    """An OverTime whose module ends in a fused layer: what comes before sees [T·B, ...], the fused layer [T, B, ...].

    The fused layer stays where the batch norm was, so that the keys of checkpoints do not change.
    """

    def forward(self, over_time: Tensor, residual: Tensor | None = None) -> Tensor:
        check_over_time(self.module, over_time)
        return _over_time((self.module,), over_time, residual)


class FusedContainer(Joined, nn.Sequential):
    """Another library's container with the same: children that see [T·B, ...], the last of which is a fused layer."""

    def forward(self, over_time: Tensor, residual: Tensor | None = None) -> Tensor:
        return _over_time(tuple(self), over_time, residual)


def _over_time(modules: tuple[nn.Module, ...], over_time: Tensor, residual: Tensor | None) -> Tensor:
    *before, layer = modules
    while isinstance(layer, nn.Sequential):
        *first, layer = layer
        before += first
    if before:
        steps = over_time.flatten(0, 1)
        for module in before:
            steps = module(steps)
        over_time = steps.unflatten(0, over_time.shape[:2])
    if residual is None:
        return layer(over_time)
    return layer(*fit_residual(residual, over_time))


def fuse_over_time(module: nn.Module) -> None:
    """Lets a module that runs others over time, the last of which is a fused layer now, take a residual too."""
    kind = type(module)
    module.__class__ = FusedOverTime if kind is OverTime else joined(FusedContainer, kind)


class FusedNeuron(WithNumbers):
    """What stays under a fused neuron's name: spikes pass through, and the name keeps working.

    Options, learned tensors and the carried state are those of the fused layer, to read and to assign; checkpoints
    have them under this name, as before fusing.

    Args:
        layer: the fused layer.
        name: the fused layer's name in the network, for printing.
        rewritten: whether the forward that calls it was written anew. Another method that still adds or reshapes
            between batch norm and neuron would be silently wrong: it is refused.
        rearranged: whether the neuron stood behind other channels than the batch norm's: then it takes no threshold
            and no time constant per channel.
    """

    _SHARED = frozenset(
        (*_OPTIONS, *_TABLES, "decay_input", "time_dim", "carry_state", "state", "reset_state", "detach_state")
    )

    def __init__(self, layer: nn.Module, name: str, rewritten: bool, rearranged: bool) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not registered: the layer is a child elsewhere
        self.name = name
        self.rewritten = rewritten
        self.rearranged = rearranged
        self.training = layer.training

    def forward(self, current: Tensor, steps: int | None = None, *, fused: bool = False) -> Tensor:
        """Returns the spikes that the fused layer has made.

        Raises:
            RuntimeError: something other than the rewritten forward calls it.
            ValueError: steps are given, where none were before fusing.
        """
        if self.rewritten and not fused:
            raise RuntimeError(
                f"the neuron was fused into {self.name!r}, with what its module's forward did between "
                "the two: only that forward can call it, not another method"
            )
        if steps is not None:
            raise ValueError(f"steps must be None, got {steps!r}: the neuron was fused where it was called without")
        return current

    def __getattr__(self, name: str) -> Any:
        if name in FusedNeuron._SHARED and "layer" in self.__dict__:
            return getattr(self.layer, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "step_mode" and value != "m":
            raise ValueError(
                f"step_mode must be 'm', got {value!r}: the neuron was fused into {self.name!r}, which takes all "
                "steps in one call; choose the mode before fusing"
            )
        if name in _TABLES and isinstance(value, Tensor) and value.dim() > 0 and self.__dict__.get("rearranged"):
            raise ValueError(
                f"{name} must be one for all channels, got shape {list(value.shape)}: those per channel "
                f"would be of other channels than {self.name!r} has"
            )
        if name in FusedNeuron._SHARED:
            setattr(self.layer, name, value)
        else:
            super().__setattr__(name, value)

    def _numbered(self) -> Neuron:
        return self.layer

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in _tables(self.layer).items():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()
        write_options(self.layer, destination, prefix)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        # A module with these tensors alone loads them as any module would, shape checks and `assign` included.
        tables = nn.Module()
        tables._load_state_dict_pre_hooks.update(self._load_state_dict_pre_hooks)
        for kind in ("_parameters", "_buffers"):
            getattr(tables, kind).update(
                {name: tensor for name, tensor in getattr(self.layer, kind).items() if name in _tables(self.layer)}
            )
        tables._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self.layer._parameters.update(tables._parameters)
        self.layer._buffers.update(tables._buffers)
        self._load_numbers(state_dict, prefix, local_metadata, *args)
        read_options(self.layer, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return f"runs in {self.name!r}"
