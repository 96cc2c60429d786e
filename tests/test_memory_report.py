"""memory_report: its figures are those of an independent count, and the model is left as it was."""

from __future__ import annotations

import dataclasses
import pickle
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import snnfast as sf
from snnfast.autograd.integrate import listeners
from snnfast.memory.report import LayerMemory, MemoryReport

T, B = 5, 4


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = sf.OverTime(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        self.norm = sf.OverTime(nn.BatchNorm2d(channels))
        self.neuron = sf.LIF(3.0, torch.full((channels,), 0.5), learn_tau=True)

    def forward(self, spikes):
        return self.neuron(spikes + self.norm(self.convolution(spikes)))


def network(**options) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        sf.OverTime(nn.Conv2d(2, 8, 3, padding=1)),
        sf.IF(reset="soft", **options),
        Block(8),
        sf.OverTime(nn.MaxPool2d(2)),
        Block(8),
        sf.OverTime(nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 6))),
        sf.IF(0.2, surrogate=sf.surrogate.Triangle()),
        nn.Dropout(0.5),
        nn.Linear(6, 3),
        sf.Readout("mean"),
    )


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(T, B, 2, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


@contextmanager
def independent_count(model: nn.Module):
    """Bytes saved, each storage once, without parameters and buffers; and the same with one bit per spike."""
    storages: dict[int, torch.UntypedStorage] = {}
    spikes: dict[int, torch.Tensor] = {}
    mine = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    class Count:
        whole = packed = 0

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            storages[storage.data_ptr()] = storage  # kept alive, so that no address is reused
            if tensor.is_floating_point() and bool(((tensor == 0) | (tensor == 1)).all()) and tensor.any():
                spikes[storage.data_ptr()] = tensor
        return tensor.detach()

    count = Count()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield count
    count.whole = sum(s.nbytes() for s in storages.values())
    count.packed = count.whole
    for address, tensor in spikes.items():
        n = storages[address].nbytes() // tensor.element_size()
        count.packed += (n + 7) // 8 - storages[address].nbytes()


def models() -> dict:
    return {
        "convolutional": (network(), images()),
        "evaluated": (network().eval(), images()),
        "float64": (network().double(), images(torch.float64)),
        "bfloat16": (network().bfloat16(), images(torch.bfloat16)),
        "carrying state": (network(carry_state=True), images()),
        "many steps": (
            nn.Sequential(sf.IF(), nn.Linear(7, 5), sf.LIF(2.0, 0.1), nn.Linear(5, 2)),
            torch.randn(40, 3, 7),
        ),
        "frozen": (network().requires_grad_(False), images().requires_grad_()),
        "without snnfast": (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)), torch.randn(9, 6)),
    }


@pytest.mark.parametrize("name", models().keys())
def test_totals_are_those_of_an_independent_count(name):
    model, sample = models()[name]
    report = sf.memory_report(model, sample)
    with independent_count(model) as count:
        model(sample)
    assert count.whole > 0
    assert abs(report.kept - count.whole) <= 0.01 * count.whole
    assert sum(row.kept for row in report.rows) == report.kept
    assert sum(row.packed for row in report.rows) == report.packed
    if name in ("frozen", "without snnfast"):  # no spikes are saved, apart from dropout's and pooling's
        assert report.packed <= report.kept
    else:
        # Dropout's mask, zeros and twos or ones, is no spikes; nothing else here is zeros and ones.
        assert abs(report.packed - count.packed) <= 0.01 * count.packed
        assert report.packed < report.kept


