"""What has no graph, and graphs that no network is made of, are refused by name; what is doubtful is warned of."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from nir_cases import dense
from torch import Tensor, nn

import snnfast as sf


def lif(nir, **changed):
    fields = {"tau": 1e-3, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changed
    return nir.LIF(**{key: np.broadcast_to(np.float64(value), (3,)).copy() for key, value in fields.items()})


def graph_of(nir, node, **more):
    nodes = {"input": nir.Input([3]), "middle": node, "output": nir.Output([3]), **more}
    return nir.NIRGraph(nodes, [("input", "middle"), ("middle", "output")], type_check=False)


THREE = np.ones(3)
NODES = {
    "CubaLIF": lambda nir: nir.CubaLIF(
        tau_syn=THREE, tau_mem=THREE, r=THREE, v_leak=THREE, v_threshold=THREE, v_reset=THREE
    ),
    "CubaLI": lambda nir: nir.CubaLI(tau_syn=THREE, tau_mem=THREE, r=THREE, v_leak=THREE),
    "LI": lambda nir: nir.LI(tau=THREE, r=THREE, v_leak=THREE),
    "I": lambda nir: nir.I(r=THREE),
    "Delay": lambda nir: nir.Delay(delay=THREE),
}


@pytest.mark.parametrize("kind", NODES)
def test_nodes_without_a_layer_are_refused_by_name(nir, kind):
    with pytest.raises(NotImplementedError, match=rf"node 'middle' is a nir.{kind}: snnfast has no "):
        sf.from_nir(graph_of(nir, NODES[kind](nir)))


def test_an_unknown_node_is_refused_with_those_that_are_read(nir):
    class Resonator(nir.ir.node.NIRNode):
        def __init__(self):
            pass

    with pytest.raises(NotImplementedError, match=r"node 'middle' is a nir.Resonator: snnfast reads IF, LIF, "):
        sf.from_nir(graph_of(nir, Resonator()))


VALUES = [
    ({"tau": -1.0}, ValueError, "node 'middle': tau must be above 0, got -1"),
    ({"tau": [1e-3, 0.0, 1e-3]}, ValueError, "tau must be above 0, got 0"),
    ({"tau": 1e-4}, ValueError, "tau must be above dt, one step, got tau=0.0001 with dt=0.0001"),
    ({"tau": np.nan}, ValueError, "node 'middle': tau must be numbers"),
    ({"v_threshold": -1.0}, ValueError, "v_threshold must not be negative"),
    ({"v_reset": [0.0, 0.1, 0.0]}, NotImplementedError, "v_reset differs between neurons"),
    ({"v_leak": 0.5}, NotImplementedError, "v_leak must be 0, v_reset, got 0.5"),
]


@pytest.mark.parametrize(("changed", "error", "match"), VALUES, ids=[match for _, _, match in VALUES])
def test_values_out_of_range_are_refused_by_node(nir, changed, error, match):
    with pytest.raises(error, match=match):
        sf.from_nir(graph_of(nir, lif(nir, **changed)))


def test_a_reset_value_with_the_soft_reset_is_refused(nir):
    with pytest.raises(ValueError, match=r"v_reset is 0\.5, and reset='soft'"):
        sf.from_nir(graph_of(nir, lif(nir, v_reset=0.5)), reset="soft")


OPTIONS = [
    ({"dt": 0.0}, ValueError, "dt must be finite and above 0"),
    ({"dt": -1e-4}, ValueError, "dt must be finite and above 0"),
    ({"dt": "1e-4"}, TypeError, "dt must be a number"),
    ({"exported_by": "brian"}, ValueError, "exported_by must be one of 'spikingjelly', 'snntorch', 'norse', 'sinabs'"),
    ({"reset": "none"}, ValueError, "reset must be one of 'hard', 'soft'"),
    ({"fire_on_equal": 1}, TypeError, "fire_on_equal must be True or False"),
    ({"integration": "heun"}, ValueError, "integration must be one of 'euler', 'exact'"),
    ({"surrogate": 3}, TypeError, "surrogate must be"),
    ({"carry_state": 1}, TypeError, "carry_state must be True or False"),
    ({"time_dim": 2}, ValueError, "time_dim must be 0 or 1"),
]


@pytest.mark.parametrize(("options", "error", "match"), OPTIONS, ids=[match for _, _, match in OPTIONS])
def test_options_of_from_nir_are_checked(nir, options, error, match):
    with pytest.raises(error, match=match):
        sf.from_nir(graph_of(nir, lif(nir)), **options)


def test_graphs_that_are_no_feed_forward_network_are_refused(nir):
    weight = nir.Linear(np.eye(3, dtype=np.float32))
    recurrent = graph_of(nir, lif(nir), back=weight)
    recurrent.edges += [("middle", "back"), ("back", "middle")]
    with pytest.raises(NotImplementedError, match=r"recurrent: .*'back'"):
        sf.from_nir(recurrent)
    inner = nir.NIRGraph(recurrent.nodes, recurrent.edges, type_check=False)
    with pytest.raises(NotImplementedError, match=r"recurrent: .*'middle\.back'"):
        sf.from_nir(graph_of(nir, inner))
    with pytest.raises(NotImplementedError, match="the graph has 2 Input nodes: 'input', 'second'"):
        sf.from_nir(graph_of(nir, lif(nir), second=nir.Input([3])))
    with pytest.raises(ValueError, match="Input node 'input' has no input type"):
        sf.from_nir(graph_of(nir, lif(nir), input=nir.Input(None)))
    lonely = graph_of(nir, lif(nir))
    lonely.edges = [("middle", "output")]
    with pytest.raises(ValueError, match="node 'middle' has no input"):
        sf.from_nir(lonely)
    lonely.edges = [("input", "nowhere")]
    with pytest.raises(ValueError, match="the graph has no node 'nowhere'"):
        sf.from_nir(lonely)
    with pytest.raises(TypeError, match=r"graph must be a nir.NIRGraph .*, got LIF"):
        sf.from_nir(lif(nir))


def test_numbers_that_rather_count_steps_are_warned_of(nir):
    with pytest.warns(UserWarning, match="tau=20 is 200000 steps of dt=0.0001.*exported_by"):
        sf.from_nir(graph_of(nir, lif(nir, tau=20.0)))
    with pytest.warns(UserWarning, match="R is 1, so that a current of 1 adds 0.0001"):
        sf.from_nir(graph_of(nir, nir.IF(r=THREE, v_threshold=THREE, v_reset=0 * THREE)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.from_nir(graph_of(nir, nir.IF(r=THREE, v_threshold=THREE, v_reset=0 * THREE)), dt=1.0)
        sf.from_nir(graph_of(nir, lif(nir)))


class Loop(nn.Module):
    def forward(self, current: Tensor) -> Tensor:
        return torch.stack([x.relu() for x in current])


class Asks(nn.Module):
    def forward(self, current: Tensor) -> Tensor:
        return current if bool(torch.equal(current, current)) else -current


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, current: Tensor) -> Tensor:
        current = self.linear(current.flatten(0, 1))
        return current + self.norm(current)


class Stale(nn.Module):
    """A view of what is written into later."""

    def forward(self, current: Tensor) -> Tensor:
        view = (2 * current).flatten(2)
        whole = view.flatten(0, 1)
        whole += current.flatten(0, 1).flatten(1)
        return view + current.flatten(2)


class Carried(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron = sf.IF(carry_state=True)

    def forward(self, current: Tensor) -> Tensor:
        return self.neuron(self.neuron(current))


class Two(nn.Module):
    def forward(self, current: Tensor) -> tuple[Tensor, Tensor]:
        return current, current


WITHOUT_NODES = {
    r"torch.nn.ReLU has no node in NIR that snnfast writes, in '1' \(ReLU\)": lambda: dense(nn.ReLU()),
    r"torch.nn.LSTM has no node": lambda: nn.LSTM(6, 6),
    r"__iter__|unbind|__getitem__": Loop,
    r"depends on values of its tensors \(equal\), in 'Asks'": Asks,
    r"batch norm follows no convolution or linear layer .* in '0.module' \(BatchNorm1d\)": lambda: nn.Sequential(
        sf.OverTime(nn.BatchNorm1d(6))
    ),
    r"without running statistics": lambda: dense(sf.OverTime(nn.BatchNorm1d(5, track_running_stats=False))),
    r"'linear' is read before the batch norm": Twice,
    r"adds a tensor that does not come of the sample|add has no node": Stale,
    r"carries one state and is called twice": Carried,
    r"must return one tensor, got tuple": Two,
    r"delay=True has no node, in '1' \(IF\)": lambda: dense(sf.IF(delay=True)),
    r"its time_dim is 1, to_nir's 0": lambda: dense(sf.IF(time_dim=1)),
    r"readout comes last": lambda: dense(sf.IF(), sf.Readout(), nn.Linear(5, 2)),
    r"padding_mode='reflect'": lambda: nn.Sequential(
        nn.Unflatten(2, (1, 6)), sf.OverTime(nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"))
    )[1:],
}


@pytest.mark.parametrize("match", WITHOUT_NODES)
def test_models_without_a_graph_are_refused_by_what_they_do_and_where(nir, match):
    sample = torch.rand(4, 3, 1, 6) if "reflect" in match else torch.rand(4, 3, 6)
    with pytest.raises(NotImplementedError, match=match):
        sf.to_nir(WITHOUT_NODES[match](), sample)
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


def test_pools_that_nir_does_not_have_are_refused(nir):
    for pool, match in (
        (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "count_include_pad"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override=3"),
        (nn.AdaptiveAvgPool2d(4), "its windows differ"),
        (nn.MaxPool2d(2), "torch.nn.MaxPool2d has no node"),
    ):
        with pytest.raises(NotImplementedError, match=match):
            sf.to_nir(sf.OverTime(pool), torch.rand(2, 1, 1, 6, 6))


def test_a_soft_reset_is_warned_of_as_others_do_not_read_it(nir):
    with pytest.warns(UserWarning, match="hard reset only: that '1' reset softly is in the graph's metadata"):
        sf.to_nir(dense(sf.IF(reset="soft")), torch.rand(4, 3, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.to_nir(dense(sf.IF()), torch.rand(4, 3, 6))


def test_what_to_nir_is_given_is_checked(nir):
    sample = torch.rand(4, 3, 6)
    for samples in ([sample, sample], (sample,), None, sample.numpy()):
        with pytest.raises(TypeError, match="sample must be a tensor"):
            sf.to_nir(dense(sf.IF()), samples)
    for dt in (0, -1e-4, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="dt must be finite and above 0"):
            sf.to_nir(dense(sf.IF()), sample, dt=dt)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        sf.to_nir(lambda x: x, sample)
    with pytest.raises(ValueError, match="time_dim must be 0 or 1"):
        sf.to_nir(dense(sf.IF()), sample, time_dim=2)
    with pytest.raises(ValueError, match=r"sample must be \[T, B, ...\]"):
        sf.to_nir(sf.IF(), torch.rand(4))


def test_without_nir_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    for call in (lambda: sf.to_nir(sf.IF(), torch.rand(4, 3, 6)), lambda: sf.from_nir(None)):
        with pytest.raises(ImportError, match=r"needs the package nir.*pip install 'snnfast\[nir\]'"):
            call()
