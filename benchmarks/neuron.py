"""What is asked of every implementation: a kind of neuron and its options, in snnfast's own terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snnfast.surrogate import FastSigmoid

Forward = Callable[..., Tensor]
"""forward(current, steps=None) -> output, shapes as `snnfast.IF`."""

ALL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Unsupported(Exception):
    """This implementation cannot run what was asked; the message says why."""


@dataclass(frozen=True)
class Neuron:
    """A kind of layer ("IF", "LIF", ...) and the options that differ from its defaults in snnfast."""

    kind: str = "IF"
    options: Mapping[str, Any] = field(default_factory=dict)

    def option(self, name: str, default: Any) -> Any:
        return self.options.get(name, default)

    @property
    def reset(self) -> str:
        return self.option("reset", "hard")

    @property
    def surrogate(self) -> Any:
        return self.option("surrogate", None) or FastSigmoid()

    @property
    def detach_reset(self) -> bool:
        given = self.option("detach_reset", None)
        return self.reset == "hard" if given is None else given

    def describe(self) -> dict[str, Any]:
        """For a result file."""
        return {
            "kind": self.kind,
            "options": {k: v if isinstance(v, (bool, int, float, str)) else repr(v) for k, v in self.options.items()},
        }
