"""Every parameter of the public API, given what it cannot be, is refused at once by an error that names it.

The table of them is in public_calls.py: for each public callable a call that works, and what kind of thing each of its
parameters is; for each kind a list of things that are not of it.
"""

from __future__ import annotations

import math
import signal
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from naming import shown
from public_calls import ENTRIES, LEAK, NEURON, TABLES, Entry, Table, X, forgotten_names, forgotten_parameters
from torch import nn
from wrong_kinds import KINDS

import snnfast as sf

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:Sparse"),
]


@pytest.fixture(autouse=True)
def soon():
    """A call that does not come back is an error, too."""

    def alarm(*_: object) -> None:
        raise RuntimeError("it did not come back")

    before = signal.signal(signal.SIGALRM, alarm)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(entry: Entry, name: str, value: Any) -> str | None:
    """None where the value was refused by name; otherwise what happened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signal.alarm(10)
            entry.call(**{**entry.given, name: value})
    except (TypeError, ValueError) as error:
        words = (name, *entry.also.get(name, ()))
        if any(word in str(error) for word in words):
            return None
        return f"{type(error).__name__} without the name: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


@pytest.mark.parametrize("name", ENTRIES)
def test_wrong_arguments_are_refused_by_name(name):
    entry = ENTRIES[name]
    problems = [
        f"{parameter}={shown(value)}: {found}"[:220]
        for parameter, kind in entry.kinds.items()
        for value in KINDS[kind]
        if (found := refusal(entry, parameter, value)) is not None
    ]
    assert not problems, "\n" + "\n".join(problems)


def test_every_public_name_has_its_entry():
    missing = forgotten_names(TABLES)
    assert not missing, "\n" + "\n".join(missing)


def test_every_parameter_has_its_kind():
    missing = forgotten_parameters(TABLES)
    assert not missing, "\n" + "\n".join(missing)


def test_a_forgotten_name_and_a_forgotten_parameter_are_told_what_to_add_and_where():
    def new_entries():
        return {"old": Entry(lambda a, b: None, {}, {"a": "flag"})}

    module = SimpleNamespace(__name__="snnfast.new", __all__=["old", "fresh"], fresh=lambda rate, steps: None)
    tables = {"new": Table(module, new_entries)}
    (name,), (parameter,) = forgotten_names(tables), forgotten_parameters(tables)
    assert name.startswith(
        "snnfast.new.fresh is public and has no entry. Add to new_entries() in tests/public_calls.py"
    )
    assert '"fresh": Entry(new.fresh, {what a call that works is given}, {"rate": KIND, "steps": KIND}),' in name
    assert parameter.startswith("new.old has a parameter 'b' and its entry has none. Add \"b\": KIND")
    for said in (name, parameter):
        assert "new_entries()" in said and "'steps or None'" in said


ASSIGNED = {**{name: kind for name, kind in NEURON.items() if name != "time_dim"}, "training": "flag"}
OPTIONS_OF = {
    "IF": ASSIGNED,
    "LIF": {**ASSIGNED, **LEAK},
    "BatchNormIF": {**ASSIGNED, "eps": "one number", "momentum": "momentum"},
    "BatchNormLIF": {**ASSIGNED, **LEAK, "eps": "one number", "momentum": "momentum"},
}


@pytest.mark.parametrize("name", OPTIONS_OF)
@pytest.mark.parametrize("learn", [False, True], ids=["", "learned"])
def test_wrong_values_assigned_to_a_layer_are_refused_by_name_and_leave_it_as_it_was(name, learn):
    made = {"learn_threshold": True, **({"learn_tau": True} if "LIF" in name else {})} if learn else {}
    layer = getattr(sf, name)(*([3] if "Batch" in name else []), **made)
    before = repr(layer)
    for parameter, kind in OPTIONS_OF[name].items():
        # A learned threshold is a parameter: torch says which kinds of values take its place.
        for value in KINDS[kind] if parameter != "threshold" or not learn else []:
            if isinstance(value, torch.Tensor) and parameter in ("threshold", "tau"):
                continue  # a tensor's dtype is looked at in the call
            entry = Entry(
                lambda parameter=parameter, **given: setattr(layer, parameter, given[parameter]),
                {},
                {},
                {"reset_value": ("reset",)},
            )
            found = refusal(entry, parameter, value)
            assert found is None, f"{parameter}={shown(value)}: {found}"
            assert repr(layer) == before


@pytest.mark.parametrize(
    ("layer", "parameter", "kind"),
    [(sf.Readout(), "mode", "word"), (sf.Readout(), "time_dim", "axis"), (sf.OverTime(nn.ReLU()), "module", "module")],
    ids=["Readout.mode", "Readout.time_dim", "OverTime.module"],
)
def test_wrong_values_assigned_to_the_small_layers_are_refused_by_name(layer, parameter, kind):
    for value in KINDS[kind]:
        found = refusal(Entry(lambda **given: setattr(layer, *given.popitem()), {}, {}), parameter, value)
        assert found is None, f"{parameter}={shown(value)}: {found}"
    layer(X)


@pytest.mark.parametrize("value", [1e39, -1e39, 3.5e38, math.inf, -(10**300)], ids=shown)
@pytest.mark.parametrize(
    "call",
    [sf.functional.integrate_and_fire, sf.reference.integrate_and_fire, sf.functional.batch_norm_integrate_and_fire],
    ids=["function", "reference", "batch norm"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_reset_value_beyond_float32_is_refused_by_kernels_and_reference_alike(value, call, dtype):
    with pytest.raises(ValueError, match=r"reset_value must be between -3\.4028235e\+38"):
        call(X.to(dtype), reset_value=value)


@pytest.mark.parametrize("value", [-1, 10**30, "nonsense", 1.5, "cuda:99999999999"], ids=shown)
@pytest.mark.parametrize("make", [sf.BatchNormIF, sf.BatchNormLIF])
def test_a_wrong_device_is_found_before_anything_is_made(value, make):
    with pytest.raises((TypeError, ValueError), match=r"device must be a torch\.device"):
        make(3, device=value)
