"""Building compiles nothing twice: what is kept, what asks for a build of its own, and builds that were cut short."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest
from builds import Builder


def test_a_second_build_of_the_same_compiles_nothing(build: Builder):
    build()
    first = build.built()
    build.log.unlink()
    said = build()
    assert build.calls == ["configure", "compile"]
    assert build.built() == first
    assert "nothing compiled" in said
    assert "Used 8 registers" in build.log.read_text()  # of the build that compiled


def test_a_finished_build_leaves_the_module_alone(build: Builder):
    build()
    (folder,) = (f for f in build.cache.iterdir() if f.is_dir())
    assert sorted(f.name for f in folder.iterdir()) == ["_core.so", "finished", "log"]


def test_a_changed_source_is_compiled(build: Builder):
    build()
    before = build.built()
    with open(build.source / "csrc" / "calls.h", "a") as header:
        header.write("// changed\n")
    build()
    assert build.calls == ["configure", "compile"] * 2
    assert build.built() == before + b"// changed\n"


def edit(name: str, text: str = "\n"):
    def change(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with open(source / name, "a") as file:
            file.write(text)

    return change


def environment(**values: str):
    def change(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return change


def new_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = source.parent / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho another version\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}{os.pathsep}{os.environ['PATH']}")


def other_pybind11(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybind11.__version__", "0")


CHANGES = {
    "a kernel": edit("csrc/cuda/backward.cuh"),
    "an instantiation": edit("csrc/cuda/instantiate/float32.cu"),
    "a new header": edit("csrc/math/new.h"),
    "CMakeLists.txt": edit("CMakeLists.txt"),
    "setup.py": edit("setup.py"),
    "SNNFAST_CUDA": environment(SNNFAST_CUDA="0"),
    "SNNFAST_CUDA_ARCHS": environment(SNNFAST_CUDA_ARCHS="90"),
    "SNNFAST_CPU_SETS": environment(SNNFAST_CPU_SETS="baseline"),
    "CXXFLAGS": environment(CXXFLAGS="-g"),
    "CUDAFLAGS": environment(CUDAFLAGS="-G"),
    "a CMake variable": environment(CMAKE_CXX_COMPILER_LAUNCHER="ccache"),
    "the compiler": new_compiler,
    "pybind11": other_pybind11,
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_the_result_asks_for_a_build_of_its_own(setup_py, source_copy, monkeypatch, change):
    def key() -> str:
        given = setup_py.sources()
        return setup_py.key(given, setup_py.chosen_options(given))

    before = key()
    assert key() == before
    CHANGES[change](source_copy, monkeypatch)
    assert key() != before


def test_where_the_source_lies_does_not_matter(setup_py, source_copy, tmp_path):
    """So that a wheel from a source distribution, unpacked elsewhere each time, is not compiled again."""
    given = setup_py.sources()
    before = setup_py.key(given, setup_py.chosen_options(given))
    setup_py.ROOT = source_copy.rename(tmp_path / "elsewhere")
    setup_py.__file__ = str(setup_py.ROOT / "setup.py")
    given = setup_py.sources()
    assert setup_py.key(given, setup_py.chosen_options(given)) == before


@pytest.mark.parametrize("what", ["module cut short", "module missing", "mark empty", "mark garbled", "log missing"])
def test_a_damaged_cache_is_built_again(build: Builder, what: str):
    build()
    whole = build.built()
    (folder,) = (f for f in build.cache.iterdir() if f.is_dir())
    name, _, how = what.partition(" ")
    file = folder / {"module": "_core.so", "mark": "finished", "log": "log"}[name]
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes({"cut short": file.read_bytes()[:9], "empty": b"", "garbled": b"\xff one two three"}[how])
    said = build()
    assert "damaged" in said
    assert build.calls == ["configure", "compile"] * 2
    assert build.built() == whole


def test_an_interrupted_build_goes_on_where_it_stopped(build: Builder, tmp_path: Path):
    with build.start(FAKE_WAIT=str(tmp_path / "never")) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "[1/2]" in line:
                break
        os.killpg(running.pid, signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode != 0
    build()
    assert build.calls == ["configure", "compile", "configure", "go on"]
    assert build.built()


def test_what_failed_twice_starts_over(build: Builder):
    for _ in range(2):
        build(fails=True, FAKE_FAILS="no space left")
    build()
    assert build.calls[1::2] == ["compile", "go on", "compile"]


def test_two_builds_of_the_same_at_once_compile_once(build: Builder, tmp_path: Path):
    wait = tmp_path / "wait"
    with build.start(FAKE_WAIT=str(wait)) as one:
        build.compiles(one)
        with build.start(FAKE_WAIT=str(wait)) as two:
            assert two.stdout is not None
            assert "waiting for another build" in two.stdout.readline()
            wait.touch()
            one.communicate(timeout=60)
            assert "nothing compiled" in two.communicate(timeout=60)[0]
    assert (one.returncode, two.returncode) == (0, 0)
    assert build.calls == ["configure", "compile"]


def test_the_cache_can_be_turned_off(build: Builder, tmp_path: Path):
    home = {"SNNFAST_BUILD_CACHE": "0", "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    build(**home)
    build(**home)
    assert build.calls == ["configure", "compile"] * 2
    assert not (tmp_path / "home").exists() and not (tmp_path / "xdg").exists() and not build.cache.exists()


def test_the_cache_lies_where_caches_do(setup_py, monkeypatch, tmp_path):
    options = {"SNNFAST_CUDA": "0", "SNNFAST_CUDA_ARCHS": "90"}
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert setup_py.cache_root(options) == tmp_path / "home/.cache/snnfast/build"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert setup_py.cache_root(options) == tmp_path / "xdg/snnfast/build"
    monkeypatch.setenv("SNNFAST_BUILD_CACHE", str(tmp_path / "own"))
    assert setup_py.cache_root(options) == tmp_path / "own"


def test_a_place_that_cannot_be_written_costs_the_cache_alone(build: Builder, tmp_path: Path):
    (tmp_path / "file").touch()
    said = build(SNNFAST_BUILD_CACHE=str(tmp_path / "file"))
    assert "snnfast: no build cache: " in said
    assert build.built()


@pytest.mark.parametrize("name", ["CXXFLAGS", "SNNFAST_CUDA_ARCHS"])
def test_what_is_made_for_this_machine_alone_is_not_kept(setup_py, monkeypatch, name):
    monkeypatch.setenv(name, "-march=native" if name == "CXXFLAGS" else "native")
    assert setup_py.cache_root(setup_py.chosen_options(setup_py.sources())) is None


def test_the_cache_keeps_the_builds_used_last_and_those_going_on(setup_py, tmp_path):
    root = tmp_path / "cache"
    root.mkdir()
    for n in range(setup_py.KEPT_BUILDS + 3):
        (root / f"build{n}").mkdir()
        os.close(setup_py.acquire(root / f"build{n}", wait=True))
        os.utime(root / f"build{n}", (n, n))
    going_on = setup_py.acquire(root / "build0", wait=True)
    setup_py.prune(root)
    os.close(going_on)
    kept = {"build0", *(f"build{n}" for n in range(3, setup_py.KEPT_BUILDS + 3))}
    assert {f.name for f in root.iterdir()} == kept | {f"{name}.lock" for name in kept}


def test_a_build_that_outlives_its_installer_keeps_the_lock(build: Builder, tmp_path: Path):
    """A killed pip may leave ninja behind: no other build may write into the same folder meanwhile."""
    wait = tmp_path / "wait"
    with build.start(FAKE_WAIT=str(wait)) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "[1/2]" in line:
                break
        running.kill()
        running.wait(timeout=60)
        (lock,) = build.cache.glob("*.lock")
        with open(lock) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        wait.touch()
        running.stdout.read()  # until the step that was left behind ends
