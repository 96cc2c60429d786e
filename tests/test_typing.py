"""A type checker sees the types that README promises, in an installed package as in an editable one."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import snnfast

TESTS = Path(__file__).parent
SCRIPT = TESTS / "typing" / "user.py"


def found_by_mypy() -> dict[str, str]:
    """The environment in which mypy finds the package: by itself where it is installed, and by MYPYPATH where it is
    editable, since mypy does not follow the import hook of setuptools."""
    folder = Path(snnfast.__file__).parents[1]
    installed = folder in {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MYPY")}
    return environment if installed else {**environment, "MYPYPATH": str(folder)}


def mypy(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """mypy in another folder, with the options and the cache of ``mypy`` alone in the source folder: what it has found
    out about torch, most of a quarter of a minute, counts for both. (The options ask nothing else of a script: of an
    editable package they leave out errors about packages without types, which an installed one has not.)"""
    root = TESTS.parent
    options = ["--config-file", root / "pyproject.toml", "--cache-dir", root / ".mypy_cache"]
    return subprocess.run(
        [sys.executable, "-P", "-m", "mypy", *options, script],
        cwd=folder,
        env=found_by_mypy(),
        capture_output=True,
        text=True,
        timeout=600,
    )


needs_mypy = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is not installed: pip install -c constraints.txt mypy"
)


@needs_mypy
def test_calls_have_the_types_that_users_write_down_and_mistakes_are_found(tmp_path):
    done = mypy(SCRIPT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_mypy
def test_a_type_that_is_not_given_is_found(tmp_path):
    """What the script asserts can fail: the package is found, with its types."""
    script = tmp_path / "wrong.py"
    lines = [
        "from typing import assert_type",
        "import torch, snnfast as sf",
        "assert_type(sf.IF()(torch.rand(2, 3)), int)",
        "sf.IF(thresold=1.0)",
    ]
    script.write_text("\n".join(lines))
    done = mypy(script, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'wrong.py:3: error: Expression is of type "Tensor", not "int"' in done.stdout
    assert "wrong.py:4: error: " in done.stdout and "Found 2 errors" in done.stdout


def test_the_script_runs():
    runpy.run_path(str(SCRIPT), run_name="__main__")
