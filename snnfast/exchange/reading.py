"""Layers from the nodes of a NIR graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnfast.exchange.network import NIRNetwork, PerNeuron, Scale, Step, Threshold
from snnfast.exchange.rule import CLOSE, Rule, leak_of, said
from snnfast.layers import IF, LIF, Readout

__all__ = ["FlatGraph", "Reader"]

REFUSED = {
    "CubaLIF": "snnfast has no neuron with a synaptic current of its own",
    "CubaLI": "snnfast has no integrator with a synaptic current of its own",
    "LI": "snnfast has no leaky integrator without spikes",
    "I": "snnfast has no integrator without spikes; Readout('sum') adds up an output's steps",
    "Delay": "snnfast has no delay between layers",
}


@dataclass(frozen=True)
class FlatGraph:
    """Nodes and edges of a graph and its subgraphs, whose own inputs and outputs are nodes that pass on."""

    nodes: dict[str, Any]
    edges: list[tuple[str, str]]
    input: str
    output: str

    @classmethod
    def of(cls, graph: Any, prefix: str = "") -> FlatGraph:
        """The flat graph of a nir.NIRGraph.

        Raises:
            NotImplementedError: several inputs or outputs, or none.
            ValueError: an edge of a node that is not there.
        """
        nodes: dict[str, Any] = {}
        edges: list[tuple[str, str]] = []
        inner: dict[str, FlatGraph] = {}
        for name, node in graph.nodes.items():
            if type(node).__name__ == "NIRGraph":
                inner[name] = cls.of(node, f"{prefix}{name}.")
                nodes |= inner[name].nodes
                edges += inner[name].edges
            else:
                nodes[prefix + name] = node
        for source, target in graph.edges:
            for end in (source, target):
                if end not in graph.nodes:
                    raise ValueError(f"edge ({source!r}, {target!r}): the graph has no node {end!r}")
            edges.append(
                (
                    inner[source].output if source in inner else prefix + source,
                    inner[target].input if target in inner else prefix + target,
                )
            )
        where = f"subgraph {prefix[:-1]!r}" if prefix else "the graph"
        return cls(nodes, edges, *(prefix + _only(graph, kind, where) for kind in ("Input", "Output")))

    def ordered(self) -> dict[str, tuple[str, ...]]:
        """Each node that the output needs with its inputs, in an order in which they can be called.

        Raises:
            NotImplementedError: a cycle.
            ValueError: a node without an input.
        """
        sources: dict[str, list[str]] = {name: [] for name in self.nodes}
        for source, target in self.edges:
            sources[target].append(source)
        try:
            order = list(TopologicalSorter(sources).static_order())
        except CycleError as error:
            cycle = " → ".join(map(repr, reversed(error.args[1])))
            raise NotImplementedError(
                f"the graph is recurrent: {cycle}; snnfast runs a layer over all steps at once, so that no spike comes "
                "back into it"
            ) from None
        needed = {self.output}
        for name in reversed(order):
            if name in needed:
                if not sources[name] and name != self.input:
                    raise ValueError(f"node {name!r} has no input: no edge leads to it")
                needed |= set(sources[name])
        return {name: tuple(sources[name]) for name in order if name in needed}


def _only(graph: Any, kind: str, where: str) -> str:
    found = [name for name, node in graph.nodes.items() if type(node).__name__ == kind]
    if len(found) != 1:
        raise NotImplementedError(
            f"{where} has {len(found)} {kind} nodes{': ' * bool(found)}{', '.join(map(repr, found))}; snnfast's "
            "networks have one input and one output"
        )
    return found[0]


@dataclass
class Reader:
    """Makes the network of a graph.

    Attributes:
        rule: how its neurons step.
        options: of the neurons, beyond what the graph says: surrogate, detach_reset, carry_state.
        time_dim: of the network.
    """

    rule: Rule
    options: dict[str, Any]
    time_dim: int
    dtype: torch.dtype = torch.float32
    _layers: list[tuple[str, nn.Module]] = field(default_factory=list)
    _steps: list[Step] = field(default_factory=list)

    def network(self, graph: Any) -> NIRNetwork:
        flat = FlatGraph.of(graph)
        refuse_nodes(flat.nodes)
        shape = (flat.nodes[flat.input].input_type or {}).get("input")
        if shape is None:
            raise ValueError(f"Input node {flat.input!r} has no input type, the shape of one sample at one step")
        weights = [_array(node.weight) for node in flat.nodes.values() if hasattr(node, "weight")]
        self.dtype = torch.float64 if any(weight.dtype == np.float64 for weight in weights) else torch.float32
        for name, sources in flat.ordered().items():
            node = flat.nodes[name]
            layers = (
                [] if type(node).__name__ in ("Input", "Output") else READERS[type(node).__name__](self, name, node)
            )
            self._add(name, sources or ("",), layers)
        readout = said(graph).get("readout")
        return NIRNetwork(
            self._layers,
            self._steps,
            None if readout is None else Readout(str(readout), time_dim=self.time_dim),
            sample_shape(flat, shape),
            self.time_dim,
        )

    def _add(self, name: str, sources: tuple[str, ...], layers: list[nn.Module]) -> None:
        """Steps of one node's layers, the last of which bears the node's name."""
        names = [*(f"{name}:{i}" for i in range(len(layers) - 1)), name]
        taken = {key for key, _ in self._layers}
        for i, step in enumerate(names):
            key = None
            if layers:
                key = name.replace(".", "_") + ("" if i == len(names) - 1 else "_input")
                while key in taken or hasattr(nn.ModuleDict, key) or hasattr(nn.Module(), key):
                    key += "_"
                self._layers.append((key, layers[i]))
                taken.add(key)
            self._steps.append(Step(step, key, sources))
            sources = (step,)

    # Neurons

    def neuron(self, name: str, node: Any) -> list[nn.Module]:
        """IF or LIF, behind a factor where the node's resistance is one."""
        leaky = type(node).__name__ == "LIF"
        fields = ("v_threshold", "v_reset", "r", *(("tau", "v_leak") if leaky else ()))
        found = {key: _finite(name, key, node) for key in fields}
        shape = np.broadcast_shapes(*(value.shape for value in found.values()))
        if not (found["v_threshold"] >= 0).all():
            raise ValueError(f"node {name!r}: v_threshold must not be negative, got {found['v_threshold'].min():g}")
        kept = said(node)
        options = {**self.options, "time_dim": self.time_dim, **self._reset(name, found, kept)}
        tables = {"threshold": found["v_threshold"]}
        if leaky:
            r = np.broadcast_to(found["r"], shape).astype(np.float64)
            tau = np.broadcast_to(found["tau"], shape).astype(np.float64)
            tables["tau"], options["decay_input"], gain = leak_of(name, tau, r, self.rule, kept.get("tau"))
        else:
            gain = self._gain(name, found["r"].astype(np.float64))
        folded, per_neuron = self._folded(tables, shape)
        layer: nn.Module = (LIF if leaky else IF)(**folded, **options)
        if per_neuron:
            layer = PerNeuron(layer)  # type: ignore[arg-type]  # a neuron
        return [layer] if gain is None else [self._scale(gain), layer]

    def _reset(self, name: str, found: dict[str, np.ndarray], kept: dict[str, Any]) -> dict[str, Any]:
        rule = self.rule
        reset = rule.reset if "reset" in rule.given else str(kept.get("reset", rule.reset))
        equal = (
            rule.fire_on_equal if "fire_on_equal" in rule.given else bool(kept.get("fire_on_equal", rule.fire_on_equal))
        )
        value = found["v_reset"]
        if (value != value.flat[0]).any():
            raise NotImplementedError(
                f"node {name!r}: v_reset differs between neurons, from {value.min():g} to {value.max():g}; a layer of "
                "snnfast has one"
            )
        rest = float(value.flat[0]) if reset == "hard" else 0.0
        if reset == "soft" and value.flat[0] != 0:
            raise ValueError(f"node {name!r}: v_reset is {value.flat[0]:g}, and reset='soft' has none but 0")
        leak = found.get("v_leak")
        if leak is not None and (leak != rest).any():
            raise NotImplementedError(
                f"node {name!r}: v_leak must be {rest:g}, {'v_reset' if reset == 'hard' else 'as reset is soft'}, got "
                f"{leak.min():g} to {leak.max():g}; snnfast's neurons leak to where they are reset to"
            )
        return {"reset": reset, "reset_value": rest, "fire_on_equal": equal}

    def _gain(self, name: str, r: np.ndarray) -> np.ndarray | None:
        gain = r * self.rule.dt_of_if
        if np.allclose(gain, 1.0, rtol=CLOSE, atol=0.0):
            return None
        if np.allclose(r, 1.0, rtol=CLOSE, atol=0.0):
            warnings.warn(
                f"node {name!r}: R is 1, so that a current of 1 adds {self.rule.dt_of_if:g} to the potential in a step "
                "of that dt; a library that counts in steps (Norse, Sinabs) needs exported_by, or dt=1.0",
                stacklevel=5,  # the call of from_nir
            )
        return gain

    def _folded(self, tables: dict[str, np.ndarray], shape: tuple[int, ...]) -> tuple[dict[str, Any], bool]:
        """Tables as numbers or one value per channel; one per neuron where that does not do, which the last says."""
        numbers = {key: float(t.flat[0]) for key, t in tables.items() if (t == t.flat[0]).all()}
        others = {key: np.broadcast_to(t, shape) for key, t in tables.items() if key not in numbers}
        per_channel = all((t == t[(slice(None), *[slice(1)] * (t.ndim - 1))]).all() for t in others.values())
        columns = {
            key: (t.reshape(t.shape[0], -1)[:, 0] if per_channel else t.reshape(-1)) for key, t in others.items()
        }
        return {**numbers, **{key: self._tensor(t) for key, t in columns.items()}}, not per_channel

    def threshold(self, name: str, node: Any) -> list[nn.Module]:
        limits = _finite(name, "threshold", node)
        if not (limits >= 0).all():
            raise NotImplementedError(f"node {name!r}: a negative threshold, {limits.min():g}, is none of snnfast's")
        folded, per_neuron = self._folded({"threshold": limits}, limits.shape)
        options = {key: value for key, value in self.options.items() if key == "surrogate"}
        layer = IF(**folded, **options)
        return [Threshold(PerNeuron(layer) if per_neuron else layer)]

    # Stateless layers

    def scale(self, name: str, node: Any) -> list[nn.Module]:
        return [self._scale(_array(node.scale))]

    def _scale(self, factor: np.ndarray) -> nn.Module:
        uniform = factor.size > 0 and (factor == factor.flat[0]).all()
        return Scale(self._tensor(factor.reshape(-1)[0] if uniform else factor))

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(np.asarray(values), dtype=self.dtype)

    def linear(self, name: str, node: Any) -> list[nn.Module]:
        weight = _array(node.weight)
        if weight.ndim != 2:
            raise NotImplementedError(
                f"node {name!r}: a weight of {weight.ndim} dimensions, {list(weight.shape)}; 2 are"
            )
        return [_with_weights(nn.Linear, (weight.shape[1], weight.shape[0]), weight, getattr(node, "bias", None))]

    def convolution(self, name: str, node: Any) -> list[nn.Module]:
        weight, spatial = _array(node.weight), 1 if type(node).__name__ == "Conv1d" else 2
        groups = int(node.groups)
        padding = node.padding.decode() if isinstance(node.padding, bytes) else node.padding
        kept = bool(said(node).get("bias", True))
        return [
            _with_weights(
                nn.Conv1d if spatial == 1 else nn.Conv2d,
                (weight.shape[1] * groups, weight.shape[0], weight.shape[2:]),
                weight,
                node.bias if kept else None,
                stride=_sizes(node.stride, spatial),
                padding=padding if isinstance(padding, str) else _sizes(padding, spatial),
                dilation=_sizes(node.dilation, spatial),
                groups=groups,
            )
        ]

    def pool(self, name: str, node: Any) -> list[nn.Module]:
        """A sum is an average that divides by 1."""
        sizes: dict[str, Any] = {key: _sizes(getattr(node, key), 2) for key in ("kernel_size", "stride", "padding")}
        divisor = 1 if type(node).__name__ == "SumPool2d" else None
        return [nn.AvgPool2d(**sizes, divisor_override=divisor)]

    def flatten(self, name: str, node: Any) -> list[nn.Module]:
        first, last = int(node.start_dim), int(node.end_dim)
        return [nn.Flatten(first + (first >= 0), last + (last >= 0))]


