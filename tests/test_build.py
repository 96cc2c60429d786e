"""What building promises: it says what it does while it does it, and compiles nothing twice.

Most tests put a stand-in for CMake on PATH, so that a build takes no time and waits where a test wants it to.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pty
import re
import shutil
import signal
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
(build / "_core.so").write_bytes(b"the module of " + (build.parent / "source/csrc/api.h").read_bytes())
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
    for name in ("SNNFAST_CUDA", "SNNFAST_CUDA_ARCHS", "SNNFAST_BUILD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("setup_of_snnfast", source_copy / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    with open(build.source / "csrc" / "api.h", "a") as header:
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
    "a kernel": edit("csrc/kernels.cuh"),
    "an instantiation": edit("csrc/instantiate/float32.cu"),
    "a new header": edit("csrc/new.h"),
    "CMakeLists.txt": edit("CMakeLists.txt"),
    "setup.py": edit("setup.py"),
    "SNNFAST_CUDA": environment(SNNFAST_CUDA="0"),
    "SNNFAST_CUDA_ARCHS": environment(SNNFAST_CUDA_ARCHS="90"),
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


def test_a_failure_ends_with_the_tool_s_own_words(build: Builder):
    words = "[1/2] before\nFAILED: a.cpp.o\nc++ -c a.cpp\na.cpp:1:1: error: no\n[2/2] after"
    said = build(fails=True, FAKE_FAILS=words)
    end = said.strip().splitlines()[-4:]
    assert end[:3] == ["FAILED: a.cpp.o", "c++ -c a.cpp", "a.cpp:1:1: error: no"]
    assert end[3].startswith("snnfast: the build step failed: cmake --build ")
    assert "Traceback" not in said


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
    setup_py.announce(tmp_path, True, {"SNNFAST_CUDA": cuda, "SNNFAST_CUDA_ARCHS": archs}, False)
    said = capsys.readouterr().err
    count = len(archs.split(";"))
    assert said.startswith("snnfast: compiling 2 files (CPU kernels for every instruction set, CUDA kernels for ")
    assert f"{count} GPU architecture" in said
    assert re.search(r"about \d+ minutes? of CPU time, \d+ minutes? on \d+ idle cores?$", said.splitlines()[0])
    assert ("the CUDA part is" in said) == (says is not None)
    assert says is None or says in said


def test_more_architectures_are_said_to_take_longer(setup_py, monkeypatch, capsys, tmp_path):
    (tmp_path / "build.ninja").write_text("")
    monkeypatch.setenv("CI", "1")
    found = []
    for cuda, archs in ((False, ""), (True, "90"), (True, "80;90;100;120")):
        setup_py.announce(tmp_path, cuda, {"SNNFAST_CUDA": "1", "SNNFAST_CUDA_ARCHS": archs}, False)
        found.append(int(re.search(r"about (\d+) minute", capsys.readouterr().err)[1]))
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
