"""The losses of a single neuron are the paper's equations, move potentials the right way, and make a neuron learn."""

from __future__ import annotations

import builtins
import json
import math

import pytest
import torch
from naming import shown

import snnfast as sf
from snnfast import losses
from snnfast.benchmarks.paper import single_neuron

SPIKES = torch.tensor([0.0, 1.0, 1.0, 0.0])
TARGET = torch.tensor([1.0, 1.0, 0.0, 0.0])
POTENTIAL = torch.tensor([0.5, 2.0, 3.0, 0.25], dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    spikes, target = (torch.randint(2, shape, generator=generator).float() for _ in range(2))
    return spikes, torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(), target


def convolved(kernel, signal: torch.Tensor) -> torch.Tensor:
    """Equation (5) as it is written: a causal sum for every step."""
    rows = [sum(kernel(k) * signal[t - k] for k in range(t + 1)) for t in range(len(signal))]
    return torch.stack(rows)


def test_equation_3_is_the_error_current_times_the_potential():
    loss = losses.spike_train_loss(SPIKES, POTENTIAL, TARGET)
    assert loss.dim() == 0 and loss.dtype == torch.float64
    assert loss.item() == -0.5 + 3.0


def test_equation_4_is_equation_3_of_filtered_signals():
    spikes, potential, target = drawn(9, 2, 3)
    filtered = [convolved(lambda k: math.exp(-k / 4.0), x) for x in (spikes - target, potential)]
    loss = losses.van_rossum_loss(spikes, potential, target, tau=4.0, reduction="none")
    torch.testing.assert_close(loss, (filtered[0] * filtered[1]).sum(0))
    # Kernels of one's own, shorter and longer than the train.
    for kernel in (torch.tensor([1.0, 0.5]), torch.linspace(2.0, 0.0, 20)):
        values = dict(enumerate(kernel.tolist()))
        filtered = [convolved(lambda k, values=values: values.get(k, 0.0), x) for x in (spikes - target, potential)]
        loss = losses.van_rossum_loss(spikes, potential, target, kernel=kernel, reduction="none")
        torch.testing.assert_close(loss, (filtered[0] * filtered[1]).sum(0))
    narrow = losses.van_rossum_loss(spikes, potential, target, kernel=torch.ones(1))
    torch.testing.assert_close(narrow, losses.spike_train_loss(spikes, potential, target))


def test_equation_6_compares_the_count_with_the_label():
    spikes = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])  # counts 0, 2, 1, 0
    potential = torch.tensor([[0.5, 2.0, 3.0, 0.25], [1.0, 1.0, 1.0, 1.0]])
    labels = torch.tensor([1, 1, 0, 0])

    def loss(count: int) -> list[float]:
        return losses.spike_count_loss(spikes, potential, labels, count=count, reduction="none").tolist()

    assert loss(0) == [-1.5, 0.0, 4.0, 0.0]  # Θ(0) = 0
    assert loss(1) == [-1.5, 0.0, 0.0, 0.0]
    assert loss(2) == [-1.5, -3.0, 0.0, 0.0]


def test_a_missing_spike_raises_the_potential_and_a_spike_too_many_lowers_it():
    potential = POTENTIAL.clone().requires_grad_()
    losses.spike_train_loss(SPIKES, potential, TARGET).backward()
    assert potential.grad.tolist() == [-1.0, 0.0, 1.0, 0.0]
    for label, sign in ((1, -1.0), (0, 0.0)):
        potential.grad = None
        losses.spike_count_loss(torch.zeros(4), potential, torch.tensor(label)).backward()
        assert potential.grad.tolist() == [sign] * 4


@pytest.mark.parametrize("reached", [losses.spike_train_loss, losses.van_rossum_loss, losses.spike_count_loss])
def test_nothing_is_left_to_learn_once_the_target_is_reached(reached):
    spikes, potential, _ = drawn(8, 5)
    target = (spikes.sum(0) > 0).float() if reached is losses.spike_count_loss else spikes
    loss = reached(spikes, potential, target)
    loss.backward()
    assert loss.item() == 0 and not potential.grad.any()


def test_gradients_flow_through_the_potentials_only():
    calls = {losses.spike_train_loss: (7, 3), losses.van_rossum_loss: (7, 3), losses.spike_count_loss: (3,)}
    for loss, shape in calls.items():
        spikes, potential, _ = drawn(7, 3)
        spikes.requires_grad_()
        target = torch.zeros(shape, requires_grad=True)
        loss(spikes, potential, target).backward()
        assert spikes.grad is None and target.grad is None
        assert potential.grad.any()
    # Through the layer: the current's gradient is that of the potentials, the spikes' surrogate has no part in it.
    gradients = []
    for gamma in (0.0, 100.0):
        current = torch.linspace(0.1, 0.9, 12).view(6, 2).requires_grad_()
        spikes, _, potential = sf.functional.integrate_and_fire(
            current, surrogate=sf.surrogate.FastSigmoid(gamma=gamma), return_potential=True
        )
        losses.spike_train_loss(spikes, potential, torch.ones(6, 2)).backward()
        gradients.append(current.grad)
    assert torch.equal(*gradients) and gradients[0].any()