READERS: dict[str, Callable[[Reader, str, Any], list[nn.Module]]] = {
    "IF": Reader.neuron,
    "LIF": Reader.neuron,
    "Threshold": Reader.threshold,
    "Scale": Reader.scale,
    "Linear": Reader.linear,
    "Affine": Reader.linear,
    "Conv1d": Reader.convolution,
    "Conv2d": Reader.convolution,
    "SumPool2d": Reader.pool,
    "AvgPool2d": Reader.pool,
    "Flatten": Reader.flatten,
}


def sample_shape(flat: FlatGraph, shape: Any) -> tuple[int, ...]:
    """One sample's at one step: an exporter's Input may have the batch too, which the node behind it has not."""
    for source, target in flat.edges:
        known = (flat.nodes[target].input_type or {}).get("input") if source == flat.input else None
        if known is not None and 0 < len(known) < len(shape):
            shape = shape[-len(known) :]
    return tuple(int(size) for size in shape)


def refuse_nodes(nodes: dict[str, Any]) -> None:
    for name, node in nodes.items():
        kind = type(node).__name__
        if kind not in READERS and kind not in ("Input", "Output"):
            why = REFUSED.get(kind, f"snnfast reads {', '.join(READERS)}")
            raise NotImplementedError(f"node {name!r} is a nir.{kind}: {why}")


def _array(values: Any) -> np.ndarray:
    """A node's field, which some exporters leave as a tensor that is the model's own."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _finite(name: str, key: str, node: Any) -> np.ndarray:
    values = _array(getattr(node, key))
    if values.dtype.kind not in "fiu" or values.size == 0 or np.isnan(values).any():
        raise ValueError(f"node {name!r}: {key} must be numbers, got {values!r}")
    return values


def _sizes(value: Any, spatial: int) -> tuple[int, ...]:
    found = tuple(int(size) for size in np.atleast_1d(_array(value)))
    return found * spatial if len(found) == 1 else found


def _with_weights(kind: Any, sizes: tuple, weight: np.ndarray, bias: Any, **options: Any) -> nn.Module:
    """A layer with a copy of a node's weights, in their dtype."""
    layer = kind(*sizes, bias=bias is not None, device="meta", **options)
    layer.weight = nn.Parameter(torch.tensor(weight))
    if bias is not None:
        layer.bias = nn.Parameter(torch.tensor(_array(bias)))
    return layer
