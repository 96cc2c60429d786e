"""A graph of NIR from the layers and functions that a run meets."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnfast.exchange.network import PerNeuron, Threshold
from snnfast.exchange.recording import OVER_TIME, PER_SAMPLE, READ_OUT, Recorder, Value
from snnfast.exchange.rule import KEY, tau_to_nir
from snnfast.layers import LIF, BatchNormNeuron, Neuron, Readout

__all__ = ["Writer"]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# Where the forwards are written that a kind of layer has: another one, a user's, is followed into.
_NORMS = ("torch.nn.modules.batchnorm", "snnfast.models.batch_norm")
_LINEARS = ("torch.nn.modules.linear", "snnfast.models.network")
_THROUGH = (nn.Flatten, nn.Unflatten)  # of torch.nn: what they call says what they do
_ADDITIONS = frozenset(("add", "add_", "__add__", "__radd__", "__iadd__"))
_PRODUCTS = frozenset(("mul", "multiply", "mul_", "__mul__", "__rmul__", "__imul__"))
_QUOTIENTS = frozenset(("div", "divide", "true_divide", "div_", "__truediv__", "__itruediv__"))
_RESHAPES = frozenset(("flatten", "unflatten", "reshape", "reshape_as", "view", "view_as", "ravel"))
_SAME = frozenset(("contiguous", "clone", "detach", "to", "float", "double", "cpu"))
_SUMS = frozenset(("sum", "mean"))


def array(tensor: Tensor) -> np.ndarray:
    """A copy as float32, or float64 where it is that."""
    found = tensor.detach().cpu()
    return (found if found.dtype == torch.float64 else found.float()).numpy().copy()


@dataclass
class Writer:
    """Nodes and edges so far; the recorder's handler."""

    nir: Any
    dt: float
    time_dim: int | None
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    readout: str | None = None
    soft: list[str] = field(default_factory=list)  # neurons whose reset NIR has no field for
    _steps: int = 0  # of the readout
    _versions: dict[str, int] = field(default_factory=dict)
    _read: set[str] = field(default_factory=set)
    _merged: dict[int, tuple[int, ...]] = field(default_factory=dict)  # time and batch, by what they are as one

    # Nodes

    def add(self, name: str, node: Any, before: Value | None, shape: Any, after: Any, kept: Any = None) -> str:
        """Adds a node, by a name that is free; ``before`` is its input, the shapes are one sample's, in and out."""
        free, count = name, 1
        while free in self.nodes:
            count += 1
            free = f"{name}_{count}"
        node.input_type, node.output_type = {"input": np.array(tuple(shape))}, {"output": np.array(tuple(after))}
        if kept:
            node.metadata = {KEY: kept}
        self.nodes[free] = node
        self._versions[free] = 0
        if before is not None:
            for source, version in before.sources:
                if version != self._versions[source]:
                    raise NotImplementedError(
                        f"to_nir: {source!r} is read before the batch norm that is folded into it, by {free!r}"
                    )
                self._read.add(source)
                self.edges.append((source, free))
        return free

    def value(self, name: str, axes: str, held: bool = False) -> Value:
        return Value(((name, self._versions[name]),), axes, held)

    def input(self, sample: Tensor) -> Value:
        lead = 1 if self.time_dim is None else 2
        shape = sample.shape[lead:]
        self.add("input", self.nir.Input(np.array(shape)), None, shape, shape)
        return self.value("input", PER_SAMPLE if lead == 1 else OVER_TIME, lead == 1)

    def output(self, value: Value, shape: Any) -> None:
        self.add("output", self.nir.Output(np.array(tuple(shape))), value, shape, shape)

    # The recorder's finds

    def takes(self, module: nn.Module, recorder: Recorder) -> bool:
        if self.writer_of(module) is not None:
            return True
        home = type(module).__module__
        if home.startswith("torch.nn.") and not home.endswith(".container") and not isinstance(module, _THROUGH):
            recorder.refuse(f"torch.nn.{type(module).__name__} has no node in NIR that snnfast writes")
        return False

    def writer_of(self, module: nn.Module) -> Callable[..., Value] | None:
        forward = type(module).forward
        home = getattr(forward, "__module__", "")
        if isinstance(module, PerNeuron) or (isinstance(module, Neuron) and home.startswith("snnfast.")):
            return self.neuron
        if isinstance(module, _BatchNorm) and home in _NORMS:
            return self.batch_norm
        if isinstance(module, nn.Linear) and home in _LINEARS:
            return self.linear
        for kind, writer in (
            (nn.Conv1d, self.convolution),
            (nn.Conv2d, self.convolution),
            (nn.AvgPool2d, self.pool),
            (nn.AdaptiveAvgPool2d, self.pool),
            (nn.Identity, self.same),
            (Readout, self.read_out),
            (Threshold, self.threshold),
        ):
            if isinstance(module, kind) and forward is kind.forward:
                return writer
        return self.same if isinstance(module, _DROPOUTS) else None

    def module(self, module: nn.Module, args: tuple, kwargs: dict, result: Tensor, recorder: Recorder) -> Value:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        current = next(iter(given.values()))
        value = recorder.value(current)
        if value is None:
            recorder.refuse("its first argument does not come of the sample")
        # The SummedLinear of snnfast.models on the sum over time is what its steps sum up to.
        summed = isinstance(module, nn.Linear) and self.readout == "sum" and given.get("steps") == self._steps
        if value.axes == READ_OUT and not summed:
            recorder.refuse("it is called on what a readout made of the steps; a graph's readout comes last")
        writer = self.writer_of(module)
        assert writer is not None
        return writer(recorder.names[module], module, value, given, current, result, recorder)

    def function(self, name: str, args: tuple, kwargs: dict, result: Tensor, recorder: Recorder) -> Value:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and recorder.value(a) is not None]
        if not tensors:
            recorder.refuse(f"{name} has no node in NIR")
        first = recorder.value(tensors[0])
        assert first is not None
        if name in _SAME or (name.endswith("dropout") and not any(a is True for a in (*args, *kwargs.values()))):
            return first
        if first.axes == READ_OUT:
            recorder.refuse(f"{name} comes after a readout; a graph's readout comes last")
        if name in _ADDITIONS and len(tensors) == 2 and len(args) == 2 and not kwargs:
            return self.sum(tensors[0], tensors[1], recorder)
        if (name in _PRODUCTS or name in _QUOTIENTS) and len(tensors) == 1 and len(args) == 2 and not kwargs:
            return self.product(name, args, tensors[0], first, result, recorder)
        if name in _RESHAPES:
            return self.reshaped(first, tensors[0], result, recorder)
        if name in _SUMS and first.axes == OVER_TIME:
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            time_dim = self.time_dim or 0
            if dim in (time_dim, (time_dim,), [time_dim]) and result.dim() == tensors[0].dim() - 1:
                self.readout, self._steps = name, tensors[0].shape[time_dim]
                return Value(first.sources, READ_OUT)
        recorder.refuse(f"{name} has no node in NIR that snnfast writes")

    # Functions

    def sum(self, left: Tensor, right: Tensor, recorder: Recorder) -> Value:
        """What two tensors' sum is: nodes add their inputs in the order of the edges, so a sum may only come first."""
        first, second = (recorder.value(tensor) for tensor in (left, right))
        if first is None or second is None:
            recorder.refuse("it adds a tensor that does not come of the sample, which NIR has no node for")
        shapes = [tuple(tensor.shape[value.lead :]) for tensor, value in ((left, first), (right, second))]
        one_kind = first.axes == second.axes and first.held == second.held
        held_too = {OVER_TIME, PER_SAMPLE} == {first.axes, second.axes} and (first.held or second.held)
        if shapes[0] != shapes[1] or not (one_kind or (held_too and self.time_dim in (0, None))):
            recorder.refuse(f"it adds tensors of the shapes {list(left.shape)} and {list(right.shape)}")
        if len(first.sources) == 1 < len(second.sources):
            first, second = second, first
        if len(second.sources) > 1 or set(first.sources) & set(second.sources):
            second = self.scaled(np.ones(1, np.float32), second, right, recorder)
        over_time = OVER_TIME in (first.axes, second.axes)
        return Value(
            (*first.sources, *second.sources), OVER_TIME if over_time else first.axes, first.held and not over_time
        )

    def product(
        self, name: str, args: tuple, tensor: Tensor, value: Value, result: Tensor, recorder: Recorder
    ) -> Value:
        other = args[0] if args[1] is tensor else args[1]
        if name in _QUOTIENTS and other is args[0]:
            recorder.refuse("it divides by a tensor that comes of the sample")
        factor = torch.as_tensor(other, dtype=tensor.dtype if isinstance(other, int | float) else None).detach()
        extra = max(0, factor.dim() - (tensor.dim() - value.lead))
        if any(size != 1 for size in factor.shape[:extra]) or result.shape != tensor.shape:
            recorder.refuse(f"it multiplies with a tensor of the shape {list(factor.shape)}, another for each sample")
        factor = factor.reshape(factor.shape[extra:])
        if name in _QUOTIENTS:
            if not bool((factor.frexp().mantissa.abs() == 0.5).all()):
                recorder.refuse("it divides, which a factor does to other digits unless it is by a power of two")
            factor = 1 / factor
        return self.scaled(array(factor), value, result, recorder)

    def scaled(self, factor: np.ndarray, value: Value, like: Tensor, recorder: Recorder) -> Value:
        shape = like.shape[value.lead :]
        node = self.nir.Scale(np.broadcast_to(factor.astype(array(like[:0]).dtype), shape).copy())
        path = recorder.names[recorder.path[-1]]
        return self.value(self.add(f"{path}.scale", node, value, shape, shape), value.axes, value.held)

    def reshaped(self, value: Value, before: Tensor, after: Tensor, recorder: Recorder) -> Value:
        """Time and batch become one, or two again, or a sample's dimensions are flattened."""
        old, new = tuple(before.shape), tuple(after.shape)
        if old == new:
            return value
        sample = old[value.lead :]
        merged = (old[0] * old[1], *sample) if value.axes == OVER_TIME else None
        if new == merged:
            self._merged[merged[0]] = old[:2]
            return Value(value.sources, PER_SAMPLE)
        if value.axes == PER_SAMPLE and not value.held and new == (*self._merged.get(old[0], ()), *sample):
            return Value(value.sources, OVER_TIME)
        if new[: value.lead] == old[: value.lead]:
            run = _flattened(sample, new[value.lead :])
            if run is not None:
                node = self.nir.Flatten({"input": np.array(sample)}, *run)
                name = self.add(self._name(recorder, "flatten"), node, value, sample, new[value.lead :])
                return self.value(name, value.axes, value.held)
        recorder.refuse(
            f"it makes the shape {list(new)} of {list(old)}, which neither flattens nor merges time and batch"
        )

    @staticmethod
    def _name(recorder: Recorder, name: str) -> str:
        """The layer's own, where one does nothing else, or that of the module around."""
        module = recorder.path[-1]
        path = recorder.names[module]
        return path if isinstance(module, _THROUGH) else f"{path}.{name}" if len(recorder.path) > 1 else name

    # Layers

    def same(self, name: str, module: nn.Module, value: Value, *rest: Any) -> Value:
        return value

    def read_out(
        self, name: str, module: Any, value: Value, given: Any, current: Tensor, result: Tensor, recorder: Recorder
    ) -> Value:
        if value.axes != OVER_TIME or module.time_dim != (self.time_dim or 0):
            recorder.refuse(f"its time_dim is {module.time_dim}, to_nir's {self.time_dim}")
        self.readout, self._steps = module.mode, current.shape[module.time_dim]
        return Value(value.sources, READ_OUT)

    def convolution(
        self, name: str, module: Any, value: Value, given: Any, current: Tensor, result: Tensor, recorder: Recorder
    ) -> Value:
        spatial = module.weight.dim() - 2
        if value.axes != PER_SAMPLE or current.dim() != spatial + 2:
            recorder.refuse(
                f"it takes [B, C, ...], got {list(current.shape)} {value.axes}: put OverTime around it, "
                "or give to_nir time_dim=None where the sample has no time"
            )
        if module.padding_mode != "zeros":
            recorder.refuse(f"NIR pads with zeros only, not with padding_mode={module.padding_mode!r}")
        bias = (
            array(module.bias) if module.bias is not None else np.zeros(module.out_channels, array(module.weight).dtype)
        )
        size = _plain(current.shape[2:], spatial)
        padding = module.padding if isinstance(module.padding, str) else _plain(module.padding, spatial)
        node = (self.nir.Conv1d if spatial == 1 else self.nir.Conv2d)(
            input_shape=size,
            weight=array(module.weight),
            stride=_plain(module.stride, spatial),
            padding=padding,
            dilation=_plain(module.dilation, spatial),
            groups=module.groups,
            bias=bias,
        )
        kept = {} if module.bias is not None else {"bias": 0}
        return self.value(
            self.add(name, node, value, current.shape[1:], result.shape[1:], kept), PER_SAMPLE, value.held
        )

    def linear(
        self, name: str, module: Any, value: Value, given: Any, current: Tensor, result: Tensor, recorder: Recorder
    ) -> Value:
        if current.dim() != value.lead + 1:
            recorder.refuse(f"NIR's Affine takes vectors, got {list(current.shape)} {value.axes}")
        if value.axes != READ_OUT and given.get("steps", 1) != 1:
            recorder.refuse("it is called with steps, on what is no sum over time")
        weight = array(module.weight)
        node = self.nir.Linear(weight) if module.bias is None else self.nir.Affine(weight, array(module.bias))
        name = self.add(name, node, value, current.shape[value.lead :], result.shape[value.lead :])
        return self.value(name, value.axes, value.held)

    def pool(
        self, name: str, module: Any, value: Value, given: Any, current: Tensor, result: Tensor, recorder: Recorder
    ) -> Value:
        if value.axes != PER_SAMPLE or current.dim() != 4:
            recorder.refuse(
                f"it takes [B, C, H, W], got {list(current.shape)} {value.axes}: put OverTime around it, "
                "or give to_nir time_dim=None where the sample has no time"
            )
        kind = self.nir.AvgPool2d
        if isinstance(module, nn.AdaptiveAvgPool2d):
            sizes = list(zip(current.shape[2:], result.shape[2:], strict=True))
            if any(size % cells for size, cells in sizes):
                recorder.refuse(f"its windows differ: {list(current.shape[2:])} to {list(result.shape[2:])}")
            window = np.array([size // cells for size, cells in sizes])
            node = kind(kernel_size=window, stride=window.copy(), padding=np.zeros(2, int))
        else:
            padding = np.array(_pair(module.padding))
            if module.divisor_override == 1:
                kind = self.nir.SumPool2d
            elif module.divisor_override is not None:
                recorder.refuse(f"NIR has no divisor_override={module.divisor_override}")
            elif padding.any() and not module.count_include_pad:
                recorder.refuse("NIR's AvgPool2d counts the padding: count_include_pad=False has no node")
            if module.ceil_mode:
                recorder.refuse("NIR has no ceil_mode=True")
            window, stride = np.array(_pair(module.kernel_size)), np.array(_pair(module.stride))
            node = kind(kernel_size=window, stride=stride, padding=padding)
        return self.value(self.add(name, node, value, current.shape[1:], result.shape[1:]), PER_SAMPLE, value.held)

    def batch_norm(
        self, name: str, module: Any, value: Value, given: Any, current: Tensor, result: Tensor, recorder: Recorder
    ) -> Value:
        return self.folded(module, value, recorder)

    def folded(self, norm: Any, value: Value, recorder: Recorder) -> Value:
        """Batch norm with its running statistics, as weights of the layer before it: in float64, rounded once."""
        if norm.running_mean is None:
            recorder.refuse("a batch norm without running statistics takes the batch's, which no node does")
        source, version = value.sources[0]
        node = self.nodes[source] if len(value.sources) == 1 else None
        if not isinstance(node, self.nir.Conv1d | self.nir.Conv2d | self.nir.Affine | self.nir.Linear):
            recorder.refuse("its batch norm follows no convolution or linear layer that it could be folded into")
        if source in self._read or version != self._versions[source]:
            recorder.refuse(f"its batch norm cannot be folded into {source!r}, whose currents something else reads too")
        mean, var = (array(tensor).astype(np.float64) for tensor in (norm.running_mean, norm.running_var))
        scale = 1 / np.sqrt(var + norm.eps) * (1.0 if norm.weight is None else array(norm.weight).astype(np.float64))
        before = np.zeros(len(mean)) if isinstance(node, self.nir.Linear) else node.bias.astype(np.float64)
        shift = (before - mean) * scale + (0.0 if norm.bias is None else array(norm.bias).astype(np.float64))
        weight = node.weight.astype(np.float64) * scale.reshape(-1, *[1] * (node.weight.ndim - 1))
        dtype = node.weight.dtype
        if isinstance(node, self.nir.Linear):
            types = node.input_type, node.output_type
            node = self.nodes[source] = self.nir.Affine(weight.astype(dtype), shift.astype(dtype))
            node.input_type, node.output_type = types
        else:
            node.weight, node.bias = weight.astype(dtype), shift.astype(dtype)
            node.metadata = {}
        self._versions[source] += 1
        return Value(((source, self._versions[source]),), value.axes, value.held)

    def threshold(
        self, name: str, module: Any, value: Value, given: Any, current: Tensor, result: Tensor, recorder: Recorder
    ) -> Value:
        shape = current.shape[value.lead :]
        inner = module.neuron.neuron if isinstance(module.neuron, PerNeuron) else module.neuron
        node = self.nir.Threshold(_over(inner.threshold, shape))
        return self.value(self.add(name, node, value, shape, shape), value.axes, value.held)

    def neuron(
        self, name: str, module: Any, value: Value, given: Any, current: Tensor, result: Tensor, recorder: Recorder
    ) -> Value:
        layer = module.neuron if isinstance(module, PerNeuron) else module
        steps = given.get("steps")
        if layer.time_dim != (self.time_dim or 0):
            recorder.refuse(f"its time_dim is {layer.time_dim}, to_nir's {self.time_dim}")
        if (value.axes != OVER_TIME) if steps is None else not value.held:
            recorder.refuse(
                f"it takes its current for {'[T, B, ...]' if steps is None else '[B, ...], to hold'}, where time_dim="
                f"{self.time_dim} of to_nir says otherwise"
            )
        if layer.carry_state and name in self.nodes:
            recorder.refuse("it carries one state and is called twice, which would be two nodes")
        if layer.delay:
            recorder.refuse("NIR's neurons spike at once: delay=True has no node")
        if isinstance(layer, BatchNormNeuron):
            value = self.folded(layer, value, recorder)
        shape = current.shape[value.lead :]
        residual = given.get("residual")
        if residual is not None:
            recorder.know(current, value)  # normalized
            value = self.sum(current, residual, recorder)
        node, kept = self._neuron_node(layer, shape)
        if layer.reset == "soft":
            self.soft.append(name)
        return self.value(self.add(name, node, value, shape, shape, kept), OVER_TIME)

    def _neuron_node(self, layer: Any, shape: Any) -> tuple[Any, dict[str, Any]]:
        threshold = _over(layer.threshold, shape)
        kept: dict[str, Any] = {"reset": "soft"} if layer.reset == "soft" else {}
        if layer.fire_on_equal:
            kept["fire_on_equal"] = 1
        rest = np.full(shape, layer.reset_value)
        if not isinstance(layer, LIF):
            node = self.nir.IF(r=np.full(shape, 1 / self.dt), v_threshold=threshold, v_reset=rest)
            return node, kept
        steps = _over(layer.tau, shape)
        tau, exact = tau_to_nir(steps, self.dt)
        r = np.ones(shape) if layer.decay_input else steps.astype(np.float64)
        node = self.nir.LIF(tau=tau, r=r, v_leak=rest.copy(), v_threshold=threshold, v_reset=rest)
        return node, {**kept, **exact}


def _over(table: float | Tensor, shape: Any) -> np.ndarray:
    """A threshold or tau, a number, one per channel or one per neuron, for every neuron of a sample."""
    if not isinstance(table, Tensor):
        return np.full(shape, float(table))
    values = array(table)
    if values.size == 1:
        return np.full(shape, values.reshape(()))
    if values.size != shape[0]:  # of neurons that were flattened
        return values.reshape(tuple(shape))
    return np.broadcast_to(values.reshape(-1, *[1] * (len(shape) - 1)), shape).copy()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]


def _plain(sizes: Any, spatial: int) -> Any:
    return int(sizes[0]) if spatial == 1 else tuple(map(int, sizes))


def _flattened(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, int] | None:
    """The first and last of the dimensions that were made one, where that is what happened."""
    if len(new) >= len(old):
        return None
    length = len(old) - len(new) + 1
    for start in range(len(new)):
        if (*old[:start], math.prod(old[start : start + length]), *old[start + length :]) == new:
            return start, start + length - 1
    return None
