"""Networks in several processes: each trains on its part of a batch as one process does on all of it."""

from __future__ import annotations

import pytest
import torch
import two_processes
from torch import nn

import snnfast as sf
from snnfast import models

WORKER = """
import json, sys
from copy import deepcopy
from datetime import timedelta
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
import snnfast as sf
from snnfast import convert, models

rank, store, networks, layers = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
torch.set_num_threads(1)
distributed = torch.distributed
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2,
                               timeout=timedelta(seconds=40))

def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

def refusal(call):
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

def build(name, options):
    torch.manual_seed(0)
    return models.build(name, num_classes=3, **options).double()

def differ(ours, theirs, tolerance=1e-10):
    if ours.shape != theirs.shape:
        return f"{ours.shape}, wanted {theirs.shape}"
    if ours.numel():
        ours, theirs = ours.double(), theirs.double()
        error = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3))
        return None if error <= tolerance else error

problems = []

def compare(case, what, ours, theirs, *tolerance):
    found = differ(ours, theirs, *tolerance)
    if found is not None:
        problems.append((case, what, found))

for case, (name, options, size) in networks.items():
    images, labels = normal(6, 3, size, size), torch.arange(6) % 3

    # Halves of a batch: loss, gradients, running statistics of two steps.
    one, two = build(name, options), build(name, options)
    before = {id(module) for module in two.modules()}
    if models.synchronize(two) is not two or {id(module) for module in two.modules()} != before:
        problems.append((case, "not in place"))
    parallel = DistributedDataParallel(two, broadcast_buffers=False)
    for step in range(2):
        x = images * (1 + step)
        loss = F.cross_entropy(one(x), labels)
        loss.backward()
        own = F.cross_entropy(parallel(x.split(3)[rank]), labels.split(3)[rank])
        own.backward()
        mean = own.detach().clone()
        distributed.all_reduce(mean)
        compare(case, "loss", mean / 2, loss.detach())
    for (key, ours), theirs in zip(two.named_parameters(), one.parameters()):
        compare(case, "gradient of " + key, ours.grad, theirs.grad)
    for key, value in one.state_dict().items():
        compare(case, key, two.state_dict()[key], value)
    if [*two.state_dict()] != [*one.state_dict()]:
        problems.append((case, "keys of the state dict"))
    if not any(p.grad.abs().max() > 1e-6 for p in one.parameters()):
        problems.append((case, "no gradient"))

    # Parts of other sizes, an empty one among them.
    for sizes in ([2, 4], [0, 6]):
        one, two = build(name, options), models.synchronize(build(name, options))
        compare(case, f"logits {sizes}", two(images.split(sizes)[rank]), one(images).split(sizes)[rank])
        for key, value in one.state_dict().items():
            compare(case, f"{key} {sizes}", two.state_dict()[key], value)
    one.eval(), two.eval()
    if rank == 0:  # in evaluation no process waits for another
        compare(case, "evaluation", two(images), one(images))

# BatchNorm2d on its own, against nn.BatchNorm2d in float64.
for case, (options, dtype, autocast, sizes) in layers.items():
    dtype = getattr(torch, dtype)
    reference = nn.BatchNorm2d(4, **options)
    if reference.affine:
        nn.init.uniform_(reference.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(reference.bias, 0.5, 1.5, generator=torch.Generator().manual_seed(2))
    layer = models.BatchNorm2d(4, process_group="world", **options)
    layer.load_state_dict(reference.state_dict())
    if not autocast:
        layer = layer.to(dtype)
    reference = reference.double()
    reference.load_state_dict(layer.state_dict())  # as rounded
    rounding = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.01}[dtype]
    for step in range(3):
        x = (normal(sum(sizes), 4, 5, 3, seed=step) * 2 + 50 * step).to(dtype)
        sent = normal(*x.shape, seed=9).to(dtype)
        mine = x.split(sizes)[rank].contiguous(memory_format=torch.channels_last).requires_grad_()
        x = x.double().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            ours, theirs = layer(mine), reference(x)
        if ours.dtype != dtype or not ours.is_contiguous(memory_format=torch.channels_last):
            problems.append((case, "dtype or memory format"))
        leaves = [*layer.parameters()]
        found = torch.autograd.grad(ours, [mine, *leaves], sent.split(sizes)[rank])
        wanted = torch.autograd.grad(theirs, [x, *reference.parameters()], sent.double())
        compare(case, "output", ours, theirs.split(sizes)[rank], rounding)
        compare(case, "current", found[0], wanted[0].split(sizes)[rank], rounding)
        for name, ours, theirs in zip(("weight", "bias"), found[1:], wanted[1:]):
            ours = ours.double()
            distributed.all_reduce(ours)
            compare(case, name, ours, theirs, rounding)
    for (name, ours), theirs in zip(layer.named_buffers(), reference.buffers()):
        compare(case, name, ours, theirs, rounding)

# Groups, copies, twins and conversion.
lone = distributed.new_group([0]), distributed.new_group([1])
alone = models.BatchNorm2d(2, process_group=lone[rank])
plain = nn.BatchNorm2d(2)
x = normal(3, 2, 4, 4, seed=rank).float()
by_itself = torch.equal(alone(x), plain(x)) and torch.equal(alone.running_var, plain.running_var)

twin = models.synchronize(models.resnet18(width=2, activation="relu"))
groups = lambda model: {getattr(m, "process_group", "no") for m in model.modules()} - {"no"}
kept = [groups(model) == {"world"} for model in (twin, deepcopy(twin), twin.with_activation(models.Activation("if")))]
own_group = distributed.new_group([0, 1])
twin_of_group = models.synchronize(models.resnet18(width=2), own_group).with_activation(models.Activation("relu"))
kept.append(groups(twin_of_group) == {own_group})
twin(torch.rand(2, 3, 8, 8))
spiking = convert.to_spiking(twin, [torch.rand(2, 3, 8, 8)], steps=5)
foreign = nn.Sequential(sf.BatchNormIF(3), nn.Sequential(nn.BatchNorm2d(3)))
without = nn.Sequential(nn.Conv2d(3, 3, 1), models.build("digits"))
report = {
    "problems": problems,
    "by itself": by_itself,
    "kept": kept,
    "converted": list(spiking(torch.rand(2, 3, 8, 8)).shape),
    "repr": repr(twin.blocks[2].shortcut),
    "foreign": refusal(lambda: models.synchronize(foreign)),
    "foreign left": foreign[0].process_group is None,
    "own": refusal(lambda: models.synchronize(nn.BatchNorm1d(3))),
    "without": models.synchronize(without) is without,
    "none": refusal(lambda: models.synchronize(without, None)),
    "no module": refusal(lambda: models.synchronize("resnet18")),
    "nonsense": refusal(lambda: models.BatchNorm2d(3, process_group="nonsense")),
    "channels": refusal(lambda: models.BatchNorm2d(3, process_group="world")(torch.ones(2, 4, 2, 2))),
}
print("REPORT" + json.dumps(report))
distributed.barrier()
distributed.destroy_process_group()
"""

