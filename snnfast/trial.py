"""Running a model on trial: what it changes is put back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from snnfast._arguments import checks
from snnfast.layers import Neuron as SpikingLayer

__all__ = ["SpikingLayer", "on_trial", "random_state_kept", "reset_states", "spiking_layers"]


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
    with ExitStack() as stack:
        stack.enter_context(random_state_kept())
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


def random_state_kept() -> AbstractContextManager[None]:
    """Within, random numbers may be drawn; afterwards the state of the CPU and of all GPUs in use is as before."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ())


def reset_states(layers: Iterable[SpikingLayer]) -> None:
    """Every layer at rest: what one batch leaves behind is not the next one's."""
    for layer in layers:
        layer.reset_state()
