"""Training runs: what the options mean, what is found first, what several processes do together."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from training_cases import COMMAND, CPU, PLAIN, colours, losses, run

import snnfast as sf
from snnfast import data, models, training, tuning
from snnfast.cli.entry import main
from snnfast.training import OptionError, Trainer, TrainOptions


def test_no_step_is_taken_after_the_last_and_the_first_finds_the_rate() -> None:
    for schedule in ("one-cycle", "constant"):
        trainer = Trainer(data.load("digits"), replace(PLAIN, epochs=1, lr="find", schedule=schedule), CPU)
        batches = list(trainer.epoch_batches())
        for batch in batches:
            trainer.step(*batch)
        weights = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        with pytest.raises(ValueError, match="the run is at its end, after step 6 of 6"):
            trainer.step(*batches[0])
        assert all(map(torch.equal, weights, trainer.model.parameters()))
        assert len(trainer.history) == 6


def test_a_given_model_is_trained_and_the_random_state_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trainer = Trainer(
        colours(),
        TrainOptions(steps=2, epochs=1, batch_size=20, lr=0.01),
        CPU,
        models.plain_net(3, layers=3, width=4, image_size=16, steps=2),
    )
    torch.set_rng_state(before)
    weights = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.fit()
    assert torch.equal(torch.get_rng_state(), before)
    assert not all(torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters(), strict=True))
    found = trainer.evaluate(trainer.data.test, steps=5)
    trainer.model.eval()
    images, labels = trainer.data.test[:]
    logits = trainer.model(images, steps=5)
    assert found.accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert (found.steps, found.images) == (5, 20)


def test_rate_and_sharpness_are_found_first_and_kept_by_the_checkpoint(tmp_path: Path) -> None:
    options = replace(PLAIN, lr="find", gamma="tune", epochs=1, out=str(tmp_path))
    done = training.train(options)
    gamma, lr = done.trainer.gamma, done.trainer.lr
    layers = [layer for layer in done.trainer.model.modules() if isinstance(layer, sf.IF)]
    assert [layer.surrogate.gamma for layer in layers] == [gamma, gamma]
    assert max(record.lr for record in done.trainer.history) == pytest.approx(lr, rel=0.5)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["gamma"], summary["lr"]) == (gamma, lr)
    again = training.train(options, resume=True).trainer
    assert (again.gamma, again.lr, len(again.history)) == (gamma, lr, len(done.trainer.history))


def test_the_ann_twin_trains_with_a_rate_that_was_found(tmp_path: Path) -> None:
    twin = {**PLAIN.model_options, "activation": "relu"}
    done = training.train(replace(PLAIN, model_options=twin, gamma=None, lr="find", out=str(tmp_path)))
    assert done.trainer.history[-1].loss < done.trainer.history[0].loss


def test_a_rate_that_cannot_be_found_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning.learning_rate, "_CLEAR", math.inf)  # no fall is clear
    with pytest.raises(OptionError, match=r"^lr must be given: in the range test the loss never fell clearly: \d"):
        training.train(replace(PLAIN, lr="find", epochs=1, out=str(tmp_path)))


def test_a_sharpness_that_cannot_be_tuned_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gradients of the network digits vanish at every sharpness; the ANN twin has none."""
    twin = ["--model", "plain_net", "--model-option", "layers=3", "--model-option", "activation=relu"]
    for network, why in (([], "no γ from "), (twin, "")):
        arguments = ["train", *network, "--gamma", "tune", "--steps", "2", "--epochs", "1", "--device", "cpu"]
        assert main([*arguments, "--threads", "1", "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"snnfast train: error: gamma must be given, it cannot be tuned: {why}")
        assert error.count("\n") == 1


def test_a_constant_schedule_is_constant_and_one_cycle_rises_and_falls() -> None:
    rates = {}
    for schedule in ("constant", "one-cycle"):
        trainer = Trainer(data.load("digits"), replace(PLAIN, schedule=schedule), CPU)
        trainer.fit()
        rates[schedule] = [record.lr for record in trainer.history]
    assert set(rates["constant"]) == {0.01}
    assert rates["one-cycle"][0] < 0.001 < 0.009 < max(rates["one-cycle"]) <= 0.01
    assert rates["one-cycle"][-1] < 0.0001


def test_the_surrogate_is_chosen_by_name() -> None:
    trainer = Trainer(data.load("digits"), replace(PLAIN, surrogate="Triangle", gamma=0.7), CPU)
    shapes = {layer.surrogate for layer in trainer.model.neurons()}
    assert shapes == {sf.surrogate.Triangle(gamma=0.7)}


def test_a_sharpness_for_a_network_without_spikes_is_refused() -> None:
    with pytest.raises(OptionError, match=r"gamma must be None for a network without spiking layers, got 2\.0"):
        Trainer(data.load("digits"), replace(PLAIN, model_options={"layers": 3, "activation": "relu"}), CPU)


def test_options_that_a_checkpoint_could_not_hold_are_refused() -> None:
    with pytest.raises(OptionError, match=r"model_options must hold plain numbers, .* got threshold=tensor"):
        TrainOptions(model="plain_net", model_options={"threshold": torch.ones(())})


@pytest.mark.parametrize("option", ["--steps", "--eval-steps"])
def test_more_time_steps_than_the_layers_take_are_refused_before_training(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, "--epochs", "1", option, "2147483648", "--out", str(tmp_path / "run")]) == 2
    name = option.removeprefix("--").replace("-", "_")
    allowed = "at most 2147483647, got 2147483648"
    assert capsys.readouterr().err == f"snnfast train: error: {name} must be {allowed}\n"
    assert not (tmp_path / "run").exists()


def test_clipping_bounds_the_update_of_the_first_step() -> None:
    trainer = Trainer(data.load("digits"), replace(PLAIN, clip=1e-3), CPU)
    trainer.step(*next(trainer.epoch_batches()))
    norm = torch.stack([parameter.grad.norm() for parameter in trainer.model.parameters()]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_is_autocast_and_close_to_float32() -> None:
    first = {}
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(data.load("digits"), replace(PLAIN, precision=precision), CPU)
        seen = []
        trainer.model.classifier.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out.dtype))
        first[precision] = trainer.step(*next(trainer.epoch_batches())).loss
        assert seen == [getattr(torch, precision)]
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert first["bfloat16"] == pytest.approx(first["float32"], rel=0.05)


