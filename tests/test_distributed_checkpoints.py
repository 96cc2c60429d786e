"""torch.distributed.checkpoint, which knows tensors alone, brings measured thresholds, and no surrogate in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import two_processes
from measured import NETWORKS, assert_the_same, measured, networks, plain
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

import snnfast as sf
from snnfast import tuning
from snnfast.surrogate import Triangle

pytestmark = pytest.mark.usefixtures("one_thread", "no_other_warnings")


def save(model: nn.Module, folder: Path) -> None:
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder)


@networks
def test_a_distributed_checkpoint_brings_thresholds_to_a_network_that_holds_them(name: str, tmp_path: Path) -> None:
    model, new = measured(name), NETWORKS[name]()
    tuning.hold_thresholds(new)
    save(model, tmp_path)
    state = {"model": get_model_state_dict(new)}
    dcp.load(state, checkpoint_id=tmp_path)
    with pytest.warns(UserWarning, match=r"own at '.'.*gamma and beta did not come"):
        set_model_state_dict(new, state["model"])
    assert_the_same(model, new)


@networks
@pytest.mark.parametrize(
    "options",
    [None, StateDictOptions(full_state_dict=True), StateDictOptions(cpu_offload=True)],
    ids=["own", "full", "on the CPU"],
)
def test_no_distributed_checkpoint_loses_a_surrogate_in_silence(
    name: str, options: StateDictOptions | None, tmp_path: Path
) -> None:
    model, new = NETWORKS[name](), NETWORKS[name]()
    save(model, tmp_path)
    state = {"model": get_model_state_dict(new, options=options)}
    dcp.load(state, checkpoint_id=tmp_path)
    with pytest.warns(UserWarning, match="gamma and beta did not come") as caught:
        set_model_state_dict(new, state["model"], options=options)
    assert len(caught) == 1


def test_a_module_loaded_as_it_stands_says_it_too(tmp_path: Path) -> None:
    model, new = plain(), plain()
    dcp.save({"model": model}, checkpoint_id=tmp_path)
    with pytest.warns(UserWarning, match="gamma and beta did not come"):
        dcp.load({"model": new}, checkpoint_id=tmp_path)
    assert torch.equal(new[0].module.weight, model[0].module.weight)


@networks
def test_metadata_saved_beside_the_tensors_brings_the_surrogates(name: str, tmp_path: Path) -> None:
    model, new = measured(name), NETWORKS[name]()
    for layer in (layer for layer in model.modules() if isinstance(layer, sf.IF | sf.LIF)):
        layer.surrogate = Triangle(gamma=0.123, beta=4.5)
    tuning.hold_thresholds(new)
    for network, act in ((model, dcp.save), (new, dcp.load)):
        state = network.state_dict()
        act({"model": state, "metadata": state._metadata}, checkpoint_id=tmp_path)
    new.load_state_dict(state)
    assert_the_same(model, new)
    assert {m.surrogate for m in new.modules() if isinstance(m, sf.IF | sf.LIF)} == {Triangle(gamma=0.123, beta=4.5)}


def test_a_distributed_checkpoint_made_a_file_brings_thresholds_to_any_network(tmp_path: Path) -> None:
    model, new = measured(), plain()
    save(model, tmp_path)
    dcp_to_torch_save(tmp_path, tmp_path / "file.pt")
    with pytest.warns(UserWarning, match="no metadata for '1'"):
        new.load_state_dict(torch.load(tmp_path / "file.pt")["model"])
    assert_the_same(model, new)


WORKER = """
import json, sys, warnings
from datetime import timedelta
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
import snnfast as sf

rank, store = int(sys.argv[1]), sys.argv[2]
warnings.simplefilter("ignore")
torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2,
                                     timeout=timedelta(seconds=40))

def network(fused):
    layers = [sf.OverTime(nn.BatchNorm1d(4)), sf.IF()]
    model = nn.Sequential(sf.OverTime(nn.Linear(4, 4)), *layers, sf.BatchNormIF(4), sf.LIF())
    if fused:
        sf.fuse(model)
    sf.tuning.hold_thresholds(model)
    return model

report = []
for fused in (False, True):
    for options in ({}, {"full_state_dict": True}, {"full_state_dict": True, "broadcast_from_rank0": True}):
        for wrap in (lambda module: module, nn.parallel.DistributedDataParallel):
            model, new = network(fused), network(fused)
            for layer, threshold in ((model[2], 0.1), (model[3], 0.2), (model[4], 0.3)):
                layer.threshold = threshold
            state = get_model_state_dict(wrap(model), options=StateDictOptions(**options))
            if rank and "broadcast_from_rank0" in options:
                state = {}
            set_model_state_dict(wrap(new), state, options=StateDictOptions(**options))
            report.append([new[i].threshold for i in (2, 3, 4)])
print("REPORT" + json.dumps(report))
torch.distributed.destroy_process_group()
"""


def test_wrapped_networks_and_broadcasts_bring_them_to_every_process(tmp_path: Path) -> None:
    for report in two_processes.reports(WORKER, tmp_path):
        assert report == 12 * [[0.1, 0.2, 0.3]]
