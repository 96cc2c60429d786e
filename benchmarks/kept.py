"""Counting bytes: kept for backward, allocated at the peak, and how many inputs a cache holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from snnfast.comparing.timing import Step


@dataclass(frozen=True)
class Kept:
    """Bytes of the distinct storages that autograd keeps for a backward pass, by what they belong to.

    A storage counts once and whole, however many tensors view it. `input` and `parameters` exist anyway, and `output`
    often does (the next layer reads it); `rest` exists for the backward pass alone.
    """

    total: int
    input: int
    parameters: int
    output: int
    rest: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def kept_for_backward(
    forward: Callable[[], Tensor], inputs: Sequence[Tensor], parameters: Sequence[Tensor] = ()
) -> Kept:
    """Counts what `forward` saves, with saved-tensor hooks, on any device. `forward` returns its output tensor."""
    storages: dict[tuple[str, int], torch.UntypedStorage] = {}

    def key(tensor: Tensor) -> tuple[str, int]:
        return str(tensor.device), tensor.untyped_storage().data_ptr()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            storages[key(tensor)] = storage  # held, so that no address is used twice while counting
        # a hook that returns a non-leaf tensor as it is leaks it for good
        return tensor if tensor.is_leaf else tensor.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    owners = {key(output): "output"}
    owners |= {key(tensor): "parameters" for tensor in parameters}
    owners |= {key(tensor): "input" for tensor in inputs}
    counted = dict.fromkeys(("input", "parameters", "output", "rest"), 0)
    for which, storage in storages.items():
        counted[owners.get(which, "rest")] += storage.nbytes()
    return Kept(sum(counted.values()), **counted)


def peak_memory(step: Step, device: torch.device) -> int | None:
    """Bytes that one iteration allocates at its peak, beyond those allocated before it. None on CPU, where torch keeps
    no account."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def rotations(bytes_each: int, device: torch.device) -> int:
    """How many copies of the inputs to rotate through, so that none is still in L2 when its turn comes; 1 on CPU."""
    if device.type != "cuda" or bytes_each == 0:
        return 1
    properties = torch.cuda.get_device_properties(device)
    cache = getattr(properties, "L2_cache_size", 64 << 20)
    return max(1, min(64, math.ceil(4 * cache / bytes_each)))
