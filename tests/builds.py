"""Builds of a copied source folder, with a stand-in for CMake that takes no time and waits where a test wants it to.

The fixtures are known to every test (conftest.py).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Configures and builds like CMake, but compiles nothing. FAKE_CALLS: a file that it adds its calls to; FAKE_WAIT: a
# file that a build waits for after its first line; FAKE_FAILS: what a build that fails says. A second build in one
# folder finds what the first has left, as ninja does.
FAKE_CMAKE = """#!{python}
import os, pathlib, sys, time
arguments = sys.argv[1:]
if arguments == ["--version"]:
    print("cmake version 0")
    raise SystemExit
def say(text):
    print(text, flush=True)
with open(os.environ["FAKE_CALLS"], "a") as calls:
    if "-S" in arguments:
        build = pathlib.Path(arguments[arguments.index("-B") + 1])
        calls.write("configure\\n")
        build.mkdir(exist_ok=True)
        (build / "build.ninja").write_text("build a.cpp.o: CXX\\nbuild b.cu.o: CUDA\\nbuild _core.so: LINK\\n")
        say("-- The CUDA compiler identification is Fake")
        say("-- snnfast: a word of our own")
        raise SystemExit
    build = pathlib.Path(arguments[arguments.index("--build") + 1])
    half = build / "half.o"
    calls.write("go on\\n" if half.exists() else "compile\\n")
half.touch()
say("[1/2] Building a.cpp.o")
say("ptxas info    : Used 8 registers")
began = time.monotonic()
while "FAKE_WAIT" in os.environ and not os.path.exists(os.environ["FAKE_WAIT"]):
    time.sleep(0.01)
    if time.monotonic() - began > 30:
        raise SystemExit("waited in vain")
if "FAKE_FAILS" in os.environ:
    say(os.environ["FAKE_FAILS"])
    raise SystemExit(1)
(build / "_core.so").write_bytes(b"the module of " + (build.parent / "source/csrc/calls.h").read_bytes())
say("[2/2] Linking")
"""


@pytest.fixture
def source_copy(tmp_path: Path) -> Path:
    """The files that a build reads, without those an earlier one left."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("not in a source tree")
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "snnfast", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "results"))
    return copy


class Builder:
    """Builds a source folder with the stand-in, into `cache`."""

    def __init__(self, source: Path, folder: Path):
        tools = folder / "tools"
        tools.mkdir()
        (tools / "cmake").write_text(FAKE_CMAKE.format(python=sys.executable))
        (tools / "cmake").chmod(0o755)
        self.source, self.cache, self.calls_file = source, folder / "cache", folder / "calls"
        hidden = re.compile("SNNFAST_|CI$|PIP_QUIET$|CMAKE_|CUDA|XDG_CACHE_HOME")
        self.environment = {name: value for name, value in os.environ.items() if not hidden.match(name)} | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "FAKE_CALLS": str(self.calls_file),
            "SNNFAST_BUILD_CACHE": str(self.cache),
            "SNNFAST_BUILD_LOG": str(folder / "log"),
        }
        self.command = [
            *(sys.executable, "setup.py", "--quiet", "build_ext"),
            *("--build-temp", str(folder / "temp"), "--build-lib", str(folder / "lib")),
        ]
        self.module = folder / "lib" / "snnfast"
        self.log = folder / "log"

    def start(self, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command,
            cwd=self.source,
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __call__(self, fails: bool = False, **more: str) -> str:
        """What a build says."""
        with self.start(**more) as build:
            said = build.communicate(timeout=60)[0]
        assert (build.returncode != 0) == fails, said
        return said

    def compiles(self, running: subprocess.Popen) -> None:
        """Returns once a started build says that it compiles the first file."""
        assert running.stdout is not None
        assert any("[1/2] Building a.cpp.o" in line for line in running.stdout)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().split("\n")[:-1] if self.calls_file.exists() else []

    def built(self) -> bytes:
        (module,) = self.module.glob("_core*.so")
        content = module.read_bytes()
        module.unlink()
        return content


@pytest.fixture
def build(source_copy: Path, tmp_path: Path) -> Builder:
    return Builder(source_copy, tmp_path)


@pytest.fixture
def setup_py(source_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The functions of setup.py, for a source folder that a test may change."""
    for name in ("SNNFAST_CUDA", "SNNFAST_CUDA_ARCHS", "SNNFAST_CPU_SETS", "SNNFAST_BUILD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("setup_of_snnfast", source_copy / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
