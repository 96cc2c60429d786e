"""pack_spikes: the same gradients to the last bit, one bit kept per spike, and nothing ever mistaken or leaked."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, max_pool2d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import snnfast as sf
from snnfast import packing
from snnfast.packing_ops import pack_bits, unpack_bits

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
T, B, C, H = 4, 3, 8, 6


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    gc.collect()
    assert not packing.active and packing._open_contexts == 0
    assert len(packing._spikes) == 0


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def currents(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return normal(T, B, C, H, H, dtype=dtype, seed=seed).requires_grad_()


class Calls(TorchDispatchMode):
    """How often each operation of snnfast ran."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "snnfast" in str(func):
            self.of[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


def compare(forward, *leaves: torch.Tensor) -> sf.pack_spikes:
    """Runs ``forward()`` with and without packing; output and gradients must have the same bits."""
    found = []
    packed = sf.pack_spikes()
    for context in (None, packed):
        torch.manual_seed(0)
        if context is None:
            y = forward()
        else:
            with context:
                y = forward()
        sent = normal(*y.shape, seed=9).to(y)
        found.append([y.detach(), *torch.autograd.grad(y, leaves, sent)])
    for plain, ours in zip(*found, strict=True):
        assert plain.dtype == ours.dtype and torch.equal(plain, ours)
    return packed


# ---- the operations


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "not aligned"])
def test_bits_are_the_spikes_in_memory_order(kernels, dtype, shift):
    for count in (1, 3, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 1000, 4097):
        spikes = ((normal(count + shift) > 0.5) * normal(count + shift, seed=1)).to(dtype)[shift:].to(kernels.device)
        bits = pack_bits(spikes)
        wanted = np.packbits((spikes.cpu().double().numpy() != 0), bitorder="little")
        assert bits.dtype == torch.uint8 and np.array_equal(bits.cpu().numpy(), wanted), count
        again = unpack_bits(bits, count, dtype)
        assert again.dtype == dtype and torch.equal(again, (spikes != 0).to(dtype)), count


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whatever_is_not_zero_is_a_spike(kernels, dtype):
    tiny = torch.finfo(dtype).smallest_normal
    row = [0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf"), 1.0, -1.0, tiny, -tiny, 0.0, 1.0]
    spikes = torch.tensor(row, dtype=dtype, device=kernels.device)
    smallest = torch.zeros(8, dtype=dtype)
    smallest.view(torch.uint8)[0] = 1  # the smallest subnormal number, and seven zeros
    for values in (spikes, spikes.repeat(5), smallest.to(kernels.device)):
        found = unpack_bits(pack_bits(values), values.numel(), dtype)
        wanted = values.cpu().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]) << 1 != 0
        assert torch.equal(found.cpu(), wanted.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_tensors_take_every_thread_and_give_the_same_bits(dtype):
    count = (5 << 20) // torch.empty(0, dtype=dtype).element_size() + 13  # streamed past the caches
    spikes = (normal(count) > 1).to(dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(pack_bits(spikes))
            assert torch.equal(unpack_bits(found[-1], count, dtype), spikes)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], bits) for bits in found)


def test_the_operations_are_what_torch_expects_of_an_operation():
    for dtype in DTYPES:
        for spikes in (normal(3, 5), normal(2, 3, 4, 5).to(memory_format=torch.channels_last), normal(0), normal(1)):
            spikes = (spikes > 0).to(dtype)
            torch.library.opcheck(torch.ops.snnfast.pack_bits.default, (spikes,))
            torch.library.opcheck(torch.ops.snnfast.unpack_bits.default, (pack_bits(spikes), spikes.numel(), dtype))


def test_bad_arguments_of_the_operations_are_named():
    bits = torch.zeros(2, dtype=torch.uint8)
    for call, error, words in [
        (lambda: pack_bits(torch.zeros(3, dtype=torch.int32)), TypeError, "spikes must be float32.* got torch.int32"),
        (lambda: pack_bits(torch.zeros(4, 4)[:, ::2]), ValueError, r"spikes must be dense .* strides \[4, 2\]"),
        (lambda: unpack_bits(bits, 9, torch.int8), TypeError, "dtype must be float32.* got torch.int8"),
        (lambda: unpack_bits(bits.int(), 9, torch.float32), TypeError, "bits must be uint8, got torch.int32"),
        (lambda: unpack_bits(bits.view(1, 2), 9, torch.float32), ValueError, "bits must be one contiguous dimension"),
        (lambda: unpack_bits(bits, 17, torch.float32), RuntimeError, "bits must be 3 bytes for 17 spikes, got 2"),
        (lambda: unpack_bits(bits, -1, torch.float32), ValueError, "count must be >= 0, got -1"),
    ]:
        with pytest.raises(error, match=words):
            call()


