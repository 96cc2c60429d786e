"""A failed case says which configuration it is, in its id, and how to run it alone."""

from __future__ import annotations

import batch_norm_cases
import pytest
import torch
from configurations import CONFIGURATIONS, OPTIONS
from naming import each, name_of, reproduction


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


@each(CONFIGURATIONS[:3], OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
def test_the_line_that_runs_a_failed_case_has_its_whole_configuration(request, dtype, configuration):
    *imports, call = reproduction(request.node).split("; test(")
    assert eval(f"dict({call}", {"torch": torch}) == {"dtype": dtype, "configuration": configuration}
    found = {}
    exec(*imports, found)
    assert found["test"].__name__ == request.node.originalname
