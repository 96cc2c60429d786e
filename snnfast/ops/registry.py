"""How the ops are registered with torch and called: past the dispatcher where nobody listens to it.

``Library.define`` and ``impl`` cost less per call than ``custom_op``. A call usually goes through an autograd Function
outside of the ops (snnfast.autograd), which is cheaper than autograd inside them. What records a network as
its ops (torch.export, torch.jit.trace) would lose that: it is given ops with a gradient of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.autograd.function import Function
from torch.compiler import is_dynamo_compiling

from snnfast.dynamics import state_dtype

__all__ = ["WithoutDerivative", "any_batched", "complete", "define", "gradient_of", "library", "op"]

library = torch.library.Library("snnfast", "DEF")

PLAIN_TENSORS = (Tensor, torch.nn.Parameter)
# Bound here, since every call asks them.
is_tracing = torch._C._is_tracing
dispatch_modes, function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
is_functorch_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

# make_fx(pre_dispatch=True) shows as a function mode in the forward pass, in the backward pass as this key only.
is_included, PRE_DISPATCH = torch._C._dispatch_tls_is_dispatch_key_included, torch._C.DispatchKey.PreDispatch

_gradients: dict[str, Callable[..., Any]] = {}


def define(schema: str) -> None:
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))


def gradient_of(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function stand for an op wherever gradients are asked of it: it calls the op inside a Function."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _gradients[name] = function
        return function

    return register


def any_batched(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a tensor stands for a batch of them: of torch.func.vmap, or of autograd.grad(is_grads_batched=True)."""
    for t in tensors:  # noqa: SIM110 (a generator costs as much as all the questions)
        if t is not None and (is_legacy_batched(t) or is_functorch_wrapped(t)):
            return True
    return False


def complete(found: Iterable[Tensor | None], outputs: tuple[str, ...], tensor: Tensor) -> tuple[Tensor, ...]:
    """What an op returns: always its tensors, an empty one standing for what nobody asked for."""
    own = {"current": tensor.dtype, "state": state_dtype(tensor.dtype), "sums": torch.float64}
    return tuple(
        torch.empty(0, dtype=own[dtype], device=tensor.device) if output is None else output
        for output, dtype in zip(found, outputs, strict=True)
    )


class WithoutDerivative(Function):
    """A function whose results must not pass for constants: differentiating them is refused with the given words."""

    @staticmethod
    def forward(ctx, words, function, *arguments):
        ctx.words = words
        return function(*arguments)

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(ctx.words)


def op(
    name: str, implementation: Callable[..., Any], position: int = 0, outputs: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Implements an op for every device that has kernels, and returns it as a function.

    Where nobody listens to the dispatcher (no compiler, tracer, mode or profiler, no tensor subclass, no batched
    gradient), the function is the implementation itself: the way through the dispatcher and back costs more than all
    else in a small layer.

    Args:
        position: of the argument that tells, a tensor; gradients come before it.
        outputs: whose dtype each output has ("current", "state" or "sums"), where the implementation returns None for
            what nobody asked for.
    """

    def implemented(*arguments: Any) -> Any:
        found = implementation(*arguments)
        return complete(found, outputs, arguments[position]) if outputs else found

    def differentiable(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            if name in _gradients:
                return _gradients[name](*arguments)
            return WithoutDerivative.apply(
                f"snnfast::{name} has no derivative of its own: it was recorded without the autograd Function around "
                "it. Record the network with torch.export (strict=False) or torch.jit.trace, whose ops have one",
                dispatched,
                *arguments,
            )
        with torch._C._AutoDispatchBelowAutograd():
            return dispatched(*arguments)

    for key in ("CPU", "CUDA"):
        library.impl(name, implemented, key)
    library.impl(name, differentiable, "Autograd")
    dispatched = getattr(torch.ops.snnfast, name).default

    def call(*arguments: Any) -> Any:
        tensor = arguments[position]
        if (
            not is_dynamo_compiling()
            and type(tensor) in PLAIN_TENSORS
            and (tensor.is_cpu or tensor.is_cuda)
            and dispatch_modes() == 0
            and function_modes() == 0
            and not profiler._is_profiler_enabled
            and not is_tracing()
            and (position == 0 or not (any_batched(arguments[:position]) or is_included(PRE_DISPATCH)))
        ):
            return implementation(*arguments)
        return dispatched(*arguments)

    return call
