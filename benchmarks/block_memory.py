"""Bytes kept for backward by conv-BN-IF blocks, over T: the loop, SpikingJelly, the fused layer, and packed spikes.

Counted with saved-tensor hooks (the packed ones by pack_spikes itself), so the figures are the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import snnfast
from snnfast._text import installs
from snnfast.comparing.naive import NaiveIF

from .batch_norm import over_time, with_batch_norm
from .kept import kept_for_backward

STEPS = (2, 4, 8, 16, 32, 64)
FEW, MANY = 1, 3  # blocks in a chain: the difference is what blocks keep, whatever comes before and after
CHANNELS, SIZE, BATCH = 8, 16, 2


class Block(nn.Module):
    """A 3x3 convolution over all steps, and what normalizes and fires."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.neuron = neuron

    def forward(self, spikes: Tensor) -> Tensor:
        return self.neuron(over_time(self.convolution, spikes))


Wrap = Callable[[nn.Module], nn.Module]


def _chain(blocks: int, make: Callable[[], nn.Module], wrap: Wrap = lambda block: block) -> nn.Module:
    """Blocks behind a neuron layer of their own, so that every convolution reads spikes."""
    return nn.Sequential(make(), *(wrap(Block(make())) for _ in range(blocks)))


def _kept(chain: nn.Module, current: Tensor) -> int:
    kept = kept_for_backward(lambda: chain(current), [current], list(chain.parameters()))
    return kept.total - kept.parameters


def _kept_packed(chain: nn.Module, current: Tensor) -> int:
    with snnfast.pack_spikes() as packed:
        chain(current)
    return packed.kept_bytes


@dataclass(frozen=True)
class Side:
    """One implementation: bytes that a chain of so many blocks keeps for a current [T, B, C, H, W], without weights."""

    title: str
    kept: Callable[[int, Tensor], int]


def _side(title: str, make: Callable[[], nn.Module]) -> Side:
    return Side(title, lambda blocks, current: _kept(_chain(blocks, make), current))


def _spikingjelly(title: str, recompute: bool) -> Side:
    def kept(blocks: int, current: Tensor) -> int:
        from spikingjelly.activation_based import memopt, neuron, surrogate

        def make() -> nn.Module:
            options = {"surrogate_function": surrogate.SoftSign(10.0), "detach_reset": True, "step_mode": "m"}
            return with_batch_norm(lambda: neuron.IFNode(**options), CHANNELS)

        compressed = 0  # by the checkpoint itself, which hooks for saved tensors do not see

        class Compressor(memopt.BitSpikeCompressor):
            def compress(self, spikes: Tensor) -> tuple[Any, ...]:
                nonlocal compressed
                packed = super().compress(spikes)
                compressed += sum(part.nbytes for part in packed if isinstance(part, Tensor))
                return packed

        def wrap(block: nn.Module) -> nn.Module:
            return memopt.checkpoint_module(block, compressor=Compressor()) if recompute else block

        return _kept(_chain(blocks, make, wrap), current) + compressed

    return Side(title, kept)


def _fused() -> nn.Module:
    return snnfast.BatchNormIF(CHANNELS)


SIDES: dict[str, Side] = {
    "naive": _side("batch norm, naive loop", lambda: with_batch_norm(NaiveIF, CHANNELS)),
    "spikingjelly": _spikingjelly("batch norm, SpikingJelly 2.0", False),
    "unfused": _side("batch norm, snnfast.IF", lambda: with_batch_norm(snnfast.IF, CHANNELS)),
    "snnfast": _side("snnfast.BatchNormIF", _fused),
    "snnfast-packed": Side(
        "snnfast.BatchNormIF in pack_spikes", lambda blocks, current: _kept_packed(_chain(blocks, _fused), current)
    ),
    "spikingjelly-memopt": _spikingjelly("SpikingJelly memopt (runs every block twice)", True),
}


def measure(steps: Sequence[int] = STEPS) -> dict[str, Any]:
    """Bytes per neuron and step that a conv-BN-IF block in float32 keeps for backward, for every side and T.

    The naive loop, SpikingJelly and snnfast.BatchNormIF compute the same; a pair of chains of different length gives
    what a block keeps.

    Returns a dict: steps, and sides: name -> {title, per_neuron_and_step: list} or {title, skipped: why}.
    """
    sides: dict[str, Any] = {}
    for name, side in SIDES.items():
        found = []
        try:
            for t in steps:
                current = torch.randn(t, BATCH, CHANNELS, SIZE, SIZE, requires_grad=True)
                kept = side.kept(MANY, current) - side.kept(FEW, current)
                found.append(kept / ((MANY - FEW) * current.numel()))
        except ImportError as error:
            sides[name] = {"title": side.title, "skipped": f"{error.name} is not installed: {installs('peers')}"}
            continue
        sides[name] = {"title": side.title, "per_neuron_and_step": found}
    return {"steps": list(steps), "sides": sides}