# ---- the same gradients, and bits in place of numbers

WEIGHTS = {
    "conv": normal(5, C, 3, 3, seed=1),
    "columns": normal(H, 7, seed=2),
    "channels": normal(C, 2, seed=3),
}
LAYERS = {
    "convolution": lambda s, w: conv2d(s.flatten(0, 1), w["conv"], padding=1),
    "linear": lambda s, w: nn.functional.linear(s, w["columns"].t()),
    "matmul": lambda s, w: s @ w["columns"],
    "batched matmul with itself": lambda s, w: s[0] @ s[1].transpose(-1, -2),
    "product": lambda s, w: s * w["columns"].sum(1),
    "average pooling": lambda s, w: nn.functional.avg_pool2d(s.flatten(0, 1), 2) * w["conv"].sum(),
    "another neuron layer": lambda s, w: sf.IF(0.5)(s) + w["conv"].sum(),
    "a slice in time": lambda s, w: conv2d(s[1], w["conv"]) + conv2d(s[2:3].squeeze(0), w["conv"]),
    "a slice of channels": lambda s, w: conv2d(s.flatten(0, 1)[:, 2:6], w["conv"][:, :4]),
    "a strided slice": lambda s, w: s[..., ::2] @ w["columns"][::2],
    "an expanded view": lambda s, w: s.unsqueeze(0).expand(2, *s.shape) * w["columns"].sum(1),
    "channels moved": lambda s, w: s.movedim(2, -1).permute(0, 1, 4, 2, 3) * w["columns"].sum(1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_layers_that_save_spikes_keep_a_bit_for_each(layer, dtype):
    x = currents(dtype)
    weights = {name: w.to(dtype).requires_grad_() for name, w in WEIGHTS.items()}
    used = []

    def forward():
        s = sf.IF(0.3)(x)
        y = layer(s, weights)
        used[:] = [w for w in weights.values() if torch.autograd.grad(y.sum(), w, allow_unused=True,
                                                                     retain_graph=True)[0] is not None]  # fmt: skip
        return y

    forward()
    packed = compare(forward, x, *used)
    assert packed.packed_tensors == 1 and packed.saved_packed >= 1
    assert (packed.unpacked_bytes, packed.packed_bytes) == (x.nbytes, x.numel() // 8)
    assert packed.saved_changed == packed.saved_copied == 0


@pytest.mark.parametrize("make", [sf.IF, sf.LIF, lambda **o: sf.IF(reset="soft", delay=True, **o)],
                         ids=["IF", "LIF", "soft IF, delayed"])  # fmt: skip
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "permuted", "time second", "held", "sliced"])
def test_spikes_of_every_layer_and_layout_are_packed(make, layout):
    x, options, steps = currents(), {}, None
    if layout == "channels last":
        x = x.detach().flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (T, B)).requires_grad_()
    elif layout == "permuted":
        x = x.detach().permute(0, 3, 1, 4, 2).contiguous().permute(0, 2, 4, 1, 3).requires_grad_()
    elif layout == "time second":
        x, options = x.detach().transpose(0, 1).contiguous().requires_grad_(), {"time_dim": 1}
    elif layout == "held":
        x, steps = x.detach()[0].requires_grad_(), 13
    elif layout == "sliced":
        x = normal(T, B, C, H, 2 * H)[..., :H].requires_grad_()
    neuron, weight = make(threshold=0.3, **options), nn.Parameter(WEIGHTS["conv"].clone())
    packed = compare(lambda: conv2d(neuron(x, steps=steps).flatten(0, 1), weight), x, weight)
    assert packed.packed_tensors == packed.saved_packed == 1 and packed.saved_changed == 0


