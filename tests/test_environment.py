"""Which source a measurement was made of: results are worth nothing without."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from snnfast.benchmarks import environment


def tree(folder: Path) -> Path:
    """A source folder as small as it may be."""
    for name in ("csrc/cpu/a.cpp", "snnfast/a.py", "benchmarks/b.py", "CMakeLists.txt", "pyproject.toml", "setup.py"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return folder


def git(folder: Path, *arguments: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("no git")
    options = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *options, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(autouse=True)
def not_given(monkeypatch):
    monkeypatch.delenv("SNNFAST_COMMIT", raising=False)
    for name in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)


def test_a_checkout_has_its_commit_and_a_plus_where_it_is_modified(tmp_path, monkeypatch):
    git(tree(tmp_path), "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "all")
    monkeypatch.chdir(tmp_path / "csrc")
    found = environment.commit()
    assert found == git(tmp_path, "rev-parse", "HEAD").strip()
    (tmp_path / "setup.py").write_text("changed")
    assert environment.commit() == f"{found}+"


def test_the_variable_says_what_a_copy_is_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tree(tmp_path))
    monkeypatch.setenv("SNNFAST_COMMIT", "abc")
    assert environment.commit() == "abc"


def test_a_copy_without_git_has_a_digest_of_its_source(tmp_path, monkeypatch):
    first, second = tree(tmp_path / "first"), tree(tmp_path / "second")
    monkeypatch.chdir(first)
    found = environment.commit()
    assert found == f"source {environment.source_digest(second)}"
    (second / "snnfast" / "a.cpython-311.so").write_text("built")  # is no source
    assert found == f"source {environment.source_digest(second)}"
    (second / "csrc" / "cpu" / "a.cpp").rename(second / "csrc" / "a.cpp")
    assert found != f"source {environment.source_digest(second)}"


def test_a_copy_inside_of_another_repository_has_not_its_commit(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "none of ours", "--allow-empty")
    monkeypatch.chdir(tree(tmp_path / "copy"))
    assert str(environment.commit()).startswith("source ")


def test_outside_of_a_source_folder_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert environment.commit() is None
