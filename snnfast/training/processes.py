"""The processes that train one network together: one per device, as ``torchrun`` starts them."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from snnfast.training.options import OptionError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process's number and how many there are.

    The first one prints and writes files, for all.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def from_first(self, value: Any) -> Any:
        """The first process's ``value``, in every process."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """Every process's ``value``, in the order of their numbers, in every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values


ALONE = Processes()
"""A process on its own."""


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """The processes that ``torchrun`` started, and this one's device; a process on its own where there are no others.

    NCCL on GPUs, one process each; gloo on the CPU. Raises :class:`OptionError` for more processes on this machine than
    it has GPUs, or a numbered GPU for all of them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or any(name not in os.environ for name in _VARIABLES):
        yield ALONE, device
        return
    if device.type == "cuda":
        local, present = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if device.index is not None:
            raise OptionError(f"device must be cuda or cpu with several processes, got {str(device)!r}")
        if local >= present:
            raise OptionError(f"nproc-per-node must be at most the {present} GPU(s) of this machine, got {local + 1}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # Before there is a group: this module's functions would hold the one they are defined with for ever.
    importlib.import_module("torch.distributed.nn")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size()), device
    finally:
        distributed.destroy_process_group()
        # gloo's threads end with the last reference to their group, cycles included. One that still lets go of a
        # collective's tensors while Python exits aborts the process.
        gc.collect()
