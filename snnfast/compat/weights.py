"""Weights of a network that was written otherwise, in one of these layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from snnfast._arguments.checks import flag

__all__ = ["WeightsReport", "load_weights"]

_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Parts of a name that stand for a module around another one."""


@dataclass(frozen=True)
class WeightsReport:
    """Where the tensors of a model came from: :func:`snnfast.load_weights`. ``str(report)`` is a table.

    Attributes:
        by_name: for each key of the model whose namesake was found, that key of the state dict.
        by_place: likewise, of those that were found by their place among what was left.
        missing: keys of the model for which there was nothing.
        unused: keys of the state dict that found no place.
    """

    by_name: dict[str, str]
    by_place: dict[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.by_name)} by name, {len(self.by_place)} by place" + (":" if self.by_place else "")]
        width = max((len(name) for name in self.by_place), default=0)
        lines += [f"  {name:{width}}  from {source}" for name, source in self.by_place.items()]
        for what, names in (("missing", self.missing), ("unused", self.unused)):
            lines.append(f"{len(names)} {what}" + (": " + ", ".join(names) if names else ""))
        return "\n".join(lines)


def load_weights(model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True) -> WeightsReport:
    """Loads a state dict whose keys are not the model's: of an ANN, of another library's network, of a wrapped one.

    A key goes where the names agree, but for what wrappers put into them (``module.`` of OverTime and DataParallel,
    ``_orig_mod.`` of torch.compile and the like), and the shapes do. What is left on both sides is then put together in
    order, if there are as many and each has the other's last name (``weight``) and shape: a network of the same layers
    under other names. Numbers of neurons (thresholds, surrogates) that only this package's state dicts have are not
    asked for.

    Args:
        model: whose tensors are overwritten, as ``model.load_state_dict`` does it.
        state_dict: of tensors by name.
        strict: whether a tensor of the model that finds none, or one of the state dict without a place, is an error.

    Returns:
        What came from where, what is missing and what was not used.

    Raises:
        TypeError: no module, no mapping of tensors, or strict not a bool.
        ValueError: with ``strict``, what is missing or unused, by name; nothing is loaded then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        got = type(state_dict).__name__ if not isinstance(state_dict, Mapping) else "one with other values"
        raise TypeError(f"state_dict must be a mapping of names to tensors, got {got}")
    flag("strict", strict)
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    given = {name: tensor.shape for name, tensor in state_dict.items()}
    by_name = _by_name(own, given)
    targets = [name for name in own if name not in by_name]
    taken = set(by_name.values())
    sources = [name for name in given if name not in taken]
    by_place: dict[str, str] = {}
    if [_kind(name, own[name]) for name in targets] == [_kind(name, given[name]) for name in sources]:
        by_place = dict(zip(targets, sources, strict=True))
        targets, sources = [], []
    report = WeightsReport(by_name, by_place, tuple(targets), tuple(sources))
    if strict and (targets or sources):
        raise ValueError(f"the state dict does not fit {type(model).__name__}: {_differences(report, own, given)}")
    loaded = OrderedDict((name, state_dict[source]) for name, source in {**by_name, **by_place}.items())
    # With metadata that has no surrogates: those of another network's neurons are not asked for.
    loaded._metadata = {name: {"version": 2} for name, _ in model.named_modules()}  # type: ignore[attr-defined]
    model.load_state_dict(loaded, strict=False)
    return report


def _by_name(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    named: dict[str, list[str]] = {}
    for name in given:
        named.setdefault(_plain(name), []).append(name)
    for name, shape in own.items():
        sources = [name] if name in given else named.get(_plain(name), [])
        # Two of one name, such as a network and its average beside it, are for the user to tell apart.
        if len(sources) == 1 and given[sources[0]] == shape:
            found[name] = sources[0]
    return found


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _kind(name: str, shape: Any) -> tuple[str, tuple[int, ...]]:
    return name.rpartition(".")[2], tuple(shape)


def _differences(report: WeightsReport, own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    parts = []
    for what, names, shapes in (("missing", report.missing, own), ("unused", report.unused, given)):
        shown = ", ".join(f"{name} {list(shapes[name])}" for name in names[:6])
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        if names:
            parts.append(f"{what}: {shown}{more}")
    return "; ".join(parts)
