"""What a user of the command line sees: results, one clear line for a mistake, and where the files are."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import snnfast
from snnfast import benchmarks, models, training
from snnfast.benchmarks import run
from snnfast.cli import entry as cli
from snnfast.cli.entry import main
from snnfast.data import data_sets
from snnfast.training import TrainOptions, layer_timing

QUICK = ["--epochs", "1", "--batch-size", "240", "--steps", "4", "--device", "cpu", "--threads", "1"]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def one_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text.strip()


def test_train_gives_the_same_losses_fused_and_naive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layer in ("fused", "naive"):
        folder = tmp_path / layer
        assert main(["train", "--layer", layer, *QUICK, "--epochs", "2", "--out", str(folder)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith("epoch 2/2: loss ") and "accuracy" in line for line in lines)
        assert any(line.startswith("test accuracy ") for line in lines[-3:-1])
        files = {"history.csv", "evaluations.csv", "summary.json", "checkpoint.pt"}
        files |= {"rates.csv"} if layer == "fused" else set()  # of snnfast's layers, which the loop has none of
        assert lines[-1].startswith(f"Files are in {folder}: ")
        assert set(lines[-1].split(": ")[1].split(", ")) == files == {file.name for file in folder.iterdir()}
    fused, naive = ([float(row["loss"]) for row in history(tmp_path / layer)] for layer in ("fused", "naive"))
    assert len(fused) == 2 * (1442 // 240)
    assert fused[0] == naive[0]
    assert max(abs(a - b) for a, b in zip(fused[:10], naive[:10], strict=True)) <= 1e-4
    summary = json.loads((tmp_path / "fused" / "summary.json").read_text())
    assert summary["first_loss"] == fused[0]
    assert summary["options"]["steps"] == 4
    assert summary["environment"]["torch"] == torch.__version__


def test_compare_prints_both_speed_ups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layer_timing, "SECONDS", 0.05)
    monkeypatch.setattr(importlib.import_module("snnfast.training.side_by_side"), "MEASUREMENTS", 1)
    assert main(["train", "--compare", *QUICK, "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "compare.json").read_text())
    layers, step = result["layer_speedup"], result["step_speedup"]
    assert f"speed-up of the neuron layers {layers:.2f}×, of the whole training step {step:.2f}×" in output
    assert "first loss equal bit for bit" in output
    assert output.splitlines()[-1].startswith(f"Files are in {tmp_path}: ")


WRONG = {
    "--steps 0": "steps must be at least 1, got 0",
    "--steps ten": "argument --steps: invalid int value: 'ten'",
    "--epochs 0": "epochs must be at least 1, got 0",
    f"--epochs 1{'0' * 400}": "epochs must be at most 2147483647, got 1000",
    "--batch-size 0": "batch_size must be at least 1, got 0",
    "--batch-size 2000": "batch_size must be at most the 1442 training images of digits, got 2000",
    "--eval-steps 10,0": "eval_steps must be at least 1, got 0",
    "--eval-steps 10;20": "argument --eval-steps: must be one or more integers, T or T,T,..., got '10;20'",
    "--lr 0": "lr must be above 0 and at most 1e+30, got 0.0",
    "--lr nan": "lr must be above 0 and at most 1e+30, got nan",
    "--lr fnid": "lr must be a number or 'find', got 'fnid'",
    "--lr 1e39": "lr must be above 0 and at most 1e+30, got 1e+39",
    "--gamma -1": "gamma must be between 0 and 3.4028235e+38, the largest float32, got -1.0",
    "--gamma 1e39": "gamma must be between 0 and 3.4028235e+38, the largest float32, got 1e+39",
    "--gamma high": "gamma must be a number or 'tune', got 'high'",
    "--weight-decay -1": "weight_decay must be finite and not negative, got -1.0",
    "--clip 0": "clip must be finite and above 0, got 0.0",
    "--schedule cosine": "schedule must be one of 'one-cycle', 'constant', got 'cosine'",
    "--surrogate steep": "surrogate must be one of ",
    "--augment flip": "augment must be one of 'none', 'cifar', 'cifar-strong', got 'flip'",
    "--precision float16": "precision must be one of 'float32', 'bfloat16', got 'float16'",
    "--checkpoint-every -1": "checkpoint_every must be finite and not negative, got -1.0",
    "--model resnet": f"model must be one of {', '.join(map(repr, models.names()))}, got 'resnet'",
    "--model plain_net --layer naive": "layer must be 'fused' with the model 'plain_net', got 'naive'",
    "--model plain_net --model-option layers=6": "model plain_net: layers must be one of 3, 4, 5, 9, 13, got 6",
    "--model plain_net --model-option width=99999999999": "width must be at most 2147483647",
    "--model plain_net --model-option reset_value=1e39": "reset_value must be ",
    "--model-option widths=(0,1,1)": "model digits: widths must be three integers of at least 1, got (0, 1, 1)",
    "--model-option widths=(99999999999,1,1)": "model digits: widths must be three integers of at least 1, got ",
    "--model plain_net --model-option depth=6": "model plain_net: ",
    "--model plain_net --model-option steps=6": "model_options must not hold steps: it has an option of its own",
    "--model-option layers": "argument --model-option: must be NAME=VALUE, got 'layers'",
    "--model mnist_net": "model mnist_net: image_size is too small for mnist_net, got 8",
    "--model plain_net --augment cifar": "augment must be 'none' for images of 1 channel, got 'cifar'",
    "--compare --model plain_net": "model must be 'digits', which both can train, for a comparison; got 'plain_net'",
    "--seed -1": "seed must not be negative, got -1",
    "--threads 0": "threads must be at least 1, got 0",
    "--threads 100000": "threads must be at most 1024, got 100000",
    "--threads 99999999999": "threads must be at most 1024, got 99999999999",
    "--data minst": f"unknown data set 'minst'; known: {', '.join(data_sets())}",
    "--data mnist": "the data set 'mnist' is read from a folder",
    "--data mnist --data-dir nowhere": "data folder 'nowhere' does not exist",
    "--data mnist --data-dir .": "mnist: no train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz], ",
    "--layer fast": "layer must be one of 'fused', 'naive', 'compiled', got 'fast'",
    "--layer naive --compare": "argument --compare: not allowed with argument --layer",
    "--device gpu": "device must be cpu, cuda or cuda:N, got 'gpu'",
    "--device mps": "device must be cpu, cuda or cuda:N, got 'mps'",
    "--device cuda:99": "device 'cuda:99': ",
    "--out taken": "output folder ",
    "--out taken/deeper": "output folder ",
    "--out=": "out must name a folder ('.' is the current one), got ''",
    "--bogus": "unrecognized arguments: --bogus",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNNFAST_DATA", raising=False)
    (tmp_path / "taken").touch()
    assert main(["train", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert WRONG[arguments] in one_line(captured.err)
    assert "epoch 1/" not in captured.out  # found before training starts
    assert "error: " in captured.err


# Every option of every command, and values that none of its kind takes.
NUMBERS = ["-1", "nan", "inf", "1e400", f"1{'0' * 400}", "abc", ""]
WORDS = ["abc", "0", "nan", "\udcff"]
FILES = ["taken/deeper", "/proc/nope/deeper", "a" * 5000]
TRAIN = {
    **dict.fromkeys(
        [
            "--steps",
            "--epochs",
            "--batch-size",
            "--lr",
            "--weight-decay",
            "--clip",
            "--label-smoothing",
            "--ema",
            "--gamma",
            "--seed",
            "--threads",
            "--checkpoint-every",
            "--eval-steps",
        ],
        NUMBERS,
    ),
    **dict.fromkeys(
        [
            "--data",
            "--model",
            "--layer",
            "--schedule",
            "--loss",
            "--surrogate",
            "--augment",
            "--precision",
            "--device",
            "--model-option",
        ],
        WORDS,
    ),
    "--out": [*FILES, ""],
    "--data mnist --data-dir": FILES,
}
NEURON = {
    "threshold": ["-1", "None", "'x'", "[1]", "10**400"],
    "reset_value": ["1e39", "-1e400", "True", "'x'"],
    "reset": ["0", "'half'"],
    "detach_reset": ["1", "'x'"],
    "fire_on_equal": ["0", "None"],
    "time_dim": ["1", "2"],
    "carry_state": ["1"],
    "learn_threshold": ["'x'"],
    "delay": ["2"],
    "tau": ["3.0"],
    "nonsense": ["1"],
    "activation": ["'gelu'", "[]"],
}
OTHERS = {
    "bench": {"--processes": [*NUMBERS, "0"], "--device": WORDS, "--case": WORDS, "--out": FILES},
    "reproduce fig3": {
        "--threads": [*NUMBERS, "0"],
        "--device": WORDS,
        "--scale": WORDS,
        "--out": FILES,
        "--data-dir": FILES,
    },
    "paper.single_neuron": {"--seed": NUMBERS, "--updates": [*NUMBERS, "0"], "--out": FILES},
    "training": {
        "--width": NUMBERS,
        "--image-size": NUMBERS,
        "--batch-size": NUMBERS,
        "--steps": [*NUMBERS, "0"],
        "--seconds": ["-1", "nan", "inf", "x"],
        "--model": WORDS,
        "--precision": WORDS,
        "--side": WORDS,
        "--device": WORDS,
        "--out": [*FILES, "."],
    },
}


def mistakes(options: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """Every option with each of its values, as the words of a command line."""
    return [
        (name.split()[-1], [*name.split()[:-1], f"{name.split()[-1]}={value}"])
        for name, values in options.items()
        for value in values
    ]


def refused(
    command: Callable[[list[str]], Any], words: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr that names the option, and exit code 2."""
    try:
        code = command(words)
    except SystemExit as exit_:
        code = exit_.code
    except Exception as error:
        pytest.fail(f"{words} were not refused: {error!r}")
    said = capsys.readouterr().err.encode(errors="backslashreplace").decode()
    assert code == 2, words
    named = option.strip("-")
    assert any(name in one_line(said) for name in (named, named.replace("-", "_"), "data set", "folder")), said


