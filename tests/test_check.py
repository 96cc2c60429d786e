"""sf.check says which axes the layers take for time and batch, and leaves the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import snnfast as sf


def convolutional(time_dim: int = 0, **options) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        sf.OverTime(nn.Conv2d(1, 6, 3, padding=1)),
        sf.LIF(2.0, 0.2, time_dim=time_dim, **options),
        sf.OverTime(nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 10))),
        sf.IF(0.1, time_dim=time_dim),
        sf.Readout("mean", time_dim=time_dim),
    )


def flat() -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))
    return nn.Sequential(sf.OverTime(first), sf.IF(0.1), sf.OverTime(nn.Linear(12, 10)), sf.Readout())


def only(report: sf.CheckReport) -> str:
    assert len(report.problems) == 1, str(report)
    return report.problems[0]


@pytest.mark.parametrize("time_dim", [0, 1])
def test_a_network_on_data_as_it_should_be_has_no_problems_and_named_axes(time_dim):
    shape = (5, 4, 1, 8, 8) if time_dim == 0 else (4, 5, 1, 8, 8)
    report = sf.check(convolutional(time_dim), torch.rand(shape), steps=5)
    assert report.problems == ()
    assert [row.kind for row in report.layers] == ["OverTime", "LIF", "OverTime", "IF", "Readout"]
    neuron = report.layers[1]
    assert (neuron.name, neuron.steps, neuron.batch) == ("1", 5, 4)
    assert neuron.axes == ("T=5, B=4, C=6, H=8, W=8" if time_dim == 0 else "B=4, T=5, C=6, H=8, W=8")
    assert neuron.output == neuron.shape and 0 < neuron.firing < 1
    text = str(report)
    assert neuron.axes in text and "no problems found" in text and f"{neuron.firing:.1%} fire" in text


def test_a_held_current_is_named_as_one():
    report = sf.check(sf.models.build("plain_net", layers=3, width=4), torch.rand(4, 3, 32, 32), steps=10)
    assert report.problems == ()
    first = report.layers[0]
    assert first.held and first.steps == 10 and first.batch == 4
    assert first.axes == "B=4, C=4, H=16, W=16, held for T=10"


class StepByStep(nn.Module):
    """As networks of other libraries are written."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.neuron = sf.IF(0.3, **options)

    def forward(self, currents):
        return torch.cat([self.neuron(current.unsqueeze(0)) for current in currents])


def test_a_loop_over_time_around_a_neuron_that_carries_its_state_is_no_problem():
    assert sf.check(StepByStep(carry_state=True), torch.rand(5, 4, 7), steps=None).problems == ()


SLIPS = {  # a network, its sample, what the one problem says
    "forgotten time axis, silently a batch of one": (flat(), (32, 1, 8, 8), ("images [B, C, H, W]", "time axis")),
    "a neuron layer on images": (sf.IF(0.5), (32, 3, 8, 8), ("T=32, B=3", "images [B, C, H, W]")),
    "forgotten time axis behind linear layers": (
        nn.Sequential(nn.Linear(6, 5), sf.IF(0.1), nn.Linear(5, 5), sf.Readout()),
        (32, 6),
        ("[B, C]", "time axis"),
    ),
    "forgotten time axis, one-dimensional": (sf.IF(0.5), (32, 1, 40), ("a batch of one", "the 32 are the batch")),
    "a convolution that knows no time": (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), sf.IF(0.1)),
        (32, 1, 8, 8),
        ("'0' (Conv2d)", "steps=T"),
    ),
    "a convolution on every step": (
        nn.Sequential(nn.Conv2d(1, 4, 3), sf.IF(0.1)),
        (5, 4, 1, 8, 8),
        ("'0' (Conv2d) raised", "snnfast.OverTime applies it to all steps of [T, B, C, H, W]"),
    ),
    "a time axis forgotten where OverTime knows": (convolutional(), (32, 1, 8, 8), ("needs [T, B, C, H, W]",)),
    "a neuron inside OverTime": (
        sf.OverTime(nn.Sequential(nn.Linear(7, 7), sf.IF(0.1))),
        (5, 4, 7),
        ("'module.1' is inside", "one dimension"),
    ),
    "one layer without time_dim=1": (
        nn.Sequential(sf.IF(0.3, time_dim=1), sf.IF(0.3), sf.IF(0.3, time_dim=1)),
        (4, 5, 7),
        ("time_dim=1 at '0' and 1 more, but time_dim=0 at '1'",),
    ),
    "a readout without time_dim=1": (
        nn.Sequential(sf.IF(0.3, time_dim=1), sf.Readout()),
        (4, 5, 7),
        ("time_dim=0 at '1'",),
    ),
    "T equal to B": (sf.IF(0.5), (6, 6, 7), ("T and B are both 6",)),
    "a loop over time": (StepByStep(), (5, 4, 7), ("'neuron' is called 5 times with 1 step", "carry_state=True")),
    "never fires": (sf.IF(100.0), (5, 4, 7), ("'IF' never fires: its threshold is 100",)),
    "fires at every step": (sf.IF(0.0), (5, 4, 7), ("'IF' fires at every step",)),
    "no layer of ours": (nn.Linear(7, 7), (5, 4, 7), ("no snnfast layer was called",)),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_that_runs_without_a_word_is_named(name):
    model, shape, words = SLIPS[name]
    report = sf.check(model, 0.1 + torch.rand(shape))
    said = only(report)
    assert all(word in said for word in words), said
    assert said in str(report) and "1 problem" in str(report)


