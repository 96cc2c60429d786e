"""The comparison of two revisions sees what differs and what is slower, and its rows are only ever added."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import snnfast as sf
from snnfast.benchmarks import compare, environment, random_calls, rows
from snnfast.benchmarks.compare import Compared, CompareError, Comparison, Revision, Side
from snnfast.cli import main

CPU = torch.device("cpu")
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


# Random calls


def test_a_draw_is_the_same_call_in_every_process():
    code = "from snnfast.benchmarks.random_calls import draw\nprint(*map(draw, range(50)), sep='\\n')"
    drawn = {
        subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=dict(os.environ, PYTHONHASHSEED=seed),
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert drawn == {"".join(f"{random_calls.draw(seed)}\n" for seed in range(50))}


def test_draws_meet_every_kind_layout_dtype_and_option():
    calls = [random_calls.draw(seed) for seed in range(400)]
    assert {call.kind for call in calls} == set(random_calls.KINDS)
    assert {call.layout for call in calls} == set(random_calls.LAYOUTS)
    assert {type(call.options["surrogate"]).__name__ for call in calls} == set(random_calls.SURROGATES)
    assert {call.dtype for call in calls} == {torch.float32, torch.float64, torch.float16, torch.bfloat16}
    for name in ("held", "training", "time_dim"):
        assert {bool(getattr(call, name)) for call in calls} == {False, True}


def test_a_call_gives_the_same_digests_twice_of_all_that_it_returns():
    for seed in range(6):
        call = random_calls.draw(seed)
        digests = random_calls.digests(call, CPU)
        assert digests == random_calls.digests(call, CPU)
        assert {"spikes 0", "inference"} <= digests.keys()


def changed(change: Callable[[Tensor], Tensor]) -> Callable[..., Iterator[tuple[str, Tensor]]]:
    value = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    return lambda call, device: iter([("gradient", change(value.clone()))])


def with_one_bit_flipped(value: Tensor) -> Tensor:
    value.view(torch.int32)[1, 2, 3] ^= 1
    return value


def with_a_negative_zero(value: Tensor) -> Tensor:
    return value.where(value != value[0, 0, 0], -0.0)


@pytest.mark.parametrize(
    "change",
    [with_one_bit_flipped, with_a_negative_zero, Tensor.double, lambda x: x[:, :2], lambda x: x.mT.contiguous().mT],
    ids=["one bit", "another zero", "dtype", "shape", "strides"],
)
def test_digests_differ_where_anything_differs(change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch):
    call = random_calls.draw(0)
    monkeypatch.setattr(random_calls, "run", changed(lambda value: value.where(value != value[0, 0, 0], 0.0)))
    zero = random_calls.digests(call, CPU)
    monkeypatch.setattr(random_calls, "run", changed(lambda value: value))
    plain = random_calls.digests(call, CPU)
    monkeypatch.setattr(random_calls, "run", changed(change))
    assert random_calls.digests(call, CPU) not in (plain, zero)


# The processes


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Side]:
    """A process of the installed revision: nothing in the folder takes its place."""
    with Side(Revision("head", "c0ffee", tmp_path), "cpu", dict(os.environ)) as side:
        yield side


def test_a_worker_answers_what_it_is_asked(installed: Side):
    assert installed.ask("version").startswith(sf.__version__)
    expected = [random_calls.digests(random_calls.draw(seed), CPU) for seed in (3, 4)]
    assert installed.ask("digests", first=3, count=2) == expected
    prepared = installed.ask("prepare", name="tiny")
    assert prepared == installed.ask("prepare", name="tiny") != installed.ask("prepare", name="tiny-inference")
    median, least = installed.ask("sample", seconds=0.01)
    assert 0 < least <= median


def test_a_worker_outlives_a_request_that_fails_and_names_the_error(installed: Side):
    with pytest.raises(CompareError, match=r"head: AttributeError: .*guess"):
        installed.ask("guess")
    assert installed.ask("version")


def test_a_worker_that_ended_is_said_to_have_ended(installed: Side):
    installed.process.terminate()
    installed.process.wait()
    with pytest.raises(CompareError, match="the process of head ended with exit code -15"):
        installed.ask("version")


class Told:
    """A process that answers what it was told to."""

    def __init__(self, name: str, digests: list[dict[str, str]]) -> None:
        self.name, self._digests = name, digests

    def ask(self, call: str, **arguments: Any) -> Any:
        first = arguments.get("first", 0)
        return {"version": "1", "digests": self._digests[first : first + arguments.get("count", 0)]}[call]


def test_calls_that_differ_are_named_with_what_they_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = [{"spikes 0": "a", "state weight": "b"} for _ in range(120)]
    head = [dict(found) for found in base]
    head[101]["state weight"] = "c"
    head[7] = {"error": "ValueError: no"}
    sides = {"base": Told("base", base), "head": Told("head", head)}
    monkeypatch.setattr(Comparison, "_sides", lambda self, stack: sides)
    comparison = Comparison([Revision(name, name, tmp_path) for name in sides], "cpu")
    differing = comparison.different_calls(120)
    assert [name for name, _ in differing] == ["spikes 0", "state weight", "error", "state weight"]
    assert differing[-1][1] == f"{random_calls.draw(101)}: state weight: b, now c"
    head[7], head[101] = base[7], base[101]
    assert comparison.different_calls(120) == []


# The verdict


def compared(name: str, base: float, head: list[float], equal: bool = True) -> Compared:
    """A case whose base takes the same each time; of every turn the least is 1% below the median."""
    turns = {"base": [(base, base * 0.99)] * len(head), "head": [(median, median * 0.99) for median in head]}
    return Compared(name, equal, turns)


def test_only_what_is_slower_in_the_median_and_at_its_fastest_is_flagged():
    assert compared("slower", 1.0, [1.1, 1.2, 1.1]).slower
    assert not compared("equal", 1.0, [1.01, 0.99, 1.04]).slower
    assert not compared("faster", 1.0, [0.5, 0.6, 0.5]).slower
    assert not compared("disturbed once", 1.0, [1.0, 3.0, 1.0]).slower
    assert not compared("disturbed most of the time", 1.0, [2.0, 3.0, 1.0]).slower


def test_the_table_has_the_slowest_first_and_says_what_is_slower_or_different():
    cases = [
        compared("fine", 1e-3, [1e-3, 1e-3]),
        compared("slow", 1e-3, [2e-3, 2e-3]),
        compared("wrong", 1e-3, [0.9e-3, 0.9e-3], equal=False),
    ]
    lines = compare.table(cases).splitlines()
    assert [line.split()[0] for line in lines] == ["case", "slow", "fine", "wrong"]
    assert lines[1].endswith("equal SLOWER") and " 2.000 " in lines[1]
    assert lines[2].endswith("equal") and lines[3].endswith("DIFFERENT")


# What is wrong with a command


def test_a_folder_outside_any_checkout_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert compare.main(["HEAD"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("compare: git rev-parse --show-toplevel: fatal: not a git repository")


def test_an_unknown_revision_is_one_line_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    monkeypatch.setattr(compare.shutil, "copytree", lambda *_, **__: pytest.fail("built"))
    assert compare.main(["no-such-revision", "--keep", str(tmp_path / "builds")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "no-such-revision" in said[0] and said[0].startswith("compare: git rev-parse --verify")


def test_a_machine_without_git_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("PATH", "")
    assert compare.main(["HEAD"]) == 2
    assert capsys.readouterr().err == "compare: git is not installed\n"


def test_the_help_says_what_an_exit_code_means(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "slower by more than 5%. The exit code is 0 where all results are equal" in said


# Rows


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_comparison_s_rows_are_added_and_say_what_they_were_measured_on(tmp_path: Path):
    where = environment.describe(CPU)
    revisions = [Revision("base", "b" * 40, tmp_path), Revision("head", "a" * 40 + "+", tmp_path)]
    cases = [compared("tiny", 2e-3, [1e-3, 1e-3]), compared("held", 1e-3, [2e-3, 2e-3], equal=False)]
    for one in cases:
        rows.append(tmp_path, "compare", compare._rows([one], revisions, where))
    first, second = read(tmp_path / "compare.csv")
    assert tuple(first) == rows.KINDS["compare"]
    assert first["case"] == "tiny" and float(first["ratio"]) == 0.5 and first["results_equal"] == "True"
    assert second["case"] == "held" and float(second["head_seconds"]) == 2e-3 and second["results_equal"] == "False"
    for row in (first, second):
        assert (row["base"], row["head"]) == ("b" * 40, "a" * 40 + "+")
        assert row["torch"] == torch.__version__ and row["date"] and int(row["threads"]) >= 1


def test_a_benchmark_s_rows_are_added_to_those_of_earlier_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["bench", "--quick", "--device", "cpu", "--no-preload", "--case", "steps-3-quick"]
    for run in ("first", "second"):
        assert main([*command, "--out", str(tmp_path / run), "--append", str(tmp_path / "rows")]) == 0
    assert f"4 added to {tmp_path}/rows/cases.csv" in capsys.readouterr().out
    found = read(tmp_path / "rows" / "cases.csv")
    assert [row["side"] for row in found] == ["snnfast", "naive", "relu", "copy"] * 2
    naive = found[1]
    assert float(naive["ratio"]) == pytest.approx(
        float(naive["median_seconds"]) / float(found[0]["median_seconds"]), 1e-4
    )
    assert naive["agrees"] == "True" and float(naive["kept_bytes"]) > 0 and naive["suite"] == "quick"


def test_rows_of_other_columns_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "cases.csv").write_text("date,seconds\n2020-01-01,1\n")
    assert main(["bench", "--quick", "--device", "cpu", "--append", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "cases.csv has other columns" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyError, match="no column for colour in cases"):
        rows.append(tmp_path / "new", "cases", [{"colour": "red"}])


@pytest.mark.parametrize("kind", rows.KINDS)
def test_the_committed_rows_are_whole_and_in_the_order_in_which_they_were_measured(kind: str):
    file = RESULTS / f"{kind}.csv"
    if not file.exists():
        pytest.skip(f"no {kind} has been committed")
    found = read(file)
    assert tuple(found[0]) == rows.KINDS[kind]
    assert all(None not in row and None not in row.values() for row in found)
    dates = [row["date"] for row in found]
    assert dates == sorted(dates)
