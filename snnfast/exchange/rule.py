"""What a time step of a NIR graph is: between NIR's differential equations and MATH.md's recursion.

NIR's neurons are tau·dv/dt = (v_leak − v) + R·I and dv/dt = R·I. A step of length dt with its current x held is, by
forward Euler,

    LIF:  h = (1 − dt/tau)·v + (dt/tau)·R·x + (dt/tau)·v_leak        IF:  h = v + dt·R·x

and fires and resets at once, which is MATH.md section 1 with τ = tau/dt. R = 1 is ``decay_input=True``, R = tau/dt is
``decay_input=False``, and R = 1/dt is IF's. "exact" integration has exp(−dt/tau) in the place of 1 − dt/tau.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from snnfast._arguments.checks import flag, number_within, word
from snnfast.dynamics import RESETS

__all__ = ["DT", "EXPORTERS", "KEY", "Rule", "leak_of", "make_rule", "said", "tau_to_nir"]

DT = 1e-4
"""Seconds: the step of most exporters."""
KEY = "snnfast"
"""Under which nodes and graphs say, in their metadata, what NIR has no field for."""
INTEGRATIONS = ("euler", "exact")
CLOSE = 1e-6
"""Relative: what exporters that compute in float32 round R and tau by."""
MANY_STEPS = 1e4
"""A time constant of so many steps is rather one that was counted in another unit."""


@dataclass(frozen=True)
class Rule:
    """How the neurons of a graph step.

    Attributes:
        dt: what tau is counted in.
        dt_of_if: what R of IF is counted in.
        reset, fire_on_equal, integration: of the neurons that say nothing of their own.
        caution: what the exporter does not write down.
        given: which of these the caller chose, ahead of what the neurons say.
    """

    dt: float = DT
    dt_of_if: float = DT
    reset: str = "hard"
    fire_on_equal: bool = False
    integration: str = "euler"
    caution: str = ""
    given: frozenset[str] = frozenset()


EXPORTERS = {
    "spikingjelly": Rule(fire_on_equal=True),
    "snntorch": Rule(
        caution="snnTorch's graphs have neither reset_mechanism nor reset_delay. Their neurons are taken for "
        "reset_mechanism='zero' (reset='soft' is 'subtract', with reset_delay=False and potentials of at most two "
        "thresholds). 'subtract' with reset_delay=True, snnTorch's default, subtracts after the leak of the next step, "
        "which cannot be matched"
    ),
    # Its tau is dt/tau_mem_inv for 1/tau_mem_inv, so that what counts it in steps is the square of its dt.
    "norse": Rule(
        dt=1e-3**2,
        dt_of_if=1.0,
        caution="Norse's graphs have neither v_reset nor reset_method. Their neurons are taken for those that reset to "
        "0 (reset='soft' is reset_subtract)",
    ),
    "sinabs": Rule(
        dt=1.0,
        dt_of_if=1.0,
        reset="soft",
        fire_on_equal=True,
        integration="exact",
        caution="Sinabs' graphs have none of spike_fn, reset_fn, norm_input and min_v_mem. Their neurons are taken for "
        "SingleSpike and MembraneSubtract, norm_input=True and no min_v_mem; those of MultiSpike, Sinabs' default, "
        "fire several times in a step, which snnfast's do not",
    ),
}
"""By the library that exported a graph; a neuron's fields are read with these where the graph itself is silent."""


def make_rule(exported_by: str | None, graph_dt: Any, **given: Any) -> Rule:
    """The rule of one import: the caller's choices, ahead of the exporter's, ahead of NIR's own.

    Args:
        exported_by: a key of EXPORTERS or None.
        graph_dt: the dt that the graph itself says, or None.
        given: ``dt``, ``reset``, ``fire_on_equal``, ``integration``, each None where the caller says nothing.

    Raises:
        TypeError, ValueError: a value that is not allowed.
    """
    rule = Rule() if exported_by is None else EXPORTERS[word("exported_by", exported_by, EXPORTERS)]
    if given["dt"] is not None:
        dt = number_within("dt", given["dt"], above=0)
        rule = replace(rule, dt=dt, dt_of_if=dt if rule.dt == rule.dt_of_if else rule.dt_of_if)
    elif graph_dt is not None and exported_by is None:
        dt = number_within("the graph's dt", float(graph_dt), above=0)
        rule = replace(rule, dt=dt, dt_of_if=dt)
    if given["reset"] is not None:
        rule = replace(rule, reset=word("reset", given["reset"], RESETS))
    if given["fire_on_equal"] is not None:
        rule = replace(rule, fire_on_equal=flag("fire_on_equal", given["fire_on_equal"]))
    if given["integration"] is not None:
        rule = replace(rule, integration=word("integration", given["integration"], INTEGRATIONS))
    return replace(rule, given=frozenset(name for name, value in given.items() if value is not None))


def said(node: Any) -> dict[str, Any]:
    """What to_nir wrote of a node or graph that NIR has no field for."""
    metadata = getattr(node, "metadata", None)
    found = metadata.get(KEY) if isinstance(metadata, dict) else None
    return found if isinstance(found, dict) else {}


def tau_to_nir(tau: np.ndarray, dt: float) -> tuple[np.ndarray, dict[str, Any]]:
    """A time constant in steps as NIR's tau, float64, and what its metadata needs for the way back to be exact."""
    steps = tau.astype(np.float64)
    written = steps * dt
    kept: dict[str, Any] = {} if np.array_equal(written / dt, steps) else {"tau": steps}
    return written, kept


def leak_of(
    name: str, tau: np.ndarray, r: np.ndarray, rule: Rule, kept: Any
) -> tuple[np.ndarray, bool, np.ndarray | None]:
    """LIF's time constant in steps, whether its input decays, and a factor on the current where R is neither.

    Args:
        name: of the node, for messages.
        tau, r: the node's, of one shape.
        rule: of the import.
        kept: the exact time constant in steps that :func:`tau_to_nir` wrote, or None.

    Raises:
        ValueError: tau that is not positive, or not above one step.
    """
    if not (tau > 0).all():
        raise ValueError(f"node {name!r}: tau must be above 0, got {tau.min():g}")
    steps = tau / rule.dt
    if rule.integration == "exact":
        steps = -1.0 / np.expm1(-1.0 / steps)
    elif kept is not None and np.allclose(kept, steps, rtol=1e-12, atol=0.0):  # otherwise tau, or dt, is another now
        steps = np.broadcast_to(np.asarray(kept, np.float64), steps.shape)
    if not (steps > 1).all():
        raise ValueError(
            f"node {name!r}: tau must be above dt, one step, got tau={tau.min():g} with dt={rule.dt:g}; dt is the "
            "step of the library that exported the graph"
        )
    if steps.max() >= MANY_STEPS:
        warnings.warn(
            f"node {name!r}: tau={tau.max():g} is {steps.max():g} steps of dt={rule.dt:g}; a library that counts tau "
            "in steps (Sinabs) needs exported_by, or dt=1.0",
            stacklevel=5,  # the call of from_nir
        )
    if np.allclose(r, 1.0, rtol=CLOSE, atol=0.0):
        return steps, True, None
    if np.allclose(r, steps, rtol=CLOSE, atol=0.0):
        return steps, False, None
    return steps, True, r
