"""Networks of Norse and Sinabs are on these kernels after one line, and go on being theirs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from replacing import currents, same, swapped
from torch import Tensor, nn

import snnfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = {"rtol": 1e-4, "atol": 1e-6}  # of float32, in which the libraries keep their parameters


@pytest.fixture(scope="module")
def norse() -> Any:
    pytest.importorskip("norse", reason="norse is not installed (pip install '.[peers]')")
    import norse.torch
    from norse.torch.functional.iaf import IAFParameters
    from norse.torch.functional.lif_box import LIFBoxParameters

    class Modules:
        pass

    Modules.torch, Modules.IAFParameters, Modules.LIFBoxParameters = norse.torch, IAFParameters, LIFBoxParameters
    return Modules


NORSE = ("IAF", "LIF", "LIF, another threshold", "lifted IAF", "lifted LIF", "lifted LIF without synapse")


def norse_neuron(norse: Any, name: str) -> nn.Module:
    lif, number = norse.torch.LIFParameters, torch.as_tensor
    box = norse.LIFBoxParameters(v_th=number(0.4), v_leak=number(0.2), v_reset=number(0.2))
    made = {
        "IAF": lambda: norse.torch.IAF(norse.IAFParameters(v_reset=number(-0.5))),
        "LIF": lambda: norse.torch.LIF(),
        "LIF, another threshold": lambda: norse.torch.LIF(lif(v_th=number(0.3), tau_mem_inv=number(300.0)), dt=0.002),
        "lifted IAF": lambda: norse.torch.Lift(norse.torch.IAFCell()),
        "lifted LIF": lambda: norse.torch.Lift(norse.torch.LIFCell(lif(v_th=number(0.5)))),
        "lifted LIF without synapse": lambda: norse.torch.Lift(norse.torch.LIFBoxCell(box)),
    }
    return made[name]()


def with_state(network: nn.Module, x: Tensor, state: Any) -> Any:
    neuron = network[0]
    return neuron((x, state)) if hasattr(neuron, "lifted_module") else neuron(x, state)


@pytest.mark.parametrize("name", NORSE)
def test_norses_neurons_have_the_same_spikes_gradients_and_states(norse: Any, name: str) -> None:
    theirs = nn.Sequential(norse_neuron(norse, name))
    ours = swapped(theirs)
    assert isinstance(ours[0], sf.IF if "IAF" in name else sf.LIF)
    assert isinstance(ours[0], type(theirs[0]))
    x = currents(9, 3, 40, scale=3.0, dtype=torch.float32) + 1
    same(theirs, ours, x, lambda result: result[0], **CLOSE)
    states = [network(x)[1] for network in (theirs, ours)]
    assert type(states[0]) is type(states[1])
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(other, one, **CLOSE)
    # From a state on, and back into it.
    found = []
    for network, state in zip((theirs, ours), states, strict=True):
        began = type(state)(*(value.detach().requires_grad_() for value in state))
        spikes, after = with_state(network, x, began)
        (after.v.sum() + (spikes * x).sum()).backward()
        found.append((spikes.detach(), [value.grad for value in began]))
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, **CLOSE)


def test_a_sequence_of_norses_hands_states_on_as_before(norse: Any) -> None:
    number, lif = torch.as_tensor, norse.torch.LIFParameters
    torch.manual_seed(0)
    theirs = norse.torch.SequentialState(
        norse.torch.Lift(nn.Linear(5, 20)),
        norse.torch.LIF(lif(v_th=number(0.3))),
        norse.torch.Lift(nn.Linear(20, 4)),
        norse.torch.LIF(lif(v_th=number(0.1))),
    )
    ours = copy.deepcopy(theirs)
    report = sf.replace_neurons(ours, strict=True)
    assert [(entry.name, entry.was) for entry in report.replaced] == [("1", "norse.LIF"), ("3", "norse.LIF")]
    states: list[Any] = [None, None]
    for seed in range(2):
        x = currents(8, 3, 5, seed=seed, scale=3.0, dtype=torch.float32)
        results = [network(x, state) for network, state in zip((theirs, ours), states, strict=True)]
        assert torch.equal(results[0][0], results[1][0])
        assert results[0][0].mean() > 0
        states = [state for _, state in results]
        torch.testing.assert_close(states[1][3].i, states[0][3].i, **CLOSE)


def test_what_norse_has_without_an_equal_is_left_with_the_reason(norse: Any) -> None:
    number, lif = torch.as_tensor, norse.torch.LIFParameters
    made = nn.ModuleDict(
        {
            "leak": norse.torch.LIF(lif(v_leak=number(0.1))),
            "fast": norse.torch.LIF(lif(tau_mem_inv=number(2000.0))),
            "learned": norse.torch.LIF(lif(v_th=nn.Parameter(number(1.0)))),
            "tanh": norse.torch.LIF(lif(method="tanh")),
            "recorded": norse.torch.LIF(record_states=True),
            "adaptive": norse.torch.LIFAdEx(),
            "cell": norse.torch.LIFCell(),
        }
    )
    report = sf.replace_neurons(made)
    assert not report.replaced
    reasons = {entry.name: entry.reason for entry in report.left}
    assert reasons == {
        "leak": "'leak' leaks to 0.1 and is reset to 0",
        "fast": "'fast' has a membrane that loses 2 of its value in a step, which must be between 0 and 1",
        "learned": "'learned' has a v_th that is learned or not one number",
        "tanh": "'tanh' has a surrogate, 'tanh', that is none of the kernels' shapes",
        "recorded": "'recorded' records its states",
        "adaptive": "'adaptive' is LIFAdEx, whose dynamics are its own",
        "cell": "'cell' takes one step a call: norse.torch.Lift makes a neuron over time of it",
    }


def test_norses_layers_are_copied_and_pickled(norse: Any) -> None:
    # LIF's parameters cannot be pickled, in the library either.
    ours = swapped(nn.Sequential(norse.torch.Lift(norse.torch.IAFCell()), norse.torch.IAF()))
    x = currents(6, 2, 5, scale=2.0, dtype=torch.float32)
    read = pickle.loads(pickle.dumps(ours))
    assert [type(layer) for layer in read] == [type(layer) for layer in ours]
    assert torch.equal(read[0](x)[0], ours[0](x)[0])
    assert torch.equal(copy.deepcopy(ours)[1](x)[0], ours[1](x)[0])


@pytest.fixture(scope="module")
def sinabs() -> Any:
    pytest.importorskip("sinabs", reason="sinabs is not installed")
    from sinabs import activation, layers

    class Modules:
        pass

    Modules.activation, Modules.layers = activation, layers
    return Modules


SINABS = ("IAF", "LIF", "LIF, whole input", "LIF, learned decay", "IAFSqueeze", "LIFSqueeze")


def sinabs_neuron(sinabs: Any, name: str, **options: Any) -> nn.Module:
    layers, activation = sinabs.layers, sinabs.activation
    single: dict[str, Any] = {"spike_fn": activation.SingleSpike, **options}
    made = {
        "IAF": lambda: layers.IAF(**single),
        "LIF": lambda: layers.LIF(tau_mem=5.0, spike_threshold=torch.tensor(0.5), **single),
        "LIF, whole input": lambda: layers.LIF(
            tau_mem=3.0,
            norm_input=False,
            reset_fn=activation.MembraneReset(),
            surrogate_grad_fn=activation.Gaussian(),
            **single,
        ),
        "LIF, learned decay": lambda: layers.LIF(tau_mem=3.0, train_alphas=True, **single),
        "IAFSqueeze": lambda: layers.IAFSqueeze(num_timesteps=6, **single),
        "LIFSqueeze": lambda: layers.LIFSqueeze(batch_size=3, tau_mem=5.0, **single),
    }
    return made[name]()


@pytest.mark.parametrize("name", SINABS)
@pytest.mark.parametrize("recorded", [False, True], ids=["", "recorded"])
def test_sinabs_neurons_have_the_same_spikes_gradients_and_states(sinabs: Any, name: str, recorded: bool) -> None:
    theirs = nn.Sequential(sinabs_neuron(sinabs, name, record_states=recorded))
    ours = swapped(theirs)
    assert isinstance(ours[0], sf.IF if "IAF" in name else sf.LIF)
    assert isinstance(ours[0], type(theirs[0]))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for seed in range(3):
        x = currents(3, 6, 40, seed=seed, scale=3.0, dtype=torch.float32)
        same(theirs, ours, x.flatten(0, 1) if "Squeeze" in name else x, **CLOSE)
        torch.testing.assert_close(ours[0].v_mem, theirs[0].v_mem, **CLOSE)
        torch.testing.assert_close(ours[0].firing_rate, theirs[0].firing_rate)
        assert ours[0].recordings.keys() == theirs[0].recordings.keys()
        for key, value in theirs[0].recordings.items():
            torch.testing.assert_close(ours[0].recordings[key], value, **CLOSE)
        for network in (theirs, ours):
            network[0].zero_grad()  # which cuts the graph of the states
    others = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    x = currents(18, 40, dtype=torch.float32) if "Squeeze" in name else currents(3, 6, 40, dtype=torch.float32)
    expected = ours(x)
    assert all(torch.equal(other(x), expected) for other in others)
    assert sf.reset_state(ours) == 1
    assert ours[0].v_mem.abs().max() == 0


def test_sinabs_parameters_stay_the_librarys(sinabs: Any) -> None:
    theirs = nn.Sequential(sinabs_neuron(sinabs, "LIF"))
    ours = copy.deepcopy(theirs)
    before = dict(ours.named_parameters())
    sf.replace_neurons(ours)
    assert all(before[name] is parameter for name, parameter in ours.named_parameters())
    with torch.no_grad():
        theirs[0].tau_mem.fill_(2.0)
        theirs[0].spike_threshold.fill_(0.25)  # on which the surrogate depends
    ours.load_state_dict(theirs.state_dict())
    for network in (theirs, ours):
        network[0].reset_states()
    same(theirs, ours, currents(3, 6, 40, dtype=torch.float32), **CLOSE)
    with pytest.raises(AttributeError, match="threshold is the library's spike_threshold in LIF"):
        ours[0].threshold = 1.0


def test_what_sinabs_has_without_an_equal_is_left_with_the_reason(sinabs: Any) -> None:
    layers, activation = sinabs.layers, sinabs.activation
    single = {"spike_fn": activation.SingleSpike}
    made = nn.ModuleDict(
        {
            "several": layers.IAF(),
            "synapse": layers.LIF(tau_mem=2.0, tau_syn=3.0, **single),
            "lowest": layers.IAF(min_v_mem=-1.0, **single),
            "periodic": layers.IAF(surrogate_grad_fn=activation.PeriodicExponential(), **single),
            "added": layers.IAF(reset_fn=activation.MembraneReset(reset_value=0.5), **single),
            "adaptive": layers.ALIF(tau_mem=2.0, tau_adapt=3.0, **single),
        }
    )
    report = sf.replace_neurons(made)
    assert not report.replaced
    reasons = {entry.name: entry.reason for entry in report.left}
    assert reasons["several"] == "'several' may fire several times in a step (spike_fn is not SingleSpike)"
    assert reasons["synapse"] == "'synapse' has a synaptic current (tau_syn)"
    assert reasons["lowest"] == "'lowest' has a lowest potential (min_v_mem)"
    assert "has a surrogate, PeriodicExponential" in reasons["periodic"]
    assert "has a reset, MembraneReset(reset_value=0.5), that is none of the kernels'" in reasons["added"]
    assert reasons["adaptive"] == "'adaptive' is ALIF, whose dynamics are its own"
