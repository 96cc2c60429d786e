"""Results do not depend on threads or instruction sets; several threads may call at once; a forked child works."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import snnfast as sf
from snnfast import backends

core = backends.core
SETS = ("avx512", "avx2", "baseline")


@pytest.fixture(autouse=True)
def restored():
    threads, best, streamed = torch.get_num_threads(), core.instruction_set(), core.streaming_threshold()
    yield
    torch.set_num_threads(threads)
    core.use_streaming_threshold(streamed)
    assert core.use_instruction_set(best)


def use_baseline() -> None:
    if not core.use_instruction_set("baseline"):
        pytest.skip("the baseline was left out of the build (SNNFAST_CPU_SETS): there is nothing to compare with")


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def results(x: torch.Tensor, sent: torch.Tensor, neuron: str, surrogate: sf.surrogate.Surrogate | None = None):
    """Every output and gradient of one of the ways through the kernels."""
    x, channels = x.detach().requires_grad_(), x.shape[2]
    table = torch.linspace(0.3, 0.9, channels).to(torch.promote_types(x.dtype, torch.float32))
    leaves = [x]
    options = {"surrogate": surrogate}
    if neuron == "IF":
        outputs = sf.functional.integrate_and_fire(x, **options)
    elif neuron == "soft IF":
        outputs = sf.functional.integrate_and_fire(x, reset="soft", **options)
    elif neuron == "LIF":
        outputs = sf.functional.leaky_integrate_and_fire(x, threshold=0.4, detach_reset=False, **options)
    else:
        threshold = table.clone().requires_grad_() if neuron == "tables" else torch.tensor(0.5, requires_grad=True)
        tau = (table + 1.2).requires_grad_() if neuron == "tables" else torch.tensor(2.5, requires_grad=True)
        v0 = (x[0].detach() / 2).requires_grad_()
        outputs = sf.functional.leaky_integrate_and_fire(
            x, v0, threshold=threshold, tau=tau, return_potential=True, **options
        )
        leaves += [v0, threshold, tau]
    more = [torch.ones_like(y) for y in outputs[1:]]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, [sent, *more])]


def identical(found, wanted, what) -> None:
    for i, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(ours, theirs), f"result {i} differs: {what}"


NEURONS = ["IF", "soft IF", "LIF", "tables", "learned numbers"]
# More than 100 thousand values and several tiles; odd sizes, one with long rows and one with many short ones.
SIZES = {"long rows": (17, 1, 5, 1301), "short rows": (7, 151, 3, 33), "batch sliced": (18, 9, 4, 257)}
neurons = pytest.mark.parametrize("neuron", NEURONS)


def inputs(sizes: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    shape = SIZES[sizes]
    x, sent = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    assert x.numel() > 100_000
    return (x[:, ::2], sent[:, ::2]) if sizes == "batch sliced" else (x, sent)


# Every size in float32, and every dtype.
RUNS = [
    ("long rows", torch.float32),
    ("short rows", torch.float32),
    ("batch sliced", torch.float32),
    ("long rows", torch.float64),
    ("short rows", torch.bfloat16),
    ("batch sliced", torch.float16),
]
runs = pytest.mark.parametrize(("sizes", "dtype"), RUNS, ids=lambda v: str(v))


@neurons
@runs
def test_results_do_not_depend_on_the_number_of_threads(neuron, sizes, dtype):
    x, sent = inputs(sizes, dtype)
    torch.set_num_threads(1)
    wanted = results(x, sent, neuron)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        identical(results(x, sent, neuron), wanted, f"{threads} threads")


@neurons
@runs
def test_results_do_not_depend_on_the_instruction_set(neuron, sizes, dtype):
    x, sent = inputs(sizes, dtype)
    use_baseline()
    wanted = results(x, sent, neuron)
    for name in SETS[:-1]:
        if core.use_instruction_set(name):
            assert core.instruction_set() == name
            identical(results(x, sent, neuron), wanted, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", sf.surrogate.SHAPES)
def test_no_surrogate_depends_on_the_instruction_set(shape, dtype):
    surrogate = getattr(sf.surrogate, shape)(gamma=1.7, beta=0.9)
    # Potentials of every magnitude, so that the derivative's whole range occurs.
    x = (normal(5, 3, 7, 601, dtype=torch.float64) * 10 ** normal(5, 3, 7, 601, dtype=torch.float64, seed=2)).to(dtype)
    sent = normal(*x.shape, dtype=dtype, seed=1)
    use_baseline()
    wanted = [results(x, sent, neuron, surrogate) for neuron in ("IF", "soft IF", "tables")]
    for name in SETS:
        if core.use_instruction_set(name):
            for neuron, expected in zip(("IF", "soft IF", "tables"), wanted, strict=True):
                identical(results(x, sent, neuron, surrogate), expected, (name, neuron))


def test_an_unknown_instruction_set_is_not_used():
    before = core.instruction_set()
    assert not core.use_instruction_set("mmx") and core.instruction_set() == before
    assert sf.build_info()["cpu"]["instruction_set"] == before


@pytest.mark.parametrize("steps", [1, 10, 20])
@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("make", [sf.IF, lambda **o: sf.LIF(2.0, 0.4, reset="soft", **o)], ids=["IF", "soft LIF"])
def test_large_outputs_are_the_small_ones_put_together(time_dim, steps, make):
    """Large outputs are written past the caches; these are split into pieces that are not."""
    pieces = 6
    shape = (steps, pieces, 1 << 13)
    size = torch.Size(shape).numel() * 4
    core.use_streaming_threshold(size)
    x, sent = (normal(*shape, seed=s).transpose(0, time_dim).contiguous() for s in (0, 1))
    whole = x.clone().requires_grad_()
    spikes = make(time_dim=time_dim)(whole)
    (gradient,) = torch.autograd.grad(spikes, whole, sent)
    for i in range(pieces):
        piece = x.narrow(1 - time_dim, i, 1).contiguous().requires_grad_()
        wanted = make(time_dim=time_dim)(piece)
        assert torch.equal(spikes.narrow(1 - time_dim, i, 1), wanted)
        (wanted_gradient,) = torch.autograd.grad(wanted, piece, sent.narrow(1 - time_dim, i, 1).contiguous())
        assert torch.equal(gradient.narrow(1 - time_dim, i, 1), wanted_gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("start", [0, 1, 4, 16])
def test_large_outputs_from_any_alignment_and_width(dtype, start):
    """Streaming wants whole, aligned vectors; rows that have none are written otherwise, and completely."""
    core.use_streaming_threshold(1 << 16)
    width = (1 << 12) + start
    base = normal(36 * width + start + 16, dtype=dtype)
    x = base[start : start + 36 * width].view(6, 6, width).requires_grad_()
    sent = normal(6, 6, width, dtype=dtype, seed=1)
    found = sf.functional.integrate_and_fire(x)[0]
    (gradient,) = torch.autograd.grad(found, x, sent)
    core.use_streaming_threshold(1 << 40)
    cached = sf.functional.integrate_and_fire(x)[0]
    assert torch.equal(found, cached) and torch.equal(found, sf.reference.integrate_and_fire(x)[0])
    assert torch.equal(gradient, torch.autograd.grad(cached, x, sent)[0])


def test_an_output_is_large_where_a_cores_cache_does_not_hold_four_of_them():
    told = {
        (d / "level").read_text().strip(): d / "size" for d in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
    }
    if "3" not in told:
        pytest.skip("no third-level cache is told of")
    assert core.streaming_threshold() == int(told["3"].read_text().strip().removesuffix("K")) * 1024 // 4


def test_several_threads_may_call_at_once():
    x = [normal(18, 4, 3, 700, seed=s) for s in range(8)]
    sent = normal(18, 4, 3, 700, seed=99)
    wanted = [results(v, sent, NEURONS[i % 5]) for i, v in enumerate(x)]
    barrier = threading.Barrier(4)

    def work(worker: int) -> None:
        barrier.wait(30)
        for repeat in range(10):
            i = (worker * 3 + repeat) % len(x)
            identical(results(x[i], sent, NEURONS[i % 5]), wanted[i], (worker, repeat))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, w) for w in range(4)]:
            done.result(60)


def test_a_layer_may_be_shared_by_threads():
    layer = sf.LIF(torch.tensor([1.5, 2.0, 3.0]), 0.4, learn_tau=True)
    x = normal(8, 4, 3, 500)
    wanted = layer(x)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: layer(x), range(40)):
            assert torch.equal(found, wanted)


def test_the_gil_is_released_while_kernels_run():
    """Another Python thread goes on while a long call runs."""
    x, turns, done = normal(400, 1, 1, 50_000), [0], threading.Event()

    def count():
        while not done.is_set():
            turns[0] += 1
            time.sleep(0)

    torch.set_num_threads(1)
    before = sys.getswitchinterval()
    thread = threading.Thread(target=count, daemon=True)
    try:
        with torch.no_grad():
            sys.setswitchinterval(100.0)  # from here on no thread gives way but by releasing the lock
            thread.start()
            small = turns[0]
            sf.IF()(x[:1])
            small, large = turns[0] - small, turns[0]
            sf.IF()(x)
            large = turns[0] - large
    finally:
        done.set()
        sys.setswitchinterval(before)
        thread.join(10)
    assert large > 100 + small  # 400 steps of 50 thousand neurons take several milliseconds


CHILD = """
import os, sys, time
import torch
import snnfast as sf

