"""What a case's id says: a value in few words, or a drawn configuration, and what a failed one prints beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def shown(value: Any) -> str:
    """A value in few words, for ids (``ids=shown``) and messages."""
    if isinstance(value, torch.Tensor) and (value.layout != torch.strided or value.is_nested or value.is_mkldnn):
        return f"{value.layout} {value.dtype}{' nested' if value.is_nested else ''}"
    if isinstance(value, type):
        return value.__name__
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:25]}...{text[-5:]}"


# Values whose own text would not say which option they belong to; None: the value is its own name.
WORDS: dict[str, dict[Any, str] | str | None] = {
    "neuron": {"IF": "IF", "LIF": "LIF", "LIF, current not decayed": "LIF_current_not_decayed"},
    "reset": None,
    "reset_value": "reset_to_",
    "detach_reset": {True: "detached", False: "attached"},
    "fire_on_equal": {True: "fire_on_equal"},
    "delay": {True: "delay"},
    "surrogate": None,
    "threshold": "threshold_",
    "tau": "tau_",
    "v0": {True: "v0"},
    "held": {True: "held"},
    "dtype": None,
    "steps": "T",
    "sizes": None,
    "time_dim": "time_dim_",
    "layout": None,
    "residual": {"like the output": "residual", "held": "residual_held"},
    "residual layout": "residual_",
    "affine": "affine_",
    "training": {False: "evaluation"},
    "currents": {"on a grid that meets the threshold": "on_a_grid"},
    "gradient": "gradient_",
    "outputs": {"spikes and v_last": "with_v_last", "all": "with_potential"},
}
ALWAYS = ("neuron", "steps")  # said even where they are the plainest: a name is never empty


def word(option: str, value: Any) -> str:
    words = WORDS[option]
    if isinstance(words, dict):
        if value not in words:
            raise LookupError(f"tests/naming.py has no word for {option}={value!r}: add it to WORDS[{option!r}]")
        return words[value]
    if isinstance(value, tuple):
        value = "x".join(map(str, value))
    return f"{words or ''}{value}".removeprefix("torch.").replace(" ", "_")


def name_of(configuration: dict[str, Any], options: dict[str, list[Any]]) -> str:
    """The options that differ from the plainest, which is the first value of each.

    Raises:
        LookupError: an option, or a value of one, that has no words.
    """
    for option in options:
        if option not in WORDS:
            raise LookupError(f"tests/naming.py has no words for the option {option!r}: add it to WORDS")
    named = [
        option
        for option in WORDS
        if option in options and (option in ALWAYS or configuration[option] != options[option][0])
        if option != "residual layout" or configuration["residual"] != "none"
    ]
    return "-".join(word(option, configuration[option]) for option in named)


def each(configurations: list[dict[str, Any]], options: dict[str, list[Any]]) -> pytest.MarkDecorator:
    """A case for every configuration, as the argument ``configuration``, under its name."""
    names = [name_of(configuration, options) for configuration in configurations]
    return pytest.mark.parametrize("configuration", configurations, ids=names)


def reproduction(item: pytest.Function) -> str:
    """The whole configuration of a failed case, in a line of Python that runs it again: in the folder of the tests."""
    given = {name: value for name, value in item.callspec.params.items() if name != "kernels"}
    call = [f"{name}={value!r}" for name, value in given.items()]
    lines = ["import torch"]
    if "kernels" in item.fixturenames:
        lines.append("from kernels import lasting")
        call.insert(0, f"kernels=lasting({item.callspec.params['kernels']!r})")
    lines.append(f"from {item.module.__name__.rpartition('.')[2]} import {item.originalname} as test")
    return "; ".join([*lines, f"test({', '.join(call)})"])
