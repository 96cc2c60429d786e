"""What the layers do where a network is not run but written down: by torch.fx, torch.jit and torch.export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

__all__ = ["recording", "refuse_to_record", "unrecorded"]

# torch 2.6 cannot tell an export from a compilation while dynamo traces; other exports raise the flag for both.
_is_exporting = getattr(
    torch.compiler, "is_exporting", lambda: torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
)

_is_tracing = torch._C._is_tracing


def recording(current: Tensor) -> bool:
    """Whether what runs is written down as ops, to run without us: by torch.export or torch.jit.trace."""
    if is_dynamo_compiling():
        return _is_exporting()
    return _is_tracing() or (type(current) is not Tensor and _is_exporting())


def unrecorded(check: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function without torch.jit.trace writing down what it asks of shapes."""
    if torch.compiler.is_compiling():
        return check(*arguments)
    torch_c: Any = torch._C  # whose stubs do not know _set_tracing_state
    state = torch_c._get_tracing_state()
    torch_c._set_tracing_state(None)
    try:
        return check(*arguments)
    finally:
        torch_c._set_tracing_state(state)


def refuse_to_record(name: str, current: Tensor, why: str) -> None:
    """Raises NotImplementedError where the call is being recorded."""
    if recording(current):
        how = "torch.export" if torch.compiler.is_compiling() else "torch.jit.trace"
        raise NotImplementedError(f"{name} cannot be recorded by {how}: {why}")
