"""Runs go on where they stopped, bit for bit, and refuse a checkpoint that does not fit."""

from __future__ import annotations

import csv
import importlib
import json
import random
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from training_cases import COMMAND, CPU, PLAIN, colours, losses, run

from snnfast import data, models, training, tuning
from snnfast.cli.entry import main
from snnfast.training import CheckpointError, DivergedError, OutputError, Trainer, TrainOptions, checkpoints
from snnfast.training.output import OutputFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of PLAIN."""
    folder = tmp_path_factory.mktemp("finished")
    training.train(replace(PLAIN, out=str(folder)))
    return folder


def test_a_run_killed_at_a_random_moment_goes_on_to_the_same_curve(tmp_path: Path) -> None:
    arguments = [*COMMAND, "--epochs", "6", "--checkpoint-every", "0"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = run(arguments, whole)
    assert process.wait() == 0, process.stderr.read()
    process = run(arguments, killed)
    checkpoint = killed / checkpoints.NAME
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.communicate()
    done = len(checkpoints.read(checkpoint)["history"])
    process = run([*arguments, "--resume"], killed)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert f"resume  after step {done} of 72" in output
    assert len(losses(whole)) == 72
    assert losses(killed) == losses(whole)
    for name in ("evaluations.csv", "rates.csv"):
        assert (killed / name).read_text() == (whole / name).read_text()
    states = [checkpoints.read(folder / checkpoints.NAME)["model"] for folder in (whole, killed)]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_dropout_augmentation_and_order_go_on_with_their_random_numbers(stop: int) -> None:
    def make() -> Trainer:
        options = TrainOptions(steps=2, epochs=2, batch_size=8, lr=0.01, augment="cifar", clip=1.0)
        torch.manual_seed(0)
        model = models.mnist_net(3, 3, image_size=16, steps=2)  # has dropout
        return Trainer(colours(), options, CPU, model)

    whole = make()
    whole.fit()

    class Stop(Exception):
        pass

    first, kept = make(), {}

    def each_step(record: training.StepRecord) -> None:
        if record.step == stop:
            kept.update(first.state())
            raise Stop

    with pytest.raises(Stop):
        first.fit(each_step)
    torch.manual_seed(99)  # what the program does meanwhile
    second = make()
    second.load_state(kept)
    second.fit()
    assert [r.loss for r in second.history] == [r.loss for r in whole.history]
    assert len({r.loss for r in whole.history}) == 10


def test_two_trainers_go_on_from_one_state_on_their_own() -> None:
    def make() -> Trainer:
        return Trainer(data.load("digits"), PLAIN, CPU)

    whole, first, second = make(), make(), make()
    whole.fit()
    batches = first.epoch_batches()
    for _ in range(3):
        first.step(*next(batches))
    second.load_state(first.state())
    first.fit()
    second.fit()
    for trainer in (first, second):
        assert [record.loss for record in trainer.history] == [record.loss for record in whole.history]


def test_a_trained_network_is_read_back_from_its_folder(finished: Path) -> None:
    model = training.load_model(finished)
    assert not model.training
    assert [layer.surrogate.gamma for layer in model.neurons()] == [2.0, 2.0]
    trainer = Trainer(data.load("digits"), PLAIN, CPU, model)
    summary = json.loads((finished / "summary.json").read_text())
    assert trainer.accuracy(trainer.data.test) == summary["test_accuracy"]


def test_a_trained_networks_measured_thresholds_come_back_with_it(tmp_path: Path) -> None:
    options = replace(PLAIN, model_options={**PLAIN.model_options, "batch_norm": False})
    digits = data.load("digits")

    def make() -> Trainer:
        torch.manual_seed(0)
        return Trainer(digits, options, CPU)

    trainer, path = make(), tmp_path / checkpoints.NAME
    found = tuning.normalize_thresholds(trainer.model, [digits.train[:64]])
    trainer.step(*next(iter(trainer.epoch_batches())))
    checkpoints.save(trainer, path)
    model, resumed = training.load_model(path), make()
    checkpoints.resume(resumed, checkpoints.read(path))
    for network in (model, resumed.model):
        assert [layer.threshold for layer in network.neurons()] == list(found.values())
        assert torch.equal(network.eval()(digits.test[:8][0]), trainer.model.eval()(digits.test[:8][0]))
    checkpoints.save(make(), path)
    with pytest.raises(CheckpointError, match=r"of another network: no .*threshold"):
        checkpoints.resume(trainer, checkpoints.read(path))


def test_resume_takes_the_options_of_the_run_and_evaluates_at_others(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "history.csv").read_bytes()
    assert main(["train", "--resume", "--out", str(finished), "--eval-steps", "1,3,6,6,1"]) == 0
    output = capsys.readouterr().out
    assert all(f"% at {steps} steps" in output for steps in (1, 3, 6))
    assert (finished / "history.csv").read_bytes() == before
    accuracy = json.loads((finished / "summary.json").read_text())["test_accuracy"]
    assert main(["train", "--resume", "--out", str(finished), "--eval-steps", "1"]) == 0
    assert "% at 1 steps" in capsys.readouterr().out  # one that is not the training's says so
    # The run's own result stays that at its own number of steps.
    assert json.loads((finished / "summary.json").read_text())["test_accuracy"] == accuracy
    with (finished / "evaluations.csv").open() as file:
        rows = [(int(row["epoch"]), int(row["steps"])) for row in csv.DictReader(file)]
    assert rows == [(1, 3), (2, 3), (2, 1), (2, 6)]


def test_resume_goes_on_in_the_folder_where_the_checkpoint_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*COMMAND, "--epochs", "1", "--out", "run"]) == 0
    (tmp_path / "run").rename(TrainOptions.out)
    assert main(["train", "--resume"]) == 0
    assert "resume  after step 12 of 12" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [TrainOptions.out]


def test_resume_from_a_path_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--resume", "--out", 300 * "x"]) == 2
    assert capsys.readouterr().err.endswith("cannot be written: File name too long\n")


def test_resume_without_a_checkpoint_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--epochs", "1", "--resume", "--out", str(tmp_path)]) == 0
    assert f"resume  no checkpoint in {tmp_path}: from the beginning" in capsys.readouterr().out


def test_a_new_run_keeps_the_checkpoint_of_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training.train(replace(PLAIN, epochs=1, out=str(tmp_path)))
    old = (tmp_path / checkpoints.NAME).read_bytes()
    training.train(replace(PLAIN, epochs=1, seed=1, out=str(tmp_path)))
    assert (tmp_path / checkpoints.PREVIOUS).read_bytes() == old
    assert (tmp_path / checkpoints.NAME).read_bytes() != old
    assert "the checkpoint of an earlier run is now checkpoint-previous.pt" in capsys.readouterr().out


def test_a_second_run_in_the_folder_of_one_that_goes_on_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run([*COMMAND, "--epochs", "200", "--checkpoint-every", "0"], tmp_path)
    while not (tmp_path / checkpoints.NAME).exists() and first.poll() is None:
        time.sleep(0.01)
    try:
        for resume in ([], ["--resume"]):
            assert main([*COMMAND, "--epochs", "200", *resume, "--out", str(tmp_path)]) == 2
            error = capsys.readouterr().err
            assert "is another run's, which is still going: wait, or name another" in error
            assert error.count("\n") == 1
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert main([*COMMAND, "--epochs", "1", "--out", str(tmp_path)]) == 0


def test_other_images_are_refused_on_resume(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / checkpoints.NAME).write_bytes((finished / checkpoints.NAME).read_bytes())
    digits = data.load("digits")
    test = replace(digits.test, labels=digits.test.labels.flip(0))
    monkeypatch.setattr(importlib.import_module("snnfast.training.run"), "load", lambda *_: replace(digits, test=test))
    message = r"another run: images 'digits, 1442 and 355 images, checksum \w{8}' there, 'digits, 1442 and 355 images, "
    with pytest.raises(CheckpointError, match=message):
        training.train(replace(PLAIN, out=str(tmp_path)), resume=True)


def test_another_precision_is_refused_on_resume(finished: Path, tmp_path: Path) -> None:
    rewritten(finished, tmp_path, precision="bfloat16")
    with pytest.raises(CheckpointError, match="of another run: precision 'bfloat16' there, 'float32' here"):
        training.train(replace(PLAIN, out=str(tmp_path)), resume=True)


def test_a_run_that_ends_before_its_first_epoch_has_taken_the_folder(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / checkpoints.NAME).write_bytes((finished / checkpoints.NAME).read_bytes())

    def interrupted(self: Trainer, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train(replace(PLAIN, seed=5, checkpoint_every=60, out=str(tmp_path)))
    kept = checkpoints.read(tmp_path / checkpoints.NAME)
    assert (kept["options"]["seed"], len(kept["history"])) == (5, 0)
    assert len(checkpoints.read(tmp_path / checkpoints.PREVIOUS)["history"]) == 12


REFUSED = {
    "another model": (["--model", "resnet11"], "model 'plain_net' there, 'resnet11' here"),
    "other options": (
        ["--model-option", "layers=4"],
        "model_options {'layers': 3, 'width': 4} there, {'layers': 4} here",
    ),
    "another rate": (["--lr", "0.02", "--steps", "4"], "steps 3 there, 4 here; lr 0.01 there, 0.02 here"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    what: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / checkpoints.NAME).read_bytes()
    arguments, message = REFUSED[what]
    assert main(["train", "--resume", *arguments, "--out", str(finished)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("snnfast train: error: the checkpoint is of another run: ")
    assert message in error
    assert (finished / checkpoints.NAME).read_bytes() == before


def rewritten(finished: Path, folder: Path, **changes: object) -> Path:
    content = torch.load(finished / checkpoints.NAME, weights_only=True)
    torch.save({**content, **changes}, folder / checkpoints.NAME)
    return folder


def damaged(finished: Path, folder: Path, what: str) -> None:
    whole = (finished / checkpoints.NAME).read_bytes()
    file = folder / checkpoints.NAME
    if what == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif what == "one bit of a weight":
        weight = torch.load(finished / checkpoints.NAME, weights_only=True)["model"]["classifier.weight"]
        place = whole.index(weight.contiguous().numpy().tobytes())
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif what == "parts missing":
        torch.save({"format": 1, "options": {}}, file)
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "text":
        file.write_text("not a checkpoint\n")
    elif what == "code":
        torch.save({"format": 1, "code": nn.Linear(2, 2)}, file)
    elif what == "weights alone":
        torch.save(nn.Linear(2, 2).state_dict(), file)
    elif what == "newer":
        rewritten(finished, folder, format=99, snnfast="9.9")
    elif what == "other weights":
        rewritten(finished, folder, model=models.plain_net(layers=4, width=4).state_dict())
    elif what == "two processes":
        own = torch.load(finished / checkpoints.NAME, weights_only=True)["processes"]
        rewritten(finished, folder, processes=own * 2)


DAMAGED = {
    "truncated": "is truncated, damaged or no checkpoint",
    "one bit of a weight": "is truncated, damaged or no checkpoint",
    "parts missing": "is not one that `snnfast train` wrote: no data, precision, gamma, lr, model, ",
    "empty": "(0 bytes) is truncated, damaged or no checkpoint",
    "text": "is truncated, damaged or no checkpoint",
    "code": "is truncated, damaged or no checkpoint",
    "weights alone": "is not one that `snnfast train` wrote",
    "newer": "was written by snnfast 9.9 in format 99; this is snnfast",
    "other weights": "the checkpoint's weights are of another network: ",
    "two processes": "the checkpoint is of a run of 2 processes, this one has 1",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_checkpoint_that_does_not_fit_is_refused_and_stays(
    what: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(finished, tmp_path, what)
    before = (tmp_path / checkpoints.NAME).read_bytes()
    assert main([*COMMAND[:-4], "--batch-size", "240", "--epochs", "2", "--resume", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert DAMAGED[what] in captured.err
    assert captured.err.count("\n") == 1
    assert "epoch 1/" not in captured.out
    assert (tmp_path / checkpoints.NAME).read_bytes() == before
    if what == "two processes":  # a network is the same, however many trained it
        assert len(training.load_model(tmp_path).neurons()) == 2
    else:
        with pytest.raises(CheckpointError):
            training.load_model(tmp_path)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """The rate ruins the weights at the first step; without batch normalization the second loss is not finite."""
    ruined = replace(PLAIN, model="digits", model_options={}, gamma=None)
    options = replace(ruined, lr=1e30, schedule="constant", out=str(tmp_path))
    with pytest.raises(DivergedError, match=r"at step (\d+) .*training stopped") as caught:
        training.train(options)
    diverged = int(str(caught.value).split("at step ")[1].split()[0])
    kept = checkpoints.read(tmp_path / checkpoints.NAME)
    assert len(kept["history"]) == diverged - 1
    assert torch.isfinite(kept["history"]).all()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    trainer = Trainer(data.load("digits"), PLAIN, CPU)
    path = tmp_path / checkpoints.NAME
    checkpoints.save(trainer, path)
    before = path.read_bytes()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OutputError, match="written: File too large; the checkpoint before it, if any, is still"):
            checkpoints.save(trainer, path)
        with pytest.raises(OutputError, match=r"history\.csv cannot be written: File too large"):
            OutputFolder(tmp_path).write_json("history.csv", {"long": len(before) * "x"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
