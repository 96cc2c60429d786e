"""Adapters for other spiking libraries: each is asked for our neuron, as near as its own options allow.

An adapter uses the library as its users do. Where its dynamics differ in a convention (equality fires, the reset's
gradient, the surrogate's height), `overrides` says so, and its results are compared with snnfast under that convention.
Where it cannot run what is asked, it raises `Unsupported` with the reason, which the results keep.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snnfast.surrogate import FastSigmoid

from .batch_norm import BatchNormAnd
from .neuron import Forward, Neuron, Unsupported


def _not_installed(module: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        try:
            found = importlib.util.find_spec(module) is not None
        except ImportError:
            found = False
        if found:
            return None
        # Imported here: revisions that snnfast.benchmarks.compare puts this suite into may not have it.
        from snnfast._text import installs

        return f"not installed: {installs('peers')}"

    return missing


def _fast_sigmoid(neuron: Neuron) -> FastSigmoid:
    if not isinstance(neuron.surrogate, FastSigmoid):
        raise Unsupported(f"compared with the fast sigmoid only, not {type(neuron.surrogate).__name__}")
    return neuron.surrogate


def _only(neuron: Neuron, *kinds: str) -> None:
    if neuron.kind not in kinds:
        raise Unsupported(f"has no {neuron.kind}")


def _over_time(current: Tensor, steps: int | None) -> Tensor:
    """[T, B, ...] from a current or a held current; expanded, which copies nothing."""
    return current if steps is None else current.expand(steps, *current.shape)


# SpikingJelly 2.0: IFNode and LIFNode in multi-step mode.


def _spikingjelly_overrides(neuron: Neuron) -> dict[str, Any]:
    # equality fires there; its SoftSign(a) is our fast sigmoid with gamma = a, beta = a / 2
    surrogate = neuron.surrogate
    return {"fire_on_equal": True, "surrogate": FastSigmoid(gamma=surrogate.gamma, beta=surrogate.gamma / 2)}


def _spikingjelly(neuron: Neuron, device: torch.device) -> Forward:
    if neuron.kind == "BatchNormIF":
        options = {name: value for name, value in neuron.options.items() if name != "num_features"}
        return BatchNormAnd(neuron.options["num_features"], _spikingjelly(Neuron("IF", options), device)).to(device)
    _only(neuron, "IF", "LIF")
    gamma = _fast_sigmoid(neuron).gamma
    from spikingjelly.activation_based import neuron as sj
    from spikingjelly.activation_based import surrogate as sj_surrogate

    options = {
        "v_threshold": neuron.option("threshold", 1.0),
        "v_reset": neuron.option("reset_value", 0.0) if neuron.reset == "hard" else None,
        "surrogate_function": sj_surrogate.SoftSign(alpha=gamma),
        "detach_reset": neuron.detach_reset,
        "step_mode": "m",
    }
    if neuron.kind == "IF":
        node = sj.IFNode(**options)
    else:
        node = sj.LIFNode(tau=neuron.option("tau", 2.0), decay_input=neuron.option("decay_input", True), **options)

    def forward(current: Tensor, steps: int | None = None) -> Tensor:
        node.reset()  # its state persists between calls otherwise
        return node(_over_time(current, steps))

    return forward


def _spikingjelly_cuda(implementation: str) -> Callable[[Neuron, torch.device], Forward]:
    """SpikingJelly with one of its CUDA implementations ("cuda" is its native one), beside the others in this process.

    Its switch is the environment variable SJ_IF_CUDA_IMPLEMENTATION, read once at import. To have all sides in one
    process, this sets what the variable would have set, before each call, and asks its diagnostics what then runs.
    """

    def make(neuron: Neuron, device: torch.device) -> Forward:
        _only(neuron, "IF", "BatchNormIF")
        plain = _spikingjelly(neuron, device)
        from spikingjelly._ops import if_

        selection = if_._selection
        before, selection._requested, selection._selections = selection._requested, implementation, {}
        try:
            chosen = selection.diagnostics(torch.device("cuda", torch.cuda.current_device()))["implementation"]
        except RuntimeError as error:
            raise Unsupported(str(error)) from error
        finally:
            selected, selection._requested, selection._selections = selection._selections, before, {}
        if chosen != implementation:
            raise Unsupported(f"it selects {chosen!r} where {implementation!r} is asked for")

        def forward(current: Tensor, **arguments: Any) -> Tensor:
            # the backward pass follows at once, within the same turn, and so finds the same selection
            selection._requested, selection._selections = implementation, selected
            return plain(current, **arguments)

        return forward

    return make


# snnTorch 1.0: Leaky, one step a call; the user writes the loop.


def _snntorch_overrides(neuron: Neuron) -> dict[str, Any]:
    return {"detach_reset": True, "surrogate": FastSigmoid(gamma=neuron.surrogate.gamma, beta=1.0)}


def _snntorch(neuron: Neuron, device: torch.device) -> Forward:
    _only(neuron, "IF", "LIF")
    gamma = _fast_sigmoid(neuron).gamma
    if neuron.option("reset_value", 0.0) != 0.0:
        raise Unsupported("resets to 0 only")
    if neuron.option("fire_on_equal", False):
        raise Unsupported("fires above the threshold only")
    if neuron.kind == "LIF":
        if neuron.option("decay_input", True):
            raise Unsupported("does not scale the input of its leaky neuron")
        if neuron.reset == "soft":
            raise Unsupported("subtracts the threshold after the leak, ours before it")
    import snntorch
    from snntorch import surrogate as snn_surrogate

    leak = 1.0 if neuron.kind == "IF" else 1.0 - 1.0 / neuron.option("tau", 2.0)
    cell = snntorch.Leaky(
        beta=leak,
        threshold=neuron.option("threshold", 1.0),
        spike_grad=snn_surrogate.fast_sigmoid(slope=gamma),
        reset_mechanism="zero" if neuron.reset == "hard" else "subtract",
    ).to(device)

    def forward(current: Tensor, steps: int | None = None) -> Tensor:
        potential = None
        spikes = []
        for x in _over_time(current, steps).unbind(0):
            if potential is None:
                potential = torch.zeros_like(x)
            s, potential = cell(x, potential)
            spikes.append(s)
        return torch.stack(spikes)

    return forward


# Norse 1.1: modules over [T, B, ...] that return (spikes, state).


def _norse_overrides(neuron: Neuron) -> dict[str, Any]:
    # its SuperSpike ignores the alpha that it is given: the surrogate is 1 / (1 + |d|)^2
    return {"detach_reset": False, "surrogate": FastSigmoid(gamma=1.0, beta=1.0)}


def _norse(neuron: Neuron, device: torch.device) -> Forward:
    _only(neuron, "IF", "LIF")
    _fast_sigmoid(neuron)
    if neuron.option("fire_on_equal", False):
        raise Unsupported("fires above the threshold only")
    if neuron.kind == "IF" and neuron.reset == "soft":
        raise Unsupported("its IAF resets to a value only")
    if neuron.kind == "LIF" and not neuron.option("decay_input", True):
        raise Unsupported("scales the input of its leaky neuron")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import norse.torch as norse
        from norse.torch.functional.iaf import IAFFeedForwardState
        from norse.torch.functional.lif_box import LIFBoxFeedForwardState
        from norse.torch.functional.reset import reset_subtract, reset_value
        from norse.torch.module.snn import SNN

    threshold = torch.tensor(float(neuron.option("threshold", 1.0)), device=device)
    rest = torch.tensor(float(neuron.option("reset_value", 0.0)), device=device)
    if neuron.kind == "IF":
        module = norse.IAF(norse.IAFParameters(v_th=threshold, v_reset=rest, method="super"))
        state_class = IAFFeedForwardState
    else:
        from norse.torch.functional.lif_box import lif_box_feed_forward_step

        parameters = norse.LIFBoxParameters(
            tau_mem_inv=torch.tensor(1000.0 / neuron.option("tau", 2.0), device=device),
            v_leak=rest,
            v_th=threshold,
            v_reset=rest,
            method="super",
            reset_method=reset_value if neuron.reset == "hard" else reset_subtract,
        )
        module = SNN(lif_box_feed_forward_step, None, parameters, dt=0.001)
        state_class = LIFBoxFeedForwardState

    def forward(current: Tensor, steps: int | None = None) -> Tensor:
        current = _over_time(current, steps)
        return module(current, state_class(v=torch.full_like(current[0], float(rest))))[0]

    return forward


_FULL_PRECISION = (torch.float32, torch.float64)

LIBRARIES = ("spikingjelly", "snntorch", "norse")
"""The packages: what a side's name begins with, and what results give the version of."""

