"""A network of ReLUs as a spiking network to be trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from snnfast._arguments.checks import flag, integer, module, number, word
from snnfast.ann.flat import Flat, flatten
from snnfast.ann.network import RESERVED, SpikingNetwork, reopened
from snnfast.ann.report import SpikingReport
from snnfast.ann.rewrite import Rewriting
from snnfast.ann.samples import look
from snnfast.fusion.apply import Left
from snnfast.fusion.apply import fuse as fuse_layers
from snnfast.fusion.match import describe, hook_of
from snnfast.fusion.modules import check_held
from snnfast.fusion.recipe import give_forward
from snnfast.layers import IF, LIF
from snnfast.layers.base import copied
from snnfast.surrogate import FastSigmoid, Surrogate

__all__ = ["to_spiking"]

_NEURONS: dict[str, type[IF] | type[LIF]] = {"if": IF, "lif": LIF}


def to_spiking(
    ann: nn.Module,
    sample: Tensor,
    steps: int = 10,
    *,
    tune: bool = False,
    batches: Iterable[Any] | None = None,
    fuse: bool = True,
    activation: str = "if",
    reset: str = "hard",
    surrogate: Surrogate | None = None,
    threshold: float = 1.0,
    **neuron: Any,
) -> SpikingNetwork:
    """A plain PyTorch network as the paper's spiking network in its place, to be trained.

    Every ReLU and ReLU6, module or function, becomes a neuron; the same one called twice becomes two. What comes before
    the first neurons is computed once, and their currents are held over the steps. Batch norms normalize over time and
    batch, and are one layer with the neuron behind them, residual included, where :func:`snnfast.fuse` can; everything
    else sees the samples of all steps as one batch. Dropout draws one mask for all steps. What follows the last neurons
    and is linear is computed once, of the mean over time, and multiplied by the number of steps: the sum of the last
    currents (MATH.md section 7). A softmax or the like at the end sees that sum.

    This trains a spiking network; it is no conversion of a trained one. Weights are the other network's, which may be
    new or trained (a start to go on from), and thresholds are what you give: its logits are not the ANN's.
    :func:`snnfast.convert.to_spiking` balances thresholds so that rates are a trained ANN's activations, without
    training, for networks of :mod:`snnfast.models`.

    The forward is followed by torch.fx. What that finds is checked on the sample: the graph must compute what the
    network does, and each sample of a batch by itself. Other activations (GELU, SiLU, sigmoid gates), layer and group
    norms, attention and max pooling are computed at every step as they are, and named in the report.

    Args:
        ann: takes one tensor [B, ...] and gives one, [B, classes] say. It is left as it is.
        sample: an input for it, [B, ...], on its device; nothing of it is kept.
        steps: time steps of a forward pass that names none.
        tune: whether γ is tuned on ``batches``, see :func:`snnfast.tuning.tune_gamma`.
        batches: a list or DataLoader of (inputs, labels); with ``tune`` only.
        fuse: whether batch norms and neurons become one layer each.
        activation: "if", or "lif" for leaky neurons.
        reset, surrogate, threshold: of all neurons; FastSigmoid() where no surrogate is given.
        **neuron: other options of :class:`snnfast.IF` or, with "lif", :class:`snnfast.LIF`.

    Returns:
        A :class:`SpikingNetwork`, called as ``network(images, steps=None)``; ``network.report`` is a
        :class:`SpikingReport`. It is in the mode that ``ann`` is in, and has copies of its modules under their names:
        state dicts interchange. Its blocks cannot be called by themselves, and hooks on them do not run.

    Raises:
        TypeError: an argument of another type.
        ValueError: steps below 1; batches without ``tune`` or the reverse; a network that does not run on the sample,
            has no ReLU, is spiking already, or cannot be followed, with the module and the line; what ``tune_gamma``
            raises.
    """
    module("ann", ann)
    integer("steps", steps, least=1)
    word("activation", activation, _NEURONS)
    check_held("sample", sample)
    if flag("tune", tune) and batches is None:
        raise ValueError("batches must be given to tune γ on, pairs of inputs and targets, got None")
    if not tune and batches is not None:
        raise ValueError("batches are what γ is tuned on: give tune=True, too, got batches alone")
    flag("fuse", fuse)
    number("threshold", threshold)
    options = {
        "threshold": threshold,
        "reset": reset,
        "surrogate": FastSigmoid() if surrogate is None else surrogate,
        **neuron,
    }

    def make() -> IF | LIF:
        return _NEURONS[activation](**options)

    _check_placement(neuron)
    make()
    if hasattr(ann, "with_activation"):
        raise ValueError(
            f"ann is a network of snnfast.models, a {type(ann).__name__}: make it with activation='if' and load its "
            "state dict"
        )
    flat = flatten(copied(ann))
    options |= _device(flat.module) if neuron.get("learn_threshold") or neuron.get("learn_tau") else {}
    seen = look(flat, sample)
    network = _network(flat, steps)
    rewriting = Rewriting(flat, seen, network, make)
    give_forward(network, rewriting.graph, frozenset())
    left = (*_hooks(flat), *rewriting.left)
    report = SpikingReport(tuple(rewriting.replaced), left, tuple(dict.fromkeys(rewriting.readout)))
    network.report = replace(report, fused=fuse_layers(network) if fuse else None)
    if batches is not None:
        # Of the laboratory, which is loaded when it is named: to_spiking itself needs none of it.
        network.report = replace(network.report, tuning=import_module("snnfast.tuning").tune_gamma(network, batches))
    return network


def _check_placement(neuron: dict[str, Any]) -> None:
    for name in ("device", "dtype", "time_dim"):
        if name in neuron:
            raise TypeError(
                f"{name} is no option of to_spiking: neurons are where the network is, got {neuron[name]!r}"
            )


def _device(ann: nn.Module) -> dict[str, Any]:
    first = next(ann.parameters(), None)
    return {} if first is None else {"device": first.device}


def _network(flat: Flat, steps: int) -> SpikingNetwork:
    """The network without a forward: the other one's modules, its activations still in their places."""
    taken = [name for name in RESERVED if hasattr(flat.module, name)]
    if taken:
        raise ValueError(f"ann must have no attribute {taken[0]!r}, which is the spiking network's own")
    opened = set(flat.opened)
    for node in flat.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            holder, *_ = str(node.target).rpartition(".")
            while holder:
                opened.add(id(flat.module.get_submodule(holder)))
                holder = holder.rpartition(".")[0]
    network = SpikingNetwork()
    network.steps = steps
    reopened(flat.module, opened, network)
    for node in flat.graph.nodes:
        if node.op == "get_attr":  # numbers, too, which a part has not
            holder, _, name = str(node.target).rpartition(".")
            part = network.get_submodule(holder)
            if not hasattr(part, name):
                setattr(part, name, getattr(flat.module.get_submodule(holder), name))
    return network


def _hooks(flat: Flat) -> list[Left]:
    return [
        Left(name, f"{describe(inner, name)} has {hook}, which does not run: the network's forward is one")
        for name, inner in flat.module.named_modules()
        if id(inner) in flat.opened and (hook := hook_of(inner))
    ]
