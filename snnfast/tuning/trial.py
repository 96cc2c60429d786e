"""Running a model on trial: what comes in is checked, and what it changes is put back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snnfast._arguments import checks
from snnfast.layers import Neuron as SpikingLayer

Batches = Iterable[tuple[Any, Any]]
"""(inputs, targets), iterated anew for every evaluation; inputs as the model takes them, targets as the loss does."""

Loss = Callable[[Any, Any], Tensor]
"""loss(outputs, targets): one number."""


def spiking_layers(model: nn.Module, *, required: bool = True) -> dict[SpikingLayer, str]:
    """The spiking layers of a model, in the order of its modules, with their names.

    Raises TypeError for what is not a module, ValueError for a model without spiking layers where they are required.
    """
    checks.module("model", model)
    # A model that is a layer itself has no name.
    layers = {m: name or type(m).__name__ for name, m in model.named_modules() if isinstance(m, SpikingLayer)}
    if not layers and required:
        raise ValueError(f"the model has no spiking layer (IF, LIF, BatchNormIF, BatchNormLIF): {type(model).__name__}")
    return layers


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


@contextmanager
def on_trial(model: nn.Module, *, training: bool, spiking: bool = True) -> Iterator[dict[SpikingLayer, str]]:
    """Within, the model may be run and changed; afterwards, also after an error, it is as before.

    That is: parameters and their ``grad``, buffers (running statistics with ``num_batches_tracked`` among them), the
    mode of every module, carried states, surrogates and thresholds of the spiking layers, and the random state of the
    CPU and of all GPUs in use. So whatever runs within starts from the same random numbers each time: the same dropout
    masks, the same order from a shuffling DataLoader without a generator of its own.

    Args:
        model: a module; TypeError otherwise.
        training: the mode to run in, as ``model.train(training)`` sets it.
        spiking: whether it must have a spiking layer; ValueError where it has none.

    Yields:
        The spiking layers with their names, whose carried states have been reset.
    """
    layers = spiking_layers(model, required=spiking)
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    states = [(layer, layer._state, layer.surrogate, layer.threshold) for layer in layers]
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        # A caller's no_grad or inference_mode is not for the measurement; a compiled graph would not see the hooks.
        stack.enter_context(torch.inference_mode(False))
        if "torch._dynamo" in sys.modules:  # otherwise nothing has been compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            model.train(training)
            reset_states(layers)
            yield layers
        finally:
            with torch.no_grad():
                for module, found in buffers:
                    module._buffers.update(found)
                for tensor, before in tensors:
                    # What is unchanged is not written: graphs that hold it stay valid.
                    if not torch.equal(tensor, before):
                        tensor.copy_(before)
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for module, was_training in modes:
                module.training = was_training
            for layer, state, surrogate, threshold in states:
                layer._state = state
                if layer.surrogate is not surrogate:
                    layer.surrogate = surrogate
                if not isinstance(threshold, Tensor):  # tensors are among the parameters and buffers
                    layer.threshold = threshold


def reset_states(layers: Iterable[SpikingLayer]) -> None:
    """Every layer at rest: what one batch leaves behind is not the next one's."""
    for layer in layers:
        layer.reset_state()
