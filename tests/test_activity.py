"""What snnfast.activity_report counts is what one counts by hand, spike by spike, and the model stays as it was."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from activity_cases import SAMPLE, OwnLoop, Shared, currents, tiny
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import snnfast as sf
from snnfast.activity import LayerActivity, MapActivity


def reached(way: nn.Module, layer: nn.Module, spikes: Tensor) -> tuple[int, int]:
    """Spike by spike, the numbers of a layer's input that a spike reaches on its way, and their synapses."""
    layer = deepcopy(layer)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(layer.weight)
    entries = synapses = 0
    with torch.no_grad():
        for place in spikes.nonzero().tolist():
            alone = torch.zeros_like(spikes)
            alone[tuple(place)] = 1
            entering = (way(alone) != 0).to(spikes.dtype)
            entries += int(entering.sum())
            synapses += int(layer(entering).sum())
    return entries, synapses


def only(maps: tuple[MapActivity, ...]) -> MapActivity:
    (row,) = maps
    return row


CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 4, 3),
    "padded": nn.Conv2d(3, 4, 3, padding=1),
    "strided": nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "strides of both axes": nn.Conv2d(3, 4, (3, 2), stride=(1, 3), padding=(2, 0)),
    "dilated": nn.Conv2d(3, 4, 3, padding=2, dilation=2),
    "in groups": nn.Conv2d(3, 6, 3, padding=1, groups=3),
    "of the same size": nn.Conv2d(3, 4, (4, 3), padding="same"),
    "around the border": nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
    "leaving numbers out": nn.Conv2d(3, 2, 1, stride=3),
    "with a bias": nn.Conv2d(3, 4, 3, bias=True),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_synaptic_operations_of_a_convolution_are_its_spikes_fan_outs(case: str) -> None:
    layer, current = CONVOLUTIONS[case], currents(2, 3, 3, 5, 6)
    row = only(sf.activity_report(nn.Sequential(sf.IF(), sf.OverTime(layer)), current).maps)
    entries, synapses = reached(nn.Identity(), layer, current.flatten(0, 1) / 2)
    assert (row.name, row.kind, row.spiking, row.multiply_accumulates) == ("1.module", "Conv2d", True, 0)
    assert (row.spikes, row.synaptic_operations) == (entries, synapses)
    assert entries == int(current.count_nonzero())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 3, 4, 7)),
        (nn.Conv3d(2, 3, (2, 3, 1), padding=(1, 0, 1)), (2, 2, 2, 3, 4, 3)),
        (nn.Linear(5, 7), (2, 3, 5)),
        (nn.Linear(5, 7), (2, 3, 4, 5)),
    ],
    ids=["Conv1d", "Conv3d", "Linear", "Linear of tokens"],
)
def test_synaptic_operations_of_other_maps_are_their_spikes_fan_outs(layer: nn.Module, shape: tuple[int, ...]) -> None:
    current = currents(*shape)
    row = only(sf.activity_report(nn.Sequential(sf.IF(), sf.OverTime(layer)), current).maps)
    assert (row.spikes, row.synaptic_operations) == reached(nn.Identity(), layer, current.flatten(0, 1) / 2)


WAYS = {
    "average pool": nn.AvgPool2d(2),
    "overlapping average pool": nn.AvgPool2d(3, stride=2, padding=1),
    "average pool that leaves the padding out": nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    "average pool with a part of a window": nn.AvgPool2d(2, ceil_mode=True),
    "adaptive pool": nn.AdaptiveAvgPool2d(3),
    "global pool": nn.AdaptiveAvgPool2d(1),
    "zeros around": nn.ZeroPad2d(1),
    "two pools": nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(2, stride=1)),
    "nearest": nn.Upsample(scale_factor=2),
    "dropout": nn.Dropout(0.5),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_spike_counts_wherever_it_enters_through_what_is_linear(way: str, dtype: torch.dtype) -> None:
    layer, current = nn.Conv2d(2, 3, 2, padding=1).to(dtype), currents(2, 2, 2, 5, 7, share=0.7).to(dtype)
    net = nn.Sequential(sf.IF(), sf.OverTime(nn.Sequential(WAYS[way], layer)))
    row = only(sf.activity_report(net, current).maps)
    expected = reached(deepcopy(WAYS[way]).float().eval(), deepcopy(layer).float(), current.flatten(0, 1).float() / 2)
    assert (row.spiking, row.spikes, row.synaptic_operations) == (True, *expected)


