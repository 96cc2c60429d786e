"""What a layer keeps for backward: its input, and beyond 16 steps a potential every 16; nothing in inference."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast as sf
from snnfast.ops.integrate import CHECKPOINT_INTERVAL as K

N = (4, 3, 7)


@contextmanager
def kept():
    """The bytes of the storages that autograd saves within, counting each storage once."""
    storages: dict[int, int] = {}

    class Found:
        tensors: list[torch.Tensor] = []  # noqa: RUF012

        @property
        def bytes(self) -> int:
            return sum(storages.values())

    found = Found()
    found.tensors = []

    def pack(tensor):
        found.tensors.append(tensor)  # kept alive, so that addresses are not reused
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


class Allocated(TorchDispatchMode):
    """The largest tensor that any operation within returns, in elements."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


MAKERS = {
    "IF": sf.IF,
    "soft IF, attached": lambda **o: sf.IF(reset="soft", **o),
    "LIF": sf.LIF,
    "hard LIF, attached, delayed": lambda **o: sf.LIF(detach_reset=False, delay=True, **o),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@makers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [1, 4, 16, 17, 32, 33, 100])
def test_the_input_is_kept_and_one_potential_in_sixteen(make, steps, dtype):
    assert K == 16
    x = torch.randn(steps, *N).to(dtype).requires_grad_()
    with kept() as found:
        y = make()(x)
    state_bytes = 8 if dtype == torch.float64 else 4
    assert found.bytes == x.nbytes + (steps - 1) // K * math.prod(N) * state_bytes
    y.sum().backward()


@makers
@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("steps", [1, 16, 17, 100])
def test_of_a_held_current_no_copy_over_time_is_kept_or_made(make, steps, time_dim):
    x = torch.randn(N).requires_grad_()
    layer = make(time_dim=time_dim)
    with kept() as found:
        y = layer(x, steps=steps)
    assert found.bytes == x.nbytes + (steps - 1) // K * math.prod(N) * 4
    sent = torch.ones_like(y)
    with Allocated() as backward:
        torch.autograd.grad(y, x, sent)
    assert backward.largest <= math.prod(N) or steps == 1


def test_thresholds_time_constants_and_initial_potentials_add_only_themselves():
    x, v0 = torch.randn(10, *N, requires_grad=True), torch.randn(N, requires_grad=True)
    threshold, tau = torch.ones(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
    with kept() as found:
        sf.functional.leaky_integrate_and_fire(x, v0, threshold=threshold, tau=tau, return_potential=True)
    assert found.bytes == sum(t.nbytes for t in (x, v0, threshold, tau))


def test_an_input_that_a_kernel_cannot_read_is_kept_as_it_was_given():
    x = torch.randn(*N, 10, requires_grad=True)
    with kept() as found:
        y = sf.IF()(x.movedim(-1, 0))
    assert [t.data_ptr() for t in found.tensors if t.numel()] == [x.data_ptr()]
    y.sum().backward()
    half = torch.randn(10, 4, 6, requires_grad=True)
    with kept() as found:
        sf.IF()(half[..., ::2])
    assert found.bytes == half.nbytes


def test_an_expanded_input_is_kept_unexpanded():
    x = torch.randn(N, requires_grad=True)
    with kept() as found:
        sf.IF()(x.expand(10, *N))
    assert found.bytes == x.nbytes


@makers
@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "nothing requires grad"])
def test_in_inference_nothing_is_kept(make, how):
    x = torch.randn(40, *N)
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(how, torch.enable_grad)
    with kept() as found, context(), Allocated() as made:
        y = make()(x)
        held = make()(x[0], steps=40)
    assert not found.tensors and not y.requires_grad and not held.requires_grad
    assert made.largest == x.numel()  # the spikes, and nothing larger


def test_in_inference_no_checkpoint_is_written():
    x = torch.randn(40, *N, requires_grad=True)
    outputs = []

    class Outputs(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "snnfast" in str(func):
                outputs.append(out)
            return out

    with Outputs(), torch.no_grad():
        sf.IF()(x)
    assert len(outputs) == 1
    assert sum(t.numel() for t in outputs[0] if t is not None) == x.numel()
