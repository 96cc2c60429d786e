"""γ, learning rate and thresholds are set by what was measured, and nothing else about the model changes."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_resnet import SmallResNet18
from torch import Tensor, nn
from torch.nn import functional as F
from tuning_models import STEPS, Everything, Plain, Residual, batches, images, made, neurons

import snnfast as sf
from snnfast import tuning
from snnfast.data import load
from snnfast.models import DigitsNet

pytestmark = pytest.mark.usefixtures("one_thread")

# Gradient profile


def test_the_profile_is_the_mean_absolute_gradient_at_every_neurons_current() -> None:
    model, (inputs, targets) = made(Plain), batches(1)[0]
    profile = tuning.gradient_profile(model, [(inputs, targets)])

    current1 = model.enter(inputs).expand(STEPS, -1, -1)  # one value per step: a held current is expanded
    current1.retain_grad()
    spikes, _ = sf.functional.integrate_and_fire(current1, threshold=0.5, reset="soft")
    current2 = model.hidden(spikes)
    current2.retain_grad()
    spikes, _ = sf.functional.leaky_integrate_and_fire(current2, tau=3.0, threshold=0.5)
    F.cross_entropy(model.leave(spikes).sum(0), targets).backward()

    assert profile.names == ("first", "second")  # as the forward pass reaches them; one it does not reach is left out
    expected = [current.grad.abs().mean().item() for current in (current1, current2)]
    assert profile.values == pytest.approx(expected, rel=1e-5)
    assert profile.ratio == pytest.approx(expected[0] / expected[1], rel=1e-5)
    assert profile.gammas == (10.0, 10.0)


@pytest.mark.parametrize("time_dim", [0, 1])
def test_a_normalizing_layers_gradient_is_that_behind_normalization_and_residual(time_dim: int) -> None:
    fused, apart = (made(lambda fused=fused: Residual(fused, time_dim)) for fused in (True, False))
    ours, plain = (tuning.gradient_profile(model, batches()) for model in (fused, apart))
    assert len(ours.values) == 4
    assert ours.values == pytest.approx(plain.values, rel=1e-3)


def test_the_profile_is_an_average_over_the_batches() -> None:
    model, data = made(Plain), batches()
    together = tuning.gradient_profile(model, data)
    alone = [tuning.gradient_profile(model, [batch]).values for batch in data]
    assert together.batches == 3
    assert together.values == pytest.approx([sum(values) / 3 for values in zip(*alone, strict=True)])


def test_the_gradient_is_measured_whatever_is_frozen_switched_off_or_compiled() -> None:
    model, data = made(Plain), batches()
    expected = tuning.gradient_profile(model, data)
    with torch.no_grad():
        assert tuning.gradient_profile(model, data) == expected
    with torch.inference_mode():
        assert tuning.gradient_profile(model, data) == expected
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(data[0][0]).sum().backward()  # compiled for good, without the measurement's hooks
    assert tuning.gradient_profile(compiled, data).values == expected.values
    model.requires_grad_(False)
    assert tuning.gradient_profile(model, data) == expected


def test_the_mode_a_function_runs_in_is_its_own_whatever_the_models() -> None:
    modes = []
    model = made(Everything)
    model.second.register_forward_pre_hook(lambda layer, inputs: modes.append(layer.training))
    for found in (True, False):
        model.train(found)
        tuning.gradient_profile(model, batches(1))
        assert modes.pop() is True  # batch statistics and dropout, as in training
        tuning.normalize_thresholds(model, batches(1))
        assert not any(modes)  # no dropout, which would enlarge the currents
        modes.clear()


def test_the_ratio_compares_the_first_half_of_the_layers_with_the_rest() -> None:
    def profile(*values: float) -> tuning.GradientProfile:
        return tuning.GradientProfile(tuple(map(str, values)), values, (1.0,) * len(values), 1)

    assert profile(1.0, 3.0, 2.0, 4.0, 6.0).ratio == 0.5  # ⌊5/2⌋ = 2 layers against 3
    assert profile(0.0, 0.0).ratio == 0.0
    assert profile(0.0, 1.0).ratio == 0.0
    assert profile(1.0, 0.0).ratio == math.inf
    assert profile(math.inf, math.inf).ratio == math.inf
    assert profile(math.nan, 1.0).ratio == math.inf
    with pytest.raises(ValueError, match="at least 2 spiking layers, got 1"):
        _ = profile(1.0).ratio


def test_a_profile_prints_a_line_per_layer_and_the_ratio() -> None:
    profile = tuning.gradient_profile(made(Plain), batches())
    lines = str(profile).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["first", "second"]
    assert f"{profile.values[0]:.4e}" in lines[1]
    assert lines[3] == f"first half / rest: {profile.ratio:.4g} (3 batches)"


def test_figure_3_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    profile = tuning.gradient_profile(made(Plain), batches())
    profile.plot(tmp_path / "one.png")
    tuning.plot_profiles({"γ = 1": profile, "γ = 100": profile}, tmp_path / "two.svg")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "two.svg").read_text()
    with pytest.raises(ValueError, match="at least one profile"):
        tuning.plot_profiles({}, tmp_path / "none.png")


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = tuning.GradientProfile(("a",), (1.0,), (1.0,), 1)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"matplotlib.*python -m pip install 'snnfast\[plots\]'"):
        profile.plot(tmp_path / "plot.png")


# γ


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return made(lambda: SmallResNet18(steps=STEPS))


@pytest.fixture(scope="module")
def tuned(resnet: nn.Module) -> tuple[nn.Module, tuning.GammaSearch]:
    model = copy.deepcopy(resnet)
    return model, tuning.tune_gamma(model, images())


def test_gradients_explode_at_gamma_1_and_vanish_at_100_as_in_figure_3(resnet: nn.Module) -> None:
    model = copy.deepcopy(resnet)
    ratios = []
    for gamma in (1.0, 100.0):
        for layer in neurons(model):
            layer.surrogate = sf.surrogate.FastSigmoid(gamma=gamma)
        ratios.append(tuning.gradient_profile(model, images()).ratio)
    assert ratios[0] > 3
    assert ratios[1] < 1e-2


def test_a_deep_networks_gamma_is_found_in_few_evaluations(tuned: tuple[nn.Module, tuning.GammaSearch]) -> None:
    model, search = tuned
    assert abs(search.ratio - 1) <= 0.05
    assert len(search.gammas) == len(search.ratios) <= 25
    # Down by factors of 4 until the gradient explodes, then the middle of log γ.
    assert search.gammas[:4] == pytest.approx((10.0, 2.5, 0.625, 1.25))
    assert search.ratios[search.gammas.index(search.gamma)] == search.ratio == search.profile.ratio
    assert len(neurons(model)) == 17
    assert all(layer.surrogate == sf.surrogate.FastSigmoid(gamma=search.gamma) for layer in neurons(model))
    assert tuning.gradient_profile(model, images()) == search.profile  # what was set is what was measured
    assert "(set)" in str(search)


def test_a_search_begun_at_the_answer_is_one_evaluation_and_one_from_far_off_gives_the_same(
    resnet: nn.Module, tuned: tuple[nn.Module, tuning.GammaSearch]
) -> None:
    gamma = tuned[1].gamma
    model = copy.deepcopy(resnet)
    assert tuning.tune_gamma(model, images(), start=gamma).gammas == (gamma,)
    assert tuning.tune_gamma(model, images(), start=0.3).gamma == pytest.approx(gamma, rel=0.1)


def test_shape_and_height_of_each_layers_surrogate_stay(resnet: nn.Module) -> None:
    model = copy.deepcopy(resnet)
    for layer in neurons(model):
        layer.surrogate = sf.surrogate.Triangle(gamma=3.0, beta=0.7)
    neurons(model)[2].surrogate = sf.surrogate.Sigmoid(gamma=8.0, beta=3.0)
    # So sharp at first that no gradient arrives anywhere: that counts as vanished.
    search = tuning.tune_gamma(model, images(1), start=1e5, tolerance=0.2)
    assert search.ratios[0] == 0.0
    assert abs(search.ratio - 1) <= 0.2
    kept = [sf.surrogate.Triangle(gamma=search.gamma, beta=0.7)] * 17
    kept[2] = sf.surrogate.Sigmoid(gamma=search.gamma, beta=3.0)
    assert [layer.surrogate for layer in neurons(model)] == kept


def test_every_evaluation_sees_the_same_dropout() -> None:
    model = made(Everything)
    first, second = (tuning.gradient_profile(model, batches()) for _ in range(2))
    assert first == second
    torch.rand(1)
    assert tuning.gradient_profile(model, batches()) != first


def test_the_closest_gamma_is_set_and_a_warning_given_where_the_evaluations_do_not_suffice(resnet: nn.Module) -> None:
    model = copy.deepcopy(resnet)
    with pytest.warns(RuntimeWarning, match="after 3 evaluations the ratio closest to 1 is"):
        search = tuning.tune_gamma(model, images(1), max_evaluations=3, tolerance=1e-6)
    assert len(search.ratios) == 3
    assert abs(math.log(search.ratio)) == min(abs(math.log(ratio)) for ratio in search.ratios)
    assert neurons(model)[0].surrogate.gamma == search.gamma


def test_gradients_that_vanish_at_every_gamma_are_an_error() -> None:
    digits = load("digits").train
    with pytest.raises(ValueError, match=r"no γ from .* balances .* the gradient vanishes .* larger, or batch norm"):
        tuning.tune_gamma(made(DigitsNet), [digits[:32]])


@pytest.mark.parametrize("function", [tuning.gradient_profile, tuning.tune_gamma])
def test_layers_without_a_gradient_are_an_error(function) -> None:
    class Detached(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.enter(inputs)[:, :3] + 0 * super().forward(inputs).detach()

    with pytest.raises(ValueError, match="no gradient of the loss arrives at any spiking layer"):
        function(made(Detached), batches())


def test_a_model_with_too_few_spiking_layers_is_refused() -> None:
    none = nn.Linear(5, 3)
    one = nn.Sequential(nn.Unflatten(0, (1, -1)), sf.OverTime(nn.Linear(5, 3)), sf.IF(0.1), sf.Readout())
    for function in (tuning.gradient_profile, tuning.tune_gamma, tuning.normalize_thresholds):
        with pytest.raises(ValueError, match="the model has no spiking layer"):
            function(none, batches())
    for function in (tuning.gradient_profile, tuning.tune_gamma, tuning.lr_range_test, tuning.normalize_thresholds):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
            function("model", batches())
    assert tuning.lr_range_test(none, batches(), steps=2).rates  # an ANN twin has a learning rate, too
    with pytest.raises(ValueError, match="at least 2 spiking layers, got 1"):
        tuning.tune_gamma(one, batches())
    assert len(tuning.gradient_profile(one, batches()).values) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": 0.0}, ValueError, "start must be between"),
        ({"start": "ten"}, TypeError, "start must be a number, got str"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be finite and above 0"),
        ({"max_evaluations": 0}, ValueError, "max_evaluations must be at least 1, got 0"),
    ],
)
def test_tune_gamma_refuses_options_out_of_range(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tuning.tune_gamma(made(Plain), batches(), **options)


# What all have in common

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "gradient_profile": tuning.gradient_profile,
    "tune_gamma": tuning.tune_gamma,
    "lr_range_test": tuning.lr_range_test,
    "normalize_thresholds": tuning.normalize_thresholds,
    "signal_profile": tuning.signal_profile,
}


def generator() -> Iterator[tuple[Tensor, Tensor]]:
    yield from batches()


BAD_BATCHES: dict[str, tuple[Any, type[Exception], str]] = {
    "generator": (generator, TypeError, r"a generator is used up after one pass: give list\(batches\)"),
    "iterator": (lambda: iter(batches()), TypeError, "used up after one pass"),
    "not iterable": (lambda: 3, TypeError, r"batches must be an iterable of \(inputs, targets\), got int"),
    "empty": (list, ValueError, "batches yielded no batch"),
    "not pairs": (lambda: [torch.zeros(4, 5)], TypeError, r"must yield pairs \(inputs, targets\), got Tensor"),
    "triples": (lambda: [(1, 2, 3)], TypeError, r"must yield pairs \(inputs, targets\), got 3 of them"),
}


@pytest.mark.parametrize("bad", BAD_BATCHES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_batches_that_cannot_serve_are_refused(function: str, bad: str) -> None:
    given, error, message = BAD_BATCHES[bad]
    with pytest.raises(error, match=message):
        FUNCTIONS[function](made(Plain), given())


@pytest.mark.parametrize("function", ["gradient_profile", "tune_gamma", "lr_range_test"])
def test_a_loss_that_is_no_finite_number_is_refused(function: str) -> None:
    with pytest.raises(ValueError, match="the loss is nan"):
        FUNCTIONS[function](made(Plain), batches(), loss=lambda outputs, targets: outputs.sum() * math.nan)
    with pytest.raises(TypeError, match=r"tensor of one number, got shape \[16, 3\]"):
        FUNCTIONS[function](made(Plain), batches(), loss=lambda outputs, targets: outputs)


def disturbable(device: str = "cpu") -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A model in the middle of its life: trained a little, a part of it frozen, with gradients and carried states."""
    model = made(Everything).to(device)
    data = [(inputs.to(device), targets.to(device)) for inputs, targets in batches()]
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    model.hidden.module[2].eval()
    torch.manual_seed(5)
    return model, data