def test_average_pooling_in_line_and_in_space_counts_each_window() -> None:
    for pool, layer, shape in (
        (nn.AvgPool1d(3, stride=2, padding=1), nn.Conv1d(2, 3, 2), (2, 2, 2, 8)),
        (nn.AvgPool3d(2, stride=1), nn.Conv3d(2, 3, 2), (2, 1, 2, 4, 3, 4)),
    ):
        current = currents(*shape)
        net = nn.Sequential(sf.IF(), sf.OverTime(nn.Sequential(pool, layer)))
        row = only(sf.activity_report(net, current).maps)
        assert (row.spikes, row.synaptic_operations) == reached(pool, layer, current.flatten(0, 1) / 2)


def test_max_pooling_passes_one_spike_of_a_window_on() -> None:
    current = currents(2, 2, 2, 4, 6)
    net = nn.Sequential(sf.IF(), sf.OverTime(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5))))
    row = only(sf.activity_report(net, current).maps)
    windows = int((nn.MaxPool2d(2)(current.flatten(0, 1)) > 0).sum())
    assert (row.spikes, row.synaptic_operations) == (windows, 5 * windows)
    row = only(sf.activity_report(net, torch.zeros(2, 2, 2, 4, 6)).maps)
    assert (row.spiking, row.synaptic_operations) == (True, 0)


class Between(nn.Module):
    """Neurons, what ``way`` does with their spikes, and a linear map."""

    def __init__(self, way, features: int = 4) -> None:
        super().__init__()
        self.neuron, self.way, self.linear = sf.IF(), way, nn.Linear(features, 3)

    def forward(self, current: Tensor) -> Tensor:
        return self.linear(self.way(self.neuron(current)))


def added_in_place(spikes: Tensor) -> Tensor:
    total = spikes * 0.5
    total += spikes
    return total


LINEAR = {  # the spikes that enter, for each one of a neuron
    "sum over time": (lambda spikes: spikes.sum(0), 1),
    "mean over time": (lambda spikes: spikes.mean(0), 1),
    "scaled": (lambda spikes: spikes * 0.3 / torch.tensor(2.0), 1),
    "twice": (lambda spikes: spikes + spikes, 2),
    "twice, differently scaled": (lambda spikes: spikes.mul(0.25).add(spikes, alpha=2.0), 2),
    "in place": (added_in_place, 2),
    "joined and cut": (lambda spikes: torch.cat([spikes, spikes], 1).chunk(2, 1)[0], 1),
    "turned": (lambda spikes: spikes.transpose(0, 1).flip(0).contiguous().reshape(-1, 4), 1),
    "stacked means": (lambda spikes: torch.stack([spikes.mean(0), spikes.mean(0)]), 2),
    "in double precision": (lambda spikes: (spikes.double() / 3).float(), 1),
    "multiplied with themselves": (lambda spikes: spikes * spikes, 1),
}


@pytest.mark.parametrize("case", LINEAR)
def test_what_is_linear_in_spikes_counts_as_spikes(case: str) -> None:
    way, times = LINEAR[case]
    current = currents(6, 2, 4)
    row = only(sf.activity_report(Between(way), current).maps)
    fired = int(current.count_nonzero())
    assert (row.spiking, row.spikes, row.synaptic_operations) == (True, times * fired, 3 * times * fired)
    assert row.multiply_accumulates == 0


OTHER = {
    "batch norm": lambda spikes: nn.functional.batch_norm(spikes, torch.full((2,), 0.3), torch.ones(2)),
    "a bias": lambda spikes: spikes + 0.5,
    "a bias of 1": lambda spikes: spikes + 1,
    "a bias of ones": lambda spikes: spikes + torch.ones(4),
    "numbers": lambda spikes: spikes * torch.linspace(0.1, 1, 4),
    "a nonlinear function": lambda spikes: torch.tanh(spikes),
    "something added in place": lambda spikes: spikes.clone().add_(0.5),
}


@pytest.mark.parametrize("case", OTHER)
def test_what_is_not_linear_in_spikes_counts_as_multiply_accumulates(case: str) -> None:
    current = currents(6, 2, 4)
    row = only(sf.activity_report(Between(OTHER[case]), current).maps)
    assert (row.spiking, row.spikes, row.synaptic_operations) == (False, 0, 0)
    assert row.multiply_accumulates == 6 * 2 * 4 * 3
    assert row.twin_multiply_accumulates == 2 * 4 * 3


