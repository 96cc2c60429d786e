"""What snnfast.to_spiking makes: a network whose forward is one, and the modules that its parts have become."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from snnfast.ann.report import SpikingReport

__all__ = ["Part", "PartSequential", "SpikingNetwork", "reopened"]

RESERVED = ("steps", "report")  # the network's own attributes


class SpikingNetwork(nn.Module):
    """A network over time, made of another one by :func:`snnfast.to_spiking`: images [B, ...] to logits [B, ...].

    It has the modules of the other one under their names, so that state dicts interchange, and neurons for its
    activations. Its forward is written out, and its blocks cannot be called by themselves.

    Attributes:
        steps: time steps of a forward pass that names none; it can be set.
        report: what was replaced, and what was left.
    """

    steps: int
    report: SpikingReport

    if TYPE_CHECKING:

        def __call__(self, images: Tensor, steps: int | None = None) -> Tensor: ...

    def forward(self, images: Tensor, steps: int | None = None) -> Tensor:
        """Logits [B, ...], the currents of the last layer summed over time.

        Args:
            images: as the other network takes them, floating, each held as a constant current.
            steps: number of time steps; default the network's own.

        Raises:
            TypeError: images that are no floating tensor, steps that are no int.
            ValueError: steps below 1.
        """
        raise NotImplementedError("snnfast.to_spiking writes it")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # The other network's metadata has no entry for a neuron of a function, which is no reason to warn.
        metadata = getattr(state_dict, "_metadata", None) or {}
        if prefix[:-1] in metadata:
            for neuron in self.report.replaced:
                metadata.setdefault(prefix + neuron.neuron, {"version": nn.Module._version})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class Part(nn.Module):
    """A module whose forward has become a piece of the network's; it holds what it held."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def forward(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"this {self._kind} is a part of a spiking network, whose forward is one: call the network")

    def _get_name(self) -> str:
        return self._kind


class PartSequential(Part, nn.Sequential):
    """A :class:`Part` whose modules have numbers: ``network.classifier[6] = nn.Linear(4096, 10)`` goes on working."""


def reopened(module: nn.Module, opened: set[int], network: SpikingNetwork) -> SpikingNetwork:
    """The network, with a module's children; those whose forwards were opened, or hold such, become parts."""
    made: dict[int, nn.Module] = {id(module): network}
    _fill(network, module, opened, made)
    return network


def _again(module: nn.Module, opened: set[int], made: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in made:
        if id(module) not in opened:
            return module
        new = module  # lists of modules have no forward: they stay
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            kind = PartSequential if isinstance(module, nn.Sequential) else Part
            new = kind(type(module).__name__)
        made[id(module)] = new
        _fill(new, module, opened, made)
    return made[id(module)]


def _fill(new: nn.Module, module: nn.Module, opened: set[int], made: dict[int, nn.Module]) -> None:
    new._parameters, new._buffers = module._parameters, module._buffers
    new._non_persistent_buffers_set = module._non_persistent_buffers_set
    new.training = module.training
    new._modules = OrderedDict(
        (name, child if child is None else _again(child, opened, made)) for name, child in module._modules.items()
    )