def test_odd_sizes_are_packed_too():
    for shape in ((1, 1, 1), (1, 1, 3), (3, 5, 7)):
        x, weight = normal(*shape).requires_grad_(), normal(shape[-1], 2, seed=1).requires_grad_()
        packed = compare(lambda x=x, w=weight: sf.IF(0.1)(x) @ w, x, weight)
        assert packed.packed_bytes == (x.numel() + 7) // 8


def test_spikes_that_several_layers_save_are_packed_once_and_unpacked_once_while_alive():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    with Calls() as calls, sf.pack_spikes() as packed:
        s = sf.IF(0.3)(x)
        y = sum(conv2d(s.flatten(0, 1), weight).sum() for _ in range(3)) + (s[0] @ s[1]).sum()
    assert calls.of["pack_bits"] == 1
    assert packed.saved_packed == 5 and packed.packed_tensors == 1 and packed.packed_bytes == x.numel() // 8
    del s
    with Calls() as calls:
        y.backward()
    assert calls.of["unpack_bits"] == 4  # one per convolution, and one for both sides of the product


def test_kept_bytes_are_the_bits_and_what_the_layers_keep_besides():
    n = T * B * C * H * H
    net = nn.Sequential(
        sf.OverTime(nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))), sf.IF()
    )
    spikes_in = sf.IF(0.3)
    for context, spikes_bytes in ((sf.pack_spikes(net), n // 8), (None, 4 * n)):
        storages = {}

        def count(t, storages=storages):
            if not isinstance(t, nn.Parameter) and all(t is not b for b in net.buffers()):
                storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
            return t.detach()

        context_or_hooks = context or torch.autograd.graph.saved_tensors_hooks(count, lambda t: t)
        with torch.no_grad(), sf.pack_spikes():
            s = spikes_in(currents())
        with context_or_hooks:
            y = net(s)
        # The spikes, the convolution's output (batch norm) with two statistics, the neurons' currents.
        wanted = spikes_bytes + 4 * n + 2 * 4 * C + 4 * n
        assert (context.kept_bytes if context else sum(s.nbytes() for s in storages.values())) == wanted
        if context:
            assert context.by_layer == {"0.module.0": n // 8, "0.module.1": 4 * n + 8 * C, "1": 4 * n}
            assert context.parameter_bytes == sum(p.nbytes for p in net.parameters()) - 4 * C + 2 * 4 * C
        y.sum().backward()


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = self.block(channels), self.block(channels)
        self.neuron, self.last = sf.IF(), sf.IF(reset="soft")

    @staticmethod
    def block(channels: int) -> nn.Module:
        return sf.OverTime(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        )

    def forward(self, s):
        return self.last(s + self.second(self.neuron(self.first(s))))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        sf.OverTime(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))), sf.IF(),
        Residual(8), sf.OverTime(nn.MaxPool2d(2)), Residual(8),
        sf.OverTime(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 4, 5))), sf.Readout("mean"),
    )  # fmt: skip


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_training_gives_the_same_losses_to_the_last_bit(autocast):
    images, labels = normal(T, 6, 3, 8, 8), torch.arange(6) % 5
    steps = 4 if autocast else 20  # a CPU's bfloat16 convolutions are slow
    losses, states, kept = [], [], []
    for pack in (False, True):
        net = network()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        losses.append([])
        for _ in range(steps):
            packed = sf.pack_spikes(net)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                if pack:
                    with packed:
                        loss = nn.functional.cross_entropy(net(images), labels)
                else:
                    loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        states.append(net.state_dict())
        kept.append(packed)
    assert losses[0] == losses[1] and losses[0][0] > losses[0][-1]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    # Five layers' spikes, those of one saved after max-pooling too.
    assert kept[1].packed_tensors == 6 and kept[1].saved_changed == kept[1].saved_copied == 0


