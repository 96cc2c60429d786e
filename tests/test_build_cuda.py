"""What SNNFAST_CUDA and SNNFAST_CUDA_ARCHS ask of a build, and what a build without CUDA's compiler says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FLAGS = {
    "80-real;90-real;100-real;120": ["80:sm_80,sm_90", "100:sm_100,sm_120,compute_100"],
    "90": ["90:sm_90,compute_90"],
    "75;86-real;89-virtual": ["75:sm_75,compute_75", "86:sm_86,compute_86"],
    "120;100-real": ["100:sm_120,sm_100,compute_100"],
    "90a": [],
    "80;native": [],
}


@pytest.mark.parametrize("architectures", FLAGS)
def test_architectures_of_one_front_end_pass_share_it(source_copy, tmp_path, architectures):
    """Names that are more than numbers are left to CMake."""
    given = (source_copy / "CMakeLists.txt").read_text()
    function = re.search(r"function\(cuda_code_flags.*?endfunction\(\)", given, re.DOTALL)
    assert function is not None
    script = tmp_path / "flags.cmake"
    script.write_text(
        f'cmake_minimum_required(VERSION 3.24)\n{function[0]}\nset(SNNFAST_CUDA_ARCHS "{architectures}")\n'
        'cuda_code_flags(flags)\nmessage("${flags}")\n'
    )
    said = subprocess.run(["cmake", "-P", str(script)], capture_output=True, text=True, check=True).stderr
    found = re.findall(r"arch=compute_(\d+),code=\[([^]]*)\]", said)
    assert [":".join(parts) for parts in found] == FLAGS[architectures]


def failed_build(source: Path, path: str, cuda: str) -> str:
    """What `setup.py build_ext` says before it fails."""
    hidden = ("CUDACXX", "CUDA_PATH", "CUDA_HOME", "CUDAToolkit_ROOT", "SNNFAST_CUDA_ARCHS", "SNNFAST_BUILD_LOG")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", "temp", "--build-lib", "lib"],
        cwd=source,
        env=environment | {"PATH": path, "SNNFAST_CUDA": cuda},
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
    # Everything on PATH but nvcc, and the tools that this interpreter's environment has.
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in (os.path.dirname(sys.executable), *os.environ["PATH"].split(os.pathsep)):
        for tool in Path(folder).iterdir() if os.path.isdir(folder) else ():
            if not tool.name.startswith("nvcc") and not (tools / tool.name).is_symlink():
                (tools / tool.name).symlink_to(tool)
    said = failed_build(source_copy, str(tools), "1")
    last = said.splitlines()[-1]
    assert last.startswith("snnfast: SNNFAST_CUDA=1, but no working nvcc was found: ")
    assert "SNNFAST_CUDA=0" in last  # the remedy
    assert "Traceback" not in said
