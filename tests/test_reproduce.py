"""``snnfast reproduce``: files, the page, and what goes wrong said before anything is trained."""

from __future__ import annotations

import csv
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from snnfast.benchmarks.paper import files, page, reproduce, workbench
from snnfast.benchmarks.paper.experiment import Context, Experiment, Outcome, Plot, Table, Verdict
from snnfast.cli.entry import main
from snnfast.training.output import OutputFolder

CONTEXT = Context("small", None, torch.device("cpu"))
HOSTILE = 'a < b & "c" <script>alert(1)</script>'


def draw(figure: Any) -> None:
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], marker="o")
    axes.fill_between([1, 2], [1, 1], [2, 2], hatch="/")  # a pattern and a clip path, which have ids


def outcome(shown: bool = True) -> Outcome:
    return Outcome(
        [Table("numbers", HOSTILE, ("name", "value"), [[HOSTILE, 1 / 3], ["none", None]])],
        [Plot("first", HOSTILE, draw), Plot("second", "two", draw)],
        [Verdict(f"claim {HOSTILE}", shown, "0.3 of 1", HOSTILE)],
        [HOSTILE],
    )


def experiments(**runs: Callable[[Context], Outcome]) -> Callable[[str], Experiment]:
    """Fake experiments: those named have their run, all others give a shown verdict."""

    def find(name: str) -> Experiment:
        run = runs.get(name, lambda context: outcome())
        read = SimpleNamespace(data="digits", data_set=lambda data_dir: "digits")
        settings = dict.fromkeys(("small", "full"), read)
        return Experiment(name, f"Title of {name}", "section 0", settings, lambda settings, context: run(context))

    return find


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(**runs: Callable[[Context], Outcome]) -> None:
        monkeypatch.setattr(reproduce, "_experiment", experiments(**runs))

    return install


def command(name: str, out: Path, *more: str) -> int:
    return main(["reproduce", name, "--out", str(out), "--device", "cpu", *more])