def test_every_layer_has_its_name_and_its_share():
    model, n = network(), T * B * 8 * 8 * 8
    report = sf.memory_report(model, images())
    rows = {row.name: row for row in report.rows}
    modules = dict(model.named_modules())
    assert rows.keys() <= modules.keys() and [r.name for r in report.rows] == [m for m in modules if m in rows]
    assert all(type(modules[name]).__name__ == row.kind for name, row in rows.items())
    convolution = rows["2.convolution.module"]
    assert (convolution.kept, convolution.packed, convolution.naive) == (4 * n, n // 8, None)
    assert rows["2.norm.module"].kept == rows["2.norm.module"].packed == 4 * n + 2 * 8 * 4
    assert rows["1"].kept == rows["1"].packed == 4 * n  # the currents
    # After max-pooling, a quarter of the size.
    assert (rows["4.convolution.module"].kept, rows["4.convolution.module"].packed) == (n, n // 32)


@pytest.mark.parametrize("case", ["hard IF", "soft IF", "learned LIF", "held", "time second", "carried", "no gradient"])
def test_the_plain_loop_s_figure_is_what_the_reference_keeps(case):
    current, steps, options = torch.randn(20, 3, 6, requires_grad=True), None, {}
    if case == "learned LIF":
        layer = sf.LIF(torch.full((6,), 2.5), torch.full((6,), 0.7), learn_tau=True, learn_threshold=True)
    elif case == "soft IF":
        layer = sf.IF(reset="soft", delay=True)
    elif case == "held":
        layer, steps = sf.LIF(), 9
    elif case == "time second":
        layer, options = sf.IF(time_dim=1), {"time_dim": 1}
    elif case == "carried":
        layer = sf.IF(carry_state=True)
        layer(current)
        layer.detach_state()
    else:
        layer = sf.IF()
        current = current.detach() if case == "no gradient" else current
    report = sf.memory_report(layer, (current, steps))
    tables = {k: v for k, v in layer._options().items() if isinstance(v, torch.Tensor)}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if all(storage.data_ptr() != t.untyped_storage().data_ptr() for t in tables.values()):
            storages[storage.data_ptr()] = storage
        return tensor.detach()

    function = sf.reference.leaky_integrate_and_fire if isinstance(layer, sf.LIF) else sf.reference.integrate_and_fire
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(current, layer.state, **{**layer._options(), **tables}, steps=steps, **options)
    wanted = sum(s.nbytes() for s in storages.values())
    (row,) = report.rows
    assert (wanted == 0) is (case == "no gradient")
    assert row.naive == report.naive and abs(row.naive - wanted) <= 0.01 * wanted
    assert row.kept <= row.naive


def test_the_loop_s_total_replaces_the_neuron_layers_alone():
    report = sf.memory_report(network(), images())
    neurons = [row for row in report.rows if row.naive is not None]
    assert len(neurons) == 4 and all(row.naive > row.kept for row in neurons)
    assert report.naive == report.kept + sum(row.naive - row.kept for row in neurons)


def snapshot(model: nn.Module):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    identities = {name: (id(t), t.data_ptr(), t._version) for name, t in tensors.items()}
    values = {name: t.detach().clone() for name, t in tensors.items()}
    states = [m._state for m in model.modules() if isinstance(m, sf.IF | sf.LIF)]
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    return identities, values, states, hooks, modes, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("mode", ["train", "eval", "fails"])
def test_the_model_is_left_as_it_was(mode):
    model = network(carry_state=True).train(mode != "eval")
    model(images())
    model[1].detach_state()
    model(images()).sum().backward()  # running statistics, a carried state, gradients
    if mode == "fails":
        model.append(nn.Linear(17, 1))
    before, random = snapshot(model), torch.get_rng_state()
    state = model[1].state.clone()
    if mode == "fails":
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            sf.memory_report(model, images())
    else:
        sf.memory_report(model, images())
    after = snapshot(model)
    assert torch.equal(random, torch.get_rng_state())
    assert before[0] == after[0] and before[3:5] == after[3:5]
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert all(a is b for a, b in zip(before[2], after[2], strict=True)) and torch.equal(state, model[1].state)
    assert all(a is b for a, b in zip(before[5], after[5], strict=True))
    assert not listeners


def test_a_backward_pass_that_was_pending_still_runs():
    model = network()
    loss = model(images()).sum()
    wanted = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    sf.memory_report(model, images())
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_it_measures_in_inference_and_under_autocast_as_well():
    model = network()
    wanted = sf.memory_report(model, images())
    with torch.no_grad():
        assert sf.memory_report(model, images()) == wanted
    with torch.inference_mode():
        assert sf.memory_report(model, images()) == wanted
    with torch.autocast("cpu", torch.bfloat16):
        half = sf.memory_report(model, images())
    assert half.packed < half.kept < wanted.kept


def test_a_compiled_model_is_measured_as_it_was_before():
    model = network()
    assert sf.memory_report(torch.compile(model, backend="eager"), images()) == sf.memory_report(model, images())


def test_the_table_names_every_layer_and_the_totals():
    report = sf.memory_report(network(), images())
    lines = str(report).splitlines()
    for row in report.rows:
        (line,) = [text for text in lines if text.startswith(f"{row.name} ")]
        assert row.kind in line
    assert [line for line in lines if line.startswith("total ")]
    assert all(len(line) <= 120 for line in lines)
    assert "MiB" in str(MemoryReport((LayerMemory("a", "Linear", 3 << 20, 1 << 20, None),), 3 << 20, 5, 7, 9))


def test_the_columns_of_the_table_add_up():
    # Sizes below 1 KiB are printed in full.
    model = nn.Sequential(sf.OverTime(nn.Conv2d(1, 2, 1)), sf.IF(0.3), sf.OverTime(nn.Conv2d(2, 2, 1)), sf.IF(0.3))
    lines = str(sf.memory_report(model, torch.rand(2, 1, 1, 3, 3))).splitlines()
    rules = [at for at, line in enumerate(lines) if line.startswith("---")]
    rows = [line.split()[2:] for line in lines[rules[0] + 1 : rules[1]]]
    total = lines[rules[1] + 1].split()[1:]
    assert len(rows) >= 4 and all(row[1::2] == ["B"] * 3 for row in [*rows, total])
    for column in (0, 2, 4):
        assert sum(int(row[column]) for row in rows) == int(total[column])


def test_a_report_cannot_be_changed_and_can_be_stored():
    report = sf.memory_report(network(), images())
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.kept = 0
    assert pickle.loads(pickle.dumps(report)) == report and isinstance(report, MemoryReport)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sf.memory_report(lambda x: x, images()), TypeError, "model must be a torch.nn.Module, got function"),
        (lambda: sf.memory_report(network(), [images()]), TypeError, "sample must be a tensor, or a tuple.* got list"),
        (lambda: sf.memory_report(nn.LazyLinear(3), images()), ValueError, "model must be initialised.*weight"),
    ],
    ids=["no model", "no tensor", "not initialised"],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
