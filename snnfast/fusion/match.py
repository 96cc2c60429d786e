"""Where a network has a batch norm that feeds a neuron, and where it nearly has.

A survey walks the module tree once, with every forward as a graph; then each batch norm is followed from its call to
whatever takes its output. Nothing is changed here.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.nn.modules import module as module_globals
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from snnfast.compat.foreign import ForeignNeuron
from snnfast.compat.over_time import batches_steps, normalizes_steps
from snnfast.fusion.modules import FusedNeuron, FusedOverTime
from snnfast.fusion.recipe import may_get_forward
from snnfast.fusion.sites import Match, Site, Unit
from snnfast.fusion.trace import Untraceable, trace_forward
from snnfast.fusion.values import IN_PLACE, kind_of
from snnfast.layers import IF, LIF, Neuron, OverTime

__all__ = ["Survey", "is_container"]

_HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}
_STATE_HOOKS = tuple(
    f"{hooks}_hooks" for hooks in ("_state_dict", "_state_dict_pre", "_load_state_dict_pre", "_load_state_dict_post")
)
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_SHAPE_METHODS = ("size", "dim", "ndimension", "numel")


def is_container(module: nn.Module) -> bool:
    """Whether a module passes one tensor through its children in order."""
    sequential: Any = module
    return type(module).forward is nn.Sequential.forward and len(sequential) > 0


def is_batch_norm(module: object) -> TypeGuard[_BatchNorm]:
    """Whether a module is a batch norm by itself, not a fused layer."""
    return isinstance(module, _BatchNorm) and not isinstance(module, Neuron)


def hook_of(module: nn.Module) -> str | None:
    """A kind of hook that a module has, in words."""
    return next((what for attribute, what in _HOOKS.items() if getattr(module, attribute, None)), None)


def describe(module: nn.Module, name: str) -> str:
    return f"{name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"


def modules_within(value: object) -> Iterator[nn.Module]:
    """The modules in a list, tuple, set or dict, and in such within it; a module that an attribute holds too."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from modules_within(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from modules_within(item)