torch.set_num_threads(2)
rng = torch.Generator().manual_seed(0)
x = torch.randn(20, 4, 3, 5000, generator=rng)
sent = torch.randn(20, 4, 3, 5000, generator=rng)

def results():
    current = x.detach().requires_grad_()
    threshold = torch.tensor([0.3, 0.6, 0.9], requires_grad=True)
    spikes, v_last = sf.functional.leaky_integrate_and_fire(current, threshold=threshold)
    plain = sf.IF()(current.detach())
    return [spikes.detach(), v_last.detach(), plain, *torch.autograd.grad(spikes, [current, threshold], sent)]

wanted = b"".join(y.numpy().tobytes() for y in results())  # the parent has used its threads
read, write = os.pipe()
child = os.fork()
if child == 0:
    found = b"".join(y.numpy().tobytes() for y in results())
    os.write(write, b"same" if found == wanted else b"different")
    os._exit(0)
deadline = time.monotonic() + 40
while os.waitpid(child, os.WNOHANG) == (0, 0):
    if time.monotonic() > deadline:
        os.kill(child, 9)
        sys.exit("the child hangs")
    time.sleep(0.01)
os.close(write)
answer = os.read(read, 100)
again = b"".join(y.numpy().tobytes() for y in results())
sys.exit(0 if answer == b"same" and again == wanted else f"child: {answer!r}, parent again: {again == wanted}")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_the_same_after_its_parent_used_threads():
    done = subprocess.run([sys.executable, "-P", "-c", CHILD], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr


LOADER = """
import torch
import snnfast as sf

class Spikes(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, i):
        rng = torch.Generator().manual_seed(i)
        return sf.IF()(torch.randn(10, 4, 2000, generator=rng))

if __name__ == "__main__":
    data = Spikes()
    wanted = torch.stack([data[i] for i in range(6)])
    context = torch.multiprocessing.get_context("fork")
    loader = torch.utils.data.DataLoader(data, 3, num_workers=2, multiprocessing_context=context, timeout=40)
    assert torch.equal(torch.cat(list(loader)), wanted)
"""


def test_layers_run_in_the_workers_of_a_data_loader():
    done = subprocess.run([sys.executable, "-P", "-c", LOADER], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr


def test_there_is_one_openmp_runtime_in_the_process():
    code = """
import torch, snnfast as sf
sf.IF()(torch.randn(10, 100, 1000))
with open("/proc/self/maps") as maps:
    files = {line.split()[-1] for line in maps if "/" in line}
found = sorted(f for f in files if any(name in f.rsplit("/", 1)[-1] for name in ("libgomp", "libiomp", "libomp")))
assert len(found) == 1, found
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
