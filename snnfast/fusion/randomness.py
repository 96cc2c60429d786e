"""Whether a forward draws random numbers, and drawing them as if it had not been traced."""

from __future__ import annotations

import copy
import random
import sys
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["restore", "states_of_generators"]


def _generators(module: nn.Module) -> list[Any]:
    """The generators of random numbers that a forward can name: its module's and its file's, and the global ones."""
    forward = type(module).forward
    seen = [*module.__dict__.values(), *getattr(forward, "__globals__", {}).values()]
    numpy = sys.modules.get("numpy")
    kinds = (torch.Generator, random.Random, *((numpy.random.Generator, numpy.random.RandomState) if numpy else ()))
    found = {id(value): value for value in seen if isinstance(value, kinds)}
    return [*found.values(), torch.default_generator, random._inst, *((numpy.random.mtrand._rand,) if numpy else ())]


def _state(generator: Any) -> Any:
    if hasattr(generator, "bit_generator"):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.getstate() if hasattr(generator, "getstate") else generator.get_state()


def _comparable(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: _comparable(value) for key, value in state.items()}
    if isinstance(state, tuple):
        return tuple(_comparable(value) for value in state)
    return state.tobytes() if hasattr(state, "tobytes") else state


def states_of_generators(module: nn.Module) -> list[tuple[Any, Any]]:
    """Every generator with its state."""
    return [(generator, _state(generator)) for generator in _generators(module)]


def restore(before: list[tuple[Any, Any]]) -> bool:
    """Puts the generators back; whether one had moved."""
    moved = False
    for generator, state in before:
        moved |= _comparable(_state(generator)) != _comparable(state)
        if hasattr(generator, "bit_generator"):
            generator.bit_generator.state = state
        elif hasattr(generator, "setstate"):
            generator.setstate(state)
        else:
            generator.set_state(state)
    return moved
