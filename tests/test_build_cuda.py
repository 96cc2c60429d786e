"""What SNNFAST_CUDA, SNNFAST_CUDA_ARCHS and SNNFAST_CPU_SETS ask of a build, and what one without nvcc says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_threads import SETS, core, restored  # noqa: F401

HIDDEN = (
    *("CUDACXX", "CUDA_PATH", "CUDA_HOME", "CUDAToolkit_ROOT"),
    *("SNNFAST_CUDA_ARCHS", "SNNFAST_CPU_SETS", "SNNFAST_BUILD_LOG"),
)
FLAGS = {
    "80-real;90-real;100-real;120": ["80:sm_80,sm_90", "100:sm_100,sm_120,compute_100"],
    "90": ["90:sm_90,compute_90"],
    "75;86-real;89-virtual": ["75:sm_75,compute_75", "86:sm_86,compute_86"],
    "120;100-real": ["100:sm_120,sm_100,compute_100"],
    "90a": [],
    "80;native": [],
}


def in_cmake(source: Path, folder: Path, function: str, script: str, **environment: str) -> str:
    """What a script says that has one of CMakeLists.txt's functions."""
    given = (source / "CMakeLists.txt").read_text()
    found = re.search(rf"function\({function}\b.*?endfunction\(\)", given, re.DOTALL)
    assert found is not None
    file = folder / "script.cmake"
    file.write_text(f"cmake_minimum_required(VERSION 3.24)\n{found[0]}\n{script}\n")
    done = subprocess.run(
        [shutil.which("cmake") or "cmake", "-P", str(file)],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in HIDDEN} | environment,
    )
    return done.stderr.strip()


@pytest.mark.parametrize("architectures", FLAGS)
def test_architectures_of_one_front_end_pass_share_it(source_copy, tmp_path, architectures):
    """Names that are more than numbers are left to CMake."""
    script = f'set(SNNFAST_CUDA_ARCHS "{architectures}")\ncuda_code_flags(flags)\nmessage("${{flags}}")'
    said = in_cmake(source_copy, tmp_path, "cuda_code_flags", script)
    found = re.findall(r"arch=compute_(\d+),code=\[([^]]*)\]", said)
    assert [":".join(parts) for parts in found] == FLAGS[architectures]


X86 = "avx512;avx2;baseline"


@pytest.mark.parametrize(
    ("chosen", "known", "built"),
    [
        ("all", X86, X86),
        ("all", "baseline", "baseline"),
        ("avx512", X86, "avx512"),
        ("avx2;baseline", X86, "avx2;baseline"),
        ("avx2;avx2;", X86, "avx2"),
        ("native", "baseline", "baseline"),
    ],
)
def test_the_instruction_sets_that_are_asked_for_are_built(source_copy, tmp_path, chosen, known, built):
    script = f'set(SNNFAST_CPU_SETS "{chosen}")\nchosen_cpu_sets(sets "{known}")\nmessage("${{sets}}")'
    assert in_cmake(source_copy, tmp_path, "chosen_cpu_sets", script) == built


def test_the_machine_s_own_instruction_set_is_the_best_that_it_has(source_copy, tmp_path):
    best = next((name for name in SETS if core.use_instruction_set(name)), None)
    if best is None or not core.use_instruction_set("baseline"):
        pytest.skip("not all instruction sets were built (SNNFAST_CPU_SETS)")
    core.use_instruction_set(best)
    script = f'set(SNNFAST_CPU_SETS native)\nchosen_cpu_sets(sets "{X86}")\nmessage("${{sets}}")'
    assert in_cmake(source_copy, tmp_path, "chosen_cpu_sets", script) == best


def test_an_unknown_instruction_set_is_told_what_there_is(source_copy, tmp_path):
    script = f'set(SNNFAST_CPU_SETS mmx)\nchosen_cpu_sets(sets "{X86}")'
    said = " ".join(in_cmake(source_copy, tmp_path, "chosen_cpu_sets", script).split())
    assert f"SNNFAST_CPU_SETS names 'mmx'; allowed are all, native, or names of {X86}" in said


def test_no_instruction_set_is_refused(source_copy, tmp_path):
    script = f'set(SNNFAST_CPU_SETS ";")\nchosen_cpu_sets(sets "{X86}")'
    said = " ".join(in_cmake(source_copy, tmp_path, "chosen_cpu_sets", script).split())
    assert f"SNNFAST_CPU_SETS names no instruction set; allowed are all, native, or names of {X86}" in said


@pytest.mark.parametrize("variable", ["PATH", "CUDA_HOME", "CUDA_PATH", "CUDACXX"])
def test_nvcc_is_found_on_the_path_and_off_it(source_copy, tmp_path, variable):
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    given = {"PATH": nvcc.parent, "CUDACXX": nvcc}.get(variable, nvcc.parent.parent)
    places = {"PATH": str(tmp_path / "nowhere"), variable: str(given)}
    said = in_cmake(source_copy, tmp_path, "find_nvcc", 'find_nvcc()\nmessage("$ENV{CUDACXX}")', **places)
    assert said == str(nvcc)


def failed_build(source: Path, path: str, cuda: str, **more: str) -> str:
    """What `setup.py build_ext` says before it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", "temp", "--build-lib", "lib"],
        cwd=source,
        env=environment | {"PATH": path, "SNNFAST_CUDA": cuda} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0, done.stdout
    return done.stdout.strip()


def test_an_unknown_snnfast_cuda_is_one_clear_line(source_copy):
    said = failed_build(source_copy, os.environ["PATH"], "2")
    assert said.splitlines()[-1] == "SNNFAST_CUDA is '2'; allowed are auto, 0 and 1"
    assert "Traceback" not in said


def test_cuda_asked_for_without_nvcc_is_one_clear_line(source_copy, tmp_path):
    # named, so that no nvcc is looked for where CUDA is installed
    said = failed_build(source_copy, os.environ["PATH"], "1", CUDACXX=str(tmp_path / "nvcc"))
    last = said.splitlines()[-1]
    assert last.startswith("snnfast: SNNFAST_CUDA=1, but no working nvcc was found: ")
    assert "SNNFAST_CUDA=0" in last  # the remedy
    assert "Traceback" not in said
