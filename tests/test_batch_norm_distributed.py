"""Statistics over several processes: what each computes on its share is what one computes on everything."""

from __future__ import annotations

import pytest
import two_processes

import snnfast as sf

WORKER = """
import json, sys
from datetime import timedelta
import torch
from torch import nn
import snnfast as sf

rank, store, cases = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
torch.set_num_threads(1)
distributed = torch.distributed

def refusal(call):
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2,
                               timeout=timedelta(seconds=40))
C = 3

def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

def make(case, group):
    layer = getattr(sf, case["layer"])(C, momentum=case["momentum"], process_group=group, time_dim=case["time_dim"])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.7, 1.1, 1.6]))
        layer.bias.copy_(torch.tensor([0.1, 0.5, -0.2]))
    return layer.double()

def train(layer, x, residual, sent, steps):
    x.requires_grad_()
    leaves = [x, layer.weight, layer.bias]
    if residual is not None:
        leaves.append(residual.requires_grad_())
    spikes = layer(x, residual, steps)
    return [spikes, *torch.autograd.grad(spikes, leaves, sent)]

problems = []
for case in cases:
    sizes, held, time_dim, T = case["sizes"], case["held"], case["time_dim"], case["T"]
    B = sum(sizes)
    batch = 1 - time_dim
    shape = (B, C, 4, 5) if held else (T, B, C, 4, 5) if time_dim == 0 else (B, T, C, 4, 5)
    out = (T, B, C, 4, 5) if time_dim == 0 else (B, T, C, 4, 5)
    joined, alone = make(case, None), make(case, "world")
    for step in range(2):
        x = normal(*shape, seed=step) * 2 + step
        residual = normal(*(shape if case["residual"] == "held" else out), seed=7) if case["residual"] else None
        sent = normal(*out, seed=8)
        def mine(t, dim):
            return None if t is None else t.split(sizes, dim)[rank].clone()
        own = [mine(x, 0 if held else batch), mine(residual, 0 if case["residual"] == "held" else batch),
               mine(sent, batch)]
        spikes, grad, weight, bias, *rest = train(joined, x, residual, sent, T if held else None)
        found = train(alone, *own, T if held else None)
        for gradient in found[2:4]:
            distributed.all_reduce(gradient)
        wanted = [mine(spikes, batch), mine(grad, 0 if held else batch), weight, bias,
                  *(mine(g, 0 if case["residual"] == "held" else batch) for g in rest)]
        for name, ours, theirs in zip(["spikes", "current", "weight", "bias", "residual"], found, wanted):
            if ours.shape != theirs.shape:
                problems.append((case, name, str(ours.shape), str(theirs.shape)))
            elif ours.numel() and not (ours - theirs).abs().max() <= 1e-12 * max(theirs.abs().max(), 0.1):
                problems.append((case, name, float((ours - theirs).abs().max())))
    for (name, ours), theirs in zip(alone.named_buffers(), joined.buffers()):
        if not torch.allclose(ours, theirs, rtol=1e-12, atol=1e-13):
            problems.append((case, name, ours.tolist(), theirs.tolist()))
    alone.eval(), joined.eval()
    x = normal(2, 2, C, 4)
    if not torch.equal(alone(x), joined(x)):
        problems.append((case, "evaluation"))

# As frameworks convert a network, and wrap it.
def network(fused):
    torch.manual_seed(0)
    norms = [sf.OverTime(nn.BatchNorm1d(C)), sf.IF()], [sf.OverTime(nn.BatchNorm1d(C)), sf.LIF()]
    layers = [sf.BatchNormIF(C)], [sf.BatchNormLIF(C)]
    model = nn.Sequential(sf.OverTime(nn.Linear(4, C)), *(norms if fused else layers)[0],
                          sf.OverTime(nn.Linear(C, C)), *(norms if fused else layers)[1]).double()
    if fused:
        sf.fuse(model)
    return model

def conversion(fused, group):
    one, two = network(fused), network(fused)
    kept = [*two.modules()]
    same = nn.SyncBatchNorm.convert_sync_batchnorm(two, group) is two and [*two.modules()] == kept
    parallel = nn.parallel.DistributedDataParallel(two)
    for step in range(2):
        x = normal(4, 6, 4, seed=step) + step
        one(x).sum().backward()
        (parallel(x.split([2, 4], 1)[rank]).sum() * 2).backward()  # DDP takes the mean over processes
    pairs = [(p.grad, q.grad) for p, q in zip(two.parameters(), one.parameters())]
    pairs += zip(two.buffers(), one.buffers())
    return same and any(g.any() for g, _ in pairs) and all(torch.allclose(a, b, rtol=1e-10) for a, b in pairs)

# Options.
model = nn.Sequential(sf.OverTime(nn.Linear(3, 3)), nn.Sequential(sf.BatchNormIF(3)), sf.IF(), sf.BatchNormLIF(3))
converted = sf.BatchNormIF.convert_sync(model)
groups = [m.process_group for m in model.modules() if hasattr(m, "process_group")]
own_group = distributed.new_group([0, 1])
lone = distributed.new_group([0]), distributed.new_group([1])
x = normal(4, 3, 3, seed=rank).float()
of_own, of_world, by_itself, plain = (
    sf.BatchNormIF(3, process_group=g) for g in (own_group, "world", lone[rank], None))
for layer in (of_own, of_world, by_itself, plain):
    layer(x)
report = {
    "problems": problems,
    "torch's conversion": [conversion(fused, group) for fused in (False, True) for group in (None, own_group)],
    "converted": converted is model and groups == ["world", "world"],
    "repr": repr(model[1][0]),
    "nonsense": refusal(lambda: sf.BatchNormIF(3, process_group="nonsense")),
    "a number": refusal(lambda: sf.BatchNormIF(3, process_group=3)),
    "a group": torch.equal(of_own.running_mean, of_world.running_mean),
    "over both": not torch.equal(plain.running_mean, of_world.running_mean),
    "by itself": torch.equal(by_itself.running_mean, plain.running_mean),
    "one value": refusal(lambda: by_itself(x[:1, :1])),
}
print("REPORT" + json.dumps(report))
distributed.barrier()
distributed.destroy_process_group()
"""

