"""Numbers, sizes, tables and remedies in words."""

from __future__ import annotations

from collections.abc import Sequence


def readable(size: int) -> str:
    """Bytes with a unit: "512 B", "1.50 KiB", "120.3 MiB"."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{size} B" if units[0] == "B" else f"{value:.{1 if value >= 100 else 2}f} {units[0]}"


def table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of cells in columns, the first ``left`` of them aligned on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def installs(extra: str) -> str:
    """The command that adds what one of pyproject.toml's extras names to an installation."""
    return f"python -m pip install 'snnfast[{extra}]'"