def condition(model: nn.Module) -> dict[str, Any]:
    """All that a function must leave, by value, and, of gradients and carried states, the very tensors."""
    found: dict[str, Any] = {f"tensor {name}": value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        found[f"gradient {name}"] = (parameter.grad, None if parameter.grad is None else parameter.grad.clone())
    for name, module in model.named_modules():
        found[f"mode {name}"] = module.training
        found[f"hooks {name}"] = len(module._forward_pre_hooks) + len(module._forward_hooks)
        if isinstance(module, sf.IF | sf.LIF):
            found[f"state {name}"] = module.state
            found[f"surrogate {name}"] = module.surrogate
            found[f"threshold {name}"] = module.threshold
    found["random state"] = torch.get_rng_state()
    found["random states of GPUs"] = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    found["gradients enabled"] = torch.is_grad_enabled()
    return found


def assert_same(before: dict[str, Any], after: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    """``but``: parts of the names of what has been set on purpose."""
    new = after.keys() - before.keys()  # a threshold that has been set is in the state dict
    assert before.keys() <= after.keys() and all(any(part in name for part in but) for name in new)
    for name, value in before.items():
        if not any(part in name for part in but):
            assert_equal(name, value, after[name])


def assert_equal(name: str, before: Any, after: Any) -> None:
    if isinstance(before, tuple | list):
        assert len(before) == len(after), name
        for one, other in zip(before, after, strict=True):
            assert_equal(name, one, other)
    elif isinstance(before, Tensor):
        assert torch.equal(before, after), name
    else:
        assert before == after, name


def run_and_compare(function: str, device: str) -> None:
    model, data = disturbable(device)
    states = [layer.state for layer in neurons(model)]
    gradients = [parameter.grad for parameter in model.parameters()]
    before = condition(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a γ that is only the closest
        FUNCTIONS[function](model, data, **{"max_evaluations": 3} if function == "tune_gamma" else {})
    asked_to_set = {"tune_gamma": ("surrogate",), "normalize_thresholds": ("threshold",)}.get(function, ())
    assert_same(before, condition(model), but=asked_to_set)
    assert all(now is was for now, was in zip([layer.state for layer in neurons(model)], states, strict=True))
    assert all(now is was for now, was in zip([p.grad for p in model.parameters()], gradients, strict=True))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_model_and_the_random_state_are_left_as_found(function: str) -> None:
    run_and_compare(function, "cpu")


@pytest.mark.cuda
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_model_and_the_random_states_are_left_as_found_on_a_gpu(function: str) -> None:
    torch.rand(1, device="cuda")
    run_and_compare(function, "cuda")
    with torch.device("cuda"):
        model = made(Plain).cuda()
        FUNCTIONS["gradient_profile"](model, batches_on_cpu())  # moved to the model's device
    assert tuning.gradient_profile(model, batches_on_cpu()).values == pytest.approx(
        tuning.gradient_profile(model.cpu(), batches_on_cpu()).values, rel=1e-3
    )


def batches_on_cpu() -> list[tuple[Tensor, Tensor]]:
    with torch.device("cpu"):
        return batches()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_everything_is_left_as_found_when_it_raises_half_way(function: str) -> None:
    model, data = disturbable()
    # So late that some of what is to be set has been: the first threshold is set after 3 calls, one for each batch.
    calls, enough = 0, {"gradient_profile": 1, "signal_profile": 1, "normalize_thresholds": 4}.get(function, 7)

    def break_down(module: nn.Module, inputs: Any, outputs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > enough:
            raise RuntimeError("the forward pass broke down")

    broken = model.second.register_forward_hook(break_down)
    before = condition(model)
    with pytest.raises(RuntimeError, match="broke down"):
        FUNCTIONS[function](model, data)
    assert calls == enough + 1
    assert_same(before, condition(model))
    broken.remove()