PLAIN = {
    "layer": "BatchNormIF",
    "momentum": 0.1,
    "sizes": [3, 3],
    "held": False,
    "time_dim": 0,
    "T": 4,
    "residual": None,
}
CASES = [
    PLAIN,
    {**PLAIN, "sizes": [3, 5], "residual": "output"},
    {**PLAIN, "sizes": [5, 1], "time_dim": 1, "layer": "BatchNormLIF", "T": 18, "momentum": None},
    {**PLAIN, "sizes": [2, 3], "held": True, "residual": "held"},
    {**PLAIN, "sizes": [3, 2], "held": True, "residual": "output", "time_dim": 1},
    {**PLAIN, "sizes": [0, 3], "residual": "output"},
    {**PLAIN, "sizes": [4, 0]},
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return two_processes.reports(WORKER, tmp_path_factory.mktemp("store"), CASES)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: ", ".join(f"{k}={v}" for k, v in CASES[i].items()))
def test_two_processes_train_as_one_on_the_joined_batch(reports, case):
    for report in reports:
        assert [problem[1:] for problem in report["problems"] if problem[0] == CASES[case]] == []


def test_a_model_is_converted_in_place_and_shows_it(reports):
    for report in reports:
        assert report["converted"] and "process_group='world'" in report["repr"]


def test_torchs_own_conversion_makes_the_statistics_those_of_all(reports):
    for report in reports:
        assert report["torch's conversion"] == [True, True, True, True]


def test_a_group_of_ones_own_may_be_given(reports):
    for report in reports:
        assert report["a group"] and report["over both"] and report["by itself"]


def test_an_unknown_group_and_a_single_value_are_refused(reports):
    for report in reports:
        assert report["nonsense"].startswith("ValueError: process_group") and "'nonsense'" in report["nonsense"]
        assert report["a number"].startswith("TypeError: process_group") and report["a number"].endswith("got 3")
        assert "more than 1 value per channel" in report["one value"]


def test_without_torch_distributed_a_layer_is_of_one_process():
    assert sf.BatchNormIF(3).process_group is None and "process_group" not in repr(sf.BatchNormIF(3))
