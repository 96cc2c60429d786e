"""``to_nir`` and ``from_nir``."""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

from torch import Tensor, nn

from snnfast._arguments import checks
from snnfast._text import installs
from snnfast.dynamics import check_time_dim, not_a_tensor
from snnfast.exchange.rule import DT, KEY, make_rule, said
from snnfast.surrogate import Surrogate

__all__ = ["from_nir", "to_nir"]


def _nir(name: str) -> Any:
    try:
        import nir
    except ImportError as error:
        raise ImportError(f"{name} needs the package nir, which is not installed: {installs('nir')}") from error
    return nir


def to_nir(model: nn.Module, sample: Tensor, *, dt: float = DT, time_dim: int | None = 0) -> Any:
    """A network as a graph of NIR, the neuromorphic intermediate representation, for other libraries and hardware.

    The model is run once on ``sample``, in evaluation, and followed from layer to layer; it is left as it was. Of a
    time step: a neuron's ``tau`` is written as tau·dt seconds, with R = 1 where its input decays and R = tau where it
    does not, and IF's R is 1/dt, so that forward Euler with steps of ``dt`` is MATH.md's recursion (see
    :func:`from_nir`). What NIR has no field for is in the metadata ("snnfast"), which other libraries do not read: the
    soft reset, ``fire_on_equal``, a bias that is none, the readout, and dt.

    Written are :class:`snnfast.IF`, LIF, BatchNormIF, BatchNormLIF, OverTime and Readout, the networks of
    :mod:`snnfast.models` (each step's logits, with the sum over time as their readout), and of torch Linear, Conv1d,
    Conv2d, AvgPool2d (with ``divisor_override=1`` SumPool2d), AdaptiveAvgPool2d of equal windows, Flatten, Identity,
    dropout, sums, products with numbers and constant tensors, and batch norms, which are folded into the layer before
    them (with other digits than two layers: every current is one of the model's to rounding). Weights are float64 where
    the model's are, float32 otherwise; thresholds and time constants are one per neuron.

    Args:
        model: a torch.nn.Module of one tensor.
        sample: what it takes: [T, B, ...], by whose shape the graph's shapes are known.
        dt: seconds that a step is.
        time_dim: the time dimension of the sample, 0 or 1, or None where it has none, as the model holds its current
            (``layer(current, steps=T)``). The networks of snnfast.models hold theirs whatever this says.

    Returns:
        A nir.NIRGraph. ``nir.write(path, graph)`` saves it; where a convolution has groups or a kernel that is not
        square, ``nir.read(path, type_check=False)`` of nir 1.0.8 reads it, as nir computes another shape of those.

    Warns:
        UserWarning: a soft reset, which other libraries that read the graph take for a hard one.

    Raises:
        ImportError: nir is not installed.
        TypeError: not a module, not one tensor.
        ValueError: dt that is not positive, another time_dim.
        NotImplementedError: a layer or function that has no node, or a model that cannot be followed; the message
            names it and where it is.
    """
    nir = _nir("to_nir")
    checks.module("model", model)
    if not isinstance(sample, Tensor):
        raise not_a_tensor("sample", sample)
    dt = checks.number_within("dt", dt, above=0)
    if time_dim is not None:
        check_time_dim(time_dim)
    from snnfast.exchange import recording, writing
    from snnfast.trial import on_trial

    call: Any = model
    # Of snnfast.models, whose images have no time; most can give each step's logits ahead of their sum.
    per_step = getattr(model, "holds_images", False) and "per_step" in inspect.signature(model.forward).parameters
    if getattr(model, "holds_images", False):
        time_dim = None
    if per_step:
        call = functools.partial(model, per_step=True)
    if sample.dim() < (1 if time_dim is None else 2):
        raise ValueError(f"sample must be [T, B, ...], with time_dim=None [B, ...], got {list(sample.shape)}")
    writer = writing.Writer(nir, dt, time_dim)
    with on_trial(model, training=False, spiking=False):
        value, shape = recording.run(model, call, sample.detach(), writer.input(sample), writer)
    writer.output(value, shape)
    if per_step:
        writer.readout = "sum"
    if writer.soft:
        warnings.warn(
            f"NIR knows the hard reset only: that {', '.join(map(repr, writer.soft))} reset softly is in the graph's "
            "metadata, which from_nir reads and other libraries do not",
            stacklevel=2,
        )
    kept = {"dt": dt, **({} if writer.readout is None else {"readout": writer.readout})}
    return nir.NIRGraph(writer.nodes, writer.edges, metadata={KEY: kept})


