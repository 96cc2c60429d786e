"""The index of all results: one HTML file that needs nothing else."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import files

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2833; --soft: #5b6673; --line: #dfe3e8; --paper: #fefefe; --card: #fff;
        --good: #0b6e4f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaef; --soft: #9aa5b1; --line: #313a45; --paper: #14181d; --card: #1b2027; --good: #4cc38a;
          --bad: #ff8a80; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; } h2 { font-size: 1.25rem; margin: 0; }
p, ul { max-width: 70ch; } .soft { color: var(--soft); font-size: .9rem; } a { color: inherit; }
section { border: 1px solid var(--line); border-radius: 10px; background: var(--card); padding: 1.25rem;
          margin-top: 1.5rem; }
.side { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1.5rem; align-items: start; }
@media (max-width: 56rem) { .side { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0 0 1rem; } figure svg { width: 100%; height: auto; background: #fefefe; border-radius: 6px; }
figcaption { font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
.verdicts { list-style: none; padding: 0; } .verdicts li { margin-bottom: .8rem; }
.mark { display: inline-block; font-weight: 700; font-size: .8rem; letter-spacing: .03em; }
.shown .mark { color: var(--good); } .not-shown .mark { color: var(--bad); }
summary { cursor: pointer; margin: .5rem 0; } code { font-size: .85em; overflow-wrap: anywhere; }
"""
_ROWS_IN_SIGHT = 12


def index(folder: Path, names: Sequence[str]) -> str:
    """The page of the results that are in ``folder``, in the order of ``names``; what is missing is named."""
    results = {name: files.read(folder / name) for name in names}
    there = {name: result for name, result in results.items() if result is not None}
    missing = [name for name in names if name not in there]
    verdicts = [verdict for result in there.values() for verdict in result["verdicts"]]
    shown = sum(verdict["shown"] for verdict in verdicts)
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Training Deep Spiking Neural Networks, reproduced</title><style>{_STYLE}</style></head><body>"
    )
    intro = (
        "<h1>Training Deep Spiking Neural Networks, reproduced</h1>"
        "<p>The tables and figures of Ledinauskas, Ruseckas, Juršėnas and Buračas (arXiv 2006.04436), each as one "
        "command. Verdicts are inequalities that were fixed before anything was measured, but for those that a "
        "table's or figure's own notes name.</p>"
        f"<p><strong>{shown} of {len(verdicts)} verdicts shown.</strong> {_verdict_links(there)}</p>"
    )
    if missing:
        intro += f'<p class="soft">Not run: {", ".join(f"<code>{escape(name)}</code>" for name in missing)}.</p>'
    body = "".join(_section(folder / name, name, result) for name, result in there.items())
    return f"{head}{intro}{body}</body></html>\n"


def _verdict_links(results: dict[str, dict[str, Any]]) -> str:
    links = []
    for name, result in results.items():
        failed = sum(not verdict["shown"] for verdict in result["verdicts"])
        remark = f" ({failed} NOT SHOWN)" if failed else ""
        links.append(f'<a href="#{escape(name)}">{escape(name)}</a>{remark}')
    return ", ".join(links)


def _section(folder: Path, name: str, result: dict[str, Any]) -> str:
    plots = "".join(_plot(folder, name, number, plot) for number, plot in enumerate(result["plots"]))
    tables = "".join(_table(folder, table) for table in result["tables"])
    notes = "".join(f"<li>{escape(note)}</li>" for note in result["notes"])
    verdicts = "".join(map(_verdict, result["verdicts"]))
    return (
        f'<section id="{escape(name)}"><h2>{escape(result["title"])}</h2>'
        f'<p class="soft">{escape(result["place"])}</p><div class="side"><div>{plots}</div><div>'
        f'<ul class="verdicts">{verdicts}</ul>'
        + (f"<ul>{notes}</ul>" if notes else "")
        # Under both: beside the verdicts there is no room for all columns.
        + f'<p class="soft">{_about(result)}</p></div></div>{tables}</section>'
    )


def _about(result: dict[str, Any]) -> str:
    environment = result.get("environment", {})
    versions = environment.get("versions", environment)  # results of before had no folder of versions
    known = {
        "": environment.get("device_name") or environment.get("cpu"),
        "CPU threads": environment.get("threads"),
        "torch": versions.get("torch"),
        "snnfast": versions.get("snnfast"),
    }
    facts = [
        f"scale {result.get('scale')}",
        f"{result.get('seconds', 0):.0f} s",
        *(f"{what} {value}".strip() for what, value in known.items() if value),
        f"commit {environment.get('commit') or 'unknown: not run from a source tree'}",
    ]
    said = ", ".join(escape(str(fact)) for fact in facts)
    return f"{said}.<br><code>{escape(str(result.get('command', '')))}</code>"


def _verdict(verdict: dict[str, Any]) -> str:
    kind, mark = ("shown", "✓ shown") if verdict["shown"] else ("not-shown", "✗ NOT SHOWN")
    paper = f'<br><span class="soft">The paper: {escape(verdict["paper"])}</span>' if verdict["paper"] else ""
    return (
        f'<li class="{kind}"><span class="mark">{mark}</span> {escape(verdict["claim"])}'
        f"<br>Measured: {escape(verdict['measured'])}{paper}</li>"
    )


def _plot(folder: Path, name: str, number: int, plot: dict[str, str]) -> str:
    try:
        svg = files.inline((folder / plot["file"]).read_text(encoding="utf-8"), f"{name}-{number}")
    except (OSError, ValueError):
        return f"<p>{escape(plot['file'])} is missing.</p>"
    title = escape(plot["title"])
    return f'<figure role="img" aria-label="{title}">{svg}<figcaption>{title}</figcaption></figure>'


def _table(folder: Path, table: dict[str, str]) -> str:
    try:
        with (folder / table["file"]).open(encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file))
    except (OSError, ValueError):
        return f"<p>{escape(table['file'])} is missing.</p>"
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(_short(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    html = f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'
    title = f'{escape(table["title"])} <span class="soft">({escape(table["file"])})</span>'
    if len(rows) > _ROWS_IN_SIGHT:
        return f"<details><summary>{title}, {len(rows)} rows</summary>{html}</details>"
    return f"<p>{title}</p>{html}"


def _short(cell: str) -> str:
    """Four digits of a number; the file has them all."""
    try:
        int(cell)
    except ValueError:
        try:
            return f"{float(cell):.4g}"
        except ValueError:
            pass
    return cell