NETWORKS = {
    "resnet18": ("resnet18", {"width": 4, "steps": 3}, 8),
    "resnet18, relu": ("resnet18", {"width": 4, "activation": "relu"}, 8),
    "resnet11": ("resnet11", {"width": 2, "steps": 3, "image_size": 8}, 8),
    "plain_net, lif": ("plain_net", {"layers": 5, "width": 4, "steps": 3, "image_size": 16, "activation": "lif"}, 16),
}
LAYERS = {  # options, dtype of the current, autocast, sizes of the parts
    "float64": ({}, "float64", False, [3, 3]),
    "float64, other sizes": ({"eps": 0.1, "momentum": 0.3}, "float64", False, [5, 2]),
    "cumulative mean": ({"momentum": None}, "float64", False, [1, 3]),
    "an empty part": ({}, "float64", False, [0, 3]),
    "no weight": ({"affine": False}, "float64", False, [2, 2]),
    "no running statistics": ({"track_running_stats": False}, "float64", False, [2, 2]),
    "float32": ({}, "float32", False, [2, 4]),
    "bfloat16 under autocast": ({}, "bfloat16", True, [2, 4]),
    "bfloat16": ({}, "bfloat16", False, [2, 4]),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return two_processes.reports(WORKER, tmp_path_factory.mktemp("store"), NETWORKS, LAYERS)


@pytest.mark.parametrize("case", NETWORKS)
def test_two_processes_train_a_network_as_one_on_the_joined_batch(reports, case):
    for report in reports:
        assert [problem[1:] for problem in report["problems"] if problem[0] == case] == []


@pytest.mark.parametrize("case", LAYERS)
def test_two_processes_normalize_as_torch_does_on_the_joined_batch(reports, case):
    for report in reports:
        assert [problem[1:] for problem in report["problems"] if problem[0] == case] == []


def test_copies_twins_and_conversion_keep_what_was_synchronized(reports):
    for report in reports:
        assert report["kept"] == [True, True, True, True]
        assert report["converted"] == [2, 10]
        assert "BatchNorm2d(4, " in report["repr"] and "process_group='world'" in report["repr"]


def test_a_group_of_one_process_is_torchs_own_layer(reports):
    for report in reports:
        assert report["by itself"]


def test_another_batch_norm_is_refused_by_name_and_nothing_is_changed(reports):
    for report in reports:
        assert report["foreign"].startswith("ValueError: 1.0 is BatchNorm2d, whose statistics are of one process")
        assert report["foreign left"]
        assert report["own"].startswith("ValueError: model is BatchNorm1d")
        assert report["without"]  # a model without normalization is left as it is


def test_groups_models_and_channels_that_do_not_fit_are_refused(reports):
    for report in reports:
        assert report["none"].startswith("ValueError: process_group") and report["none"].endswith("got None")
        assert report["no module"] == "TypeError: module must be a torch.nn.Module, got str"
        assert report["nonsense"].startswith("ValueError: process_group") and "'nonsense'" in report["nonsense"]
        assert "3 channels (num_features), got [2, 4, 2, 2]" in report["channels"]


def test_without_torch_distributed_a_network_is_not_synchronized():
    network = models.resnet18(width=2, activation="relu")
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialised"):
        models.synchronize(network)
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialised"):
        models.BatchNorm2d(3, process_group="world")
    groups = [layer.process_group for layer in network.modules() if isinstance(layer, models.BatchNorm2d)]
    assert groups == 20 * [None]


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_without_a_group_the_layer_is_torchs_bit_for_bit(options):
    ours, theirs = models.BatchNorm2d(3, **options), nn.BatchNorm2d(3, **options)
    assert repr(ours) == repr(theirs) and list(ours.state_dict()) == list(theirs.state_dict())
    for step in range(3):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        if step == 2:
            ours.eval(), theirs.eval()
        results = []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            output = layer(leaf)
            results.append([output, *torch.autograd.grad(output, [leaf, *layer.parameters()], x.sin())])
        assert all(map(torch.equal, *results))
    assert all(map(torch.equal, ours.buffers(), theirs.buffers()))


def test_fuse_leaves_it_and_says_why():
    model = nn.Sequential(sf.OverTime(nn.Sequential(nn.Conv2d(3, 3, 1), models.BatchNorm2d(3))), sf.IF())
    assert "its class BatchNorm2d is a subclass of a batch norm" in str(sf.fuse(model))
    assert isinstance(model[0].module[1], models.BatchNorm2d)
