"""Builds the compiled core with CMake; everything else about the package is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake and puts snnfast._core where setuptools expects an extension module."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        cuda = os.environ.get("SNNFAST_CUDA", "auto")
        if cuda not in ("auto", "0", "1"):
            raise SystemExit(f"SNNFAST_CUDA is {cuda!r}; allowed are auto, 0 and 1")
        # What an earlier build left behind names tools of its own isolated environment, which is gone.
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DSNNFAST_CUDA={cuda}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_directory()}",
        ]
        if os.environ.get("SNNFAST_CUDA_ARCHS"):
            configure.append(f"-DSNNFAST_CUDA_ARCHS={os.environ['SNNFAST_CUDA_ARCHS']}")
        run(configure)
        log = run(["cmake", "--build", str(build), "--verbose"])
        # What ptxas said of every kernel (registers, spills): .ci/run reads it, see .ci/kernels.py.
        report = os.environ.get("SNNFAST_BUILD_LOG")
        if report:
            Path(report).write_text(log)
        target.parent.mkdir(parents=True, exist_ok=True)
        built = next(build.glob("_core*.so"))
        self.copy_file(str(built), str(target))


def pybind11_directory() -> str:
    import pybind11

    return pybind11.get_cmake_dir()


def run(command: list[str]) -> str:
    """Runs a build step; on failure ends the build with the tool's own last words instead of a traceback."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        # An error of our own CMakeLists.txt says all there is to say; CMake wraps its lines.
        own = re.search(r"CMake Error at CMakeLists.txt:\d+ \(message\):\n((?:  .*\n)+)", done.stdout)
        if own:
            raise SystemExit(f"snnfast: {' '.join(own[1].split())}")
        lines = done.stdout.strip().splitlines()
        raise SystemExit("\n".join([*lines[-60:], f"snnfast: the build step failed: {' '.join(command)}"]))
    for line in done.stdout.splitlines():
        if line.startswith("-- snnfast:"):
            print(line[3:], file=sys.stderr)
    return done.stdout


setup(ext_modules=[Extension("snnfast._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
