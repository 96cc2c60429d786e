"""What differs between the versions of torch that the tests run with."""

from __future__ import annotations

import torch

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def told(words: str) -> str:
    """The pattern of an error that is raised inside torch.compile(fullgraph=True), whose torch 2.6 keeps the words."""
    return words if TORCH >= (2, 7) else "Observed exception|WITH_EXCEPT_START"
