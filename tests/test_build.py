"""What building says while it does it: its steps, what they cost, and what went wrong."""

from __future__ import annotations

import os
import pty
import re
import sys
from pathlib import Path

import pytest
from builds import Builder


def test_what_a_build_says_arrives_while_it_goes_on(build: Builder, tmp_path: Path):
    wait = tmp_path / "wait"
    with build.start(FAKE_WAIT=str(wait)) as running:
        build.compiles(running)
        assert running.poll() is None
        wait.touch()
        rest = running.communicate(timeout=60)[0]
    assert running.returncode == 0
    assert re.search(r"^ *\d+ s  \[2/2\] Linking$", rest, re.MULTILINE), rest


def test_a_build_shows_its_steps_and_logs_the_registers_of_kernels(build: Builder):
    said = build()
    assert "snnfast: a word of our own" in said.splitlines()
    assert "[2/2] Linking" in said
    assert "registers" not in said
    assert "Used 8 registers" in build.log.read_text()


def test_a_failure_ends_with_the_tool_s_own_words(build: Builder):
    words = "[1/2] before\nFAILED: a.cpp.o\nc++ -c a.cpp\na.cpp:1:1: error: no\n[2/2] after"
    said = build(fails=True, FAKE_FAILS=words)
    end = said.strip().splitlines()[-4:]
    assert end[:3] == ["FAILED: a.cpp.o", "c++ -c a.cpp", "a.cpp:1:1: error: no"]
    assert end[3].startswith("snnfast: the build step failed: cmake --build ")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("cuda", "archs", "gpus", "says"),
    [
        ("auto", "80-real;90", [], "no GPU answers here: SNNFAST_CUDA=0 leaves it out"),
        ("auto", "80-real;90", ["90"], "SNNFAST_CUDA_ARCHS='90' builds for this machine's GPU alone"),
        ("auto", "90", ["90"], None),
        ("1", "80-real;90", [], None),
    ],
)
def test_a_build_says_first_what_cuda_costs(setup_py, monkeypatch, capsys, tmp_path, cuda, archs, gpus, says):
    (tmp_path / "build.ninja").write_text("build a.cpp.o: CXX a.cpp\nbuild b.cu.o: CUDA b.cu\n")
    monkeypatch.setattr(setup_py, "gpus_here", lambda: gpus)
    monkeypatch.setenv("CI", "1")  # not to the terminal of whoever runs the tests
    options = {"SNNFAST_CUDA": cuda, "SNNFAST_CUDA_ARCHS": archs, "SNNFAST_CPU_SETS": "all"}
    setup_py.announce(tmp_path, True, options, False)
    said = capsys.readouterr().err
    count = len(archs.split(";"))
    assert said.startswith("snnfast: compiling 2 files (CPU kernels for every instruction set, CUDA kernels for ")
    assert f"{count} GPU architecture" in said
    assert re.search(r"about \d+ minutes? of CPU time, \d+ minutes? on \d+ idle cores?$", said.splitlines()[0])
    assert ("the CUDA part is" in said) == (says is not None)
    assert says is None or says in said


def test_more_kernels_are_said_to_take_longer(setup_py, monkeypatch, capsys, tmp_path):
    (tmp_path / "build.ninja").write_text("")
    monkeypatch.setenv("CI", "1")
    found = []
    for cuda, archs, sets in (
        (False, "", "avx2"),
        (False, "", "all"),
        (True, "90", "all"),
        (True, "80;90;100;120", "all"),
    ):
        options = {"SNNFAST_CUDA": "1", "SNNFAST_CUDA_ARCHS": archs, "SNNFAST_CPU_SETS": sets}
        setup_py.announce(tmp_path, cuda, options, False)
        said = capsys.readouterr().err
        assert f"CPU kernels for {'every instruction set' if sets == 'all' else sets}" in said
        found.append(int(re.search(r"about (\d+) minute", said)[1]))
    assert found == sorted(set(found))


@pytest.mark.parametrize("answer", ["", "exit 9", "echo nonsense"], ids=["absent", "failing", "nonsense"])
def test_a_gpu_that_does_not_answer_is_none(setup_py, monkeypatch, tmp_path, answer):
    if answer:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert setup_py.gpus_here() == []


def test_the_gpus_of_a_machine_are_named_as_cmake_does(setup_py, monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '12.0\\n9.0\\n9.0\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert setup_py.gpus_here() == ["120", "90"]


def at_a_terminal(build: Builder, output: Path, **more: str) -> str:
    """What the terminal shows of a build whose output goes to a file, as pip keeps it."""
    child, terminal = pty.fork()
    if child == 0:
        with open(output, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(build.source)
        os.execve(sys.executable, build.command, build.environment | more)
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # how Linux says that no one has the terminal open any more
        pass
    os.close(terminal)
    assert os.waitpid(child, 0)[1] == 0, output.read_text()
    return shown.decode()


def test_whoever_sits_at_the_terminal_learns_how_long_it_takes_once(build: Builder, tmp_path: Path):
    shown = at_a_terminal(build, tmp_path / "out")
    assert "snnfast: compiling 2 files" in shown
    assert len(shown.split("\n")) <= 6
    assert "[1/2]" not in shown
    assert at_a_terminal(build, tmp_path / "out") == ""  # nothing to wait for


@pytest.mark.parametrize("name", ["CI", "PIP_QUIET", "SNNFAST_BUILD_QUIET"])
def test_a_terminal_is_left_alone_where_asked(build: Builder, tmp_path: Path, name: str):
    assert at_a_terminal(build, tmp_path / "out", **{name: "1"}) == ""
    assert "snnfast: compiling 2 files" in (tmp_path / "out").read_text()
