"""Batch norm and the neuron behind it as one layer, in a network that exists already."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx, nn

from snnfast.fusion.match import Survey, is_container
from snnfast.fusion.modules import FusedNeuron, fit_residual, fuse_over_time, fused_layer, laid_out
from snnfast.fusion.recipe import give_forward
from snnfast.fusion.sites import Match, Site

__all__ = ["FuseReport", "Fused", "Left", "fuse"]


class Fused(NamedTuple):
    """A batch norm and a neuron that are one layer now.

    Attributes:
        batch_norm: the batch norm's name in the network; the fused layer has it now.
        neuron: the name that the neuron had.
        residual: whether the fused layer also adds another current, as the network did between the two.
        held: whether it holds its current over the steps.
    """

    batch_norm: str
    neuron: str
    residual: bool
    held: bool


class Left(NamedTuple):
    """A batch norm that was left as it is, or a module whose forward cannot be traced ("" is the model itself)."""

    name: str
    reason: str


@dataclass(frozen=True)
class FuseReport:
    """What snnfast.fuse did and what it left, and why. ``str(report)`` is a table.

    Attributes:
        fused: one entry for each batch norm fused, in the network's order.
        left: one entry with the reason for each other batch norm, and for each module that holds batch norms and whose
            forward torch.fx cannot trace.
    """

    fused: tuple[Fused, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} fused" + (":" if self.fused else "")]
        width = max((len(entry.batch_norm) for entry in self.fused), default=0)
        for entry in self.fused:
            notes = "  (residual)" * entry.residual + "  (held)" * entry.held
            lines.append(f"  {entry.batch_norm:{width}} + {entry.neuron}{notes}")
        lines.append(f"{len(self.left)} left" + (":" if self.left else ""))
        width = min(max((len(entry.name or "(the model)") for entry in self.left), default=0), 40)
        lines += [f"  {entry.name or '(the model)':{width}}  {entry.reason}" for entry in self.left]
        return "\n".join(lines)


def fuse(model: nn.Module) -> FuseReport:
    """Makes one fused layer of each batch norm and the IF or LIF that takes its output, in place.

    A batch norm is fused where the network shows that its output [T, B, C, ...] goes to one neuron and nowhere else,
    by itself or with one other current added: ``OverTime(batch norm)`` or an OverTime that ends in one before the
    neuron, ``x.flatten(0, 1)`` → batch norm → ``.unflatten(0, (T, B))`` in a forward, and a batch norm of [B, C, ...]
    before a neuron called with ``steps``. ``reshape`` and ``view`` are as good as ``unflatten`` where T and B come from
    the shape of what was folded, or the other sizes leave nothing else: ``T, B, C, H, W = x.shape``,
    ``.reshape(T, B, -1, H // 2, W // 2)``. If they, or ``transpose`` and ``permute``, rearrange more than time and
    batch, the fused layer comes first and its spikes are rearranged, which is the same for a neuron that treats all
    channels alike and carries no state. Everything else is left as it is and named in the report with the reason.

    The model computes the same as before, up to the rounding of the batch statistics, and is the same object.
    Parameters and buffers are the same objects under the same keys of the state dict, so optimizers made before and
    checkpoints of either form go on working. The fused layer, a BatchNormIF or BatchNormLIF, stands where the batch
    norm was; under the neuron's name stays a module that lets spikes pass and reads and sets the fused layer's options
    and state. Hooks on modules around the two keep working. A learned threshold or time constant is listed by
    ``named_parameters`` under the batch norm's name.

    Where a current is added, or the forward reshapes or holds it, the forward of the module that does so is written
    anew from its torch.fx graph: its class becomes a subclass, and attributes that decided the graph cannot be set to
    other values (AttributeError); numbers that only enter the arithmetic can. What a graph does not show, such as
    printing, such a forward does no more. Elsewhere forwards stay as they are. What a forward asks of its values, such
    as ``isinstance(x, Tensor)``, is answered by what they will be; where that is not certain and matters, it is left.
    A forward that cannot be traced must not look between a batch norm and its neuron: by calling the children of an
    nn.Sequential one by one, or another method of a child that ends at the batch norm. It would see spikes. A hook that
    is put on an inner nn.Sequential after fusing does not run, and a residual must not be larger than the current.

    Fuse before torch.compile. Fusing again finds nothing new.

    Args:
        model: any network; in training or evaluation, on any device.

    Returns:
        What was fused, and what was left and why.

    Raises:
        TypeError: the model is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    survey = Survey(model)
    matches: list[Match] = []
    reasons: dict[int, str] = {}
    seen: set[int] = set()
    for site in survey.sites():
        if id(site.batch_norm) in seen:
            continue
        seen.add(id(site.batch_norm))
        found = survey.match(site)
        if isinstance(found, Match):
            survey.taken[id(found.neuron)] = site.name
            matches.append(found)
        else:
            reasons[id(site.batch_norm)] = found
    order = {name: i for i, (name, _) in enumerate(survey.batch_norms)}
    report = FuseReport(
        tuple(
            Fused(m.site.name, m.neuron_name, m.residual is not None, m.steps is not None)
            for m in sorted(matches, key=lambda m: order[m.site.name])
        ),
        (
            *(Left(name, reason) for name, reason in survey.untraceable.items()),
            *(
                Left(name, reasons.get(id(module)) or _why_not_reached(survey, module, name))
                for name, module in survey.batch_norms
                if all(module is not m.site.batch_norm for m in matches)
            ),
        ),
    )
    # All layers first: an error in one must not leave a network half fused.
    layers = [fused_layer(match.site.batch_norm, match.neuron) for match in matches]
    for match, layer in zip(matches, layers, strict=True):
        _exchange(model, match, layer)
    for unit in survey.units:
        rewritten = [match for match in matches if match.site.unit is unit and match.needs_forward]
        for match in rewritten:
            _rewrite(match)
        if rewritten:
            give_forward(unit.module, unit.forward.graph, unit.forward.fixed)
    return report


def _why_not_reached(survey: Survey, module: nn.Module, name: str) -> str:
    reason = survey.why_not_batch_norm(module, name)
    if reason:
        return reason
    parent = name
    while parent:
        parent = parent.rpartition(".")[0]
        if parent in survey.untraceable:
            return f"it is in {parent!r}: " * bool(parent) + survey.untraceable[parent]
    return "no forward calls it" if name else "it is the model itself"


def _exchange(model: nn.Module, match: Match, layer: nn.Module) -> None:
    """Puts the fused layer and the neuron's stand-in in place."""
    site = match.site
    _set_child(model, site.name, layer)
    stand_in = FusedNeuron(layer, site.name, match.called_alone, match.batch is not None)
    if hasattr(match.neuron, "step_mode"):  # of another library, which sets that of all modules
        stand_in.step_mode = "m"
    _set_child(model, match.neuron_name, stand_in)
    if site.over_time is not None:
        fuse_over_time(site.over_time[1])


def _set_child(model: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = child


def _rewrite(match: Match) -> None:
    """Makes the graph give the fused layer all that stood between the batch norm and the neuron."""
    graph, neuron = match.site.node.graph, match.neuron_node
    node = _expand(match.site)
    (current,) = node.all_input_nodes
    for user in list(node.users):
        if user not in (*match.between, neuron):
            user.replace_input_with(node, current)  # asks for the shape
    with graph.inserting_before(neuron):
        fused = _spikes_rearranged(match, node, current) if match.batch is not None else _fused(match, node, current)
        if match.site.over_time is None and current.op != "call_module":
            fused = graph.call_function(laid_out, (fused, current))
    neuron.args, neuron.kwargs = (fused,), {"fused": True} if match.called_alone else {}
    for old in (*reversed(match.between), node):
        graph.erase_node(old)


def _fused(match: Match, node: fx.Node, current: fx.Node) -> fx.Node:
    """Calls the fused layer with the current and the residual as the neuron would have seen them."""
    graph, residual, before = node.graph, None, node
    for old in match.between:
        if old is match.addition:
            residual = match.residual
            if match.site.over_time is None:  # FusedOverTime does it itself
                both = graph.call_function(fit_residual, (residual, current))
                current, residual = (graph.call_function(operator.getitem, (both, i)) for i in range(2))
        else:
            current = _again(old, before, current)
            if residual is not None and old is match.split:
                residual = _again(old, before, residual)
        before = old
    options: dict[str, Any] = {} if match.steps is None else {"steps": match.steps}
    if residual is not None:
        options["residual"] = residual
    return graph.call_module(str(node.target), (current,), options)


def _spikes_rearranged(match: Match, node: fx.Node, current: fx.Node) -> fx.Node:
    """Calls the fused layer with [T, B, C, ...], and does with its spikes what was done with the batch norm's output:
    which of an elementwise neuron and what rearranges within samples comes first is the same."""
    graph = node.graph
    over_time = graph.call_method("unflatten", (current, 0, match.batch))
    value = graph.call_method("flatten", (graph.call_module(str(node.target), (over_time,)), 0, 1))
    before = node
    for old in match.between:
        value, before = _again(old, before, value), old
    return value


def _again(old: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    """A node once more, for another value. It may be laid out so that a view of it is none: a reshape is."""
    copy = old.graph.node_copy(old, lambda n: value if n is before else n)
    if copy.op == "call_method":
        copy.target = {"view": "reshape", "view_as": "reshape_as"}.get(str(copy.target), copy.target)
    return copy


def _expand(site: Site) -> fx.Node:
    """Calls the members of an nn.Sequential that ends in the batch norm one by one; the last call."""
    node = site.node
    for _, holder in site.holders:
        if not is_container(holder):
            break
        graph, value, target = node.graph, node.all_input_nodes[0], node.target
        with graph.inserting_before(node):
            for child in holder._modules:
                value = graph.call_module(f"{target}.{child}", (value,))
        node.replace_all_uses_with(value)
        graph.erase_node(node)
        node = value
    return node
