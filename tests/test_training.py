"""A network trains the same through every implementation of its neurons, and its speed-ups are of equal results."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import snnfast
from snnfast.comparing.naive import NaiveIF
from snnfast.data import ImageData, load
from snnfast.models import DigitsNet, SummedLinear
from snnfast.training import (
    Comparison,
    DivergedError,
    MismatchError,
    Trainer,
    TrainOptions,
    compare,
    layer_timing,
    train,
)
from snnfast.training.implementations import neuron_factory
from snnfast.training.layer_timing import LayerClock, capture
from snnfast.training.trainer import reproducible

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits")


@pytest.fixture(scope="module")
def default_comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Both trainings that a user gets without options, side by side: the longest test here, hence only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_timing, "SECONDS", 0.05)
        # One thread: on a machine whose cores are busy, two that wait for each other take minutes.
        return compare(TrainOptions(device="cpu", threads=1, out=str(tmp_path_factory.mktemp("compare"))))


def losses(comparison: Comparison, side: str) -> list[float]:
    return [record.loss for record in comparison.runs[side].trainer.history]


def test_the_default_training_reaches_97_percent(default_comparison: Comparison) -> None:
    assert default_comparison.runs["fused"].test_accuracy >= 0.97


def test_fused_and_naive_have_the_same_loss_curve(default_comparison: Comparison) -> None:
    fused, naive = losses(default_comparison, "fused"), losses(default_comparison, "naive")
    assert fused[0] == naive[0]
    assert max(abs(a - b) for a, b in zip(fused[:10], naive[:10], strict=True)) <= 1e-4
    assert default_comparison.early_difference <= 1e-4
    accuracy = {side: run.test_accuracy for side, run in default_comparison.runs.items()}
    assert abs(accuracy["fused"] - accuracy["naive"]) <= 0.01


def test_a_comparison_times_every_neuron_layer_and_the_whole_step(default_comparison: Comparison) -> None:
    shapes = [layer.shape for layer in default_comparison.layers]
    assert shapes == [(10, 64, 32, 8, 8), (10, 64, 64, 4, 4), (10, 64, 128)]
    assert [layer.held for layer in default_comparison.layers] == [True, False, False]
    # No bound on time here (machines differ); the benchmark judges speed. But the parts must fit into the whole.
    assert 0 < default_comparison.layer_seconds["naive"] < default_comparison.step_seconds["naive"]
    assert default_comparison.step_speedup > 0


def test_a_comparison_leaves_histories_summaries_and_its_result(default_comparison: Comparison) -> None:
    folder = default_comparison.runs["fused"].folder
    of_each_side = {name for side in ("fused", "naive") for name in (f"history-{side}.csv", f"summary-{side}.json")}
    assert set(folder.files) == of_each_side | {"compare.json"}
    assert {file.name for file in folder.path.iterdir()} == set(folder.files)
    result = json.loads((folder.path / "compare.json").read_text())
    assert result["step_speedup"] == default_comparison.step_speedup
    assert result["layer_speedup"] == default_comparison.layer_speedup
    with (folder.path / "history-naive.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Full precision: a history read back is the history.
    assert [float(row["loss"]) for row in rows] == losses(default_comparison, "naive")


@pytest.mark.parametrize("layer", ["fused", "naive"])
def test_training_alone_gives_the_same_curve_as_in_a_comparison(default_comparison: Comparison, layer: str) -> None:
    options = default_comparison.runs[layer].trainer.options
    with reproducible(options.threads):
        trainer = Trainer(load("digits"), options, CPU)
        for (images, labels), _ in zip(trainer.epoch_batches(), range(5), strict=False):
            trainer.step(images, labels)
    assert [record.loss for record in trainer.history] == losses(default_comparison, layer)[:5]


def test_the_seed_decides_weights_and_order_whatever_the_layer(digits: ImageData) -> None:
    def drawn(layer: str, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        trainer = Trainer(digits, TrainOptions(layer=layer, seed=seed), CPU)
        return list(trainer.model.parameters()), next(trainer.epoch_batches())[1]

    weights, labels = drawn("fused", 0)
    for layer in ("naive", "compiled"):
        other_weights, other_labels = drawn(layer, 0)
        assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
        assert torch.equal(labels, other_labels)
    other_weights, other_labels = drawn("fused", 1)
    assert not torch.equal(weights[0], other_weights[0])
    assert not torch.equal(labels, other_labels)


def test_a_run_leaves_the_global_random_state_and_thread_count_alone(tmp_path: Path) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(TrainOptions(epochs=1, batch_size=700, steps=2, device="cpu", threads=1, out=str(tmp_path)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_history(tmp_path: Path) -> None:
    message = r"loss with the naive layer is (nan|inf) at step \d+ .*try one below 1e\+30"
    with pytest.raises(DivergedError, match=message):
        train(TrainOptions(layer="naive", lr=1e30, epochs=1, steps=2, device="cpu", out=str(tmp_path)))
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert not math.isfinite(float(rows[-1]["loss"]))
    assert all(math.isfinite(float(row["loss"])) for row in rows[:-1])


def passes_and_naive(digits: ImageData) -> tuple[list, list[nn.Module]]:
    model = DigitsNet(steps=3)
    passes = capture(model, *digits.train[:8])
    assert all(parameter.grad is None for parameter in model.parameters())
    return passes, [NaiveIF(reset="soft") for _ in passes]


def test_what_is_captured_is_what_the_layers_meet(digits: ImageData) -> None:
    passes, _ = passes_and_naive(digits)
    assert [seen.steps for seen in passes] == [3, None, None]
    assert [tuple(seen.current.shape) for seen in passes] == [(8, 32, 8, 8), (3, 8, 64, 4, 4), (3, 8, 128)]
    assert [tuple(seen.gradient.shape) for seen in passes] == [(3, 8, 32, 8, 8), (3, 8, 64, 4, 4), (3, 8, 128)]
    assert all(seen.gradient.abs().max() > 0 for seen in passes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: NaiveIF(threshold=0.5, reset="soft"), "spikes differ between naive and wrong"),
        (lambda: NaiveIF(reset="soft", detach_reset=True), "gradients of naive and wrong differ"),
    ],
    ids=["spikes", "gradients"],
)
def test_no_speed_up_is_measured_where_results_differ(digits: ImageData, wrong, message: str) -> None:
    passes, naive = passes_and_naive(digits)
    with pytest.raises(MismatchError, match=message):
        LayerClock(passes, {"naive": naive, "wrong": [wrong() for _ in passes]}, CPU)


def test_the_compiled_layer_is_the_naive_one_within_rounding() -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler")
    current = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    compiled, naive = neuron_factory("compiled")(), neuron_factory("naive")()
    with torch.no_grad():
        assert torch.equal(compiled(current), naive(current))


def test_a_linear_map_of_a_sum_is_the_sum_of_the_linear_maps() -> None:
    linear = SummedLinear(6, 4).double()
    inputs = torch.randn(7, 3, 6, dtype=torch.float64)
    each_step = sum(nn.functional.linear(x, linear.weight, linear.bias) for x in inputs)
    torch.testing.assert_close(linear(inputs.sum(0), steps=7), each_step)


def test_the_network_is_its_layers_applied_step_by_step() -> None:
    net = DigitsNet((2, 9, 8), classes=5, steps=4, neuron=lambda: NaiveIF(reset="soft")).double()
    image = torch.rand(3, 2, 9, 8, dtype=torch.float64)
    stages = (net.stem, net.conv, net.hidden)
    potentials: list[torch.Tensor | float] = [0.0] * 3
    logits = torch.zeros(3, 5, dtype=torch.float64)
    for _ in range(4):
        value = image
        for index, stage in enumerate(stages):
            current = stage(value) if index == 0 else stage(value.unsqueeze(0)).squeeze(0)
            potential = potentials[index] + current
            value = (potential > 1).double()
            potentials[index] = potential - value
        logits += nn.functional.linear(value, net.classifier.weight, net.classifier.bias)
    torch.testing.assert_close(net(image), logits)


def test_the_part_before_the_first_neuron_runs_once() -> None:
    net = DigitsNet(steps=6)
    shapes: list[torch.Size] = []
    net.stem.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    net(torch.rand(2, 1, 8, 8))
    assert shapes == [(2, 32, 8, 8)]


def test_the_network_fits_28_pixels_and_any_number_of_steps() -> None:
    net = DigitsNet((1, 28, 28))
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert net(torch.rand(2, 1, 28, 28), steps=1).shape == (2, 10)
    assert all(isinstance(neuron, snnfast.IF) for neuron in net.neurons())


def test_the_network_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="at least 4×4 pixels, got 3×8"):
        DigitsNet((1, 3, 8))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        DigitsNet(steps=0)
    with pytest.raises(TypeError, match="steps must be an int, got float"):
        DigitsNet()(torch.rand(1, 1, 8, 8), steps=2.5)


def test_a_data_sets_own_defaults_give_way_to_what_is_given() -> None:
    options = TrainOptions.for_data("mnist", epochs=7, seed=None)
    assert (options.data, options.model, options.epochs, options.seed) == ("mnist", "mnist_net", 7, 0)
    assert options.evaluated_steps == (10, 20)
    assert TrainOptions.for_data("mnist", layer="naive").model == "digits"
    cifar = TrainOptions.for_data("cifar10", lr=0.1)
    assert (cifar.lr, cifar.gamma, cifar.augment) == (0.1, "tune", "cifar")
    twin = TrainOptions.for_data("imagenette", model_options={"activation": "relu"})
    assert (twin.gamma, twin.evaluated_steps) == (None, (10,))
    # The network of that data set still: its stem, and how its blocks begin.
    blocks = {"zero_init_residual": True, "shortcut_scale": 2.0}
    assert twin.model_options == {"stem": "7x7", **blocks, "activation": "relu"}
    assert TrainOptions.for_data("cifar100", model_options={"zero_init_residual": False}).model_options == {
        "zero_init_residual": False,
        "shortcut_scale": 2.0,
    }
    assert TrainOptions.for_data("cifar100", model="resnet18").model_options == {}
    assert TrainOptions.for_data("digits") == TrainOptions()
    assert replace(options, data="digits").epochs == 7
