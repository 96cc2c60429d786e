"""What a model keeps for its backward pass, layer by layer, and what snnfast's mechanisms save of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from snnfast import reference
from snnfast._arguments.hints import to_tensor
from snnfast._text import readable, table
from snnfast.layers import IF, LIF, BatchNormNeuron, Neuron
from snnfast.memory.packing import pack_spikes

__all__ = ["LayerMemory", "MemoryReport", "memory_report"]


@dataclass(frozen=True)
class LayerMemory:
    """One layer's share, in bytes. What several layers keep counts for the one that saved it first.

    Attributes:
        name: as in ``model.named_modules()``; the model itself by its class.
        kind: the layer's class.
        kept: bytes kept for backward.
        packed: the same inside :class:`snnfast.pack_spikes`; less than kept where spikes are kept.
        naive: of a neuron layer, what the plain loop over time steps (:mod:`snnfast.reference`) would keep for the same
            calls; None for other layers, of which the loop would keep the same.
    """

    name: str
    kind: str
    kept: int
    packed: int
    naive: int | None


@dataclass(frozen=True)
class MemoryReport:
    """What :func:`snnfast.memory_report` found; ``str()`` of it is a table.

    Attributes:
        rows: the layers that keep something, in the model's order.
        kept: bytes kept for backward by the whole model.
        packed: the same inside :class:`snnfast.pack_spikes`.
        naive: the same if every neuron layer were the plain loop over time steps, without pack_spikes.
        parameter_bytes: parameters and buffers that layers refer to for backward. They live anyway, and are in none of
            the other figures.
    """

    rows: tuple[LayerMemory, ...]
    kept: int
    packed: int
    naive: int
    parameter_bytes: int

    def __str__(self) -> str:
        rows = [
            (
                row.name,
                row.kind,
                readable(row.kept if row.naive is None else row.naive),
                readable(row.kept),
                readable(row.packed),
            )
            for row in self.rows
        ]
        heads = ("kept for backward by", "", "plain loop", "snnfast", "pack_spikes")
        total = ("total", "", readable(self.naive), readable(self.kept), readable(self.packed))
        head, *lines = table([heads, *rows, total], left=2)
        rule = "-" * len(head)
        apart = f"and {readable(self.parameter_bytes)} of parameters and buffers, which live anyway"
        return "\n".join([head, rule, *lines[:-1], rule, lines[-1], apart])


class _Whole(pack_spikes):
    """Counts as pack_spikes does, and packs nothing."""

    _packs = False


def _without_data(value: Any) -> Any:
    """A tensor of the same shape, layout and dtype on the meta device; what is not a tensor as it is."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_like(value.detach(), device="meta").requires_grad_(value.requires_grad)


@dataclass(frozen=True)
class _Call:
    """What a neuron layer was called with, on the meta device."""

    current: Tensor
    residual: Tensor | None
    steps: int | None
    v0: Tensor | None


def _naive_bytes(layer: Neuron, call: _Call) -> int:
    """What the plain loop would keep, behind torch's batch norm where the layer has one. It runs on shapes alone, and
    takes no memory."""
    options = {name: _without_data(value) for name, value in layer._options().items()}
    for name, value in options.items():
        if isinstance(value, Tensor):  # thresholds and time constants live anyway: counted as parameters
            options[name] = nn.Parameter(value.detach(), requires_grad=value.requires_grad)
    function: Callable[..., Any] = (
        reference.leaky_integrate_and_fire if isinstance(layer, LIF) else reference.integrate_and_fire
    )
    with _Whole() as counted:
        current, steps = call.current, call.steps
        if isinstance(layer, BatchNormNeuron):
            current, steps = _normalized(layer, call)
        function(current, call.v0, **options, steps=steps, time_dim=layer.time_dim)
    return counted.kept_bytes


def _normalized(layer: BatchNormNeuron, call: _Call) -> tuple[Tensor, int | None]:
    """The current after torch's batch norm, and the residual; and for how many steps it is held."""
    current, steps = call.current, call.steps
    merged = current if steps is not None else current.flatten(0, 1)
    given = {name: _without_data(getattr(layer, name)) for name in ("running_mean", "running_var", "weight", "bias")}
    for name in ("weight", "bias"):
        given[name] = None if given[name] is None else nn.Parameter(given[name].detach())
    batch = layer.training or layer.running_mean is None
    out = nn.functional.batch_norm(merged, **given, training=batch, eps=layer.eps).view_as(current)
    if call.residual is not None:
        if steps is not None and call.residual.dim() > current.dim():
            out, steps = out.unsqueeze(layer.time_dim), None
        out = out + call.residual
    return out, steps


