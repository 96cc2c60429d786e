"""No kernel reads past the end of a tensor: the tests' inputs end where memory ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A read past the end of these tensors is a segmentation fault: the page behind them may not be read.
SCRIPT = """
import ctypes, mmap, sys
import torch
import snnfast as sf
from snnfast import backends

directory, tests = sys.argv[1:]
if directory != "cpu":
    from pathlib import Path
    sys.path.insert(0, tests)
    import host_run
    core = host_run.build(Path(directory))
    backends.of = lambda tensor: core.Cuda(0, 0)

protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
kept = []

def at_the_end(*shape, dtype=torch.float32):
    values = torch.randn(shape).to(dtype)
    page = mmap.PAGESIZE
    readable = -(-values.nbytes // page) * page
    memory = mmap.mmap(-1, readable + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert protect(address + readable, page, 0) == 0
    kept.append(memory)
    offset = readable - values.nbytes
    tensor = torch.frombuffer(memory, dtype=dtype, count=values.numel(), offset=offset).view(shape)
    return tensor.copy_(values).requires_grad_()

def run(outputs, leaves, *shape):
    torch.autograd.grad(outputs[0], leaves, at_the_end(*shape, dtype=outputs[0].dtype).detach())

for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for steps in (1, 3, 5, 17, 20):
        for sizes in ((2, 16), (3, 5), (2, 3, 7), (1, 1300)):
            shape = (steps, *sizes)
            x, v0 = at_the_end(*shape, dtype=dtype), at_the_end(*sizes)
            for options in ({}, {"reset": "soft"}, {"delay": True}, {"surrogate": sf.surrogate.Sigmoid()}):
                run(sf.functional.integrate_and_fire(x, v0, **options), [x, v0], *shape)
            table = at_the_end(sizes[1]).detach().abs() + 1.5
            run(sf.functional.leaky_integrate_and_fire(x, v0, tau=table.requires_grad_()), [x, v0, table], *shape)
            held, residual = at_the_end(*sizes, dtype=dtype), at_the_end(*shape, dtype=dtype)
            run(sf.functional.integrate_and_fire(held, steps=steps), [held], *shape)
            weight, bias = at_the_end(sizes[1]), at_the_end(sizes[1])
            normalize = sf.functional.batch_norm_integrate_and_fire
            given = {"weight": weight, "bias": bias, "residual": residual}
            if x.numel() > x.shape[2]:
                run(normalize(x, v0, **given), [x, v0, *given.values()], *shape)
            if held.numel() > held.shape[1]:
                run(normalize(held, steps=steps, **given), [held, *given.values()], *shape)
print("within bounds")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
@pytest.mark.parametrize("where", ["cpu", "cuda_on_host"])
def test_kernels_read_nothing_past_the_end_of_their_tensors(where, request):
    directory = "cpu"
    if where == "cuda_on_host":
        directory = str(Path(request.getfixturevalue("core_on_host").__file__).parent.parent)
    tests = str(Path(__file__).resolve().parent)
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, directory, tests], cwd="/", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "within bounds" in done.stdout, (done.returncode, done.stderr[-2000:])
