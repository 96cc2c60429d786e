"""The forward of a spiking network, written from the graph of another one's.

Between neurons time and batch are one dimension, [T·B, ...], first step first, so that what the network does with its
samples is done with those of every step; at each neuron it is [T, B, ...].
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx, nn

from snnfast.ann.domains import Domain, Domains
from snnfast.ann.flat import Flat, owner
from snnfast.ann.network import SpikingNetwork
from snnfast.ann.operations import is_dropout, title, why_left
from snnfast.ann.report import Replaced
from snnfast.ann.samples import Seen
from snnfast.fusion.apply import Left
from snnfast.fusion.match import describe
from snnfast.fusion.modules import time_steps

__all__ = ["Rewriting"]


class Rewriting:
    """A graph for ``forward(images, steps=None)``, and what it takes.

    Attributes:
        graph: the new one; modules have the names that they had, neurons those of :attr:`replaced`.
        replaced, left, readout: see :class:`snnfast.ann.report.SpikingReport`.
    """

    def __init__(
        self, flat: Flat, seen: dict[fx.Node, Seen], network: SpikingNetwork, neuron: Callable[[], nn.Module]
    ) -> None:
        self.flat, self.seen, self.network, self.neuron = flat, seen, network, neuron
        self.domains = Domains(flat, seen)
        self.graph = fx.Graph()
        self.replaced: list[Replaced] = []
        self.left: list[Left] = []
        self.readout: list[str] = []
        self._values: dict[tuple[fx.Node, Domain], fx.Node] = {}
        self._given: set[str] = set()  # names of neurons
        for node in flat.graph.nodes:
            self._write(node)

    def _write(self, node: fx.Node) -> None:
        if node.op == "output":
            self.graph.output(self._result(node))
            return
        if node.op == "placeholder":
            images = self.graph.placeholder("images")
            steps = self.graph.placeholder("steps", default_value=None)
            own = self.graph.get_attr("steps")
            self.time = self.graph.call_function(time_steps, (images, steps, own))
            self._values[node, Domain.ONCE] = images
            return
        domain = self.domains.of[node]
        if node in self.domains.neurons:
            new = self._neuron(node)
        elif domain is Domain.STEPS and is_dropout(self.flat, node):
            new = self._dropout(node)
        else:
            new = self.graph.node_copy(node, lambda value: self._as(value, domain, node))
            new.meta = {}
        self._values[node, domain] = new
        self._mention(node, domain)

    def _result(self, node: fx.Node) -> fx.Node:
        (value,) = node.args
        if not isinstance(value, fx.Node) or self.domains.of[value] < Domain.STEPS:
            others = [f"{self._title(n)} ({title(self.flat, n)})" for n in self.flat.graph.nodes if self._nonlinear(n)]
            raise ValueError(
                "ann has no ReLU or ReLU6 between its input and its result, in whose place a neuron would come"
                + (f"; left as they are would be {', '.join(others[:3])}" + ", ..." * (len(others) > 3)) * bool(others)
            )
        return self._as(value, Domain.TOTAL, node)

    def _nonlinear(self, node: fx.Node) -> bool:
        return node.op != "output" and self.seen[node].tensor and why_left(self.flat, node) is not None

    def _mention(self, node: fx.Node, domain: Domain) -> None:
        """Notes what the report has to say of an operation."""
        name, reason = self._title(node), None
        if name in self.flat.closed and domain >= Domain.STEPS:
            reason = self.flat.closed[name]
        elif self._nonlinear(node) and node not in self.domains.neurons:
            reason = {
                Domain.ONCE: f"{title(self.flat, node)} comes before the first neuron: computed once, not at each step",
                Domain.STEPS: why_left(self.flat, node),
                Domain.TOTAL: f"{title(self.flat, node)} sees the sum over time",
            }.get(domain)
        if reason is not None:
            self.left.append(Left(name, reason))

    def _title(self, node: fx.Node) -> str:
        """The name of what a node calls: a module's, or a function's in the module that calls it."""
        if node.op == "call_module":
            return str(node.target)
        return f"{owner(node)}.{title(self.flat, node)}".lstrip(".")

    # Values over time ------------------------------------------------------------------------------------------------

    def _as(self, node: fx.Node, domain: Domain, user: fx.Node) -> fx.Node:
        """A value as an operation of a domain takes it."""
        own = self.domains.of[node]
        if own is domain or own is Domain.CONSTANT or domain is Domain.CONSTANT:
            return self._values[node, own]
        if (node, domain) not in self._values:
            seen = self.seen[node]
            if seen.batched:
                change = self._tensor if seen.tensor else self._number
                self._values[node, domain] = change(node, own, domain, user)
            elif seen.fixed:  # what it is does not change with the number of samples
                self._values[node, domain] = self._values[node, own]
            else:
                raise self._unclear(node, user)
        return self._values[node, domain]

    def _tensor(self, node: fx.Node, own: Domain, domain: Domain, user: fx.Node) -> fx.Node:
        value, graph = self._values[node, own], self.graph
        if own is Domain.ONCE and domain is Domain.MEAN:
            return value
        if domain is Domain.TOTAL and own is not Domain.STEPS:
            return graph.call_function(operator.mul, (value, self.time))
        if own is Domain.ONCE:
            sizes = (-1,) * len(self.seen[node].once)
            over_time = graph.call_method("expand", (graph.call_method("unsqueeze", (value, 0)), self.time, *sizes))
            return graph.call_method("flatten", (over_time, 0, 1))
        if user.op != "output":
            self.readout.append(self._title(user))
        return graph.call_method("mean" if domain is Domain.MEAN else "sum", (self._unfolded(value), 0))

    def _number(self, node: fx.Node, own: Domain, domain: Domain, user: fx.Node) -> fx.Node:
        """B as T·B, and back."""
        value = self._values[node, own]
        if own is Domain.STEPS:
            return self.graph.call_function(operator.floordiv, (value, self.time))
        return self.graph.call_function(operator.mul, (value, self.time)) if domain is Domain.STEPS else value

    def _unclear(self, node: fx.Node, user: fx.Node) -> ValueError:
        where = describe(self.flat.module.get_submodule(owner(node)), owner(node))
        return ValueError(
            f"ann cannot be followed: {node} in the forward of {where} has not the batch for its first dimension, and "
            f"{self._title(user) or 'the result'!r} would need it over time"
        )

    def _unfolded(self, value: fx.Node) -> fx.Node:
        return self.graph.call_method("unflatten", (value, 0, (self.time, -1)))

    # What is written otherwise ---------------------------------------------------------------------------------------

    def _neuron(self, node: fx.Node) -> fx.Node:
        (value,) = node.all_input_nodes
        if not self.seen[value].batched:
            raise self._unclear(value, node)
        held = self.domains.of[value] is Domain.ONCE
        name = self._place_neuron(node)
        self.replaced.append(Replaced(name, title(self.flat, node), held))
        if held:
            spikes = self.graph.call_module(name, (self._values[value, Domain.ONCE],), {"steps": self.time})
        else:
            current = self._unfolded(self._as(value, Domain.STEPS, node))
            spikes = self.graph.call_module(name, (current,))
        return self.graph.call_method("flatten", (spikes, 0, 1))

    def _place_neuron(self, node: fx.Node) -> str:
        """Puts a neuron of its own in the place of an activation; its name."""
        wanted = self._title(node)
        parent, _, last = wanted.rpartition(".")
        part = self.network.get_submodule(parent)
        free, number = last, 1
        # A module called for the first time is replaced; called again, or a function, it gets a name of its own.
        while hasattr(part, free) and not (node.op == "call_module" and wanted not in self._given):
            number += 1
            free = f"{last}_{number}"
        neuron = self.neuron()
        neuron.training = part.training
        part._modules[free] = neuron
        self._given.add(name := f"{parent}.{free}".lstrip("."))
        return name

    def _dropout(self, node: fx.Node) -> fx.Node:
        """One mask for all steps: what dropout makes of ones."""
        dropped = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(dropped, fx.Node)
        over_time = self._unfolded(self._as(dropped, Domain.STEPS, node))
        first = self.graph.call_function(operator.getitem, (over_time, 0))
        ones = self.graph.call_function(torch.ones_like, (first,))
        mask = self.graph.node_copy(
            node, lambda value: ones if value is dropped else self._as(value, Domain.STEPS, node)
        )
        masked = self.graph.call_function(operator.mul, (over_time, mask))
        return self.graph.call_method("flatten", (masked, 0, 1))
