"""What a run's loss, label smoothing, averaged weights and compilation are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training_cases import CPU, PLAIN, colours

from snnfast import data, models, training
from snnfast.training import OptionError, Trainer, TrainOptions, checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")


def trainer(model: Any = None, **options: Any) -> Trainer:
    return Trainer(data.load("digits"), replace(PLAIN, epochs=1, **options), CPU, model)


@pytest.mark.parametrize("name", ["plain_net", "resnet11", "resnet18", "mnist_net", "ms_resnet18", "sew_resnet18"])
@pytest.mark.parametrize("activation", ["if", "relu"])
def test_logits_per_step_sum_to_the_logits(name: str, activation: str) -> None:
    network = models.for_images(
        name, (3, 16, 16), 5, steps=4, activation=activation, **({"width": 4} if models.takes(name, "width") else {})
    ).double()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    network(images)
    network.eval()
    with torch.no_grad():
        each = network(images, per_step=True)
        assert each.shape == (4 if activation == "if" else 1, 2, 5)
        torch.testing.assert_close(each.sum(0), network(images))
        if activation == "if":
            assert network(images, steps=6, per_step=True).shape == (6, 2, 5)


def expected(made: Trainer, images: Tensor, labels: Tensor) -> float:
    """The loss by its definition, from the logits of each step."""
    each = made.model(images, per_step=True)
    smoothing = made.options.label_smoothing
    wanted = F.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
    terms = each if made.options.loss == "tet" else each.sum(0)[None]
    return torch.stack([-(wanted * step.log_softmax(1)).sum(1).mean() for step in terms]).mean().item()


@pytest.mark.parametrize("loss", ["sum", "tet"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("activation", ["if", "relu"])
def test_the_loss_is_what_it_is_called(loss: str, smoothing: float, activation: str) -> None:
    gamma = 2.0 if activation == "if" else None
    options = {"loss": loss, "label_smoothing": smoothing, "gamma": gamma}
    made = trainer(**options, model_options={**PLAIN.model_options, "activation": activation})
    batch = next(made.epoch_batches())
    wanted = expected(made, *batch)
    assert made.step(*batch).loss == pytest.approx(wanted, rel=1e-5)


def test_averaged_weights_are_their_recurrence_and_are_what_is_evaluated() -> None:
    made = trainer(ema=0.9)
    batches = list(made.epoch_batches())[:4]
    average: dict[str, Tensor] = {}
    for batch in batches:
        made.step(*batch)
        now = {name: value.double() for name, value in made.model.state_dict().items() if value.is_floating_point()}
        average = {name: 0.9 * average[name] + 0.1 * value if average else value for name, value in now.items()}
    found = made.evaluated.state_dict()
    for name, value in average.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7)
    counts = {name: value for name, value in found.items() if not value.is_floating_point()}
    assert counts and all(torch.equal(value, made.model.state_dict()[name]) for name, value in counts.items())
    weights = {name: value for name, value in found.items() if name.endswith("weight")}
    assert any(not torch.equal(value, made.model.state_dict()[name]) for name, value in weights.items())
    images, labels = made.data.test[:]
    with torch.no_grad():
        logits = made.evaluated.eval()(images)
    assert made.accuracy(made.data.test) == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    # Before the first step there is no average: the network itself.
    assert (fresh := trainer(ema=0.9)).evaluated is fresh.model
    assert (plain := trainer()).evaluated is plain.model


def test_averaged_weights_go_on_bit_for_bit_and_are_what_is_read_back(tmp_path: Path) -> None:
    options = replace(PLAIN, epochs=1, ema=0.8, loss="tet", label_smoothing=0.1)

    def make() -> Trainer:
        return Trainer(data.load("digits"), options, CPU)

    whole, first, second = make(), make(), make()
    whole.fit()
    batches = first.epoch_batches()
    for _ in range(3):
        first.step(*next(batches))
    path = tmp_path / checkpoints.NAME
    checkpoints.save(first, path)
    checkpoints.resume(second, checkpoints.read(path))
    second.fit()
    assert [record.loss for record in second.history] == [record.loss for record in whole.history]
    ends = [made.evaluated.state_dict() for made in (whole, second)]
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())
    checkpoints.save(second, path)
    read = training.load_model(path)
    assert all(torch.equal(read.state_dict()[name], value) for name, value in second.evaluated.state_dict().items())


@pytest.mark.parametrize("loss", ["sum", "tet"])
def test_a_compiled_network_is_trained_to_the_same_losses(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: calls.append(options) or compile_(*args, **options))
    options = {"loss": loss, "ema": 0.9, "clip": 1.0}
    plain, compiled = trainer(**options), trainer(**options, compile="default")
    for made in (plain, compiled):
        for images, labels in list(made.epoch_batches())[:6]:
            made.step(images, labels)
    assert [each["fullgraph"] for each in calls] == [True]
    losses = [[record.loss for record in made.history] for made in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert len(set(losses[1])) == 6
    # The weights that were trained are the network's own: what is evaluated, saved and read.
    ends = [made.model.state_dict() for made in (plain, compiled)]
    assert list(ends[0]) == list(ends[1])
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-2, atol=1e-3)
    accuracies = [made.evaluate(made.data.test).accuracy for made in (plain, compiled)]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.05)


def test_a_checkpoint_of_before_there_were_these_options_goes_on(tmp_path: Path) -> None:
    made, path = trainer(), tmp_path / checkpoints.NAME
    made.step(*next(iter(made.epoch_batches())))
    checkpoints.save(made, path)
    content = torch.load(path, weights_only=True)
    for name in ("loss", "label_smoothing", "ema", "compile"):
        del content["options"][name]
    del content["average"]
    torch.save(content, path)
    again = trainer()
    checkpoints.resume(again, checkpoints.read(path))
    assert again.history == made.history
    assert training.load_model(path) is not None


def test_an_option_that_does_not_go_with_the_presets_is_told_with_them() -> None:
    options = TrainOptions.for_data("cifar100", model_options={"activation": "lif", "width": 4})
    with pytest.raises(OptionError, match=r"the model's options are .*zero_init_residual=True, shortcut_scale=2.0"):
        Trainer(colours(), replace(options, batch_size=20, augment="none"), CPU)


REFUSED = {
    "loss must be one of 'sum', 'tet', got 'each'": {"loss": "each"},
    "loss must be 'sum' with the model 'digits', got 'tet'": {"loss": "tet", "model": "digits", "model_options": {}},
    "label_smoothing must be at least 0 and below 1, got 1": {"label_smoothing": 1},
    "label_smoothing must be at least 0 and below 1, got nan": {"label_smoothing": float("nan")},
    "compile must be one of 'default', 'reduce-overhead', got 'fast'": {"compile": "fast"},
    "compile must be None with the layer 'compiled', got 'default'": {
        "compile": "default",
        "layer": "compiled",
        "model": "digits",
        "model_options": {},
    },
    "ema must be at least 0 and below 1, got 1.0": {"ema": 1.0},
    "ema must be at least 0 and below 1, got -0.1": {"ema": -0.1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_are_none_are_refused(message: str) -> None:
    with pytest.raises(OptionError, match=message):
        replace(PLAIN, **REFUSED[message])


def test_a_model_of_ones_own_without_steps_to_show_is_refused_for_tet() -> None:
    options = TrainOptions(steps=2, epochs=1, batch_size=20, lr=0.01, loss="tet", model="plain_net")
    with pytest.raises(OptionError, match=r"loss must be 'sum' for a model without per_step, .* got 'tet'"):
        Trainer(colours(), options, CPU, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3)))
