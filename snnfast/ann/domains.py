"""Where in a network's graph time begins, and where it ends."""

from __future__ import annotations

from enum import IntEnum

from torch import fx

from snnfast.ann.flat import Flat
from snnfast.ann.operations import is_activation, is_final, is_linear, only_reshapes
from snnfast.ann.samples import Seen

__all__ = ["Domain", "Domains"]


class Domain(IntEnum):
    """What a value is over time; of what goes into an operation, the largest one decides."""

    CONSTANT = 0
    """A parameter, a buffer, a number: nothing of the images."""
    ONCE = 1
    """[B, ...], the same at each step: computed once."""
    STEPS = 2
    """[T·B, ...], one after the other."""
    MEAN = 3
    """[B, ...], the mean over the steps of currents, behind the last neurons."""
    TOTAL = 4
    """[B, ...], the sum of currents over the steps, which is the network's result."""


class Domains:
    """The domain of each node of a network.

    What follows the last neurons and is linear commutes with the mean over time and is computed once, on that; the
    mean is then multiplied by T (MATH.md section 7). A softmax and its like, at the end, see the sum.

    Attributes:
        of: the domain of each node.
        neurons: the activations in whose places neurons come.
    """

    def __init__(self, flat: Flat, seen: dict[fx.Node, Seen]) -> None:
        self.flat, self.seen = flat, seen
        self.of: dict[fx.Node, Domain] = {}
        nodes = [node for node in flat.graph.nodes if node.op != "output"]
        depends = self._depending_on_images(nodes)
        self.neurons = {node for node in nodes if node in depends and is_activation(flat, node)}
        self._before_neurons: set[fx.Node] = set()
        self._ends: set[fx.Node] = set()
        self._sums: set[fx.Node] = set()
        for node in reversed(nodes):
            self._look_ahead(node)
        for node in nodes:
            self.of[node] = self._find(node)

    @staticmethod
    def _depending_on_images(nodes: list[fx.Node]) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in nodes:
            if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
                found.add(node)
        return found

    def _look_ahead(self, node: fx.Node) -> None:
        """What becomes of a node's value: whether neurons come after it, whether the rest is linear."""
        users = set(node.users)
        results = {user for user in users if user.op == "output"}
        if users & (self.neurons | self._before_neurons):
            self._before_neurons.add(node)
            return
        ending = users <= results | self._ends
        if ending and (is_final(self.flat, node) or only_reshapes(self.flat, node)):
            self._ends.add(node)
        linear = is_linear(self.flat, node) or not self.seen[node].tensor
        tuples = isinstance(self.seen[node].once, tuple) and not self.seen[node].tensor
        if linear and not tuples and node not in self.neurons and users <= results | self._ends | self._sums:
            self._sums.add(node)

    def _find(self, node: fx.Node) -> Domain:
        if node.op == "placeholder":
            return Domain.ONCE
        inputs = max((self.of[value] for value in node.all_input_nodes), default=Domain.CONSTANT)
        if node in self.neurons:
            return Domain.STEPS
        if inputs < Domain.STEPS:
            return inputs
        if node in self._ends and is_final(self.flat, node):
            return Domain.TOTAL
        return max(inputs, Domain.MEAN) if node in self._sums else inputs