@pytest.mark.parametrize(
    ("loss", "of_target"), [(losses.spike_train_loss, ...), (losses.spike_count_loss, 0)], ids=["train", "count"]
)
def test_reductions_are_over_neurons_and_batch_not_over_time(loss, of_target):
    spikes, potential, target = drawn(7, 4, 3)
    wanted = target[of_target]
    each = loss(spikes, potential, wanted, reduction="none")
    assert each.shape == (4, 3)
    torch.testing.assert_close(loss(spikes, potential, wanted), each.mean())
    torch.testing.assert_close(loss(spikes, potential, wanted, reduction="sum"), each.sum())


def test_modules_are_their_functions():
    spikes, potential, target = drawn(7, 4, 3)
    kernel = torch.rand(5)
    pairs = [
        (losses.SpikeTrainLoss(reduction="sum"), losses.spike_train_loss, target, {"reduction": "sum"}),
        (losses.VanRossumLoss(tau=3.0), losses.van_rossum_loss, target, {"tau": 3.0}),
        (
            losses.VanRossumLoss(kernel=kernel, reduction="none"),
            losses.van_rossum_loss,
            target,
            {"kernel": kernel, "reduction": "none"},
        ),
        (losses.SpikeCountLoss(count=3), losses.spike_count_loss, target[0], {"count": 3}),
    ]
    for module, function, wanted, options in pairs:
        assert torch.equal(module(spikes, potential, wanted), function(spikes, potential, wanted, **options))


REFUSED = {
    "potential": (
        ValueError,
        r"potential must have the spikes' shape, \[7, 3\], got \[7, 1\]",
        lambda spikes, potential, target: (spikes, potential[:, :1], target),
    ),
    "target": (
        ValueError,
        r"target must have the shape \[7, 3\], got \[3\]",
        lambda spikes, potential, target: (spikes, potential, target[0]),
    ),
    "no steps": (
        ValueError,
        "at least one step",
        lambda spikes, potential, target: (spikes[:0], potential[:0], target[:0]),
    ),
    "no tensor": (
        TypeError,
        "target must be a tensor, got list",
        lambda spikes, potential, target: (spikes, potential, [1, 0]),
    ),
    "integers": (
        TypeError,
        "potential must be floating, got torch.int64",
        lambda spikes, potential, target: (spikes, potential.long(), target),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize(
    "loss",
    [losses.spike_train_loss, losses.van_rossum_loss, losses.SpikeTrainLoss()],
    ids=["spike train", "van Rossum", "module"],
)
def test_what_the_losses_cannot_use_is_named(loss, case):
    kind, message, given = REFUSED[case]
    with pytest.raises(kind, match=message):
        loss(*given(*drawn(7, 3)))


def test_a_target_over_time_is_no_count():
    with pytest.raises(ValueError, match=r"target must have the shape \[3\], got \[7, 3\]"):
        losses.spike_count_loss(*drawn(7, 3))


@pytest.mark.parametrize(
    ("module", "given", "kind", "message"),
    [
        (losses.SpikeTrainLoss, {"reduction": "median"}, ValueError, "reduction must be one of 'mean', 'sum', 'none'"),
        (losses.VanRossumLoss, {"tau": 0.0}, ValueError, "tau must be finite and above 0, got 0.0"),
        (losses.VanRossumLoss, {"tau": "long"}, TypeError, "tau must be a number, got str"),
        (losses.VanRossumLoss, {"kernel": torch.ones(2, 2)}, ValueError, r"kernel must have the shape \[K\]"),
        (losses.VanRossumLoss, {"kernel": [1.0]}, TypeError, "kernel must be a floating tensor, got list"),
        (losses.SpikeCountLoss, {"count": -1}, ValueError, "count must not be negative, got -1"),
        (losses.SpikeCountLoss, {"count": 1.5}, TypeError, "count must be an int, got float"),
    ],
    ids=shown,
)
def test_options_that_the_losses_do_not_have_are_named(module, given, kind, message):
    with pytest.raises(kind, match=message):
        module(**given)


@pytest.fixture(scope="module")
def outcomes():
    return single_neuron.run(seed=1)


def test_a_neuron_learns_a_spike_train_and_a_count(outcomes):
    assert [outcome.equation for outcome in outcomes] == ["3", "4", "6"]
    for outcome in outcomes:
        assert outcome.wrong[0] >= 0.1 * outcome.out_of
        assert outcome.best <= 0.01 * outcome.out_of
    for outcome in outcomes[:2]:
        assert sum(abs(a[0] - b[0]) for a, b in zip(outcome.last, outcome.wanted, strict=True)) == outcome.best
    counts = torch.tensor(outcomes[2].last).sum(0)
    assert ((counts > single_neuron.COUNT).int().tolist()) == outcomes[2].wanted


def test_the_experiment_prints_what_it_reached_and_writes_its_files(tmp_path, capsys):
    assert single_neuron.main(["--out", str(tmp_path / "new"), "--updates", "3"]) == 0
    printed = capsys.readouterr().out
    assert [line.split(")")[0] for line in printed.splitlines()[:3]] == [f"equation ({n}" for n in (3, 4, 6)]
    assert printed.count("fewest") == 3
    results = json.loads((tmp_path / "new" / "single-neuron.json").read_text())
    assert [len(outcome["wrong"]) for outcome in results] == [4, 4, 4]
    assert (tmp_path / "new" / "single-neuron.png").stat().st_size > 10000


def test_the_experiment_does_without_matplotlib(outcomes, tmp_path, monkeypatch):
    def refuse(name, *arguments):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *arguments)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert "python -m pip install 'snnfast[plots]'" in single_neuron.plot(outcomes, tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()
