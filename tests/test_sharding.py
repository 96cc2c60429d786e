"""Networks sharded over processes, replicated over them, and saved from several: two gloo processes on the CPU."""

from __future__ import annotations

import textwrap

import pytest
import torch
from two_processes import reports

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
)

SETUP = textwrap.dedent("""
    import json, sys, warnings
    import torch
    import torch.distributed as dist
    from torch import nn
    import snnfast as sf

    warnings.simplefilter("ignore")
    rank, store = int(sys.argv[1]), sys.argv[2]
    case = json.loads(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)

    def one(value):
        return torch.tensor([value], device="cpu")

    def network():
        torch.manual_seed(1)
        return nn.Sequential(
            sf.OverTime(nn.Conv2d(2, 5, 3, padding=1)),
            sf.BatchNormLIF(5, threshold=one(0.4), learn_threshold=True, tau=one(3.0), learn_tau=True),
            sf.OverTime(nn.Sequential(nn.Flatten(), nn.Linear(5 * 16, 6))),
            sf.LIF(one(2.0), one(0.3), learn_tau=True, learn_threshold=True),
            sf.OverTime(nn.Linear(6, 5)),
            sf.IF(torch.linspace(0.1, 0.5, 5, device="cpu"), learn_threshold=True, reset="soft"),
            sf.Readout("mean"),
        )

    def images(step):
        return torch.randn(6, 4, 2, 4, 4, generator=torch.Generator().manual_seed(step))

    def train(net, steps=4):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        losses = []
        for step in range(steps):
            optimizer.zero_grad()
            loss = (net(images(step)) - 0.3).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def values(state):
        return {name: value.double().flatten().tolist() for name, value in state.items()}
""")

SHARDED = SETUP + textwrap.dedent("""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        from torch.distributed._composable.fsdp import fully_shard
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (2,))
    try:  # without a layer of ours
        fully_shard(nn.Linear(4, 2), mesh=mesh)(torch.ones(1, 4))
    except AttributeError as error:
        print("REPORT" + json.dumps(repr(error)))
        sys.exit()
    full = StateDictOptions(full_state_dict=True, cpu_offload=True)

    def sharded(net, each):
        if each:
            for module in list(net):
                if list(module.parameters()):
                    fully_shard(module, mesh=mesh)
        return fully_shard(net, mesh=mesh)

    plain = network()
    if case == "meta":
        with torch.device("meta"):
            net = network()
        net = sharded(net, each=True)
        net.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in [*net.parameters(), *net.buffers()]:
                tensor.fill_(77)
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        # Convolutions and linear layers start at random: those of the plain network.
        found = get_model_state_dict(net, options=full)
        own = {k: v for k, v in plain.state_dict().items()}
        report = {"started": all(
            torch.equal(found[k], own[k]) for k in own
            if ("threshold" in k or "tau" in k or k.startswith("1.")) and rank == 0
        )}
        set_model_state_dict(net, own, options=StateDictOptions(full_state_dict=True))
    else:
        net = sharded(network(), each=case == "each layer")
        report = {}
    report["sharded"] = all(isinstance(p, DTensor) for p in net.parameters())
    report["text"] = repr(net[3])
    report["losses"], report["plain losses"] = train(net), train(plain)
    state = get_model_state_dict(net, options=full)
    if rank == 0:
        report["state"], report["plain state"] = values(state), values(plain.state_dict())
        report["shapes"] = [list(v.shape) == list(plain.state_dict()[k].shape) for k, v in state.items()]
    # Through a distributed checkpoint into a network that is not sharded.
    dcp.save({"model": get_model_state_dict(net)}, checkpoint_id=store + "-dcp")
    other = network()
    loaded = {"model": other.state_dict()}
    dcp.load(loaded, checkpoint_id=store + "-dcp")
    other.load_state_dict(loaded["model"])
    if rank == 0:
        report["checkpoint"] = all(torch.equal(v, state[k]) for k, v in other.state_dict().items())
    # Into another sharded one.
    fresh = sharded(network(), each=False)
    set_model_state_dict(fresh, plain.state_dict(), options=StateDictOptions(full_state_dict=True))
    net.eval(), fresh.eval(), plain.eval()
    with torch.no_grad():
        x = images(9)
        report["loaded"] = torch.equal(fresh(x), plain(x))
    net[3].tau, net[3].threshold = 4.0, 0.5
    report["assigned"] = [t.full_tensor().item() for t in (net[3].tau, net[3].threshold)]
    net[3].tau = one(5.0)
    report["assigned"].append(net[3].tau.full_tensor().item())
    print("REPORT" + json.dumps(report))
    dist.destroy_process_group()
""")


