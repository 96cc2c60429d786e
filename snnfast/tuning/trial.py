"""What a trial of a model is run on: batches and a loss, checked as they come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from snnfast.trial import SpikingLayer, on_trial, random_state_kept, reset_states, spiking_layers

__all__ = [
    "Batches",
    "Loss",
    "SpikingLayer",
    "check_batches",
    "checked_loss",
    "on_trial",
    "passes_over",
    "random_state_kept",
    "reset_states",
    "spiking_layers",
]

Batches = Iterable[tuple[Any, Any]]
"""(inputs, targets), iterated anew for every evaluation; inputs as the model takes them, targets as the loss does."""

Loss = Callable[[Any, Any], Tensor]
"""loss(outputs, targets): one number."""


def check_batches(batches: Batches) -> None:
    """Raises TypeError for what cannot be iterated, and for what can be iterated once only."""
    if isinstance(batches, Iterator):
        raise TypeError(
            f"batches must be iterable more than once, as a list or a DataLoader is; a {type(batches).__name__} is "
            "used up after one pass: give list(batches)"
        )
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
        raise TypeError(f"batches must be an iterable of (inputs, targets), got {type(batches).__name__}")


def passes_over(model: nn.Module, batches: Batches) -> Iterator[tuple[Any, Any]]:
    """One pass over the batches, tensors on the device of the model's first parameter.

    Raises TypeError for a batch that is no pair, ValueError where there is none.
    """
    first = next(iter(model.parameters()), None)
    count = 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            what = f"{len(batch)} of them" if isinstance(batch, tuple | list) else type(batch).__name__
            raise TypeError(f"batches must yield pairs (inputs, targets), got {what}")
        count += 1
        inputs, targets = (
            part.to(first.device, non_blocking=True) if first is not None and isinstance(part, Tensor) else part
            for part in batch
        )
        yield inputs, targets
    if count == 0:
        raise ValueError("batches yielded no batch: it is empty, or used up by an earlier pass over it")


def checked_loss(loss: Loss, outputs: Any, targets: Any, *, finite: bool = True) -> Tensor:
    """The loss of a batch. Raises TypeError where it is no tensor of one number, ValueError where it is not finite.

    ``finite=False`` lets the latter pass.
    """
    value = loss(outputs, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss(outputs, targets) must return a tensor of one number, got {got}")
    if finite and not torch.isfinite(value).all():
        raise ValueError(f"the loss is {value.item()}: look at the model's weights and inputs first")
    return value
