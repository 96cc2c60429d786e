"""A failed case says which configuration it is, in its id, and how to run it alone."""

from __future__ import annotations

import inspect

import batch_norm_cases
import pytest
import torch
from configurations import CONFIGURATIONS, OPTIONS
from naming import each, name_of, reproduction

import snnfast as sf


@pytest.mark.parametrize(
    ("drawn", "options"),
    [(CONFIGURATIONS, OPTIONS), (batch_norm_cases.CONFIGURATIONS, batch_norm_cases.NAMED)],
    ids=["all", "batch norm"],
)
def test_every_configuration_has_a_name_of_its_own_without_marks_that_a_shell_or_pytest_reads(drawn, options):
    names = {name_of(configuration, options) for configuration in drawn}
    assert len(names) == len(drawn)
    assert set("".join(names)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def test_a_name_has_the_options_that_differ_from_the_plainest():
    plainest = {option: values[0] for option, values in OPTIONS.items()}
    assert name_of(plainest, OPTIONS) == "IF-T1"
    changed = {"neuron": "LIF", "reset": "soft", "tau": "per channel", "dtype": torch.bfloat16, "steps": 17}
    named = name_of({**plainest, **changed, "layout": "channels last"}, OPTIONS)
    assert named == "LIF-soft-tau_per_channel-bfloat16-T17-channels_last"


@pytest.mark.parametrize(
    ("options", "drawn", "said"),
    [
        ({"unheard_of": [0, 2]}, {"unheard_of": 2}, "no words for the option 'unheard_of': add it to WORDS"),
        ({"delay": [False, True, 2]}, {"delay": 2}, r"no word for delay=2: add it to WORDS\['delay'\]"),
    ],
    ids=["option", "value"],
)
def test_an_option_or_a_value_without_words_is_told_where_to_add_them(options, drawn, said):
    plainest = {option: values[0] for option, values in OPTIONS.items()}
    with pytest.raises(LookupError, match=f"tests/naming.py has {said}"):
        name_of({**plainest, **drawn}, {**OPTIONS, **options})


def test_every_option_of_the_neuron_is_drawn():
    """By a name of its own; ``held`` draws steps, and ``neuron`` what the current is divided by."""
    takes = inspect.signature(sf.functional.leaky_integrate_and_fire).parameters.values()
    options = {parameter.name for parameter in takes if parameter.kind is not parameter.VAR_KEYWORD}
    forgotten = options - OPTIONS.keys() - {"current", "decay_input", "return_potential"}
    assert not forgotten, (
        f"add {forgotten} to OPTIONS and make_case of tests/configurations.py, and to WORDS of naming.py"
    )


@each(CONFIGURATIONS[:3], OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
def test_the_line_that_runs_a_failed_case_has_its_whole_configuration(request, dtype, configuration):
    *imports, call = reproduction(request.node).split("; test(")
    assert eval(f"dict({call}", {"torch": torch}) == {"dtype": dtype, "configuration": configuration}
    found = {}
    exec(*imports, found)
    assert found["test"].__name__ == request.node.originalname
