"""Who may import whom: a room imports from rooms ahead of it only (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER: list[set[str]] = [
    {"_arguments", "_errors", "_text", "_plots", "_version", "_core"},
    {"surrogate", "dynamics", "normalization"},
    {"reference", "backends"},
    {"ops"},
    {"autograd"},
    {"functional", "layers"},
    {"compat", "fusion", "memory", "check", "trial", "activity", "streams", "exchange", "ann"},
    {"comparing", "models", "losses", "data", "tuning", "convert", "training"},
    {"cli", "benchmarks"},
]
HEIGHT = {room: height for height, rooms in enumerate(ORDER) for room in rooms}
# The package itself, what runs it, and the old places of pickled classes: they know everything.
OUTSIDE = {"__init__", "__main__", "_formerly"}


def imports(source: str) -> list[tuple[int, str]]:
    """Line and full name of everything of snnfast that a source imports, inside of functions too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == "snnfast"]


def breaches(room: str, source: str) -> list[str]:
    """What a source of a room imports and may not."""
    wrong = []
    for line, name in imports(source):
        imported = name.split(".")[1] if "." in name else ""
        # A public name of the package (IF, fuse) is one of the library's; modules of the laboratory bear their own.
        height = HEIGHT.get(imported, HEIGHT["check"])
        if imported != room and height > HEIGHT[room]:
            wrong.append(f"line {line}: {room} imports {name}")
    return wrong


def sources() -> dict[str, tuple[str, Path]]:
    found = {}
    for file in sorted((ROOT / "snnfast").rglob("*.py")):
        room = file.relative_to(ROOT / "snnfast").parts[0].removesuffix(".py")
        if room not in OUTSIDE:
            found[str(file.relative_to(ROOT))] = (room, file)
    return found


@pytest.mark.parametrize("name", sources())
def test_a_room_imports_from_rooms_ahead_of_it_only(name):
    room, file = sources()[name]
    assert room in HEIGHT, f"{name} is in no room of docs/architecture.md"
    assert not breaches(room, file.read_text())


def test_a_breach_is_found_wherever_it_is():
    assert breaches("ops", "from snnfast.layers import IF") == ["line 1: ops imports snnfast.layers.IF"]
    assert breaches("layers", "def f():\n    import snnfast.benchmarks.run") == [
        "line 2: layers imports snnfast.benchmarks.run"
    ]
    assert breaches("training", "from snnfast import benchmarks") == ["line 1: training imports snnfast.benchmarks"]
    assert not breaches("models", "import snnfast\nfrom snnfast import IF\nfrom snnfast.data import load")


def test_the_architectures_page_has_the_same_order():
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = page[page.index("## Who may import whom") :]
    rooms = [set(re.findall(r"`(\w+)`", line)) for line in re.findall(r"^\d\. .*$", listed, re.M)]
    assert rooms == [rooms_here - {"_core"} for rooms_here in ORDER]
