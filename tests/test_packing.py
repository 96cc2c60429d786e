"""pack_spikes: the same gradients to the last bit, and one bit kept per spike."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from packing_cases import WEIGHTS, B, C, Calls, H, T, compare, currents, network, normal
from packing_cases import nothing_left_behind as nothing_left_behind  # for every test here
from torch import nn
from torch.nn.functional import conv2d, max_pool2d

import snnfast as sf
from snnfast._text import readable

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


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
        used[:] = [
            w
            for w in weights.values()
            if torch.autograd.grad(y.sum(), w, allow_unused=True, retain_graph=True)[0] is not None
        ]
        return y

    forward()
    packed = compare(forward, x, *used)
    assert packed.packed_tensors == 1 and packed.saved_packed >= 1
    assert (packed.unpacked_bytes, packed.packed_bytes) == (x.nbytes, x.numel() // 8)
    assert packed.saved_changed == packed.saved_copied == 0


@pytest.mark.parametrize(
    "make", [sf.IF, sf.LIF, lambda **o: sf.IF(reset="soft", delay=True, **o)], ids=["IF", "LIF", "soft IF, delayed"]
)
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


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (3, 5, 7)], ids=str)
def test_odd_sizes_are_packed_too(shape):
    x, weight = normal(*shape).requires_grad_(), normal(shape[-1], 2, seed=1).requires_grad_()
    packed = compare(lambda: sf.IF(0.1)(x) @ weight, x, weight)
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


N = T * B * C * H * H  # neurons and steps


def convolved():
    """A convolution, batch norm and neurons, on spikes: the network, the spikes, and what it keeps beside these."""
    net = nn.Sequential(
        sf.OverTime(nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))), sf.IF()
    )
    with torch.no_grad(), sf.pack_spikes():
        spikes = sf.IF(0.3)(currents())
    # The convolution's output (batch norm) with two statistics, the neurons' currents.
    return net, spikes, 4 * N + 2 * 4 * C + 4 * N


def test_kept_bytes_are_the_bits_and_what_the_layers_keep_besides():
    net, spikes, besides = convolved()
    with sf.pack_spikes(net) as packed:
        y = net(spikes)
    assert packed.kept_bytes == N // 8 + besides
    assert packed.by_layer == {"0.module.0": N // 8, "0.module.1": 4 * N + 8 * C, "1": 4 * N}
    assert packed.parameter_bytes == sum(p.nbytes for p in net.parameters()) - 4 * C + 2 * 4 * C
    y.sum().backward()


def test_without_packing_the_spikes_are_kept_whole():
    net, spikes, besides = convolved()
    storages = {}

    def count(t):
        if not isinstance(t, nn.Parameter) and all(t is not b for b in net.buffers()):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        y = net(spikes)
    assert sum(storage.nbytes() for storage in storages.values()) == 4 * N + besides
    y.sum().backward()


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


def negated(spikes, weight):
    imaginary = torch.view_as_complex(spikes.unflatten(-1, (H // 2, 2))).conj().imag  # a lazily negated view
    assert imaginary.is_neg()
    return imaginary * weight


def halves(spikes, weight):
    return spikes.detach().view(torch.bfloat16) * torch.cat((weight, weight, weight, weight)).bfloat16()


@pytest.mark.parametrize("view", [negated, halves], ids=lambda view: view.__name__)
def test_views_that_read_the_memory_in_another_way_are_kept_whole(view):
    x, weight = currents(), normal(H // 2, seed=1).requires_grad_()
    leaves = (x, weight) if view is negated else (weight,)
    assert compare(lambda: view(sf.IF(0.3)(x), weight), *leaves).packed_tensors == 0


def test_views_as_complex_numbers_have_the_same_gradients():
    x, weight = currents(), normal(H // 2, seed=1).requires_grad_()
    compare(lambda: torch.view_as_complex(sf.IF(0.3)(x).unflatten(-1, (H // 2, 2))).abs() * weight, x, weight)


RESIDENT = """
import gc, sys, torch, snnfast as sf
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)
layers = []
for _ in range(6):
    layers += [sf.OverTime(nn.Conv2d(32, 32, 3, padding=1, bias=False)), sf.BatchNormIF(32)]
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
        done = subprocess.run(
            [sys.executable, "-P", "-c", RESIDENT, mode],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found[mode] = [int(number) for number in done.stdout.split()]
    resident, kept = found["packed"]
    n = 4 * 2 * 32 * 96 * 96
    assert 6 * (n // 8 + 4 * n) <= kept <= 6 * 4.2 * n  # the current, and one bit per spike
    print(f"resident: whole {found['whole'][0]}, packed {resident}; said to be kept {kept}")
    assert abs(resident - kept) < 0.05 * kept
    saved = found["whole"][0] - resident
    assert abs(saved - 6 * (4 * n - n // 8)) < 0.1 * 6 * 4 * n


def test_what_was_packed_prints_in_units_and_layer_by_layer():
    model = nn.Sequential(sf.IF(0.1), sf.OverTime(nn.Conv2d(C, C, 3)), sf.IF(0.1))
    with sf.pack_spikes(model) as packed:
        model(currents()).sum().backward()
    text = str(packed)
    assert f"kept for backward: {readable(packed.kept_bytes)}" in text
    assert f"saved: {readable(packed.unpacked_bytes - packed.packed_bytes)}, by packing 1 spike tensor" in text
    for name, size in packed.by_layer.items():
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert line.endswith(readable(size)) and isinstance(size, int)
    assert repr(packed).startswith("<pack_spikes: ") and readable(packed.kept_bytes) in repr(packed)
    assert "0 spike tensors" in str(sf.pack_spikes())
