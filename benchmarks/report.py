"""Results as text: a table per group, ratios first, and what was measured on which machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .baselines import OURS
from .measure import copy_share, disturbed, quartile_ratios, ratio

HEADINGS = ("case", "naive / ours", "ours / relu", "ours", "moved", "of copy", "kept", "/ input", "naive's")
MEANING = """\
naive / ours   how many times longer the per-timestep loop takes; printed only where both gave the same results here
ours / relu    our time over that of torch.relu on the same tensor
ours           median time of one iteration (training: forward and backward)
moved          bytes that must cross the memory: input, output and their gradients
of copy        share of the bandwidth of a copy of the same size, measured beside it, counting the bytes moved
kept           bytes kept for the backward pass, by saved-tensor hooks
/ input        the same in units of the input; beside it the naive loop's"""

DISTURBED = """\
3.1-9.0x?      other processes competed for the cores each time that this was timed: every parallel region may have
               waited for them, the loop's many most of all. Told are the ratios of one side's fast quartile to
               the other's slow one, and the reverse: the wider, the less is known. Repeat it on a quiet machine, or
               with --processes 5, which takes the undisturbed ones."""


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns"


def size(count: float) -> str:
    """Three digits and a decimal unit."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def against(case: dict[str, Any], name: str) -> str:
    """The ratio of a side's time to ours; "differs" where none may be told; "-" where there is none; what it may
    be, with a question mark, where others competed for the cores."""
    side = case["sides"].get(name, {})
    if side.get("agrees") is False:
        return "differs"
    return _told(case, name, OURS)


def _told(case: dict[str, Any], slower: str, faster: str) -> str:
    found = ratio(case, slower, faster)
    if found is None or not disturbed(case):
        return _times(found)
    low, high = (f"{bound:.2g}" if bound < 10 else f"{bound:.0f}" for bound in quartile_ratios(case, slower, faster))
    return f"{low}-{high}x?"


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    ours = case["sides"].get(OURS, {})
    kept, moved, share = ours.get("kept"), case["bytes_moved"], copy_share(case)
    reached = "-" if share is None else f"{share:.0%}{'?' if disturbed(case) else ''}"
    return (
        case["name"],
        against(case, "naive"),
        _told(case, OURS, "relu"),
        duration(ours["time"]["median"]) if "time" in ours else "-",
        "-" if moved is None else size(moved),
        reached,
        "-" if kept is None else size(kept["total"]),
        *(_kept_in_inputs(case, name) for name in (OURS, "naive")),
    )


def _kept_in_inputs(case: dict[str, Any], name: str) -> str:
    kept = case["sides"].get(name, {}).get("kept")
    return f"{kept['total'] / case['input_bytes']:.3g}" if kept and case["input_bytes"] else "-"


def _others(case: dict[str, Any]) -> str:
    """One line on the other sides of a case, "" if there are none."""
    parts = []
    for name, side in case["sides"].items():
        if name in (OURS, "naive", "relu", "copy") or "skipped" in side:
            continue
        if side.get("agrees") is False:
            parts.append(f"{side['title']}: {side['remark']}")
            continue
        compiling = f" (first call {duration(side['first_call'])})" if "first_call" in side else ""
        parts.append(f"{side['title']} {against(case, name)} ours{compiling}")
    return "others: " + ", ".join(parts) if parts else ""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _tables(cases: Sequence[dict[str, Any]]) -> Iterable[str]:
    for group in dict.fromkeys(case["group"] for case in cases):
        members = [case for case in cases if case["group"] == group]
        yield ""
        yield group
        lines = aligned([HEADINGS, *map(_row, members)])
        yield lines[0]
        yield "-" * len(lines[0])
        for case, line in zip(members, lines[1:], strict=True):
            yield line
            if others := _others(case):
                yield f"    {others}"
            naive = case["sides"].get("naive", {})
            if naive.get("agrees") is False:
                yield f"    {naive['title']}: {naive['remark']}"
            if case["note"]:
                yield f"    ({case['note']})"


def _memory(found: dict[str, Any] | None) -> Iterable[str]:
    """What a conv-BN-IF block keeps, a row a side."""
    if not found:
        return
    yield ""
    yield "bytes per neuron and step that a conv-BN-IF block keeps for backward, float32, weights not counted"
    sides = found["sides"].values()
    rows = [("T", *map(str, found["steps"]))]
    rows += [
        (side["title"], *(f"{value:.3g}" for value in side["per_neuron_and_step"]))
        for side in sides
        if "skipped" not in side
    ]
    lines = aligned(rows)
    yield lines[0]
    yield "-" * len(lines[0])
    yield from lines[1:]
    for side in sides:
        if "skipped" in side:
            yield f"  {side['title']}: {side['skipped']}"


def _skipped(cases: Sequence[dict[str, Any]]) -> Iterable[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        for side in case["sides"].values():
            if "skipped" in side:
                reasons.setdefault((side["title"], side["skipped"]), []).append(case["name"])
    if reasons:
        yield ""
        yield "not run:"
    for (title, reason), names in reasons.items():
        where = f" in {', '.join(names)}" if len(names) <= 3 else f" in {len(names)} cases"
        yield f"  {title}: {reason}{where}"


def text(results: dict[str, Any]) -> str:
    """The whole report of one device's results."""
    machine, cases = results["environment"], results["cases"]
    versions = machine["versions"]
    load = ", ".join(f"{value:.2f}" for value in machine["load_average"])
    lines = [
        f"snnfast {versions.get('snnfast', '?')} on {machine['device_name']} ({machine['device']}), "
        f"{machine['threads']} threads of {machine['cores']} cores, {machine['isa']['snnfast']}, "
        f"torch {versions['torch']}",
        f"{machine['allocator']['remark']}; load {load}; best median of {results['processes']} "
        f"process{'es' if results['processes'] > 1 else ''}; commit {machine['commit'] or 'unknown'}",
        *_tables(cases),
        *_memory(results.get("memory")),
        "",
        MEANING,
        *_skipped(cases),
    ]
    if any(map(disturbed, cases)):
        lines += ["", DISTURBED]
    return "\n".join(lines)


def progress(case: dict[str, Any]) -> str:
    """One line as a case ends."""
    ours = case["sides"][OURS]
    parts = [duration(ours["time"]["median"]) if "time" in ours else ours.get("skipped", "not run")]
    parts += [
        f"{found} {what}"
        for found, what in ((against(case, "naive"), "by the naive loop"), (_told(case, OURS, "relu"), "relu"))
        if found != "-"
    ]
    if disturbed(case):
        parts.append(f"disturbed: others used {case['cores_used_by_others']:.1f} cores")
    return ", ".join(parts)
