"""Builds the compiled core with CMake; everything else about the package is in pyproject.toml.

What is compiled is copied into a folder named after a hash of all that decides the result, below SNNFAST_BUILD_CACHE:
an interrupted build goes on there, and a finished one serves the next installation. pip removes its own folders, and
the cmake and Python that it names in them, after every attempt.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
KEPT_BUILDS = 6  # a finished one takes about 10 MB, an interrupted one up to 60

# CPU seconds of g++ 12 and nvcc 13.0 on an AMD EPYC; they are for what is said before a build alone.
CPU_SECONDS = 8
CPU_SECONDS_PER_SET = 26
CUDA_SECONDS = 15
CUDA_SECONDS_PER_ARCHITECTURE = 46
LONGEST_FILE_SECONDS = 55

# Besides every CMAKE_* but the number of jobs: what CMake and compilers read from the environment.
VARIABLES = [
    *("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH"),
    *("COMPILER_PATH", "GCC_EXEC_PREFIX", "CUDACXX", "CUDAFLAGS", "CUDAARCHS", "CUDAHOSTCXX", "CUDA_PATH", "CUDA_HOME"),
    *("CUDAToolkit_ROOT", "NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"),
]


class CMakeBuild(build_ext):
    """Runs CMake, or finds what it made before, and puts snnfast._core where setuptools expects an extension module."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        given = sources()
        options = chosen_options(given)
        scratch = Path(self.build_temp).resolve() / "cmake"
        with build_folder(given, options, scratch) as (folder, lock):
            core = finished(folder)
            if core is None:
                core = compiled(folder, given, options, lock)
            else:
                say(f"taken from the build cache, nothing compiled: {folder}")
            os.utime(folder)
            self.copy_file(str(core), str(target))
            # What ptxas said of every kernel (registers, spills): .ci/run reads it, see .ci/kernels.py.
            if report := os.environ.get("SNNFAST_BUILD_LOG"):
                shutil.copyfile(folder / "log", report)
        if folder != scratch:
            prune(folder.parent)


def chosen_options(given: dict[str, bytes]) -> dict[str, str]:
    """CMake's variables of ours, from the environment."""
    cuda = os.environ.get("SNNFAST_CUDA", "auto")
    if cuda not in ("auto", "0", "1"):
        raise SystemExit(f"SNNFAST_CUDA is {cuda!r}; allowed are auto, 0 and 1")
    default = re.search(rb'set\(SNNFAST_CUDA_ARCHS "(.*?)"', given["CMakeLists.txt"])[1].decode()
    return {
        "SNNFAST_CUDA": cuda,
        "SNNFAST_CUDA_ARCHS": os.environ.get("SNNFAST_CUDA_ARCHS") or default,
        "SNNFAST_CPU_SETS": os.environ.get("SNNFAST_CPU_SETS") or "all",
    }


# The build cache


def sources() -> dict[str, bytes]:
    """What is compiled, by its path in the source folder."""
    files = [ROOT / "CMakeLists.txt", *sorted(f for f in (ROOT / "csrc").rglob("*") if f.is_file())]
    return {file.relative_to(ROOT).as_posix(): file.read_bytes() for file in files}


def key(given: dict[str, bytes], options: dict[str, str]) -> str:
    """A hash of all that decides what the compiled module is."""
    import pybind11

    state = [
        Path(__file__).read_text(),
        given,
        options,
        {name: os.environ.get(name) for name in variables()},
        [tool_state(tool) for tool in tools(options["SNNFAST_CUDA"] != "0")],
        (sys.version, sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_path("include"), pybind11.__version__),
        (platform.machine(), platform.libc_ver()),
    ]
    return hashlib.sha256(repr(state).encode()).hexdigest()[:24]


def variables() -> list[str]:
    own = [name for name in os.environ if name.startswith("CMAKE_") and name != "CMAKE_BUILD_PARALLEL_LEVEL"]
    return sorted({*VARIABLES, *own})


def tools(cuda: bool) -> list[str]:
    """CMake, and every compiler that it may choose."""
    named = ["cmake", "c++", "g++", "clang++", os.environ.get("CXX", "")]
    if cuda:
        folders = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH", "CUDAToolkit_ROOT")]
        folders.append("/usr/local/cuda")
        named += ["nvcc", os.environ.get("CUDACXX", ""), *(f"{folder}/bin/nvcc" for folder in folders if folder)]
    return named