@pytest.mark.parametrize("case", ["whole network", "each layer", "meta"])
def test_a_sharded_network_learns_what_the_network_in_one_process_does(tmp_path, case):
    found = reports(SHARDED, tmp_path, case)
    if isinstance(found[0], str):
        pytest.skip(f"this torch's fully_shard does not run on the CPU: {found[0]}")
    for report in found:
        assert report["sharded"] and "learn_tau=True" in report["text"]
        assert len(set(report["plain losses"])) == 4
        assert report["losses"] == pytest.approx(report["plain losses"], rel=1e-5)
        assert report["loaded"]
        assert report["assigned"] == pytest.approx([4.0, 0.5, 5.0], rel=1e-6)
        assert report.get("started", True) and report.get("checkpoint", True)
    first = found[0]
    assert first["state"].keys() == first["plain state"].keys() and all(first["shapes"])
    for name, values in first["state"].items():
        assert values == pytest.approx(first["plain state"][name], rel=1e-4, abs=1e-5), name
    assert any(name.endswith("tau_logit") for name in first["state"])


REPLICATED = SETUP + textwrap.dedent("""
    from torch.nn.parallel import DistributedDataParallel

    half = DistributedDataParallel(network())
    for layer in half.modules():
        if isinstance(layer, sf.BatchNormIF | sf.BatchNormLIF):
            layer.process_group = "world"
    plain = network()
    losses, plain_losses = [], []
    for net, found in ((half, losses), (plain, plain_losses)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for step in range(3):
            optimizer.zero_grad()
            x = images(step)
            part = x[:, 2 * rank : 2 * rank + 2] if net is half else x
            loss = (net(part) - 0.3).square().mean()
            loss.backward()
            optimizer.step()
        found += values(dict(net.named_parameters())).values()
    carried = DistributedDataParallel(
        nn.Sequential(sf.LIF(learn_tau=True, threshold=0.4, learn_threshold=True, carry_state=True))
    )
    x = images(0)
    with torch.no_grad():
        pieces = torch.cat([carried(x[:2]), carried(x[2:])])
        whole = sf.LIF(carried.module[0].tau, 0.4)(x)
    print("REPORT" + json.dumps([losses, plain_losses, torch.equal(pieces, whole)]))
    dist.destroy_process_group()
""")


def test_a_replicated_network_learns_what_the_network_in_one_process_does(tmp_path):
    """DistributedDataParallel, half of each batch in each process; a carried state stays with its process."""
    for found, wanted, carried in reports(REPLICATED, tmp_path, None):
        assert len(found) == len(wanted) == 13
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        assert carried


REFUSED = SETUP + textwrap.dedent("""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        from torch.distributed._composable.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh

    said = ""
    try:
        fully_shard(sf.IF(learn_threshold=True), mesh=init_device_mesh("cpu", (2,)))
    except ValueError as error:
        said = str(error)
    print("REPORT" + json.dumps(said))
    dist.destroy_process_group()
""")


def test_torch_says_how_to_shard_a_threshold_that_is_a_number(tmp_path):
    for said in reports(REFUSED, tmp_path, None):
        assert "1D tensor" in said and "threshold" in said
