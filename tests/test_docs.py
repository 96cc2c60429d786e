"""What is written holds: examples run as they stand, links lead somewhere, the reference has every public name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import snnfast

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(file for file in DOCS.rglob("*.md") if "_build" not in file.parts),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def examples(page: Path) -> list[str]:
    """The blocks that are to run. What cannot run anywhere, as it needs a GPU or data, is no ```python block."""
    return re.findall(r"^```python\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


EXAMPLES = [(page, example) for page in PAGES for example in examples(page)]


def test_readme_and_the_guide_have_examples():
    assert examples(README)
    assert len({page for page, _ in EXAMPLES if page.parent == DOCS / "guide"}) >= 7


@pytest.mark.parametrize(
    ("page", "example"), EXAMPLES, ids=[f"{named(page)}-{i}" for i, (page, _) in enumerate(EXAMPLES)]
)
def test_an_example_runs(page: Path, example: str, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(example, str(page), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_files_and_headings_lead_somewhere(page: Path):
    text = re.sub(r"^(`{3,}).*?^\1", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{named(page)} links to {target}"
        if heading:
            assert heading in anchors(file), f"{named(page)} links to {target}; there is {sorted(anchors(file))}"


def anchors(page: Path) -> set[str]:
    """The headings of a page as what browses a repository, and myst_heading_anchors, name them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def public_names(module: ModuleType) -> Iterator[str]:
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            yield from public_names(value)
        else:
            yield f"{module.__name__}.{name}"


def names_in_the_reference() -> set[str]:
    found = set()
    for page in sorted((DOCS / "api").glob("*.rst")):
        module = ""
        for kind, name in re.findall(r"^\.\. (?:py:)?(\w+):: +(\S+)", text_of(page), flags=re.MULTILINE):
            if kind in ("module", "automodule"):
                module = name
            elif kind == "data" or kind.startswith("auto"):
                found.add(name if name.startswith("snnfast.") else f"{module}.{name}")
    return found


def test_the_reference_has_every_public_name():
    rooms = {name for name in dir(snnfast) if not name.startswith("_")} - set(snnfast.__all__)
    assert {"models", "tuning", "training"} <= rooms
    public = set(public_names(snnfast))
    for room in rooms:
        public |= set(public_names(importlib.import_module(f"snnfast.{room}")))
    assert {"snnfast.IF", "snnfast.functional.integrate_and_fire", "snnfast.data.augment.CIFAR"} <= public
    assert not public - names_in_the_reference(), "add them to the pages of docs/api"


def test_the_changelog_and_the_citation_are_of_this_version():
    version = re.escape(snnfast.__version__)
    assert re.search(rf"^version: {version}$", text_of(ROOT / "CITATION.cff"), flags=re.MULTILINE)
    first, *_ = re.findall(r"^## (.*)$", text_of(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)
    assert re.fullmatch(rf"{version} \((unreleased|\d{{4}}-\d\d-\d\d)\)", first)
