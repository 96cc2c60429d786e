"""What is left of an image from layer to layer, told for a network that carries it, scrambles it, or is silent."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import snnfast as sf
from snnfast import models, tuning
from snnfast.data import load

pytestmark = pytest.mark.usefixtures("one_thread")


def digits(count: int = 16, batches: int = 1) -> list[tuple[Tensor, Tensor]]:
    data = load("digits").train
    return [data[start : start + count] for start in range(0, count * batches, count)]


def smooth() -> list[tuple[Tensor, Tensor]]:
    """Images with a little detail, as photographs have it."""
    coarse = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return [(nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear"), torch.arange(16))]


def deep(**options: object) -> models.Network:
    torch.manual_seed(0)
    return models.resnet50(10, 1, width=8, steps=3, **options)


class Rates(nn.Module):
    """Inputs [B, N] as currents of one IF layer over four steps."""

    def __init__(self, gain: float = 1.0, **options: object) -> None:
        super().__init__()
        self.gain, self.neuron = gain, sf.IF(**options)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.gain * x, steps=4)


def by_hand(model: Rates, x: Tensor, noise: float) -> tuple[float, float]:
    noisy = x + noise * x.double().std(correction=0).float() * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(0)
    )
    clean, other = (model(given).mean(0).double() for given in (x, noisy))
    pairs = [(clean[a] - clean[b]).norm() for a in range(len(x)) for b in range(a)]
    ratio = (clean - other).norm(dim=1).mean() / torch.stack(pairs).mean()
    return ratio.item(), clean.mean().item()


def test_ratio_and_rate_are_those_of_their_definition() -> None:
    x = torch.rand(5, 40, generator=torch.Generator().manual_seed(2)) * 2
    found = tuning.signal_profile(Rates(), [(x, None)], noise=0.3)
    ratio, rate = by_hand(Rates(), x, 0.3)
    assert found.ratios == pytest.approx([ratio], rel=1e-6) and 0.05 < ratio < 1
    assert found.rates == pytest.approx([rate], rel=1e-6)
    assert (found.names, found.noise, found.images) == (("neuron",), 0.3, 5)


def test_time_in_the_second_dimension_is_time_too() -> None:
    x = torch.rand(5, 4, 40, generator=torch.Generator().manual_seed(2)) * 2

    def profile(time_dim: int, given: Tensor) -> float:
        return tuning.signal_profile(sf.IF(time_dim=time_dim), [(given, None)], seed=1).rates[0]

    assert profile(1, x) == pytest.approx(profile(0, x.transpose(0, 1).contiguous()))


def test_a_deep_network_scrambles_a_cured_one_and_the_twin_do_not() -> None:
    plain, cured, twin = (
        tuning.signal_profile(deep(**options), smooth(), noise=0.01)
        for options in ({}, {"zero_init_residual": True, "shortcut_scale": 2.0}, {"activation": "relu"})
    )
    assert len(plain.ratios) == len(cured.ratios) == len(twin.ratios) == 49
    assert min(plain.ratios[-20:]) > 0.9 and str(plain).count("scrambled") >= 20
    assert max(cured.ratios) < 0.7 and str(cured).splitlines()[-2] == "49 healthy"
    counts = {word: int(number) for number, word in (part.split() for part in str(plain).splitlines()[-2].split(", "))}
    assert sum(counts.values()) == 49 and counts["scrambled"] == sum(ratio >= 0.9 for ratio in plain.ratios)
    assert all(a < b for a, b in zip(twin.ratios, plain.ratios, strict=True))
    assert twin.names == plain.names == deep_names()


def deep_names() -> tuple[str, ...]:
    blocks = [f"blocks.{block}.activations.{place}" for block in range(16) for place in range(3)]
    return ("stem_activation", *blocks)


def test_a_silent_network_is_called_silent_and_one_that_always_fires_the_same_for_all() -> None:
    silent = tuning.signal_profile(Rates(0.01), digits_as_vectors())
    assert math.isnan(silent.ratios[0]) and silent.rates == (0.0,) and silent.verdict(0) == "silent"
    assert "silent" in str(silent)
    always = tuning.signal_profile(nn.Sequential(AddOne(), Rates(50.0)), digits_as_vectors())
    assert "constant" in str(always)
    assert math.isnan(always.ratios[0]) and always.verdict(0) == "constant"


class AddOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def digits_as_vectors() -> list[tuple[Tensor, Tensor]]:
    return [(x.flatten(1), y) for x, y in digits()]


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(0.7, "healthy"), (0.71, "fading"), (0.89, "fading"), (0.9, "scrambled"), (1.2, "scrambled")]
)
def test_verdicts(ratio: float, verdict: str) -> None:
    assert tuning.SignalProfile(("a",), (ratio,), (0.1,), 0.05, 2).verdict(0) == verdict


def test_batches_are_averaged_and_noise_is_the_seeds() -> None:
    model = Rates()
    both = [(x.flatten(1) * 3, y) for x, y in digits(8, 2)]
    assert tuning.signal_profile(model, both).images == 16
    assert tuning.signal_profile(model, both, seed=5) == tuning.signal_profile(model, both, seed=5)
    assert tuning.signal_profile(model, both, seed=5) != tuning.signal_profile(model, both, seed=6)
    rates = [tuning.signal_profile(model, [one]).rates[0] for one in both]
    assert tuning.signal_profile(model, both).rates[0] == pytest.approx(sum(rates) / 2)


def test_nothing_of_the_model_is_changed_and_dropout_is_off() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.9), sf.IF(carry_state=True)).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    images = [(torch.stack([x] * 3), y) for x, y in digits()]
    model[0] = nn.Flatten(2)
    model[1] = OverBatch(model[1])
    model.eval()
    found = tuning.signal_profile(model, images)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(model.state_dict()[name.replace("1.", "1.norm.", 1)], value) for name, value in state.items()
    )
    assert not any(module.training for module in model.modules())
    assert model[3]._state is None
    assert found == tuning.signal_profile(model, images)
    model[2].p = 0.0
    assert found == tuning.signal_profile(model, images)  # as without any
    # Its own statistics, unless evaluation is asked for.
    assert found.rates != tuning.signal_profile(model, images, training=False).rates


class OverBatch(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_a_layer_that_is_called_twice_has_two_rows() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = sf.IF()

        def forward(self, x: Tensor) -> Tensor:
            return self.neuron(self.neuron(3 * x.flatten(1), steps=4) * 2)

    assert tuning.signal_profile(Twice(), digits()).names == ("neuron", "neuron#2")


def test_calls_of_a_carried_state_are_one_run() -> None:
    class Stepwise(Rates):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.neuron(x[None])[0] for _ in range(4)])

    data = digits_as_vectors()
    at_once, found = (tuning.signal_profile(model, data) for model in (Rates(), Stepwise(carry_state=True)))
    assert found.names == ("neuron",)
    assert found.ratios == pytest.approx(at_once.ratios) and found.rates == pytest.approx(at_once.rates)


def test_both_passes_draw_the_same_random_numbers() -> None:
    class Dropping(Rates):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.dropout(x, 0.5, training=True))

    images = torch.rand(5, 40, generator=torch.Generator().manual_seed(2))
    assert tuning.signal_profile(Dropping(), [(images, None)], noise=1e-6).ratios[0] < 0.01


def test_what_a_model_writes_into_a_relus_output_is_not_its_activation() -> None:
    class Overwriting(nn.Module):
        def __init__(self, overwrite: bool) -> None:
            super().__init__()
            self.overwrite, self.relu = overwrite, nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            activations = self.relu(x - 0.5)
            return activations.zero_() if self.overwrite else activations

    found, plain = (tuning.signal_profile(Overwriting(overwrite), digits_as_vectors()) for overwrite in (True, False))
    assert found == plain and found.rates[0] > 0 and found.names == ("relu",)


def test_one_neuron_an_image_and_a_still_image_over_as_many_steps_as_images_are_measured() -> None:
    images = torch.rand(6, 8, generator=torch.Generator().manual_seed(3))
    alone = tuning.signal_profile(sf.IF(), [(images[:, 0].expand(50, 6), None)], noise=0.3)
    assert 0 < alone.ratios[0] < 1
    still = tuning.signal_profile(sf.IF(), [(images.expand(6, 6, 8), None)])
    assert 0 < still.ratios[0] < 1
    # Over time, too, images must differ.
    with pytest.raises(ValueError, match="images must differ, got a batch of 3 that are all the same"):
        tuning.signal_profile(sf.IF(), [(images[:1].expand(7, 3, 8), None)])


def test_noise_of_doubles_is_as_fine_as_they_are_and_does_not_go_to_the_default_device() -> None:
    model, images = nn.Sequential(nn.ReLU()), torch.rand(4, 8, generator=torch.Generator().manual_seed(3)).double()
    fine = tuning.signal_profile(model, [(images + 1e6, None)], noise=1e-7).ratios
    assert fine == pytest.approx([tuning.signal_profile(model, [(images, None)], noise=1e-7).ratios[0]], rel=1e-2)
    with torch.device("meta"):
        assert tuning.signal_profile(model, [(images + 1e6, None)], noise=1e-7).ratios == fine
    assert "copy with 1e-05% noise" in str(tuning.signal_profile(model, [(images, None)], noise=1e-7))


def test_outputs_that_are_not_finite_are_refused_by_the_layers_name() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    nn.init.constant_(model[0].weight, 3e38)
    with pytest.raises(ValueError, match=r"the output of '1' is not finite"):
        tuning.signal_profile(model, [(torch.rand(4, 8) + 1, None)])


ONE = torch.rand(1, 8)
REFUSED = {
    "a batch must have at least 2 images, between which there is a distance, got 1": (ValueError, ONE, {}),
    "a batch must have at least 2 images, between which there is a distance, got 0": (ValueError, ONE[:0], {}),
    "inputs must hold images, got a batch whose values are all the same": (ValueError, torch.full((4, 8), 0.5), {}),
    "images must differ, got a batch of 3 that are all the same": (ValueError, ONE.repeat(3, 1), {}),
    "inputs must be finite, got NaN or infinity": (ValueError, torch.full((4, 8), math.nan), {}),
    "inputs must be a floating tensor, to which noise can be added, got torch.int64": (TypeError, torch.arange(8), {}),
    "inputs must be a floating tensor, to which noise can be added, got str": (TypeError, "images", {}),
    "noise must be finite and above 0, got 0": (ValueError, torch.rand(4, 8), {"noise": 0}),
    "noise must be finite and above 0, got nan": (ValueError, torch.rand(4, 8), {"noise": math.nan}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_measured_is_refused(message: str) -> None:
    error, inputs, options = REFUSED[message]
    with pytest.raises(error, match=message):
        tuning.signal_profile(Rates(), [(inputs, None)], **options)


def test_a_network_without_neurons_or_batches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no spiking layer .* and no ReLU: Linear"):
        tuning.signal_profile(nn.Linear(8, 2), [(torch.rand(4, 8), None)])
    with pytest.raises(ValueError, match="no batch"):
        tuning.signal_profile(Rates(), [])

    class Past(Rates):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match="reaches none of its spiking layers"):
        tuning.signal_profile(Past(), [(torch.rand(4, 8), None)])


def test_pictures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found = tuning.signal_profile(Rates(2.0), digits_as_vectors())
    found.plot(tmp_path / "one.png")
    tuning.plot_signals({"a": found, "b": found}, tmp_path / "two.svg")
    assert (tmp_path / "one.png").stat().st_size > 1000 and (tmp_path / "two.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match="profiles must hold at least one profile, got none"):
        tuning.plot_signals({}, tmp_path / "none.png")


def test_a_ratio_says_how_many_layers_it_rests_on() -> None:
    cured = deep(zero_init_residual=True, shortcut_scale=2.0)
    search = tuning.tune_gamma(cured, digits(), tolerance=0.5)
    # Inside of the blocks no gradient arrives: of their three neurons the last alone has one, and the stem's.
    first, rest = search.profile.reached
    assert first + rest == 17
    said = f"resting on {first} of the first 24 layers and {rest} of the other 25; the gradients of the others are 0"
    assert said in str(search) and said in str(search.profile)
    whole = tuning.gradient_profile(models.plain_net(10, 1, image_size=8, layers=4, steps=3), digits())
    assert whole.reached == (1, 2) and whole.rests_on() == "" and "resting" not in str(whole)


def test_no_graph_is_kept_and_images_of_inference_mode_are_taken() -> None:
    seen = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = models.resnet11(10, 1, width=2, steps=2)

        def forward(self, images: Tensor) -> Tensor:
            logits = self.network(images)
            seen.append(logits.requires_grad or torch.is_grad_enabled())
            return logits

    model, images = Watched(), smooth()[0][0]
    found = tuning.signal_profile(model, [(images, None)])
    with torch.inference_mode():
        same = images.clone()
    assert tuning.signal_profile(model, [(same, None)]) == found
    assert seen == [False] * 4


def test_a_plot_of_something_else_is_refused_by_its_label(tmp_path: Path) -> None:
    profile = tuning.gradient_profile(
        Rates(), [(torch.rand(3, 4), torch.zeros(3))], loss=lambda outputs, targets: outputs.sum()
    )
    with pytest.raises(TypeError, match="profiles must hold SignalProfiles, got GradientProfile for 'a'"):
        tuning.plot_signals({"a": profile}, tmp_path / "a.svg")  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="profiles must hold GradientProfiles, got int for 'b'"):
        tuning.plot_profiles({"b": 1}, tmp_path / "b.svg")  # type: ignore[dict-item]