def test_a_layer_that_is_fed_by_max_pooled_or_copied_spikes_keeps_bits():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    packed = compare(lambda: conv2d(max_pool2d(sf.IF(0.3)(x).flatten(0, 1), 3, 1, 1), weight), x, weight)
    assert packed.packed_tensors == 2  # the pooling's input and the convolution's
    packed = compare(lambda: conv2d(sf.IF(0.3)(x).transpose(0, 1).reshape(B * T, C, H, H), weight), x, weight)
    assert packed.packed_tensors == 1 and packed.unpacked_bytes == x.nbytes
    packed = compare(lambda: sf.IF(0.3)(x).movedim(2, -1) @ weight.sum((2, 3)).t(), x, weight)
    assert packed.packed_tensors == 1


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_spikes_that_autocast_casts_are_packed(half):
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    linear = nn.Linear(H, 3)

    def forward():
        with torch.autocast("cpu", half):
            s = sf.IF(0.3)(x)
            assert s.dtype == torch.float32
            return conv2d(s.flatten(0, 1), weight).float().sum() + linear(s).float().sum()

    packed = compare(forward, x, weight, linear.weight)
    assert packed.packed_tensors == packed.saved_packed == 2 and packed.saved_copied == 0
    assert packed.packed_bytes == 2 * x.numel() // 8


def test_casts_of_spikes_that_are_gone_are_packed_unless_the_spikes_had_changed():
    x, weight = currents(), normal(H, 3, seed=1, dtype=torch.bfloat16).requires_grad_()

    def forward(change=False):
        s = sf.IF(0.3)(x)
        if change:
            with torch.no_grad():
                s.mul_(0.5)
        cast = s.bfloat16()
        del s
        return cast @ weight

    packed = compare(forward, x, weight)
    assert packed.packed_tensors == packed.saved_packed == 1
    packed = compare(lambda: forward(change=True), x, weight)
    assert packed.packed_tensors == 0 and packed.saved_changed == 1


def test_a_copy_of_a_copy_that_was_changed_in_between_is_kept_whole():
    x, weight = currents(), normal(H, 3, seed=1).requires_grad_()

    def forward():
        s = sf.IF(0.3)(x)
        between = s.clone()
        with torch.no_grad():
            between.mul_(0.5)
        return between.clone() @ weight

    packed = compare(forward, x, weight)
    assert packed.packed_tensors == 0 and packed.saved_copied == 1

    def changed_copy():
        changed = sf.IF(0.3)(x).clone()
        with torch.no_grad():
            changed.mul_(0.5)
        return changed @ weight

    assert compare(changed_copy, x, weight).packed_tensors == 0