def test_an_experiment_leaves_csv_svg_json_and_a_page(
    fake: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    seen = []
    fake(fig3=lambda context: seen.append(context) or outcome(shown=False))
    assert command("fig3", tmp_path) == 0  # NOT SHOWN is no failure
    assert (seen[0].scale, seen[0].folder) == ("small", str(tmp_path))
    assert "NOT SHOWN: claim" in capsys.readouterr().out
    folder = tmp_path / "fig3"
    assert {file.name for file in folder.iterdir()} == {"numbers.csv", "first.svg", "second.svg", "result.json"}
    with (folder / "numbers.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["name", "value"], [HOSTILE, repr(1 / 3)], ["none", ""]]  # full precision
    result = json.loads((folder / "result.json").read_text())
    assert result["verdicts"] == [
        {"claim": f"claim {HOSTILE}", "shown": False, "measured": "0.3 of 1", "paper": HOSTILE}
    ]
    assert (result["scale"], result["name"], result["notes"]) == ("small", "fig3", [HOSTILE])
    assert result["seconds"] >= 0
    assert result["environment"]["versions"]["torch"] == torch.__version__
    assert result["command"] == "snnfast reproduce fig3 --scale small --data-dir DIR --device cpu"
    assert (tmp_path / "index.html").exists()


class Page(HTMLParser):
    """Collects tags, attributes, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_escapes_and_marks_what_is_not_shown(
    fake: Callable[..., None], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    fake(fig4=lambda context: outcome(shown=False))
    assert command("fig3", tmp_path) == command("fig4", tmp_path) == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    seen = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    links = [value for _, name, value in seen.attributes if name in ("href", "xlink:href", "src")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert "@import" not in text
    assert HOSTILE in seen.text  # escaped, and so read back whole
    assert seen.tags.count("svg") == 4
    # Every id once, and every reference to one of them.
    assert len(seen.ids) == len(set(seen.ids))
    references = [link[1:] for link in links] + re.findall(r"url\(#([^)]+)\)", text)
    assert set(references) <= set(seen.ids)
    assert "✗ NOT SHOWN claim" in seen.text
    assert "✓ shown claim" in seen.text
    assert "1 of 2 verdicts shown." in seen.text
    assert "Not run: table1, table2, table3, fig2, fig5, fig6, claims" in seen.text


def test_pictures_of_the_same_numbers_are_the_same_files(fake: Callable[..., None], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    fake()
    pictures = []
    for _ in range(2):
        assert command("fig3", tmp_path) == 0
        pictures.append((tmp_path / "fig3" / "first.svg").read_bytes())
    assert pictures[0] == pictures[1]


def test_all_goes_on_after_a_failure_and_names_it(
    fake: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(context: Context) -> Outcome:
        raise RuntimeError("a bug")

    fake(table2=broken)
    assert command("all", tmp_path) == 1
    captured = capsys.readouterr()
    assert "RuntimeError: a bug" in captured.err
    assert "table2  FAILED" in captured.out
    summary = captured.out[captured.out.index("== verdicts") :]
    for name in reproduce.NAMES:
        assert (tmp_path / name / "result.json").exists() == (name != "table2")
        assert (f"{name}  shown: claim" in summary) == (name != "table2")


def test_an_experiment_that_fails_alone_shows_its_traceback(fake: Callable[..., None], tmp_path: Path) -> None:
    def broken(context: Context) -> Outcome:
        raise RuntimeError("a bug")

    fake(fig3=broken)
    with pytest.raises(RuntimeError, match="a bug"):
        command("fig3", tmp_path)


def test_without_matplotlib_there_are_numbers_and_a_remark(
    fake: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command("fig3", tmp_path) == 0
    assert "plots skipped (tables and verdicts need none): matplotlib is not installed" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "fig3").iterdir()} == {"numbers.csv", "result.json"}


def test_without_matplotlib_it_is_said_before_anything_is_measured(
    fake: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    fake(fig3=lambda context: said.append(capsys.readouterr().out) or outcome())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert command("fig3", tmp_path) == 0
    assert said[0].startswith(f"fig3 at scale small on cpu, into {tmp_path}\n")
    assert "matplotlib is not installed: python -m pip install 'snnfast[plots]'" in said[0]
    assert "== fig3: Title of fig3" in said[0]


def test_a_run_that_says_nothing_for_a_while_is_said_to_go_on(
    fake: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "SAID_EVERY", 0.05)
    threads = threading.active_count()

    def silent(context: Context) -> Outcome:
        deadline, said = time.monotonic() + 30, ""
        while "  … 0 s" not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().out
        assert "  … 0 s" in said
        return outcome()

    fake(fig3=silent)
    assert command("fig3", tmp_path) == 0
    assert threading.active_count() == threads


WRONG = {
    "fig33": f"unknown table or figure 'fig33'; known: {', '.join(reproduce.NAMES)}, all",
    "": "the following arguments are required: NAME",
    "fig3 --scale huge": "argument --scale: invalid choice: 'huge'",
    "fig3 --device gpu": "device must be cpu, cuda or cuda:N, got 'gpu'",
    "fig3 --threads 0": "threads must be at least 1, got 0",
    "fig3 --threads two": "argument --threads: invalid int value: 'two'",
    "fig3 --out taken": "output folder ",
    "fig3 --scale medium": "fig3 has no scale medium; these have: table2, table3, fig5",
    "fig3": "the data set 'cifar10' is read from a folder",
    "all --data-dir nowhere": "data folder 'nowhere' does not exist",
    "table1 --data-dir .": "mnist: no train-images-idx3-ubyte[.gz]",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNNFAST_DATA", raising=False)
    (tmp_path / "taken").touch()
    assert main(["reproduce", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("snnfast reproduce: error: ")
    assert captured.err.count("\n") == 1
    assert WRONG[arguments] in captured.err
    assert captured.out == ""
    assert not list(tmp_path.glob("*/*"))  # no folder for what was not measured


def test_a_table_with_a_short_row_is_an_error(tmp_path: Path) -> None:
    short = Outcome([Table("numbers", "", ("a", "b"), [[1]])], [], [])
    with pytest.raises(ValueError, match="table numbers: a row of 1 values for 2 columns"):
        files.write(OutputFolder(tmp_path), experiments()("fig3"), short, {})


def test_what_is_no_result_is_not_read(tmp_path: Path) -> None:
    assert files.read(tmp_path) is None
    (tmp_path / "result.json").write_text("{")
    assert files.read(tmp_path) is None
    (tmp_path / "result.json").write_text('{"verdicts": []}')
    assert files.read(tmp_path) is None
    assert "Not run" in page.index(tmp_path, ("fig3",))


# What the experiments share.


def test_images_are_the_first_ones_and_pooled() -> None:
    data = workbench.images("digits", CONTEXT, train=10, test=4)
    small = workbench.images("digits", CONTEXT, train=10, test=4, size=4)
    assert (len(data.train), len(data.test)) == (10, 4)
    assert small.image_shape == (1, 4, 4)
    pooled = data.train.images.float().unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)).round()
    assert torch.equal(small.train.images.float(), pooled)
    assert torch.equal(small.train.labels, data.train.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "train must be at least 1, got 0"),
        ({"test": 356}, "test must be at most 355, got 356"),
        ({"size": 9}, "size must be at most 8, got 9"),
    ],
)
def test_more_images_than_there_are_is_an_error(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        workbench.images("digits", CONTEXT, **options)


def small_network(**options: Any) -> tuple[Any, Any]:
    data = workbench.images("digits", CONTEXT, train=64, test=40)
    return workbench.network("plain_net", data, CONTEXT, layers=3, width=4, **options), data


def test_accuracies_of_one_pass_are_those_of_each_number_of_steps() -> None:
    model, data = small_network()
    found = workbench.accuracies(model, data.test, (7, 1, 3), batch_size=16)
    assert model.training  # as it was
    model.eval()
    pixels, labels = data.test[:]
    for steps, accuracy in found.items():
        assert accuracy == pytest.approx((model(pixels, steps=steps).argmax(1) == labels).float().mean().item())
        (count, logits), *_ = workbench.logits_at(model, pixels, [steps])
        torch.testing.assert_close(logits, model(pixels, steps=steps))
        assert count == steps


def test_networks_without_time_have_one_accuracy() -> None:
    model, data = small_network(activation="relu")
    found = workbench.accuracies(model, data.test, (1, 5))
    assert found[1] == found[5]


def test_steps_below_one_and_training_mode_are_refused() -> None:
    model, data = small_network()
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        next(workbench.logits_at(model, data.test[:2][0], [1]))
    model.eval()
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        next(workbench.logits_at(model, data.test[:2][0], [0, 1]))


def test_the_seed_alone_decides_a_networks_weights() -> None:
    first, again, other = (small_network(seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_sharpness_is_balanced_or_left_and_said() -> None:
    model, data = small_network()
    sharpness = workbench.sharpen(model, data, (2, 32))
    assert sharpness.balanced
    assert sharpness.ratio == pytest.approx(1, abs=0.05)
    assert {layer.surrogate.gamma for layer in model.neurons()} == {sharpness.gamma}
    flat, data = small_network(batch_norm=False, threshold=1e9)  # nothing arrives: nothing can be balanced
    left = workbench.sharpen(flat, data, (2, 32))
    assert (left.gamma, left.balanced) == (10.0, False)
    assert "not balanced" in str(left)


def test_the_page_says_what_is_known_of_a_run_and_no_more(tmp_path: Path) -> None:
    """What ran outside of a source tree has no commit; results of before had their versions one level up."""
    folder = OutputFolder(tmp_path / "fig3")
    experiment = experiments()("fig3")
    described = {"device_name": "a CPU", "threads": 2, "versions": {"torch": "2.13.0", "snnfast": "0.1.0"}}
    before = {"cpu": "a CPU", "threads": 2, "torch": "2.13.0", "snnfast": "0.1.0"}
    for environment in ({**described, "commit": None}, before, {**before, "commit": "abc"}):
        about = {"scale": "small", "seconds": 3.0, "command": "", "environment": environment}
        files.write(folder, experiment, Outcome([], [], []), about)
        said = Page(page.index(tmp_path, ("fig3",))).text
        commit = environment.get("commit") or "unknown: not run from a source tree"
        assert f"scale small, 3 s, a CPU, CPU threads 2, torch 2.13.0, snnfast 0.1.0, commit {commit}." in said
    files.write(folder, experiment, Outcome([], [], []), {"scale": "small", "seconds": 3.0, "environment": {}})
    assert "None" not in Page(page.index(tmp_path, ("fig3",))).text


def test_tables_are_below_the_plot_with_the_width_of_the_page_and_scroll_where_that_is_too_little(
    fake: Callable[..., None], tmp_path: Path
) -> None:
    fake()
    assert command("fig3", tmp_path) == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    side, _, below = text.partition("</div></div>")
    assert '<ul class="verdicts">' in side and "<table>" not in side
    assert '<div class="scroll"><table>' in below
    assert re.search(r"\.scroll \{ overflow-x: auto; \}", text)


def test_the_committed_page_is_that_of_the_committed_results_and_excepts_what_they_except() -> None:
    results = Path(__file__).parents[1] / "benchmarks" / "paper" / "results"
    if not results.is_dir():
        pytest.skip("the results are in the source tree, which is not here")
    text = (results / "index.html").read_text(encoding="utf-8")
    assert text == page.index(results, reproduce.NAMES)
    assert "None" not in Page(text).text
    notes = {name: " ".join(files.read(results / name)["notes"]) for name in reproduce.NAMES}
    assert [name for name, said in notes.items() if "were added" in said] == ["table2", "fig5"]
    for said in (Page(text).text, (results.parents[2] / "docs" / "guide" / "paper.md").read_text(encoding="utf-8")):
        fixed = " ".join(said.split()).partition("fixed before anything was measured")[2]
        assert fixed.startswith(", but for those that ")


def test_training_says_how_far_it_is_within_a_long_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    context = replace(CONTEXT, say=said.append)
    for every, lines in ((0.0, 8), (1e9, 2)):
        monkeypatch.setattr(workbench, "SAID_EVERY", every)
        said.clear()
        model, data = small_network()
        workbench.train_model(model, data, context, epochs=2, batch_size=16, lr=1e-3)
        assert len(said) == lines
        assert ["step 3/4" in line for line in said].count(True) == (2 if every == 0 else 0)
    workbench.sharpen(model, data, (2, 32), said.append)
    assert said[-1] == "  balancing γ on 2 batches of 32"


def test_a_loss_curve_is_a_running_mean() -> None:
    history = [SimpleNamespace(step=step, loss=float(step)) for step in (1, 2, 3)]
    assert workbench.loss_curve(history, 2) == ([1, 2, 3], [1.0, 1.5, 2.5])
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        workbench.loss_curve(history, 0)
