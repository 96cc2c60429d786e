"""Hands the stand-ins of a traced forward to the functions of torch, in a process that may crash.

``python fuse_sweep.py GROUP`` names each call on standard output before it is made; the last line is "done".
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import snnfast as sf

# They change the whole process, read files or start compilers.
LEFT_OUT = {
    "compile",
    "load",
    "save",
    "set_default_device",
    "set_default_dtype",
    "set_default_tensor_type",
    "set_num_threads",
    "set_num_interop_threads",
    "set_printoptions",
    "share_memory_",
}
CLASSES = [
    nn.Parameter,
    nn.Buffer,
    torch.Tensor,
    torch.FloatTensor,
    torch.LongTensor,
    torch.Size,
    torch.device,
    torch.Generator,
    torch.finfo,
    torch.iinfo,
    torch.UntypedStorage,
    torch.sparse_coo_tensor,
]
SPACES = {
    "torch": [torch],
    "others": [
        nn.functional,
        torch.special,
        torch.linalg,
        torch.fft,
        torch.sparse,
        torch.nested,
        nn.init,
        torch.random,
        torch.autograd,
        torch.utils.dlpack,
        torch._C._nn,
        torch.nn.utils.rnn,
    ],
    "methods": [torch.Tensor],
}


def functions(group: str) -> Iterator[tuple[str, Callable]]:
    for space in SPACES[group]:
        for name in sorted(set(dir(space))):
            function = getattr(space, name, None)
            if name.startswith("_") or name in LEFT_OUT or isinstance(function, type):
                continue
            if callable(function):
                yield f"{getattr(space, '__name__', space)}.{name}", function
    if group == "others":
        yield from ((kind.__name__, kind) for kind in CLASSES)


def arguments(x: Any, table: Any) -> Iterator[tuple[str, tuple]]:
    number, size = x.shape[0], x.size()
    yield "number", (number,)
    yield "size", (size,)
    yield "shape", (x.shape,)
    yield "tensor", (x,)
    yield "dtype", (x.dtype,)
    yield "device", (x.device,)
    yield "two numbers", (number, number)
    yield "numbers", ((number, number),)
    yield "list", ([number, 2],)
    yield "tensors", ([x, table],)
    yield "plain and number", (table, number)
    yield "plain and numbers", (table, (number, 1))
    yield "plain and size", (table, size)
    yield "plain and tensor", (table, x)
    yield "tensor and number", (x, number)
    yield "plain, numbers twice", (table, number, number)
    yield "range", (0, 1, number)


def call(function: Callable, given: tuple) -> None:
    with contextlib.suppress(Exception):  # an error is an answer; a crash is not
        function(*given)


class Sweep(nn.Module):
    def __init__(self, group: str) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        self.group = group

    def forward(self, x):
        table = torch.ones(4, 4)
        for name, function in functions(self.group):
            for what, given in arguments(x, table):
                os.write(1, f"{name} of {what}\n".encode())
                call(function, given)
        return self.bn(x)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report = sf.fuse(Sweep(sys.argv[1]))
    assert not report.fused
    print("done")