@contextmanager
def _calls_of(layers: Sequence[Neuron]) -> Iterator[dict[Neuron, list[_Call]]]:
    calls: dict[Neuron, list[_Call]] = {layer: [] for layer in layers}

    def note(layer: Neuron, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("current", "residual", "steps") if isinstance(layer, BatchNormNeuron) else ("current", "steps")
        given = dict(zip(names, args, strict=False)) | kwargs
        state = layer.state if layer.carry_state else None
        tensors = [_without_data(tensor) for tensor in (given["current"], given.get("residual"), state)]
        calls[layer].append(_Call(tensors[0], tensors[1], given.get("steps"), tensors[2]))

    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(handle.remove)
        yield calls


def gpus_of(model: nn.Module, args: tuple[Any, ...]) -> list[int]:
    """The GPUs that a model and its arguments are on, whose random states a run may change."""
    tensors = (*model.parameters(), *model.buffers(), *(a for a in args if isinstance(a, Tensor)))
    return sorted({t.get_device() for t in tensors if t.is_cuda})


@contextmanager
def untouched(model: nn.Module, devices: list[int]) -> Iterator[None]:
    """Gives the model copies of its buffers to write to, and puts everything back: it is not written to at all."""
    modules = list(model.modules())
    buffers = [dict(module._buffers) for module in modules]
    states = [(module, module._state) for module in modules if isinstance(module, Neuron)]
    copies: dict[int, Tensor] = {}
    with torch.random.fork_rng(devices=devices):
        try:
            for module, own in zip(modules, buffers, strict=True):
                for name, buffer in own.items():
                    if buffer is not None:
                        module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
            yield
        finally:
            for module, own in zip(modules, buffers, strict=True):
                module._buffers.clear()
                module._buffers.update(own)
            for neuron, state in states:
                neuron._state = state


def check_model_and_sample(model: object, sample: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(sample, Tensor | tuple):
        raise TypeError(
            f"sample must be a tensor, or a tuple of the model's arguments, got {type(sample).__name__}"
            f"{to_tensor('sample', sample)}"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ValueError(
                f"model must be initialised, got one whose {name} has no shape yet: call it once with the sample first"
            )


def memory_report(model: nn.Module, sample: Tensor | tuple[Any, ...]) -> MemoryReport:
    """Measures what a model keeps for backward, layer by layer: ``print(snnfast.memory_report(model, sample))``.

    Runs the model forward twice, without and with :class:`snnfast.pack_spikes`, with gradients enabled and in its
    current mode (train or eval), and counts what autograd saves: each distinct storage once, as a whole, activations
    and the sample included; parameters and buffers apart. For every neuron layer it also counts, on shapes alone, what
    the plain loop over time steps would keep in its place. It needs the memory that one forward pass with gradients
    keeps. Call it under ``torch.autocast`` to measure under autocast; what an outer autocast keeps in its cache counts.

    Parameters, gradients, buffers (running statistics, num_batches_tracked), torch's random state and the neuron
    layers' carried states are left as they were. Forward hooks of the model run; what else it changes in forward stays
    changed. A model from ``torch.compile`` is measured as it was before compiling.

    Args:
        model: any module; its snnfast layers are where the savings are.
        sample: its input, a tensor (of any shape and dtype that it takes), or a tuple of its arguments.

    Returns:
        A :class:`~snnfast.memory.report.MemoryReport`, in bytes; its ``str()`` is a table.

    Raises:
        TypeError: model or sample of another type.
        ValueError: a lazy module that was not run yet.
    """
    check_model_and_sample(model, sample)
    model = getattr(model, "_orig_mod", model)
    args = sample if isinstance(sample, tuple) else (sample,)
    devices = gpus_of(model, args)
    neurons = [module for module in model.modules() if isinstance(module, IF | LIF)]
    whole, packed = _Whole(model), pack_spikes(model)
    with torch.inference_mode(False), torch.enable_grad():
        # What was made in inference mode cannot be saved for backward.
        args = tuple(a.clone() if isinstance(a, Tensor) and a.is_inference() else a for a in args)
        with untouched(model, devices), _calls_of(neurons) as calls, whole:
            model(*args)
        with untouched(model, devices), packed:
            model(*args)
        naive: dict[nn.Module | None, int] = {
            layer: sum(_naive_bytes(layer, call) for call in calls[layer]) for layer in neurons
        }

    kinds = {name or type(module).__name__: module for name, module in model.named_modules()}
    rows = []
    for name in dict.fromkeys((*kinds, *whole.by_layer, *packed.by_layer)):
        module = kinds.get(name)
        kept, bits = whole.by_layer.get(name, 0), packed.by_layer.get(name, 0)
        if kept or bits or module in naive:
            kind = "" if module is None else type(module).__name__
            rows.append(LayerMemory(name, kind, kept, bits, naive.get(module)))
    by_loop = sum(row.kept if row.naive is None else row.naive for row in rows)
    return MemoryReport(tuple(rows), whole.kept_bytes, packed.kept_bytes, by_loop, whole.parameter_bytes)