def test_a_run_whose_output_nobody_reads_ends_without_a_traceback(tmp_path: Path) -> None:
    process = run([*COMMAND, "--epochs", "200"], tmp_path)
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(), errors) == (141, "")


def test_processes_with_different_options_are_refused() -> None:
    class Two(training.Processes):
        def gathered(self, value: TrainOptions) -> list[TrainOptions]:
            return [value, replace(value, epochs=3, out="elsewhere")]

    run_module = importlib.import_module("snnfast.training.run")
    with pytest.raises(OptionError, match=r"all processes must be given the same options, got epochs 2, 3$"):
        run_module._check_equal_options(PLAIN, Two(0, 2))


def test_two_processes_have_the_losses_of_one_on_the_joined_batch(tmp_path: Path) -> None:
    arguments = [*COMMAND, "--epochs", "1"]
    one, two = tmp_path / "one", tmp_path / "two"
    process = run(arguments, one)
    assert process.wait() == 0, process.stderr.read()
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--no-python", sys.executable, "-P", "-m", "snnfast", *arguments, "--out", str(two)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("test accuracy ") == 1  # one process speaks
    first, second = losses(one), losses(two)
    assert len(first) == len(second) == 12
    assert first == pytest.approx(second, rel=1e-3)
    assert first[:3] == pytest.approx(second[:3], rel=1e-5)
    accuracy = [json.loads((folder / "summary.json").read_text())["test_accuracy"] for folder in (one, two)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.02)
    # And it goes on, with as many processes, and leaves none of gloo's threads: one that lets go of a tensor while
    # Python exits aborts the process.
    options = replace(PLAIN, batch_size=120, epochs=1, out=str(two))
    last = [*torchrun, "--no-python", sys.executable, "-P", "-c", TRAIN_AND_NAME_THREADS.format(options=options)]
    again = subprocess.run(last, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "resume  after step 12 of 12" in again.stdout
    assert again.stdout.count("gloo threads: []") == 2, again.stdout


def test_a_network_that_guesses_is_told_where_to_read_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from snnfast.training.run import guesses

    # Of 10000 images and 10 classes three binomial errors are 0.9 points.
    assert guesses(0.1, 10, 10_000) and guesses(0.02, 10, 10_000) and guesses(0.108, 10, 10_000)
    assert not guesses(0.11, 10, 10_000)
    options = replace(PLAIN, epochs=1, lr=1e-12, out=str(tmp_path / "still"))
    training.train(options)
    *_, told, _ = capsys.readouterr().out.splitlines()
    assert told.startswith("that is no better than guessing (10.00%)") and "does not learn" in told
    training.train(replace(options, epochs=6, lr=PLAIN.lr, out=str(tmp_path / "learning")))
    assert "guessing" not in capsys.readouterr().out


TRAIN_AND_NAME_THREADS = """
import pathlib
from snnfast.training import TrainOptions, train
run = train({options}, resume=True)
names = [file.read_text().strip() for file in pathlib.Path("/proc/self/task").glob("*/comm")]
print("gloo threads:", [name for name in names if "gloo" in name], flush=True)
"""


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    with pytest.raises(OptionError, match="batch_size must be a multiple of the 7 processes, got 240"):
        Trainer(data.load("digits"), PLAIN, CPU, processes=training.Processes(0, 7))
    options = replace(PLAIN, compile="default")
    with pytest.raises(OptionError, match="compile must be None for several processes, got 'default'"):
        Trainer(data.load("digits"), options, CPU, processes=training.Processes(0, 2))


def test_tensorboard_has_every_step_and_evaluation(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    done = training.train(replace(PLAIN, tensorboard=True, out=str(tmp_path)))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert written == [(r.step, pytest.approx(r.loss, rel=1e-6)) for r in done.trainer.history]
    assert [event.step for event in events.Scalars("test/accuracy")] == [6, 12]
    for name in ("rate", "silent", "saturated"):
        rates = [(event.step, event.value) for event in events.Scalars(f"{name}/activations.1")]
        own = [record for record in done.trainer.rates if record.layer == "activations.1"]
        assert rates == [(6 * r.epoch, pytest.approx(getattr(r, name), rel=1e-6)) for r in own]


def test_tensorboard_that_is_not_there_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main([*COMMAND, "--epochs", "1", "--tensorboard", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "TensorBoard is not installed: python -m pip install 'snnfast[logs]'" in captured.err
    assert "epoch 1/" not in captured.out
