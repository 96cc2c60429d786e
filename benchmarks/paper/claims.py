"""The paper's claims: conversion against training in steps, and the verdicts of the figures in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import comparison, files
from .comparison import CONVERTED, TRAINED, Settings, steps_verdict
from .experiment import Context, Experiment, Outcome, Table, Verdict

OTHERS = ("table2", "table3", "fig3", "fig4", "fig5", "fig6")

CONCLUSIONS = (
    ("i) exploding and vanishing gradients can be solved by tuning the surrogate gradient's width", ("fig3", "fig5")),
    ("ii) batch normalization of the currents helps training SNNs similarly as in ANNs", ("fig4",)),
    (
        "iii) orders of magnitude fewer inference steps are needed when training from scratch",
        ("claims", "table2", "table3"),
    ),
    ("iv) with shallow architectures SNNs can sometimes achieve better performance than analogous ANNs", ("fig5",)),
    ("v) the performance of trained SNNs grows slower than that of ANNs with increasing layers", ("fig5",)),
)

_FINE = (*range(1, 11), 12, 14, 16, 18, 20, 25, 30, 40, 50, 60, 80, 100, 125, 160, 200, 250, 320, 400, 500)
SETTINGS = {
    "small": Settings(
        data="mnist",
        train=8000,
        test=2000,
        model="mnist_net",
        evaluated=20,
        training={"epochs": 1, "batch_size": 64, "lr": 2e-3},
        trained_counts=tuple(count for count in _FINE if count <= 40),
        converted_counts=(*_FINE, 1000),
        converted_test=400,
    ),
    "full": Settings(
        data="cifar10",
        model="resnet11",
        evaluated=20,
        training={"epochs": 100, "batch_size": 128, "lr": "find", "augment": "cifar"},
        trained_counts=tuple(count for count in _FINE if count <= 40),
        converted_counts=(*_FINE, 1000, 2000),
        calibration=(2000, 200),
        converted_test=2000,
    ),
}


def measure(settings: Settings, context: Context) -> Outcome:
    """Trained against converted, and what the other experiments in the context's folder found."""
    measured = comparison.measure(settings, context)
    own = [steps_verdict(measured.trained, measured.converted, settings.model, measured.classes)]
    table, plot = comparison.curves(settings, measured)
    found = {"claims": [_plain(verdict) for verdict in own], **gathered(context.folder, context.scale)}
    rows = [
        [verdict["claim"], _word(verdict["shown"]), verdict["measured"], name]
        for name, of_name in found.items()
        for verdict in of_name
    ]
    rows += [
        ["", "not measured", f"snnfast reproduce {name} --scale {context.scale}", name]
        for name in OTHERS
        if name not in found
    ]
    return Outcome(
        [
            Table("claims", "The claims, as inequalities", ("claim", "verdict", "measured", "from"), rows),
            Table(
                "conclusions",
                "The paper's conclusions (its section 4), and the experiments that bear on them",
                ("conclusion", "experiments", "verdicts"),
                [[conclusion, ", ".join(names), _tally(names, found)] for conclusion, names in CONCLUSIONS],
            ),
            table,
        ],
        [plot],
        own,
        [
            *measured.notes,
            f"Measured at {', '.join(map(str, measured.trained))} steps ({TRAINED}) and "
            f"{', '.join(map(str, measured.converted))} ({CONVERTED}).",
        ],
    )


def gathered(folder: str | None, scale: str) -> dict[str, list[dict[str, Any]]]:
    """The verdicts of the results in ``folder`` that were measured at ``scale``, by experiment."""
    if folder is None:
        return {}
    results = {name: files.read(Path(folder) / name) for name in OTHERS}
    return {
        name: result["verdicts"]
        for name, result in results.items()
        if result is not None and result.get("scale") == scale
    }


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {"claim": verdict.claim, "shown": verdict.shown, "measured": verdict.measured}


def _word(shown: bool) -> str:
    return "shown" if shown else "NOT SHOWN"


def _tally(names: Sequence[str], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How many of the experiments' verdicts are shown."""
    parts = []
    for name in names:
        if name in found:
            shown = sum(verdict["shown"] for verdict in found[name])
            parts.append(f"{name}: {shown} of {len(found[name])} shown")
        else:
            parts.append(f"{name}: not measured")
    return "; ".join(parts)


EXPERIMENT = Experiment("claims", "The paper's claims", "sections 3.4 and 4", SETTINGS, measure)
