"""`snnfast train` writes how each spiking layer fires after every epoch, and training does not notice."""

from __future__ import annotations

import csv
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from training_cases import CPU, PLAIN, colours, losses

import snnfast as sf
from snnfast import data, models, training
from snnfast.training import Trainer, TrainOptions, checkpoints


def rows(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "rates.csv").open() as file:
        return [tuple(row) for row in csv.reader(file)]


def test_rates_are_those_of_the_network_on_the_first_test_images_after_each_epoch(tmp_path: Path) -> None:
    done = training.train(replace(PLAIN, out=str(tmp_path)))
    head, *written = rows(tmp_path)
    assert head == ("epoch", "layer", "rate", "silent", "saturated")
    names = ["activations.0", "activations.1"]
    assert [row[:2] for row in written] == [(epoch, name) for epoch in "12" for name in names]
    images, _ = done.trainer.data.test[:240]
    now = sf.activity_report(training.load_model(tmp_path), images).layers
    assert [tuple(map(float, row[2:])) for row in written[2:]] == [(r.rate, r.silent, r.saturated) for r in now]
    assert all(0 < row.rate < 1 for row in now)


@pytest.mark.parametrize("stop", [1, 5, 6, 9])
def test_a_run_that_goes_on_has_each_epochs_row_once(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in an epoch, or (6) at an epoch's end, after its rates were measured and before they were saved."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    training.train(replace(PLAIN, out=str(whole)))
    step, firing = Trainer.step, Trainer.firing

    def interrupted(self: Trainer, *batch: torch.Tensor) -> training.StepRecord:
        if len(self.history) == stop:
            raise KeyboardInterrupt
        return step(self, *batch)

    def lost(self: Trainer) -> list[training.FiringRecord]:
        self.rates += firing(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(*((Trainer, "firing", lost) if stop == 6 else (Trainer, "step", interrupted)))
    with pytest.raises(KeyboardInterrupt):
        training.train(replace(PLAIN, out=str(cut)))
    monkeypatch.undo()
    training.train(replace(PLAIN, out=str(cut)), resume=True)
    assert rows(cut) == rows(whole)
    assert len(rows(cut)) == 1 + 2 * 2
    assert losses(cut) == losses(whole)


def test_a_network_without_spiking_layers_has_no_rates_and_none_of_an_earlier_run(tmp_path: Path) -> None:
    training.train(replace(PLAIN, epochs=1, out=str(tmp_path)))
    assert (tmp_path / "rates.csv").exists()
    twin = {**PLAIN.model_options, "activation": "relu"}
    done = training.train(replace(PLAIN, epochs=1, gamma=None, model_options=twin, out=str(tmp_path)))
    assert done.trainer.rates == []
    assert not (tmp_path / "rates.csv").exists()


def test_a_checkpoint_from_before_there_were_rates_goes_on(tmp_path: Path) -> None:
    training.train(replace(PLAIN, out=str(tmp_path)))
    content = checkpoints.read(tmp_path / checkpoints.NAME)
    del content["rates"]
    trainer = Trainer(data.load("digits"), PLAIN, CPU)
    checkpoints.resume(trainer, content)
    assert trainer.rates == []


def test_measuring_rates_changes_nothing_of_training() -> None:
    """Dropout, augmentation, running statistics: with and without, the same losses and weights, bit for bit."""

    def trained(measured: bool) -> Trainer:
        options = TrainOptions(steps=2, epochs=2, batch_size=8, lr=0.01, augment="cifar", clip=1.0)
        torch.manual_seed(0)
        model = models.mnist_net(3, 3, image_size=16, steps=2, batch_norm=True)  # has dropout
        trainer = Trainer(colours(), options, CPU, model)
        trainer.fit(lambda record: trainer.rates.extend(trainer.firing()) if measured else None)
        return trainer

    without, with_rates = trained(False), trained(True)
    assert len(with_rates.rates) == 3 * 10
    assert {record.epoch for record in with_rates.rates} == {0, 1, 2}
    assert [astuple(r)[:-1] for r in with_rates.history] == [astuple(r)[:-1] for r in without.history]
    states = [trainer.model.state_dict() for trainer in (without, with_rates)]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert with_rates.model.training
