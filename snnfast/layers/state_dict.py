"""What a state dict keeps of a layer beyond its tensors: the surrogate, numbers that were measured, and its options.

The surrogate is in the metadata, which torch.save and load_state_dict know: no key of its own, so that checkpoints
interchange with networks whose activations have none. A plain dict has no metadata; loading one says so.

A number that was measured for these weights, a threshold from data, is worth as much as the weights: it is *held*, by a
key of its own, a 0-d float64 tensor, which takes every path that tensors take. In the layer it stays a number. The
metadata has the numbers of all layers, held or not, so that loading can say where they differ. So it does with the
other options that spikes depend on, which stay what they are in the network that is loaded into.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Iterator
from os.path import dirname, sep
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from snnfast.dynamics import Dynamics
from snnfast.surrogate import SHAPES, Surrogate

__all__ = ["WithNumbers", "hold", "read_options", "takes_keys", "write_options"]


class WithNumbers(nn.Module):
    """A module whose state dict may have numbers of it."""

    # Class attributes, which modules pickled before there were any have too.
    _numbers: tuple[str, ...] = ()  # the names of attributes that may be held, where they are no tensors
    _held: tuple[str, ...] = ()  # and of those that are

    def _numbered(self) -> WithNumbers | None:
        """The module whose numbers are in this one's state dict; None where another one has this one's."""
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        module = self._numbered()
        if module is not None:
            _write_metadata(destination, prefix, "numbers", _numbers_of(module))
            destination.update(_held_tensors(module, prefix))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self._load_numbers(state_dict, prefix, local_metadata, *args)

    def _load_numbers(self, state_dict: Any, prefix: str, local_metadata: Any, _strict: bool, *lists: Any) -> None:
        module = self._numbered()
        if module is not None:
            _read_numbers(module, state_dict, prefix, local_metadata, *lists)

    def named_buffers(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[Any]:
        yield from super().named_buffers(prefix, recurse, remove_duplicate)
        # torch.distributed.checkpoint asks each module alone, to know which keys its state dict has.
        module = None if recurse else self._numbered()
        if module is not None:
            yield from _held_tensors(module, f"{prefix}." if prefix else "")


def hold(module: WithNumbers, name: str) -> None:
    """From now on the module's state dict has its number ``name``, where that is a number."""
    if name not in module._held:
        module._held = (*module._held, name)


def takes_keys(model: nn.Module) -> set[str]:
    """The keys that ``model.load_state_dict`` takes for numbers, whether or not the model's own state dict has them."""
    numbered = ((path, module._numbered()) for path, module in model.named_modules() if isinstance(module, WithNumbers))
    return {f"{path}.{name}" if path else name for path, module in numbered if module for name in _numbers_of(module)}


def _numbers_of(module: WithNumbers) -> dict[str, float]:
    return {name: value for name in module._numbers if not isinstance(value := getattr(module, name), Tensor)}


def _held_tensors(module: WithNumbers, prefix: str) -> list[tuple[str, Tensor]]:
    numbers = _numbers_of(module)
    # On the CPU whatever the default device is: reading them waits for nothing.
    return [
        (prefix + name, torch.tensor(numbers[name], dtype=torch.float64, device="cpu"))
        for name in module._held
        if name in numbers
    ]


# Modules around another one whose names torch, or users, take out of the keys, and nobody out of the metadata.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod.")


def _write_metadata(destination: Any, prefix: str, name: str, entry: dict[str, Any]) -> None:
    metadata = getattr(destination, "_metadata", None)
    if metadata is not None:
        inner = functools.reduce(lambda name, wrapper: name.replace(wrapper, ""), _WRAPPERS, prefix)
        for known_as in (prefix, inner):
            metadata.setdefault(known_as[:-1], {})[name] = entry


def _name(module: object, prefix: str) -> str:
    return repr(prefix[:-1] or type(module).__name__)


# Surrogates and options


class WithOptions(Protocol):
    surrogate: Surrogate
    _dynamics: Dynamics
    _written: tuple[dict[str, Any], float] | None  # see write_options


def write_options(layer: WithOptions, destination: Any, prefix: str) -> None:
    """Puts a layer's surrogate and options into a state dict's metadata."""
    s = layer.surrogate
    entry = {"shape": type(s).__name__, "gamma": s.gamma, "beta": s.beta}
    _write_metadata(destination, prefix, "surrogate", entry)
    _write_metadata(destination, prefix, "options", _options_of(layer._dynamics))
    layer._written = (entry, s.gamma)


def _options_of(dynamics: Dynamics) -> dict[str, Any]:
    """The options that spikes depend on, but for thresholds and what is a tensor: numbers, words and flags."""
    options: dict[str, Any] = {"reset": "soft" if dynamics.soft else "hard"}
    if not dynamics.soft:
        options["reset_value"] = dynamics.reset_value
    options.update(fire_on_equal=dynamics.fire_on_equal, delay=dynamics.delay, leak=dynamics.leaky)
    if dynamics.leaky:
        options["decay_input"] = dynamics.input_decays
        if dynamics.tau:
            options["tau"] = dynamics.tau
    return options


