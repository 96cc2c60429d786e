"""How the ops are registered with torch and called: past the dispatcher where nobody listens to it.

``Library.define`` and ``impl`` cost less per call than ``custom_op``. A call usually goes through an autograd Function
outside of the ops (snnfast.autograd), which is cheaper than autograd inside them. What records a network as its ops
(torch.export, torch.jit.trace) would lose that: it is given ops with a gradient of their own.
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
from snnfast.ops.options import NO_STATES

__all__ = ["WithoutDerivative", "any_batched", "complete", "gradient_of", "op"]

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
    own = {"current": tensor.dtype, "state": state_dtype(tensor.dtype), "float64": torch.float64}
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


Group = type[tuple[Any, ...]]


def flat(arguments: Iterable[Any], groups: tuple[Group | None, ...]) -> list[Any]:
    """Arguments one by one, as the dispatcher takes them; it records no lists of optional tensors."""
    leaves: list[Any] = []
    for argument, group in zip(arguments, groups, strict=True):
        if group is None:
            leaves.append(argument)
        else:
            leaves.extend(argument)
    return leaves


def grouped(function: Callable[..., Any], groups: tuple[Group | None, ...]) -> Callable[..., Any]:
    """The function of the groups as one of their fields."""
    sizes = [0 if group is None else len(group._fields) for group in groups]  # type: ignore[attr-defined]  # NamedTuples

    def call(*leaves: Any) -> Any:
        arguments, at = [], 0
        for group, size in zip(groups, sizes, strict=True):
            if group is None:
                arguments.append(leaves[at])
                at += 1
            else:
                arguments.append(group(*leaves[at : at + size]))
                at += size
        return function(*arguments)

    return call


def op(
    schema: str,
    implementation: Callable[..., Any],
    shapes: Callable[..., Any],
    *,
    groups: tuple[Group | None, ...],
    outputs: tuple[str, ...] = (),
    of_gradients: bool = False,
) -> Callable[..., Any]:
    """Registers an op for every device that has kernels; returns a function of its implementation's arguments.

    Where nobody listens to the dispatcher (no compiler, tracer, mode or profiler, no tensor subclass, no batched
    gradient), the function is the implementation itself: the way through the dispatcher and back costs more than all
    else in a small layer.

    Args:
        schema: as torch reads it.
        implementation: computes the results.
        shapes: makes empty results, for tensors without data.
        groups: for each argument of these two None or, where the schema has its fields one by one, its NamedTuple.
        outputs: whose dtype each output has ("current", "state" or "float64"), where the implementation returns None
            for what nobody asked for.
        of_gradients: the first argument is a group of gradients, the second the tensor whose device tells; otherwise
            the first tells.
    """
    name = schema.partition("(")[0]
    position = int(of_gradients)
    others = [i for i, group in enumerate(groups) if group is None and i != position]
    groups_of_tensors = [i for i, group in enumerate(groups) if group is not None and "outputs" not in vars(group)]

    def implemented(*arguments: Any) -> Any:
        found = implementation(*arguments)
        return complete(found, outputs, arguments[position]) if outputs else found

    def differentiable(*leaves: Any) -> Any:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            if name in _gradients:
                return grouped(_gradients[name], groups)(*leaves)
            return WithoutDerivative.apply(
                f"snnfast::{name} has no derivative of its own: it was recorded without the autograd Function around "
                "it. Record the network with torch.export (strict=False) or torch.jit.trace, whose ops have one",
                dispatched,
                *leaves,
            )
        with torch._C._AutoDispatchBelowAutograd():
            return dispatched(*leaves)

    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        library.impl(name, grouped(implemented, groups), key)
    library.impl(name, differentiable, "Autograd")
    torch.library.register_fake(f"snnfast::{name}", grouped(shapes, groups), lib=library)
    dispatched = getattr(torch.ops.snnfast, name).default

    # A tensor is plain that is its memory: no wrapper of others, no view that means the negative of what it shows. The
    # question is written out: as a function of one tensor it would cost a small layer more than its kernel.

    def others_plain(arguments: tuple[Any, ...]) -> bool:
        for i in groups_of_tensors:
            if arguments[i] is not NO_STATES:
                for t in arguments[i]:
                    if t is not None and (type(t) not in PLAIN_TENSORS or t.is_neg()):
                        return False
        for i in others:
            t = arguments[i]
            if isinstance(t, Tensor) and (type(t) not in PLAIN_TENSORS or t.is_neg()):
                return False
        return True

    def call(*arguments: Any) -> Any:
        tensor = arguments[position]
        if (
            not is_dynamo_compiling()
            and type(tensor) in PLAIN_TENSORS
            and not tensor.is_neg()
            and others_plain(arguments)
            and (tensor.is_cpu or tensor.is_cuda)
            and dispatch_modes() == 0
            and function_modes() == 0
            and not profiler._is_profiler_enabled
            and not is_tracing()
            and (position == 0 or not (any_batched(arguments[0]) or is_included(PRE_DISPATCH)))
        ):
            return implementation(*arguments)
        return dispatched(*flat(arguments, groups))

    return call
