"""What an operation of a network is to spikes and to time."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from snnfast.ann.flat import Flat

__all__ = ["is_activation", "is_dropout", "is_final", "is_linear", "only_reshapes", "title", "why_left"]

# ReLU6 too: a neuron's rate has a largest value, one spike a step, as it has.
_ACTIVATIONS = (nn.ReLU, nn.ReLU6)
_ACTIVATION_NAMES = ("relu", "relu6")
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_DROPOUT_NAMES = ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
_RESHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)
_RESHAPE_NAMES = (
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "permute",
    "transpose",
    "swapaxes",
    "squeeze",
    "unsqueeze",
    "contiguous",
    "getitem",
)
_LINEAR = (_ConvNd, nn.Linear, _AvgPoolNd, _AdaptiveAvgPoolNd, nn.Upsample, nn.ZeroPad2d, nn.PixelShuffle, *_DROPOUTS)
_LINEAR_NAMES = (
    *("linear", "conv1d", "conv2d", "conv3d", "mean", "sum", "add", "sub", "cat", "concat", "stack", "neg", "clone"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *_DROPOUT_NAMES,
)
_SCALING_NAMES = ("mul", "div", "truediv", "multiply")
_FINAL = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softmax2d)
_FINAL_NAMES = ("softmax", "log_softmax", "sigmoid", "logsigmoid", "tanh")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm)
_NORM_NAMES = ("layer_norm", "group_norm", "rms_norm", "instance_norm")
_QUERIES = ("size", "dim", "getattr", "ndimension", "numel", "len")


def name_of(node: fx.Node) -> str:
    """The operation of a function or method, by its name; "" for a module's."""
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def _is(flat: Flat, node: fx.Node, kinds: tuple[type, ...], names: tuple[str, ...]) -> bool:
    return isinstance(flat.called(node), kinds) if node.op == "call_module" else name_of(node) in names


def is_activation(flat: Flat, node: fx.Node) -> bool:
    """Whether it is a ReLU, in whose place a neuron comes."""
    return type(flat.called(node)) in _ACTIVATIONS or name_of(node) in _ACTIVATION_NAMES


def is_dropout(flat: Flat, node: fx.Node) -> bool:
    """Whether it multiplies by a random mask, of which there is to be one for all steps."""
    return _is(flat, node, _DROPOUTS, _DROPOUT_NAMES)


def only_reshapes(flat: Flat, node: fx.Node) -> bool:
    return _is(flat, node, _RESHAPES, _RESHAPE_NAMES)


def is_final(flat: Flat, node: fx.Node) -> bool:
    """Whether it is a function that networks apply to their logits."""
    return _is(flat, node, _FINAL, _FINAL_NAMES)


def is_linear(flat: Flat, node: fx.Node) -> bool:
    """Whether it commutes with a mean over time: a linear map, a bias included."""
    if only_reshapes(flat, node) or _is(flat, node, _LINEAR, _LINEAR_NAMES):
        return True
    scaled = name_of(node) in _SCALING_NAMES and len(node.args) == 2
    return scaled and all(not isinstance(a, fx.Node) or a.op == "get_attr" for a in node.args[1:])


def title(flat: Flat, node: fx.Node) -> str:
    """What a node calls, in a word."""
    return type(flat.called(node)).__name__ if node.op == "call_module" else name_of(node)


def why_left(flat: Flat, node: fx.Node) -> str | None:
    """What is to be said of an operation on the values of every step; None of linear maps and batch norms."""
    if node.op in ("placeholder", "get_attr") or name_of(node) in _QUERIES or is_linear(flat, node):
        return None
    if _is(flat, node, (_BatchNorm,), ("batch_norm",)):
        return None
    what = title(flat, node)
    if _is(flat, node, (_MaxPoolNd, _AdaptiveMaxPoolNd), ()) or "max_pool" in what:
        return f"{what} of spikes: one passes where any neuron of the window fires"
    if _is(flat, node, _NORMS, _NORM_NAMES):
        return f"{what} normalizes each step by itself; a batch norm would do so over time and batch"
    if isinstance(flat.called(node), nn.MultiheadAttention) or "attention" in what:
        return f"{what} is computed at each step, with a softmax: not spiking"
    if name_of(node) in ("mul", "matmul", "bmm", "einsum"):
        return f"{what} multiplies values of each step with others: not what one spike adds to a current"
    return f"{what} is computed at each step: no neuron stands for it (ReLU and ReLU6 become neurons)"