def from_nir(
    graph: Any,
    *,
    exported_by: str | None = None,
    dt: float | None = None,
    reset: str | None = None,
    fire_on_equal: bool | None = None,
    integration: str | None = None,
    surrogate: Surrogate | None = None,
    detach_reset: bool | None = None,
    carry_state: bool = False,
    time_dim: int = 0,
) -> nn.Module:
    """A network of a graph of NIR, the neuromorphic intermediate representation.

    ``network(current)`` takes currents [T, B, ...] and gives what the graph's output is at every step, or its readout
    where :func:`to_nir` wrote one; ``network(current, steps=T)`` holds a [B, ...] current. Networks that to_nir wrote
    give the same spikes as the model did in evaluation, bit for bit, but for batch norms, which were folded.

    The rule of time steps: NIR's tau·dv/dt = (v_leak − v) + R·I and dv/dt = R·I are taken with forward Euler and steps
    of ``dt`` in which the current x is held, then the neuron fires (v > v_threshold) and is reset (to v_reset) at once:
    h = (1 − dt/tau)·v + (dt/tau)·(R·x + v_leak) for LIF, h = v + dt·R·x for IF. So a :class:`snnfast.LIF` has
    tau/dt for its tau, R = 1 is ``decay_input=True``, R = tau/dt is ``decay_input=False``, R = 1/dt is
    :class:`snnfast.IF`, and other resistances become a factor on the current.

    Read are IF, LIF, Threshold, Scale, Linear, Affine, Conv1d, Conv2d, SumPool2d, AvgPool2d, Flatten, Input, Output and
    graphs of these in a graph; a node with several inputs adds them. Thresholds and time constants that are one number
    or one per channel become that again.

    Args:
        graph: a nir.NIRGraph; ``nir.read(path)`` reads one from a file.
        exported_by: the library that wrote the graph, "snntorch", "norse", "sinabs" or "spikingjelly", where it takes
            other steps than this rule's or does not write its neurons down in full. It chooses what the next four are,
            where they are not given; what the graph leaves out is warned of. None is what to_nir wrote into the
            graph, or NIR's own: hard reset, fire above the threshold.
        dt: seconds that a step is; None is what to_nir wrote, or 1e-4, which most libraries write with.
        reset: "hard" or "soft", for all neurons.
        fire_on_equal: fire at potentials equal to the threshold too, for all neurons.
        integration: "euler", or "exact", with exp(−dt/tau) in the place of 1 − dt/tau.
        surrogate, detach_reset, carry_state, time_dim: of the neurons, see :class:`snnfast.IF`; NIR has none of these.

    Returns:
        A torch.nn.Module, whose parameters are the weights. to_nir takes it again.

    Warns:
        UserWarning: with ``exported_by``, of what that library's graphs leave out and what was assumed; without, of tau
            and R that rather count in steps.

    Raises:
        ImportError: nir is not installed.
        TypeError: not a nir.NIRGraph, an option of the wrong type.
        ValueError: an option or a node's value out of its range, an Input without a type, a node without an input.
        NotImplementedError: a node that snnfast has no layer for (CubaLIF, LI, ...), a recurrent graph, several inputs
            or outputs, v_leak that is not v_reset; the message names the node.
    """
    nir = _nir("from_nir")
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph (nir.read(path) reads one), got {type(graph).__name__}")
    check_time_dim(time_dim)
    rule = make_rule(
        exported_by, said(graph).get("dt"), dt=dt, reset=reset, fire_on_equal=fire_on_equal, integration=integration
    )
    options = {"surrogate": surrogate, "detach_reset": detach_reset, "carry_state": carry_state}
    from snnfast.exchange.reading import Reader

    network = Reader(rule, options, time_dim).network(graph)
    if rule.caution:
        warnings.warn(rule.caution, stacklevel=2)
    return network