def tool_state(tool: str) -> tuple[str, ...]:
    """Where a tool is and its version; cmake's place differs between pip's temporary environments."""
    found = shutil.which(shlex.split(tool)[0]) if tool else None
    if found is None:
        return (tool,)
    done = subprocess.run([found, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return (tool, "" if tool == "cmake" else os.path.realpath(found), done.stdout)


def cache_root(options: dict[str, str]) -> Path | None:
    """Where builds are kept; None: nowhere."""
    chosen = os.environ.get("SNNFAST_BUILD_CACHE", "")
    if chosen == "0":
        return None
    flags = [*options.values(), *(os.environ.get(name, "") for name in variables())]
    if any("native" in value for value in flags):  # what that means differs between machines that share a home folder
        return None
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / ".cache"
    root = Path(chosen).expanduser().resolve() if chosen else home / "snnfast" / "build"
    try:
        root.mkdir(parents=True, exist_ok=True)
        os.close(os.open(root / "writable", os.O_WRONLY | os.O_CREAT, 0o644))
    except OSError as error:
        say(f"no build cache: {error}")
        return None
    return root


@contextlib.contextmanager
def build_folder(given: dict[str, bytes], options: dict[str, str], scratch: Path) -> Iterator[tuple[Path, int | None]]:
    """The folder to build in, and the lock that no other build holds meanwhile: one in the cache, or an empty one."""
    root = cache_root(options)
    if root is None:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        yield scratch, None
        return
    folder = root / key(given, options)
    lock = acquire(folder, wait=True)
    try:
        folder.mkdir(exist_ok=True)
        yield folder, lock
    finally:
        if lock is not None:
            os.close(lock)


def acquire(folder: Path, wait: bool) -> int | None:
    """Locks a folder of the cache until the descriptor is closed; None: held by another build, which is not awaited."""
    while True:
        lock = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                os.close(lock)
                return None
            say(f"waiting for another build of the same: {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)  # removed by `prune` in between


def finished(folder: Path) -> Path | None:
    """The module of a build that was finished and is whole."""
    try:
        digest, name = (folder / "finished").read_text().split()
        core = folder / name
        if hashlib.sha256(core.read_bytes()).hexdigest() == digest and (folder / "log").is_file():
            return core
    except (OSError, ValueError):
        if not (folder / "finished").exists():
            return None
    say(f"the build cache is damaged, building again: {folder}")
    shutil.rmtree(folder)
    folder.mkdir()
    return None


def finish(folder: Path, built: Path) -> Path:
    """Keeps the module of a build, and no more of it."""
    core = folder / built.name
    os.replace(built, core)
    mark = folder / "finished.part"
    mark.write_text(f"{hashlib.sha256(core.read_bytes()).hexdigest()} {core.name}\n")
    os.replace(mark, folder / "finished")
    for name in ("source", "build"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return core


def prune(root: Path) -> None:
    """Keeps the builds used last, and those going on."""
    with contextlib.suppress(OSError):
        folders = sorted((f for f in root.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime, reverse=True)
        for folder in folders[KEPT_BUILDS:]:
            lock = acquire(folder, wait=False)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.unlink(f"{folder}.lock")
                os.close(lock)


# The build


def compiled(folder: Path, given: dict[str, bytes], options: dict[str, str], lock: int | None) -> Path:
    """Compiles what is not compiled yet in `folder` and returns the module."""
    import pybind11

    source, build = folder / "source", folder / "build"
    for name, content in given.items():  # untouched where equal: ninja goes by the time of the last change
        file = source / name
        if not file.is_file() or file.read_bytes() != content:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    tried_before = build.exists()
    # Names tools of an earlier attempt's isolated environment, which is gone.
    (build / "CMakeCache.txt").unlink(missing_ok=True)
    configure = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    try:
        said = run(configure, folder, lock)
        announce(build, "CUDA compiler identification" in said, options, lock is not None)
        run(["cmake", "--build", str(build)], folder, lock)
    except SystemExit:
        if tried_before:  # failed twice: what an earlier attempt left may be the reason
            shutil.rmtree(build, ignore_errors=True)
        raise
    return finish(folder, next(build.glob("_core*.so")))


def announce(build: Path, cuda: bool, options: dict[str, str], cached: bool) -> None:
    """Says what is compiled, how long it takes and how it takes less, before it starts."""
    architectures = [name for name in options["SNNFAST_CUDA_ARCHS"].split(";") if name] if cuda else []
    files = len(re.findall(r"^build \S+\.o: ", (build / "build.ninja").read_text(), re.MULTILINE))
    sets = options["SNNFAST_CPU_SETS"]
    cpu_seconds = CPU_SECONDS + CPU_SECONDS_PER_SET * {"all": 3, "native": 1}.get(sets, len(sets.split(";")))
    seconds = cpu_seconds
    parts = f"CPU kernels for {'every instruction set' if sets == 'all' else sets.replace(';', ', ')}"
    if cuda:
        seconds += CUDA_SECONDS + CUDA_SECONDS_PER_ARCHITECTURE * len(architectures)
        parts += f", CUDA kernels for {len(architectures)} GPU architecture{'s' * (len(architectures) > 1)}"
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"compiling {files} files ({parts}): about {minutes(seconds)} of CPU time, "
        f"{minutes(max(seconds / cores, LONGEST_FILE_SECONDS))} on {cores} idle core{'s' * (cores > 1)}"
    ]
    if cuda and options["SNNFAST_CUDA"] == "auto":
        gpus = gpus_here()
        share = f"the CUDA part is {minutes(seconds - cpu_seconds)} of CPU time"
        if not gpus:
            one = "SNNFAST_CUDA_ARCHS=90, say, builds for one kind of GPU alone"
            lines.append(f"{share}, and no GPU answers here: SNNFAST_CUDA=0 leaves it out, {one}")
        elif len(architectures) > len(gpus):
            lines.append(f"{share}: SNNFAST_CUDA_ARCHS='{';'.join(gpus)}' builds for this machine's GPU alone")
    kept = "; an interrupted build goes on where it stopped, and a finished one is kept" if cached else ""
    lines.append(f"pip shows the progress with -v{kept}")
    for line in lines:
        say(line)
    tell_terminal("\n".join(f"snnfast: {line}" for line in lines))


def minutes(seconds: float) -> str:
    count = math.ceil(seconds / 60)
    return f"{count} minute{'s' * (count > 1)}"


def gpus_here() -> list[str]:
    """The architectures of the GPUs that nvidia-smi sees. Nothing but words may depend on them."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        return sorted({line.strip().replace(".", "") for line in said.splitlines() if re.fullmatch(r"\d+\.\d", line)})
    return []


def say(text: str) -> None:
    print(f"snnfast: {text}", file=sys.stderr, flush=True)


def tell_terminal(text: str) -> None:
    """pip hides what a build says unless asked with -v, for minutes: a word to whoever sits at the terminal."""
    quiet = any(os.environ.get(name, "") not in ("", "0") for name in ("CI", "PIP_QUIET", "SNNFAST_BUILD_QUIET"))
    if quiet or sys.stderr.isatty():
        return
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_WRONLY | os.O_NOCTTY)
        try:
            if os.tcgetpgrp(terminal) == os.getpgrp():  # in the background, writing may stop the build
                os.write(terminal, f"\n{text}\n".encode())
        finally:
            os.close(terminal)


def run(command: list[str], folder: Path, lock: int | None) -> str:
    """Runs a build step, logs and shows what it says at once; on failure ends the build with the tool's words again.

    The step inherits the lock, so that one that outlives this process keeps it.
    """
    began = time.monotonic()
    # ccache, where CMake is told to use it, must not take the name of the folder for a part of the source.
    environment = os.environ | {"NINJA_STATUS": "[%f/%t] ", "CCACHE_BASEDIR": str(folder), "CCACHE_NOHASHDIR": "1"}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    said: list[str] = []
    held = () if lock is None else (lock,)
    with open(folder / "log", "a") as log, subprocess.Popen(command, env=environment, pass_fds=held, **pipe) as step:
        for line in step.stdout:
            said.append(line)
            log.write(line)
            if line.startswith("-- snnfast: "):
                say(line[12:].rstrip())
            elif not re.match(r"ptxas info|\s+\d+ bytes stack frame", line):
                print(f"{time.monotonic() - began:4.0f} s  {line}", end="", file=sys.stderr, flush=True)
    if step.returncode != 0:
        output = "".join(said)
        # An error of our own CMakeLists.txt says all there is to say; CMake wraps its lines.
        own = re.search(r"CMake Error at CMakeLists.txt:\d+ \(message\):\n((?:  .*\n)+)", output)
        if own:
            raise SystemExit(f"snnfast: {' '.join(own[1].split())}")
        failed = re.search(r"^FAILED: .*?(?=^\[\d+/\d+\] |\Z)", output, re.MULTILINE | re.DOTALL)
        lines = (failed[0] if failed else output).strip().splitlines()
        raise SystemExit("\n".join([*lines[-60:], f"snnfast: the build step failed: {shlex.join(command)}"]))
    return "".join(said)


if __name__ == "__main__":
    setup(ext_modules=[Extension("snnfast._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
