"""benchmarks/gpu.sh: what its stages and exit code say, with a stand-in for Python that does as a test wants it to.

`.ci/run` goes through all stages with the real programs (--dry-run).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.sh"
REPORT = '<testsuites><testsuite name="pytest" errors="0" failures="{failures}" tests="2"><testcase name="a"/>'

# The tests write their report when they are interrupted, as pytest does.
PYTHON = """#!/bin/bash
case "$*" in
*"-m pip install "*) exit ${BUILD:-0} ;;
*"-m pytest "*)
    report() { echo "$REPORT" > "$OUT/tests.xml"; echo "2 tests in all"; exit ${1:-0}; }
    trap 'report 2' INT
    [ -n "${SLOW:-}" ] && for i in $(seq 200); do sleep 0.1; done
    report ${TESTS:-0}
    ;;
*benchmarks.gpu*) echo '{"cases": []}' > "$OUT/results.json"; echo "the table" > "$OUT/table.txt" ;;
*benchmarks.training*) [ -z "${LEAVES:-}" ] || { mkdir -p "$(dirname "$OUT/$LEAVES")" && echo > "$OUT/$LEAVES"; } ;;
*benchmarks.sanitize*--kernels*) echo "208 calls" ;;
*benchmarks.sanitize*) [ "${PYTORCH_NO_CUDA_MEMORY_CACHING:-}" = 1 ] || exit 7 ;;
esac
"""


class Script:
    def __init__(self, folder: Path) -> None:
        self.python = folder / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        self.out = folder / "out"

    def __call__(self, *arguments: str, code: int = 0, **more: str) -> str:
        environment = os.environ | {
            "PYTHON": str(self.python),
            "OUT": str(self.out),
            "REPORT": REPORT.format(failures=0),
        }
        done = subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    @property
    def stages(self) -> dict[str, tuple[int, str]]:
        """Of each stage the exit code and the note."""
        lines = (line.split(maxsplit=3) for line in (self.out / "stages.txt").read_text().splitlines()[1:])
        return {line[0]: (int(line[1]), " ".join(line[3:])) for line in lines}


@pytest.fixture
def script(tmp_path: Path) -> Script:
    if not SCRIPT.is_file():
        pytest.skip("not in a source tree")
    return Script(tmp_path)


def test_stages_are_in_order_and_the_table_is_shown_last(script: Script):
    said = script("--dry-run")
    order = ["machine", "build", "tests", "bench", "training", "kernels", "memcheck", "racecheck", "files"]
    assert list(script.stages) == order
    assert all(code == 0 for code, _ in script.stages.values())
    assert said.index("racecheck") < said.index("the table") < said.index("208 calls")


def test_after_a_failed_build_no_time_is_spent(script: Script):
    said = script("--dry-run", code=1, BUILD="3")
    assert script.stages["build"][0] == 3 and list(script.stages) == ["machine", "build", "files"]
    assert "===== build failed:" in said


def test_a_failing_stage_does_not_stop_the_next(script: Script):
    script("--dry-run", code=1, TESTS="1")
    assert script.stages["tests"][0] == 1 and script.stages["racecheck"][0] == 0


@pytest.mark.parametrize(("failures", "code"), [(0, 0), (1, 124)])
def test_tests_cut_at_their_limit_count_by_what_failed_until_then(script: Script, failures: int, code: int):
    report = REPORT.format(failures=failures)
    script("--dry-run", code=int(code != 0), SLOW="1", TEST_SECONDS="1", REPORT=report)
    assert script.stages["tests"] == (code, "2 tests in all at its limit")


def test_no_stage_runs_past_the_end(script: Script):
    script("--dry-run", code=1, LIMIT="5")
    assert {code for name, (code, _) in script.stages.items() if name != "files"} == {124}
    assert "no time left" in (script.out / "log.txt").read_text()


@pytest.mark.parametrize("name", ["a file", "a/b/c/file"])
def test_a_file_that_would_not_come_back_is_told(script: Script, name: str):
    script("--dry-run", code=1, LEAVES=name)
    assert script.stages["files"] == (1, name)


def test_too_many_files_are_told(script: Script):
    script.out.mkdir()
    for number in range(6):
        (script.out / f"old-{number}").touch()
    script("--dry-run", code=1)
    assert script.stages["files"] == (1, "more than 8 files")


@pytest.mark.parametrize(
    ("arguments", "more", "said"),
    [
        (["--dry"], {}, "unknown argument '--dry'; allowed is --dry-run"),
        (["--dry-run", "twice"], {}, "unknown argument '--dry-run twice'; allowed is --dry-run"),
        (["--dry-run"], {"LIMIT": "10s"}, "LIMIT must be a number of seconds, got '10s'"),
        (["--dry-run"], {"TEST_SECONDS": "-1"}, "TEST_SECONDS must be a number of seconds, got '-1'"),
        (["--dry-run"], {"OUT": "/dev/null/x"}, "OUT must be a folder that can be written, got '/dev/null/x'"),
    ],
)
def test_wrong_arguments_are_refused(script: Script, arguments: list[str], more: dict[str, str], said: str):
    assert said in script(*arguments, code=2, **more)
    assert not script.out.exists()


def test_what_an_earlier_run_left_is_not_taken_for_this_ones(script: Script):
    script("--dry-run")
    assert (script.out / "table.txt").exists()
    said = script("--dry-run", code=1, BUILD="3")
    assert sorted(file.name for file in script.out.iterdir()) == ["log.txt", "stages.txt"]
    assert "the table" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_what_it_runs(script: Script, number: int):
    # The running stage is in a group of its own, where a terminal's Ctrl-C does not reach it.
    process = subprocess.Popen(
        ["bash", str(SCRIPT), "--dry-run"],
        env=os.environ | {"PYTHON": str(script.python), "OUT": str(script.out), "REPORT": "", "SLOW": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = script.out / "log.txt"
    while not (log.exists() and "===== tests" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=10) == 130
    assert process.stderr.read() == "gpu.sh: stopped\n"
    time.sleep(1)
    running = subprocess.run(["pgrep", "-f", f"{script.python} -P -m pytest"], capture_output=True, text=True)
    assert running.stdout == ""