def test_events_are_spikes_and_pixels_are_not() -> None:
    net = nn.Sequential(sf.OverTime(nn.Linear(4, 5)), sf.IF())
    events = currents(3, 2, 4) / 2
    row = only(sf.activity_report(net, events).maps)
    assert (row.spiking, row.synaptic_operations) == (True, 5 * int(events.sum()))
    for pixels in (events / 2, torch.rand(3, 2, 4), torch.zeros(3, 2, 4)):
        row = only(sf.activity_report(net, pixels).maps)
        assert (row.spiking, row.multiply_accumulates) == (False, 3 * 2 * 4 * 5)


@pytest.mark.parametrize("name", ["mnist_net", "resnet11", "plain_net"])
def test_multiply_accumulates_of_the_twin_are_those_that_torch_counts(name: str) -> None:
    options = {"in_channels": 3, "image_size": 16} | ({"width": 2} if name != "mnist_net" else {})
    net, twin = (sf.models.build(name, activation=kind, steps=3, **options) for kind in ("if", "relu"))
    images = torch.rand(2, 3, 16, 16)
    report = sf.activity_report(net, images)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        twin.eval()(images)
    assert report.images == 2
    assert 2 * 2 * report.twin_multiply_accumulates == flops.get_total_flops()
    stem, *others = report.maps
    # The current of the first neurons is held: it is computed once.
    assert (stem.spiking, stem.multiply_accumulates) == (False, stem.twin_multiply_accumulates)
    assert all(row.spiking and row.multiply_accumulates == 0 for row in others)
    assert report.maps[-1].kind == "SummedLinear"
    assert report.maps[-1].synaptic_operations == 10 * report.layers[-1].spikes


def test_a_loop_over_time_counts_as_the_layers_over_all_steps_do() -> None:
    torch.manual_seed(0)
    loop, current = OwnLoop(), 2 * torch.rand(7, 2, 4)
    layers = nn.Sequential(sf.OverTime(loop.first), sf.IF(), sf.OverTime(loop.second), sf.Readout())
    by_loop, at_once = (sf.activity_report(net, current) for net in (loop, layers))
    assert by_loop.layers[0].spikes > 0
    for name in ("neurons", "steps", "spikes", "rate", "silent", "saturated"):
        assert getattr(by_loop.layers[0], name) == getattr(at_once.layers[0], name)
    figures = ("spikes", "synaptic_operations", "multiply_accumulates", "twin_multiply_accumulates")
    for ours, theirs in zip(by_loop.maps, at_once.maps, strict=True):
        assert [getattr(ours, name) for name in figures] == [getattr(theirs, name) for name in figures]
    assert by_loop.twin_multiply_accumulates == 4 * 5 + 5 * 3
    # Each input of a list starts from a state of its own.
    assert sf.activity_report(loop, [current, current]).layers[0].spikes == 2 * by_loop.layers[0].spikes


@pytest.mark.parametrize("time_dim", [0, 1])
def test_rates_and_shares_are_those_counted_by_hand(time_dim: int) -> None:
    # Three neurons over four steps of two images: one silent, one that always fires, one three times.
    current = torch.zeros(4, 2, 3)
    current[:, :, 1] = 2
    current[0, 0, 2] = current[3, 0, 2] = current[1, 1, 2] = 2
    report = sf.activity_report(sf.IF(time_dim=time_dim), current if time_dim == 0 else current.transpose(0, 1))
    assert report.layers == (LayerActivity("IF", "IF", 3, 4, 11, 11 / 24, 1 / 3, 1 / 3),)
    assert (report.images, report.maps) == (2, ())


def test_a_neuron_is_silent_or_saturated_over_all_inputs_of_a_list() -> None:
    first, second = torch.tensor([0.0, 2.0, 2.0]).expand(2, 1, 3), torch.tensor([0.0, 2.0, 0.0]).expand(2, 4, 3)
    report = sf.activity_report(nn.Sequential(sf.IF()), [first, (second,)])
    assert report.layers == (LayerActivity("0", "IF", 3, 2, 12, 12 / 30, 1 / 3, 1 / 3),)
    assert report.images == 5


def test_a_layer_in_two_places_stands_for_two() -> None:
    report = sf.activity_report(Shared(), [currents(3, 2, 4), currents(3, 2, 4)], rasters={"neuron#2": [1]})
    assert [(row.name, row.neurons, row.silent) for row in report.layers] == [("neuron", 4, 0.0), ("neuron#2", 2, 1.0)]
    assert report.raster("neuron#2", image=3).shape == (3, 1)