@dataclass
class Survey:
    """What there is in a network.

    Attributes:
        names: all names of every module, by id.
        calls: how many places call a module, by id.
        units: the forwards understood, outer ones first.
        untraceable: the others, by name, with the reason.
        batch_norms: every batch norm with its first name.
    """

    model: nn.Module
    names: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    calls: Counter = field(default_factory=Counter)
    units: list[Unit] = field(default_factory=list)
    untraceable: dict[str, str] = field(default_factory=dict)
    batch_norms: list[tuple[str, nn.Module]] = field(default_factory=list)
    taken: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, module in self.model.named_modules(remove_duplicate=False):
            self.names[id(module)].append(name)
        self.batch_norms = [(name, m) for name, m in self.model.named_modules() if is_batch_norm(m)]
        self.contained = {
            id(module): self.name(holder)
            for holder in self.model.modules()
            if not isinstance(holder, FusedNeuron)
            for key, value in holder.__dict__.items()
            if key != "_modules"
            for module in modules_within(value)
        }
        self._seen: set[int] = set()
        self._visit(self.model)

    def name(self, module: nn.Module) -> str:
        return self.names[id(module)][0]

    def _visit(self, module: nn.Module) -> None:
        """Outer modules first: they see more of what becomes of a batch norm's output."""
        queue = [module]
        for module in queue:
            if id(module) in self._seen or is_batch_norm(module):
                continue
            self._seen.add(id(module))
            if not any(is_batch_norm(inner) for inner in module.modules()):
                continue
            if (
                isinstance(module, OverTime)
                and type(module) in (OverTime, FusedOverTime)
                and "forward" not in module.__dict__
            ):
                self.calls[id(module.module)] += 1
                queue.append(module.module)
                continue
            if batches_steps(module):
                for child in module.children():
                    self.calls[id(child)] += 1
                    queue.append(child)
                continue
            if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                queue.extend(module.children())
                continue
            name = self.name(module)
            try:
                unit = Unit(name, module, trace_forward(module))
            except Untraceable as reason:
                self.untraceable[name] = f"the forward of {type(module).__name__} cannot be traced: {reason}"
                queue.extend(module.children())
                continue
            self.units.append(unit)
            for node in unit.forward.graph.nodes:
                if node.op == "call_module":
                    child = module.get_submodule(str(node.target))
                    self.calls[id(child)] += 1
                    queue.append(child)

    def sites(self) -> Iterator[Site]:
        for unit in self.units:
            for node in unit.forward.graph.nodes:
                if node.op == "call_module":
                    site = self._site(unit, node)
                    if site is not None:
                        yield site

    def _site(self, unit: Unit, node: fx.Node) -> Site | None:
        module: Any = unit.module.get_submodule(str(node.target))
        name = unit.path(str(node.target))
        holders, over_time = [], None
        while not is_batch_norm(module):
            holders.append((name, module))
            if is_container(module):
                child = list(module._modules)[-1]
            elif type(module) is OverTime and over_time is None:
                child, over_time = "module", (name, module)
            elif batches_steps(module) and over_time is None:
                child, over_time = list(module._modules)[-1], (name, module)
            else:
                return None
            module, name = module._modules[child], f"{name}.{child}"
        return Site(unit, node, name, module, holders, over_time, over_time is None and normalizes_steps(module))

    # Why not -------------------------------------------------------------------------------------------------------

    def why_not_module(self, module: nn.Module, name: str, state_hooks: bool = True) -> str | None:
        """What keeps any module from being replaced or passed by."""
        names = self.names[id(module)]
        if id(module) in self.contained:
            where = self.contained[id(module)] or "the model"
            return f"{describe(module, name)} is in a plain Python container of {where}: a forward may call it there"
        if len(names) > 1:
            return f"{describe(module, name)} is shared: the same object is {', '.join(map(repr, names))}"
        if self.calls[id(module)] > 1:
            return f"{describe(module, name)} is shared: it is called at {self.calls[id(module)]} places"
        if hook := hook_of(module):
            return f"{describe(module, name)} has {hook}"
        if state_hooks and any(getattr(module, attribute, None) for attribute in _STATE_HOOKS):
            return f"{describe(module, name)} has a state-dict hook"
        if "forward" in module.__dict__:
            return f"the forward of {describe(module, name)} was replaced on the object"
        return None

    def why_not_batch_norm(self, module: nn.Module, name: str) -> str | None:
        if any(getattr(module_globals, f"_global{hooks}", None) for hooks in _HOOKS):
            return "hooks for all modules are registered, which would miss the batch norm and the neuron"
        kind = type(module)
        if isinstance(module, _LazyNormBase):
            return f"it is lazy ({kind.__name__}): fuse after its first call"
        if isinstance(module, nn.SyncBatchNorm):
            return "it is a SyncBatchNorm, whose statistics span processes"
        if hasattr(module, "parametrizations"):
            return "it is parametrized"
        if kind not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and not normalizes_steps(module):
            return f"its class {kind.__name__} is a subclass of a batch norm and may do something else"
        reason = self.why_not_module(module, name)
        if reason:
            return reason
        expected = ({"weight", "bias"}, {"running_mean", "running_var", "num_batches_tracked"})
        if (set(module._parameters), set(module._buffers)) != expected or module._modules:
            return "it has parameters, buffers or children that nn.BatchNorm has not"
        if (module.weight is None) != (module.bias is None):
            return "it has only one of weight and bias"
        tracked = [module._buffers[b] is not None for b in ("running_mean", "running_var", "num_batches_tracked")]
        if tracked != 3 * [module.track_running_stats]:
            return "its running statistics do not agree with track_running_stats"
        return None

    def why_not_neuron(self, match: Match) -> str | None:
        module, name = match.neuron, match.neuron_name
        if isinstance(module, ForeignNeuron):
            reason = module._why_not_fused()
            if reason:
                return f"{describe(module, name)} {reason}"
        elif type(module) not in (IF, LIF):
            return f"{describe(module, name)} is not snnfast.IF or LIF itself and may do something else"
        reason = self.why_not_module(module, name)
        for holder_name, holder in match.neuron_holders:
            reason = reason or self.why_not_module(holder, holder_name, state_hooks=False)
        return reason

    # Following a batch norm's output -------------------------------------------------------------------------------

    def match(self, site: Site) -> Match | str:
        """The neuron that a batch norm can be fused with, or the reason that there is none."""
        reason = self.why_not_batch_norm(site.batch_norm, site.name)
        for name, holder in site.holders:
            reason = reason or self.why_not_module(holder, name, state_hooks=False)
        if reason:
            return reason
        if len(site.node.args) + len(site.node.kwargs) != 1 or len(site.node.all_input_nodes) != 1:
            return "it is called with more than one argument"
        found = self._follow(site)
        if isinstance(found, str):
            return self._wrong_order(site) + found
        return (
            self.why_not_neuron(found)
            or self._why_not_arguments(found)
            or self._why_not_elementwise(found)
            or self._why_not_forward(found)
            or self._why_not_between(found)
            or self._why_not_free(found)
            or found
        )

    def _why_not_free(self, match: Match) -> str | None:
        taken = self.taken.get(id(match.neuron))
        return taken and f"the other operand of the sum was fused, {taken!r}: a neuron takes one batch norm"

    def _follow(self, site: Site) -> Match | str:
        neuron_to_come: Any = site.batch_norm
        value, match = site.node, Match(site, site.node, "", neuron_to_come)
        while True:
            users = [user for user in value.users if not (value is site.node and is_shape_query(user))]
            if len(users) != 1:
                if not users:
                    return "its output is not used"
                return f"its output is used at {len(users)} places: {', '.join(map(repr, map(str, users)))}"
            user = users[0]
            neuron = self._neuron_call(site.unit, user)
            if neuron is not None:
                match.neuron_node, (match.neuron_name, match.neuron, match.neuron_holders) = user, neuron
                return match
            if user.target in _ADDITIONS and user.op != "call_module" and match.addition is None:
                other = self._other_operand(site, user, value)
                if isinstance(other, str):
                    return other
                match.addition, match.residual = user, other
            elif not self._follow_layout(match, user, value):
                return f"its output goes to {self._describe_node(site.unit, user)}, {self._not_a_neuron(user)}"
            match.between.append(user)
            value = user

    @staticmethod
    def _follow_layout(match: Match, user: fx.Node, value: fx.Node) -> bool:
        """Whether a node does nothing but what a fused layer, or its spikes, can do as well."""
        shapes, site = match.site.unit.shapes, match.site
        plain = all(node is match.addition or node.target == "contiguous" for node in match.between)
        if user.op == "call_method" and user.target == "contiguous" and user.args[0] is value:
            return True
        if match.split is None and plain and shapes.splits(user, value, site):
            match.split = user
            return True
        if match.addition is not None or not site.flat:
            return False
        if match.split is None:
            batch = shapes.splits_samples(user, value)
            if batch is None:
                return shapes.keeps_first(user, value, 1)
            match.split, match.batch = user, batch
            return True
        if match.batch is None:
            match.batch = shapes.splits_samples(match.split, match.split.args[0])
        return match.batch is not None and shapes.keeps_first(user, value, 2)

    @staticmethod
    def _not_a_neuron(node: fx.Node) -> str:
        if node.target in ("view", "reshape", "unflatten", torch.reshape, torch.unflatten):
            return "of which it is not certain that it splits time and batch only; write unflatten(0, (T, B))"
        if node.target in _ADDITIONS:
            return "the second addition before the neuron"
        if node.op == "call_module" and "residual" in node.kwargs:
            return "as the residual of a fused layer"
        return "not to a neuron"

    def _neuron_call(self, unit: Unit, node: fx.Node) -> tuple[str, Neuron, list[tuple[str, nn.Module]]] | None:
        """The neuron that a node calls, by itself or as the first in an nn.Sequential, and those that hold it."""
        if node.op != "call_module":
            return None
        module: Any = unit.module.get_submodule(str(node.target))
        name, holders = unit.path(str(node.target)), []
        while is_container(module):
            holders.append((name, module))
            child = next(iter(module._modules))
            module, name = module._modules[child], f"{name}.{child}"
        return (name, module, holders) if isinstance(module, Neuron) else None

    def _other_operand(self, site: Site, node: fx.Node, value: fx.Node) -> fx.Node | str:
        operands = [*node.args, *(node.kwargs[key] for key in ("input", "other") if key in node.kwargs)]
        rest = {key: v for key, v in node.kwargs.items() if key not in ("input", "other")}
        if rest.pop("alpha", 1) != 1:
            return "the addition has an alpha other than 1"
        if rest or len(operands) != 2:
            return "the addition has arguments that a fused layer has no place for"
        if operands[0] is operands[1]:
            return "its output is added to itself"
        other = operands[1] if operands[0] is value else operands[0]
        if not isinstance(other, fx.Node):
            return f"a number is added to its output: {other!r}"
        if other.op == "get_attr":
            return f"an attribute of the module is added to its output: {other.target!r}"
        in_place = node.target in (operator.iadd, "add_")
        if in_place and operands[0] is other and self._site_of(site.unit, other) is None:
            return f"its output is added in place to {self._describe_node(site.unit, other)}, which others may hold"
        return other

    def _site_of(self, unit: Unit, node: fx.Node) -> Site | None:
        return self._site(unit, node) if node.op == "call_module" and len(node.users) == 1 else None

    def _why_not_arguments(self, match: Match) -> str | None:
        """Whether the channels of the batch norm are those of the neuron; sets `steps`."""
        node, site = match.neuron_node, match.site
        arguments = dict(zip(("current", "steps"), node.args, strict=False)) | node.kwargs
        if set(arguments) - {"current", "steps"} or len(node.args) > 2:
            return f"the neuron {match.neuron_name!r} is called with other arguments than a current and steps"
        steps = match.steps = arguments.get("steps")
        if isinstance(steps, fx.Node) and kind_of(steps, site.unit.module) is not int:
            return f"steps of the neuron {match.neuron_name!r} is known only when the model runs"
        held, flat = steps is not None, site.flat
        if held and (match.split is not None or not flat):
            return (
                f"the neuron {match.neuron_name!r} holds its current, but the batch norm takes dimension 2 for the "
                "channels; of a held [B, C, ...] it is dimension 1"
            )
        if not held and flat and match.split is None:
            return (
                f"wrongly ordered: of the [T, B, C, ...] that the neuron {match.neuron_name!r} takes, the batch "
                "norm takes dimension 1, the batch, for the channels; wrap it in snnfast.OverTime"
            )
        if not flat and match.split is not None:
            return "its output, which has time and batch apart already, is reshaped"
        return None

    @staticmethod
    def _why_not_elementwise(match: Match) -> str | None:
        """Whether the neuron treats all channels alike, where the fused layer has others in their place."""
        if match.batch is None:
            layout = [node for node in match.between if node not in (match.addition, match.split)]
            turned = [node for node in layout if node.target != "contiguous"]
            return f"{str(turned[0])!r} rearranges its output and no reshape to [T, B, ...] follows" if turned else None
        where = f"what is between it and the neuron {match.neuron_name!r} rearranges the dimensions, and the neuron has"
        tables = [table for table in match.neuron._tables() if table is not None and table.dim() > 0]
        if match.addition is not None:
            return f"the addition comes after dimensions were rearranged, for the neuron {match.neuron_name!r}"
        if tables:
            return f"{where} a threshold or time constant per channel"
        if match.neuron.carry_state or match.neuron.state is not None:
            return f"{where} a carried state"
        return None

    def _why_not_forward(self, match: Match) -> str | None:
        """Whether a forward that calls the fused layer can be written, where that is needed."""
        unit, graph = match.site.unit, match.site.unit.forward.graph
        names = (match.site.node.target, match.neuron_node.target)
        for node in graph.nodes:
            if node.op == "get_attr" and any(str(node.target).startswith(f"{name}.") for name in names):
                return f"the forward of {describe(unit.module, unit.name)} reads {node.target!r}"
        if not match.needs_forward:
            return None
        if is_container(unit.module):
            return "in an nn.Sequential, wrap the batch norm in snnfast.OverTime"
        if unit.forward.training_matters:
            return f"the forward of {describe(unit.module, unit.name)} reads `training`"
        shaped = [user for user in match.site.node.users if is_shape_query(user)]
        if shaped and match.site.holders:
            return "its output is asked for its shape"
        reason = may_get_forward(unit.module)
        if reason is None:
            reason = self.why_not_module_forward(unit)
        return reason and f"{describe(unit.module, unit.name)} cannot have another forward: {reason}"

    @staticmethod
    def why_not_module_forward(unit: Unit) -> str | None:
        for node in unit.forward.graph.nodes:
            if node.op == "get_attr" and "." in str(node.target):
                owner = unit.module.get_submodule(str(node.target).rpartition(".")[0])
                if str(node.target).rpartition(".")[2] in owner._buffers:
                    return f"it reads the buffer {node.target!r}, as a child's forward called by hand does"
        return None

    def _why_not_between(self, match: Match) -> str | None:
        """The fused layer reads the batch norm's input when the neuron runs: nothing may write to it in between."""
        if not match.needs_forward:
            return None
        node, inputs = match.site.node.next, set(match.site.node.all_input_nodes)
        while node is not match.neuron_node:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            writes = (
                (node.op == "call_method" and name.endswith("_") and not name.endswith("__"))
                or (
                    node.op == "call_function"
                    and (
                        name.endswith("_")
                        or "out" in node.kwargs
                        or node.kwargs.get("inplace")
                        or any(a is True for a in node.args)
                        or name in IN_PLACE
                    )
                )
                or (
                    node.op == "call_module"
                    and not inputs.isdisjoint(node.all_input_nodes)
                    and any(getattr(m, "inplace", False) for m in match.site.unit.module.get_submodule(name).modules())
                )
            )
            if writes and node is not match.addition:
                return f"something is written in place between it and the neuron: {str(node)!r}"
            node = node.next
        return None

    def _wrong_order(self, site: Site) -> str:
        """A prefix to the reason where a neuron comes first and the batch norm after it."""
        if all(holder is self._over_time(site) for _, holder in site.holders):
            source = site.node.all_input_nodes[0]
            while source.op in ("call_method", "call_function") and source.target in ("flatten", torch.flatten, "view"):
                source = source.all_input_nodes[0]
            neuron = self._neuron_call(site.unit, source)
            if neuron is not None:
                return f"wrong order, it comes after the neuron {neuron[0]!r}; "
        return ""

    @staticmethod
    def _over_time(site: Site) -> nn.Module | None:
        return site.over_time[1] if site.over_time else None

    def _describe_node(self, unit: Unit, node: fx.Node) -> str:
        if node.op == "call_module":
            return describe(unit.module.get_submodule(str(node.target)), unit.path(str(node.target)))
        if node.op == "output":
            return f"the result of {describe(unit.module, unit.name)}"
        if node.op == "placeholder":
            return f"the argument {node.target!r} of {describe(unit.module, unit.name)}"
        return repr(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target)))


def is_shape_query(node: fx.Node) -> bool:
    """Whether a node asks a tensor for its shape only, which a batch norm does not change."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim", "device")