def read_options(layer: WithOptions, prefix: str, local_metadata: dict[str, Any], *rest: Any) -> None:
    """Gives a layer the surrogate of a state dict's metadata, and warns where the layer that was saved had others of
    the options, which stay. ``rest``: strict, and the lists that torch hands to ``_load_from_state_dict``."""
    _read_surrogate(layer, prefix, local_metadata, *rest)
    saved = local_metadata.get("options", {})
    own = _options_of(layer._dynamics)
    differ = [f"{name}={saved[name]!r} (here {own[name]!r})" for name in own if own[name] != saved.get(name, own[name])]
    missing_keys = rest[1]
    if differ:
        _warn(
            missing_keys,
            "other options",
            f"{_name(layer, prefix)} had {', '.join(differ)} in the network that was saved; options do not travel, "
            "here they stay. Others may differ too",
        )


def _written_by(layer: WithOptions, saved: dict[str, Any]) -> bool:
    """Whether this layer wrote this very entry, and nobody has put another number there since."""
    written = layer._written
    return written is not None and saved is written[0] and saved.get("gamma") is written[1]


def _read_surrogate(
    layer: WithOptions,
    prefix: str,
    local_metadata: dict[str, Any],
    _strict: bool,
    missing_keys: list[str],
    _unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Gives a layer the surrogate of a state dict's metadata, adds to the load's errors, or warns that none came."""
    saved = local_metadata.get("surrogate")
    if not saved:
        # Every module that torch saved has a version there. Without a surrogate it was another activation.
        if "version" not in local_metadata:
            _warn(
                missing_keys,
                "no metadata",
                f"the state dict has no metadata for {_name(layer, prefix)}, as plain dicts have none (dict(...) or a "
                "comprehension over a state dict, safetensors, torch.distributed.checkpoint): the surrogate's shape, "
                "gamma and beta did not come, nor thresholds for which it has no key. This layer, and others likewise, "
                f"keeps {layer.surrogate}; set layer.surrogate if another was saved, or load what torch.save made of "
                "model.state_dict()",
            )
        return
    try:
        surrogate = SHAPES[saved["shape"]](gamma=saved["gamma"], beta=saved["beta"])
    except (KeyError, TypeError, ValueError) as error:
        error_msgs.append(
            f"surrogate of {_name(layer, prefix)}: {saved!r} is none of {', '.join(SHAPES)} with a "
            f"gamma and a beta ({type(error).__name__}: {error})"
        )
        return
    if surrogate == layer.surrogate and _written_by(layer, saved):
        _warn(
            missing_keys,
            "own metadata",
            f"the state dict's metadata is this model's own at {_name(layer, prefix)}: where its tensors were filled "
            "from elsewhere (torch.distributed.checkpoint.load, update), the surrogate's shape, gamma and beta did not "
            f"come with them, nor thresholds that this model's state dict has no key for. This layer keeps "
            f"{layer.surrogate}; save model.state_dict()._metadata beside the tensors and load it too",
            each_load=False,
        )
    # Where errors are known, the load is about to fail. Whether missing keys are errors, torch tells its root only.
    elif not error_msgs:
        layer.surrogate = surrogate


# Numbers


def _read_numbers(
    module: WithNumbers,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Gives a module the numbers that a state dict has a key for, after torch has read the tensors.

    A number that does not come and is not known to be the same stays, with a warning.
    """
    saved = local_metadata.get("numbers", {})
    for name, own in _numbers_of(module).items():
        key, what = prefix + name, f"{name} of {_name(module, prefix)}"
        # Under the same key may be a tensor that was learned; that is for torch to call unexpected.
        ours = "version" not in local_metadata or name in saved
        if key in state_dict and ours and _is_number(state_dict[key]):
            if key in unexpected_keys:
                unexpected_keys.remove(key)
            value = _value(what, state_dict[key], error_msgs)
            if not error_msgs:
                setattr(module, name, value)
                hold(module, name)
        elif name in saved and saved[name] != own:
            _warn(
                missing_keys,
                "another number",
                f"{what} is {saved[name]!r} in the network that was saved and {own!r} in this one, where it stays; "
                "others may differ too",
            )
        elif name not in saved and name in module._held:
            _warn(
                missing_keys,
                "no number",
                f"{what} was measured to be {own!r}, and stays: the state dict, which may be of other weights, has "
                "none; likewise for others",
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and value.dtype == torch.float64


def _value(what: str, number: Tensor, error_msgs: list[str]) -> float:
    try:
        value = number.item()
    except RuntimeError as error:  # of the device meta, say
        error_msgs.append(f"{what} cannot be read: {error}")
        return math.nan
    if math.isnan(value) or value < 0:
        error_msgs.append(f"{what} must not be negative or NaN, got {value}")
    return value


# Warnings


_OURS = tuple(dirname(str(module.__file__)) + sep for module in (torch, sys.modules["snnfast"]))
_warned: tuple[list[str] | None, set[str]] = (None, set())  # the load, known by its list of missing keys, and of what


def _warn(load: list[str], what: str, message: str, *, each_load: bool = True) -> None:
    """Warns of one thing once per load, at the line that called ``load_state_dict``.

    In each load anew, where Python would say the same of one line only once: the second file loaded there has lost
    what the first one had. ``each_load=False`` leaves that to Python.
    """
    global _warned
    if _warned[0] is not load:
        _warned = (load, set())
    if what in _warned[1]:
        return
    _warned[1].add(what)
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    registry = None if each_load else frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=registry,
    )