def test_energy_is_that_of_synaptic_operations_and_multiply_accumulates_per_image() -> None:
    report = sf.activity_report(tiny(), SAMPLE)
    first, second = report.maps
    macs, twin = 4 * 3 * 16 * 18, (3 * 16 * 18) + 48 * 5
    operations = 5 * report.layers[0].spikes / 3
    assert (first.multiply_accumulates, first.synaptic_operations) == (3 * macs, 0)
    assert (second.multiply_accumulates, second.synaptic_operations) == (0, 5 * report.layers[0].spikes)
    assert (report.multiply_accumulates, report.synaptic_operations) == (macs, operations)
    assert report.twin_multiply_accumulates == twin
    assert report.picojoules == pytest.approx(4.6 * macs + 0.9 * operations)
    assert report.twin_picojoules == pytest.approx(4.6 * twin)
    assert report.ratio == pytest.approx((4.6 * macs + 0.9 * operations) / (4.6 * twin))
    other = sf.activity_report(tiny(), SAMPLE, mac_picojoule=2.0, ac_picojoule=0.0)
    assert (other.picojoules, other.twin_picojoules) == (2.0 * macs, 2.0 * twin)


def test_the_table_has_every_layer_and_the_energy() -> None:
    report = sf.activity_report(tiny(), SAMPLE)
    lines = str(report).splitlines()
    assert lines[0].split() == ["spiking", "layer", "neurons", "steps", "rate", "silent", "saturated"]
    row = report.layers[0]
    shown = ["48", "4", f"{row.rate:.4f}", f"{row.silent:.1%}", f"{row.saturated:.1%}"]
    assert lines[1].split() == ["1", "BatchNormIF", *shown]
    assert lines[6].split() == ["0.module", "Conv2d", "numbers", "3,456", "864"]
    assert lines[-2].startswith("energy of an image: ") and f"ratio {report.ratio:.3g}" in lines[-2]
    assert lines[-1] == "(0.9 pJ a synaptic operation, 4.6 pJ a multiply-accumulate; mean of 3 images)"


def test_products_outside_of_linear_maps_are_named() -> None:
    report = sf.activity_report(Between(lambda spikes: spikes @ spikes.transpose(1, 2) @ spikes), currents(3, 2, 4))
    assert report.unknown == {"bmm": 2}
    assert "not counted, outside of linear maps: 2 × bmm" in str(report)
    assert only(report.maps).spiking
    assert sf.activity_report(tiny(), SAMPLE).unknown == {}


def everything(model: nn.Module) -> dict[str, object]:
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "states": [module.state for module in model.modules() if hasattr(module, "state")],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


@pytest.mark.parametrize("raises", [False, True], ids=["", "an error"])
def test_the_model_and_the_random_numbers_are_left_as_they_were(raises: bool) -> None:
    model = nn.Sequential(
        sf.OverTime(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))),
        sf.IF(carry_state=True),
        sf.BatchNormIF(4),
        nn.Dropout(0.5),
        sf.OverTime(nn.Linear(4, 4)),
    ).train()
    model[0].eval()
    model(torch.rand(3, 2, 4)).sum().backward()
    if raises:
        model.append(nn.Linear(9, 9))
    sample = torch.rand(3, 5, 4)
    before = everything(model)
    if raises:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            sf.activity_report(model, sample)
    else:
        sf.activity_report(model, sample)
    after = everything(model)
    assert before["modes"] == after["modes"] and before["hooks"] == after["hooks"]
    assert all(a is b for name in ("states", "gradients") for a, b in zip(before[name], after[name], strict=True))
    assert torch.equal(before["random"], after["random"])
    assert all(torch.equal(before["tensors"][name], tensor) for name, tensor in after["tensors"].items())


def test_a_report_is_the_same_fused_compiled_and_called_twice() -> None:
    model = nn.Sequential(sf.OverTime(nn.Conv2d(2, 3, 3)), sf.OverTime(nn.BatchNorm2d(3)), sf.IF(), *tiny()[2:2])
    plain = sf.activity_report(model, SAMPLE)
    assert sf.activity_report(model, SAMPLE) == plain
    assert sf.activity_report(torch.compile(model), SAMPLE) == plain
    sf.fuse(model)
    fused = sf.activity_report(model, SAMPLE)
    assert [row.spikes for row in fused.layers] == [row.spikes for row in plain.layers]
    assert [row.multiply_accumulates for row in fused.maps] == [row.multiply_accumulates for row in plain.maps]