# The sides of these libraries: the arguments of `Baseline`, which imports this module.
ADAPTERS: tuple[dict[str, Any], ...] = (
    dict(
        name="spikingjelly",
        title="SpikingJelly 2.0",
        make=_spikingjelly,
        overrides=_spikingjelly_overrides,
        dtypes=_FULL_PRECISION,
        missing=_not_installed("spikingjelly"),
        rounding="its leaky neuron rounds in another order",
        note="IFNode / LIFNode, step_mode='m', SoftSign; on CUDA what it selects itself",
    ),
    *(
        dict(
            name=f"spikingjelly-{title}",
            title=f"SpikingJelly {title}",
            make=_spikingjelly_cuda(implementation),
            overrides=_spikingjelly_overrides,
            devices=("cuda",),
            missing=_not_installed("spikingjelly"),
            dtypes=(torch.float32, torch.float16, torch.bfloat16),
            note=f"IFNode with SJ_IF_CUDA_IMPLEMENTATION={implementation}",
        )
        for title, implementation in (("native", "cuda"), ("triton", "triton"), ("torch", "torch"))
    ),
    dict(
        name="snntorch",
        title="snnTorch",
        make=_snntorch,
        overrides=_snntorch_overrides,
        dtypes=_FULL_PRECISION,
        missing=_not_installed("snntorch"),
        rounding="its soft reset subtracts after the charge",
        note="Leaky in a loop over unbind; beta=1 for IF",
    ),
    dict(
        name="norse",
        title="Norse",
        make=_norse,
        overrides=_norse_overrides,
        dtypes=_FULL_PRECISION,
        missing=_not_installed("norse"),
        rounding="its leaky neuron rounds in another order",
        note="IAF / SNN over LIFBox; its surrogate is 1 / (1 + |d|)^2 whatever alpha, its reset is not detached",
    ),
)