def test_views_that_read_the_memory_in_another_way_are_kept_whole():
    x, weight = currents(), normal(H // 2, seed=1).requires_grad_()

    def negated():
        s = torch.view_as_complex(sf.IF(0.3)(x).unflatten(-1, (H // 2, 2)))
        imaginary = s.conj().imag  # a lazily negated view of the very spikes
        assert imaginary.is_neg()
        return imaginary * weight

    assert compare(negated, x, weight).packed_tensors == 0

    def halves():
        return sf.IF(0.3)(x).detach().view(torch.bfloat16) * torch.cat((weight, weight, weight, weight)).bfloat16()

    assert compare(halves, weight).packed_tensors == 0

    def complex_numbers():
        return torch.view_as_complex(sf.IF(0.3)(x).unflatten(-1, (H // 2, 2))).abs() * weight

    compare(complex_numbers, x, weight)


# ---- changes in place


def test_spikes_changed_in_place_before_they_are_saved_are_kept_whole():
    x, weight = currents(), normal(H, 3, seed=1).requires_grad_()

    def without_autograd():
        s = sf.IF(0.3)(x)
        with torch.no_grad():
            s.mul_(0.25)
        return s @ weight

    def through_a_view():
        s = sf.IF(0.3)(x)
        with torch.no_grad():
            s[1].detach().add_(0.5)
        return s @ weight

    def with_autograd():
        s = sf.IF(0.3)(x)
        s.mul_(0.25)
        return s @ weight

    for forward in (without_autograd, through_a_view, with_autograd):
        packed = compare(forward, x, weight)
        assert packed.packed_tensors == 0 and packed.saved_changed == 1, forward.__name__


def test_another_tensor_of_the_same_memory_does_not_hide_a_change():
    x, weight = currents(), normal(H, 3, seed=1).requires_grad_()

    def forward():
        s = sf.IF(0.3)(x)
        alias = s.data  # with a version counter of its own
        with torch.no_grad():
            s.mul_(0.5)
        return alias @ weight

    assert compare(forward, weight).packed_tensors == 0


def test_spikes_changed_between_two_layers_are_packed_for_the_first_alone():
    x, weight = currents(), normal(H, 3, seed=1).requires_grad_()
    with sf.pack_spikes() as packed:
        s = sf.IF(0.3)(x)
        y = (s @ weight).sum()
        wanted = s.detach().clone()
        with torch.no_grad():
            s.mul_(0.5)
        z = (s @ weight).sum()
    assert packed.packed_tensors == packed.saved_changed == 1
    (first,) = torch.autograd.grad(y, weight)
    (second,) = torch.autograd.grad(z, weight)
    assert torch.equal(first, wanted.sum((0, 1, 2, 3)).unsqueeze(1).expand(-1, 3))
    assert torch.equal(second, first / 2)


def test_a_tensor_kept_whole_and_changed_since_is_an_error_as_always():
    for change in (lambda x: x, lambda x: x.detach(), lambda x: x[0]):
        x = normal(3, 4).requires_grad_()
        with sf.pack_spikes():
            a = x * 2
            y = a.square()
        with torch.no_grad():
            change(a).add_(1)
        with pytest.raises(RuntimeError, match=r"modified by an in-place.*\[3, 4\].*version 0, is at version"):
            y.sum().backward()


# ---- with everything else that torch offers


def test_backward_runs_twice_and_after_the_context():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    with sf.pack_spikes():
        y = conv2d(sf.IF(0.3)(x).flatten(0, 1), weight).square().sum()
    first = torch.autograd.grad(y, (x, weight), retain_graph=True)
    second = torch.autograd.grad(y, (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_second_derivatives_of_the_other_layers_work():
    x, weight = currents(), normal(H, 3, seed=1).requires_grad_()

    def forward():
        with torch.no_grad():
            s = sf.IF(0.3)(x)
        (grad,) = torch.autograd.grad((s @ weight).square().sum(), weight, create_graph=True)
        return grad.square().sum()

    assert compare(forward, weight).packed_tensors == 1


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("inside", [False, True], ids=["after the context", "inside the context"])
def test_checkpointed_blocks_work_and_keep_their_inputs_as_bits(reentrant, inside):
    x, results = currents(), []
    block = Residual(C)
    for pack in (False, True):
        block.zero_grad()
        packed, y = sf.pack_spikes(), None

        def run(x=x):
            return checkpoint(block, sf.IF(0.3)(x), use_reentrant=reentrant)

        if pack:
            with packed:
                y = run()
                kept = packed.kept_bytes
                if inside:
                    y.square().sum().backward()
        else:
            y = run()
        if not (pack and inside):
            y.square().sum().backward()
        results.append([y.detach(), x.grad.clone(), *(p.grad.clone() for p in block.parameters())])
        x.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert packed.saved_packed >= 1
    assert kept == x.numel() // 8 + x.nbytes  # the block's input as bits, and the first neurons' current


def test_contexts_nest_and_each_counts_what_is_saved_within_it():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    n = x.numel()
    with sf.pack_spikes() as outer:
        s = sf.IF(0.3)(x)
        with sf.pack_spikes() as inner:
            y = conv2d(s.flatten(0, 1), weight).sum()  # spikes of the outer context
            s2 = sf.IF(0.2)(x)
        y = y + conv2d(s2.flatten(0, 1), weight).sum()  # spikes of the inner one
    assert inner.by_layer == {"(no module)": n // 8, "IF": 4 * n}
    assert outer.by_layer == {"(no module)": 2 * n // 8, "IF": 4 * n}
    assert (inner.saved_packed, outer.saved_packed) == (1, 2)
    y.backward()


def test_hooks_of_the_user_s_own_apply_where_they_are_innermost():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    seen = []

    def keep(t):
        seen.append(tuple(t.shape))
        return t.detach()

    mine = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    with sf.pack_spikes() as packed:
        s = sf.IF(0.3)(x)
        with mine:
            y = conv2d(s.flatten(0, 1), weight).sum()
        assert (T * B, C, H, H) in seen and packed.saved_packed == 0
        y = y + conv2d(s.flatten(0, 1), weight).sum()
    assert packed.saved_packed == 1
    y.backward()
    seen.clear()
    with mine, sf.pack_spikes() as packed:
        conv2d(sf.IF(0.3)(x).flatten(0, 1), weight).sum().backward()
    assert not seen and packed.saved_packed == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_regions_give_the_same_results_inside(backend):
    torch._dynamo.reset()
    net, x = network(), normal(T, 2, 3, 8, 8)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend=backend)
    for model in (net, compiled):  # compiled inside the context, then called outside and inside again
        for pack in (True, False, True):
            model.zero_grad()
            with sf.pack_spikes(model) if pack else torch.enable_grad():
                y = model(x).square().sum()
            y.backward()
            found = [y.detach(), *(p.grad for p in model.parameters())]
            if model is net and pack:
                wanted = [t.clone() for t in found]
            else:
                assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    torch._dynamo.reset()


def test_spikes_that_a_compiled_layer_saves_are_packed_where_an_eager_neuron_made_them():
    torch._dynamo.reset()
    x = currents()
    layer = nn.Conv2d(C, C, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    packed = compare(lambda: compiled(sf.IF(0.3)(x).flatten(0, 1)), x, layer.weight)
    assert packed.packed_tensors == 1
    torch._dynamo.reset()


def test_a_context_does_not_make_compiled_neurons_compile_again():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    layer, x = torch.compile(sf.IF(), backend=counter, fullgraph=True), currents()
    layer(x)
    before = counter.frame_count
    with sf.pack_spikes():
        layer(x)
    assert counter.frame_count == before
    torch._dynamo.reset()


def test_a_context_belongs_to_its_thread():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    barrier, found, errors = threading.Barrier(3, timeout=60), {}, []

    def work(name: str, pack: bool):
        try:
            leaf = x.detach().requires_grad_()
            barrier.wait()
            for _ in range(10):
                packed = sf.pack_spikes()
                with packed if pack else torch.enable_grad():
                    y = conv2d(sf.IF(0.3)(leaf).flatten(0, 1), weight)
                    if not pack:
                        assert not getattr(packing._here, "contexts", None)
                barrier.wait()
                found[name] = (packed.packed_tensors, torch.autograd.grad(y.square().sum(), leaf)[0])
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(str(i), i > 0)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [found[str(i)][0] for i in range(3)] == [0, 1, 1]
    assert all(torch.equal(found["0"][1], found[str(i)][1]) for i in range(3))


def test_spikes_of_a_frozen_encoder_are_packed_and_inference_is_left_alone():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())

    def frozen():
        with torch.no_grad():
            s = sf.IF(0.3)(x)
        return conv2d(s.flatten(0, 1), weight)

    assert compare(frozen, weight).packed_tensors == 1
    with sf.pack_spikes() as packed:
        with torch.inference_mode():
            conv2d(sf.IF(0.3)(x).flatten(0, 1), weight)
        with torch.no_grad():
            conv2d(sf.IF(0.3)(x).flatten(0, 1), weight)
        sf.IF()(torch.zeros(3, 0, 4))
    assert packed.kept_bytes == packed.saved_packed == packed.saved_other == 0


def test_outside_of_a_context_neurons_register_nothing(monkeypatch):
    def refuse(spikes):
        raise AssertionError("registered outside of a context")

    with sf.pack_spikes():
        pass
    monkeypatch.setattr(packing, "register", refuse)
    sf.IF()(currents())
    sf.functional.leaky_integrate_and_fire(currents())
    with sf.pack_spikes(), pytest.raises(AssertionError, match="registered"):
        sf.IF()(currents())


# ---- nothing is mistaken, nothing leaks


def test_spikes_that_are_not_all_of_a_storage_are_not_registered():
    weight = torch.ones(6, requires_grad=True)
    for part in (lambda m: m[:4], lambda m: m[::2], lambda m: m[:1].expand(6), lambda m: m[:0]):
        memory = torch.tensor([1.0, 0.0, 1.0, 0.0, 5.0, 7.0])
        with sf.pack_spikes() as packed:
            packing.register(part(memory))
            y = (memory * weight).sum()
        assert packed.saved_packed == 0
        assert torch.equal(torch.autograd.grad(y, weight)[0], memory)


def test_a_storage_at_a_reused_address_is_never_taken_for_spikes():
    weight = normal(64, 2, seed=1).requires_grad_()
    addresses, storages, reused = set(), set(), [0, 0]
    with sf.pack_spikes() as packed:
        for i in range(2000):
            s = sf.IF(0.3)(normal(4, 16, 64, seed=i).requires_grad_())
            addresses.add(s.data_ptr())
            storages.add(s.untyped_storage()._cdata)
            del s
            # Not spikes, and among so many some that lie where spikes were.
            others = [normal(4, 16, 64, seed=seed) for seed in range(8)]
            for other in others:
                reused[0] += other.data_ptr() in addresses
                reused[1] += other.untyped_storage()._cdata in storages
                (grad,) = torch.autograd.grad((other @ weight).sum(), weight)
                assert torch.equal(grad, torch.autograd.grad((other.clone() @ weight).sum(), weight)[0])
            if min(reused) > 20:
                break
    assert packed.packed_tensors == 0
    if not all(reused):
        pytest.skip(f"the allocator reused no address, which shows nothing: {reused}")


def test_a_fact_about_a_storage_is_not_one_about_its_address():
    facts = packing._ByStorage()
    first, second = torch.zeros(4).untyped_storage(), torch.zeros(4).untyped_storage()
    facts.put(first, "first")
    # As if the second had taken the place of the first.
    facts._facts[second._cdata] = facts._facts.pop(first._cdata)
    assert facts.get(second) is None and facts.get(first) is None
    facts.put(second, "second")
    del first
    gc.collect()
    assert facts.get(second) == "second" and len(facts) == 1
    del second
    gc.collect()
    assert len(facts) == 0


def test_the_memory_of_packed_spikes_is_free_once_nobody_else_holds_them():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    for pack in (False, True):
        with sf.pack_spikes() if pack else torch.enable_grad():
            s = sf.IF(0.3)(x)
            y = conv2d(s.flatten(0, 1), weight).sum()
        storage = weakref.ref(s.untyped_storage())
        del s
        assert (storage() is None) is pack
        assert len(packing._spikes) == 0
        y.backward()


def bits_alive() -> list[weakref.ref]:
    return [weakref.ref(found) for found in gc.get_objects() if type(found) is packing._Bits]


def test_nothing_outlives_the_graph():
    x = currents()
    gc.collect()
    gc.disable()  # what only the cycle collector would free is a leak here
    try:
        net = network()
        with sf.pack_spikes(net) as packed:
            a = x * 2
            s = sf.IF(0.3)(a)
            y = (s.sigmoid().square() @ normal(H, 3)).sum() + net(normal(T, 2, 3, 8, 8).requires_grad_()).sum()
        watched = [weakref.ref(a.untyped_storage()), weakref.ref(s.untyped_storage()), weakref.ref(packed)]
        watched += bits_alive()
        y.backward(retain_graph=True)
        y.backward()
        del a, s, y, packed
        assert len(watched) > 3 and [w() for w in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_the_graph_keeps_neither_the_context_nor_its_model():
    net, x, weight = network(), currents(), normal(H, 3, seed=1).requires_grad_()
    gc.collect()
    gc.disable()
    try:
        with sf.pack_spikes(net) as packed:
            y = (sf.IF(0.3)(x) @ weight).sigmoid().sum()
        watched = [weakref.ref(packed), weakref.ref(net)]
        del packed, net
        gc.collect()  # modules are in cycles of their own
        assert [what() for what in watched] == [None, None]
        y.backward()
    finally:
        gc.enable()


def test_a_graph_that_is_dropped_without_backward_frees_everything():
    net = network()
    gc.collect()
    gc.disable()
    try:
        with sf.pack_spikes():
            y = net(normal(T, 2, 3, 8, 8)).sigmoid()  # whose node keeps its own output
        alive = bits_alive()
        assert len(alive) == 6
        alive.append(weakref.ref(y.untyped_storage()))
        y = y.square().sum()
        del y
        assert all(what() is None for what in alive) and len(packing._spikes) == 0
    finally:
        gc.enable()


def test_an_exception_inside_leaves_nothing_open():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    with pytest.raises(RuntimeError, match="channels"), sf.pack_spikes() as packed:
        conv2d(sf.IF(0.3)(x).flatten(0, 1)[:, :3], weight)
    assert not packing.active and packed._names == {}
    seen = packed.saved_other
    conv2d(x.flatten(0, 1), weight)
    assert packed.saved_other == seen


def test_a_context_may_be_entered_again_but_not_while_it_is_open():
    x, weight = currents(), nn.Parameter(WEIGHTS["conv"].clone())
    packed = sf.pack_spikes()
    with packed:
        conv2d(sf.IF(0.3)(x).flatten(0, 1), weight)
        with pytest.raises(RuntimeError, match="open already"):
            packed.__enter__()
    with packed:
        conv2d(sf.IF(0.3)(x).flatten(0, 1), weight)
    assert packed.saved_packed == packed.packed_tensors == 2


def test_a_model_that_is_none_is_refused_by_name():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module or None, got Tensor"):
        sf.pack_spikes(torch.zeros(3))


def test_layers_are_named_as_in_the_model_or_by_their_class():
    net, x = network(), normal(T, 2, 3, 8, 8)
    with sf.pack_spikes(net) as named:
        net(x)
    with sf.pack_spikes() as classes:
        net(x)
    modules = dict(net.named_modules())
    assert named.by_layer.keys() <= modules.keys() and "2.second.module.0" in named.by_layer
    by_class: Counter[str] = Counter()
    for name, kept in named.by_layer.items():
        by_class[type(modules[name]).__name__] += kept
    assert by_class == classes.by_layer
    assert sum(named.by_layer.values()) == named.kept_bytes == classes.kept_bytes
    with sf.pack_spikes(layer := sf.IF()) as itself:
        layer(currents())
    assert list(itself.by_layer) == ["IF"]


@pytest.mark.cuda
def test_on_a_gpu_nothing_waits_and_every_stream_has_its_own_bits():
    x, weight = currents().detach().cuda().requires_grad_(), nn.Parameter(WEIGHTS["conv"].cuda())
    packed = compare(lambda: conv2d(sf.IF(0.3)(x).flatten(0, 1), weight), x, weight)
    assert packed.packed_tensors == packed.saved_packed == 1
    other = torch.cuda.Stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with Calls() as calls, sf.pack_spikes():
            s = sf.IF(0.3)(x)
            y = conv2d(s.flatten(0, 1), weight) + conv2d(s.flatten(0, 1), weight)
            assert calls.of["pack_bits"] == 1
            other.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other):
                z = conv2d(s.flatten(0, 1), weight)
            assert calls.of["pack_bits"] == 2
            torch.cuda.current_stream().wait_stream(other)
            s.record_stream(other)
        torch.autograd.grad((y + z).sum(), (x, weight))
    finally:
        torch.cuda.set_sync_debug_mode("default")


RESIDENT = """
import gc, sys, torch, snnfast as sf
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)
layers = []
for _ in range(6):
    layers += [sf.OverTime(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))), sf.IF()]
net, first = nn.Sequential(*layers), sf.IF()

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def forward(size):
    with torch.no_grad():
        spikes = first(torch.randn(4, 2, 32, size, size))
    return net(spikes)

with sf.pack_spikes() as packed:
    forward(16).sum().backward()  # what is allocated once
if sys.argv[1] == "whole":
    before = resident()
    y = forward(96).sum()
    print(resident() - before, 0)
else:
    packed = sf.pack_spikes()
    before = resident()
    with packed:
        y = forward(96).sum()
    print(resident() - before, packed.kept_bytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_the_resident_memory_of_six_blocks_is_what_is_said_to_be_kept():
    # Every block of memory is mapped on its own, and returned to the system when it is freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "LD_PRELOAD": ""}
    found = {}
    for mode in ("whole", "packed"):
        done = subprocess.run([sys.executable, "-P", "-c", RESIDENT, mode], cwd="/", env=environment,
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[mode] = [int(number) for number in done.stdout.split()]
    resident, kept = found["packed"]
    n = 4 * 2 * 32 * 96 * 96
    assert kept == 6 * (n // 8 + 8 * n + 2 * 4 * 32)
    print(f"resident: whole {found['whole'][0]}, packed {resident}; said to be kept {kept}")
    assert abs(resident - kept) < 0.05 * kept
    saved = found["whole"][0] - resident
    assert abs(saved - 6 * (4 * n - n // 8)) < 0.1 * 6 * 4 * n