def test_batch_first_data_show_where_the_steps_are_given():
    report = sf.check(nn.Sequential(sf.IF(0.3), sf.Readout()), torch.rand(4, 10, 7), steps=10)
    assert only(report) == "'0' runs 4 steps, not the 10 meant; dimension 1 has them"


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.short, self.long, self.unused = sf.IF(0.3), sf.IF(0.3), sf.IF()

    def forward(self, x):
        return self.short(x[:3]).sum() + self.long(x).sum()


def test_layers_that_disagree_about_time_and_layers_not_called_are_named():
    problems = sf.check(Branches(), torch.rand(5, 4, 7)).problems
    assert problems == ("the layers disagree: T=3 at 'short', but T=5 at 'long'", "'unused' (IF) was not called")


def test_values_that_are_not_finite_are_named():
    x = torch.rand(5, 4, 7)
    x[2, 1, 3] = float("nan")
    assert only(sf.check(sf.IF(0.5), x)) == "'IF': its input has NaN or infinite values"


def test_the_model_is_left_as_it_was():
    torch.manual_seed(3)
    model = nn.Sequential(
        sf.OverTime(nn.Conv2d(1, 6, 3)),
        sf.BatchNormIF(6, carry_state=True),
        nn.Dropout(0.5),
        sf.OverTime(nn.Flatten()),
        sf.IF(0.1, carry_state=True),
    )
    x = torch.rand(3, 2, 1, 8, 8)
    model(x).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    buffers = dict(model.named_buffers())
    states, hooks = [model[1].state, model[4].state], [len(m._forward_pre_hooks) for m in model.modules()]
    random_state = torch.get_rng_state()
    report = sf.check(model, torch.rand(5, 7, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert report.problems == ()  # carried states of another batch do not stand in the way
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training and model[1].state is states[0] and model[4].state is states[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())
    pairs = zip(model.parameters(), gradients, strict=True)
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in pairs)
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    copy.deepcopy(model)  # no hook was left


def test_a_fused_and_a_compiled_network_are_checked_alike():
    plain = nn.Sequential(sf.OverTime(nn.Conv2d(1, 6, 3)), sf.OverTime(nn.BatchNorm2d(6)), sf.IF(0.5))
    x = torch.rand(5, 4, 1, 8, 8)
    before = sf.check(plain, x)
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    sf.fuse(plain)
    assert before.problems == sf.check(plain, x).problems == sf.check(compiled, x).problems == ()
    assert "BatchNormIF" in [row.kind for row in sf.check(plain, x).layers]
    assert len(sf.check(compiled, x).layers) == len(before.layers)


def test_what_cannot_be_checked_is_refused():
    x = torch.rand(5, 4, 7)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        sf.check(lambda x: x, x)
    with pytest.raises(TypeError, match=r"sample must be a tensor, .*torch.from_numpy\(sample\)"):
        sf.check(sf.IF(), x.numpy())
    with pytest.raises(TypeError, match="steps must be an int, got float"):
        sf.check(sf.IF(), x, steps=5.0)


def test_of_steps_that_are_not_the_ones_meant_the_layer_that_decides_is_named():
    net = nn.Sequential(sf.OverTime(nn.Conv2d(1, 4, 3)), sf.IF(time_dim=1))
    report = sf.check(net, torch.rand(10, 2, 1, 6, 6), steps=10)
    assert report.problems[0].startswith("'1' runs 2 steps, not the 10 meant; dimension 0 has them")


def test_a_sequence_without_batch_is_told_from_images():
    report = sf.check(nn.Sequential(sf.OverTime(nn.Flatten()), sf.IF()), torch.rand(10, 1, 8, 8))
    assert "if it is one sample [T, C, H, W], add the batch: sample.unsqueeze(1)" in report.problems[0]