@pytest.fixture
def no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a file ``taken``; what would take time fails."""

    def work(*arguments: object, **options: object) -> None:
        raise AssertionError("not refused")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNNFAST_DATA", raising=False)
    (tmp_path / "taken").touch()
    monkeypatch.setattr(training.Trainer, "fit", work)
    for module, name in (
        ("run", "_run_device"),
        ("paper.reproduce", "_run"),
        ("paper.single_neuron", "run"),
        ("training", "measure"),
    ):
        monkeypatch.setattr(importlib.import_module(f"snnfast.benchmarks.{module}"), name, work)


def test_every_option_of_train_refuses_what_it_cannot_be(no_work: None, capsys: pytest.CaptureFixture[str]) -> None:
    for option, words in mistakes(TRAIN):
        refused(main, ["train", *words], option, capsys)
    for name, values in NEURON.items():
        for value in values:
            refused(main, ["train", "--model-option", f"{name}={value}"], name, capsys)


@pytest.mark.parametrize("command", OTHERS)
def test_every_option_of_the_other_commands_refuses_what_it_cannot_be(
    command: str, no_work: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, words in mistakes(OTHERS[command]):
        if command in ("bench", "reproduce fig3"):
            refused(main, [*command.split(), *words], option, capsys)
        else:
            module = importlib.import_module(f"snnfast.benchmarks.{command}")
            refused(module.main, words, option, capsys)


def test_running_out_of_memory_is_one_line(
    no_work: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(*arguments: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(training.Trainer, "fit", fit)
    assert main(["train", *QUICK, "--out", "run"]) == 2
    said = one_line(capsys.readouterr().err)
    assert said.startswith("snnfast train: error: out of memory: ") and "--batch-size" in said and "--steps" in said
    network = importlib.import_module("snnfast.training.trainer").models
    monkeypatch.setattr(network, "for_images", lambda *arguments, **options: torch.empty(2**60))
    assert main(["train", *QUICK, "--out", "run"]) == 2
    assert "model digits: its weights need more memory than there is" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [[], ["trian"], ["info", "more"]])
def test_a_wrong_command_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert one_line(capsys.readouterr().err).startswith("snnfast: error: ")


def test_a_folder_without_write_permission_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)  # as root, which tests may run as, no permission bit refuses
    assert main(["train", *QUICK, "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert f"output folder {str(tmp_path)!r} cannot be written: Permission denied" in one_line(captured.err)
    assert "epoch 1/" not in captured.out


def test_a_diverging_rate_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--lr", "1e30", *QUICK, "--epochs", "2", "--out", str(tmp_path)]) == 1
    assert "try one below 1e+30" in one_line(capsys.readouterr().err)
    assert history(tmp_path)


def test_an_error_of_ours_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(options: training.TrainOptions, *, resume: bool) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(training, "train", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["train", "--out", str(tmp_path)])


def test_an_interruption_is_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: training.TrainOptions, *, resume: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    assert main(["train", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.strip() == "snnfast: interrupted"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_training_prints_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "snnfast", "train", *QUICK, "--out", str(tmp_path)]
    finished = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True)
    assert finished.returncode == 0, finished.stderr.decode()
    assert ("1×8×8" if encoding == "utf-8" else "1?8?8") in finished.stdout.decode()


def test_an_interrupted_measuring_process_prints_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C reaches the measuring process, which runs under another allocator, and the one that waits for it."""
    command = [sys.executable, "-P", "-m", "snnfast.benchmarks", "--quick", "--device", "cpu"]
    command += ["--worker", str(tmp_path / "results.json")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a script ignores Ctrl-C, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    first = process.stderr.readline()  # a case was measured
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert first and process.returncode == 130
    assert "Traceback" not in errors


def test_an_interruption_of_the_measuring_process_is_one_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    run = importlib.import_module("snnfast.benchmarks.run")
    ended = subprocess.CompletedProcess([], 130)
    monkeypatch.setattr(run.subprocess, "run", lambda *arguments, **options: ended)
    with pytest.raises(KeyboardInterrupt):
        run._measure_in_child(run._parser().parse_args(["--quick"]), "cpu", {})


def test_bench_passes_everything_on_to_the_benchmark_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def record(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    monkeypatch.setattr(benchmarks, "main", record, raising=False)
    assert main(["bench", "--full", "--help", "x"]) == 7
    assert seen == [["--full", "--help", "x"]]


def test_info_prints_versions_and_all_of_build_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    output = capsys.readouterr().out
    assert snnfast.__version__ in output
    assert torch.__version__ in output
    for name in snnfast.build_info():
        assert name in output


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["--version"], snnfast.__version__), (["--help"], "bench"), (["train", "--help"], "--data-dir")],
)
def test_help_and_version_are_shown(arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert shown in capsys.readouterr().out


def options_with_values() -> dict[str, argparse.Action]:
    """Every option of every command that takes a value, and what turns something on that may be on without."""
    (commands,) = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    parsers = {**commands.choices, "bench": run._parser()}
    return {
        f"{command} {action.option_strings[0]}": action
        for command, parser in parsers.items()
        for action in parser._actions
        if action.option_strings and action.nargs != 0 and action.help != argparse.SUPPRESS
    }


@pytest.mark.parametrize("option", options_with_values())
def test_help_says_what_an_option_is_where_it_is_not_given(option):
    assert "(default: " in options_with_values()[option].help


@pytest.mark.parametrize("name", ["model", "epochs", "batch_size", "lr", "gamma", "augment"])
def test_the_defaults_in_trains_help_are_those_it_trains_with(name):
    said = options_with_values()[f"train --{name.replace('_', '-')}"].help.rpartition("(default: ")[2].rstrip(")")
    for data in data_sets():
        value = getattr(TrainOptions.for_data(data), name)
        mine = [part for part in said.split("; ") if data in re.split(r"[ ,]+", part.rpartition(" for ")[2])]
        assert len(mine) == 1, said
        assert mine[0].startswith("that of the shape for " if value is None else f"{value} for ")


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("False", False), ("2.0", 2.0), ("relu", "relu"), ("'true'", "true")]
)
def test_a_model_option_is_what_its_text_says(text: str, value: object) -> None:
    from snnfast.cli.train import _model_option

    assert _model_option(f"activation={text}") == ("activation", value)
