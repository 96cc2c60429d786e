"""Batch-normalized neurons: no bit depends on the number of threads or the instruction set."""

from __future__ import annotations

import pytest
import torch
from test_threads import SETS, core, identical, normal, restored, use_baseline  # noqa: F401

import snnfast as sf

# More than 100 thousand values, and many tiles; few channels of many values, many channels of few.
SIZES = {
    "large planes": (17, 3, 7, 19, 23),
    "small planes": (5, 9, 67, 7, 7),
    "no planes": (6, 35, 515),
    "a tile and a quarter": (40, 6, 4, 16, 20),
}
LAYOUTS = ["contiguous", "channels last"]
RUNS = [(s, lay, torch.float32) for s in ("large planes", "small planes") for lay in LAYOUTS]
# The last: rows of which a thread may begin with the shorter tile, whose channels are those of the longer one's start.
RUNS += [
    ("no planes", "contiguous", torch.float32),
    ("no planes", "contiguous", torch.float64),
    ("large planes", "contiguous", torch.float64),
    ("large planes", "channels last", torch.float16),
    ("small planes", "channels last", torch.bfloat16),
    ("a tile and a quarter", "channels last, every second image", torch.float32),
]
runs = pytest.mark.parametrize(("sizes", "layout", "dtype"), RUNS, ids=str)


def inputs(sizes: str, layout: str, dtype: torch.dtype) -> list[torch.Tensor]:
    made = [normal(*SIZES[sizes], dtype=dtype, seed=i) for i in range(3)]
    if layout.startswith("channels last"):
        made = [x.movedim(2, -1).contiguous().movedim(-1, 2) for x in made]
    if layout.endswith("every second image"):
        made = [x[:, ::2] for x in made]
    assert made[0].numel() > 100_000
    return made


def results(x: torch.Tensor, residual: torch.Tensor, sent: torch.Tensor, how: str) -> list[torch.Tensor]:
    """Outputs, all gradients and running statistics."""
    held = how == "held"
    x, channels = (x[0] if held else x).detach().requires_grad_(), x.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (torch.linspace(a, b, channels, dtype=wide).requires_grad_() for a, b in ((0.5, 1.5), (-0.3, 0.6)))
    running = torch.zeros(channels, dtype=wide), torch.ones(channels, dtype=wide)
    leaves, options = [x, weight, bias], {}
    if how != "plain":
        residual = residual[0] if held else residual
        options["residual"] = residual.detach().requires_grad_()
        leaves.append(options["residual"])
    if held:
        options["steps"] = sent.shape[0]
    if how == "everything":
        threshold = torch.linspace(0.4, 0.9, channels, dtype=wide).requires_grad_()
        tau = (threshold.detach() + 1.5).requires_grad_()
        v0 = (x[0].detach().to(wide) / 3).requires_grad_()
        options.update(threshold=threshold, tau=tau, v0=v0, return_potential=True)
        leaves += [threshold, tau, v0]
    outputs = sf.functional.batch_norm_integrate_and_fire(
        x,
        weight=weight,
        bias=bias,
        running_mean=running[0],
        running_var=running[1],
        training=how != "evaluation",
        **options,
    )
    gradients = torch.autograd.grad(outputs, leaves, [sent, *(torch.ones_like(y) for y in outputs[1:])])
    return [*(y.detach() for y in outputs), *gradients, *running]


hows = pytest.mark.parametrize("how", ["plain", "residual", "held", "everything", "evaluation"])


@hows
@runs
def test_results_do_not_depend_on_the_number_of_threads(how, sizes, layout, dtype):
    given = inputs(sizes, layout, dtype)
    torch.set_num_threads(1)
    wanted = results(*given, how)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        identical(results(*given, how), wanted, f"{threads} threads")


@hows
@runs
def test_results_do_not_depend_on_the_instruction_set(how, sizes, layout, dtype):
    given = inputs(sizes, layout, dtype)
    use_baseline()
    wanted = results(*given, how)
    for name in SETS[:-1]:
        if core.use_instruction_set(name):
            identical(results(*given, how), wanted, name)


def test_results_are_the_same_on_every_run():
    given = inputs("small planes", "contiguous", torch.float32)
    torch.set_num_threads(4)
    wanted = results(*given, "everything")
    for _ in range(3):
        identical(results(*given, "everything"), wanted, "again")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_outputs_are_right(layout):
    """Large outputs may be written past the caches; and a mean of many values must not drift."""
    core.use_streaming_threshold(4 << 20)
    x, residual, sent = (normal(6, 4, 8, 83, 89, seed=i) for i in range(3))
    if layout == "channels last":
        x, residual, sent = (t.movedim(2, -1).contiguous().movedim(-1, 2) for t in (x, residual, sent))
    assert x.nbytes > 4 << 20
    x.requires_grad_()
    spikes, _, h = sf.functional.batch_norm_integrate_and_fire(
        x, residual=residual, training=True, return_potential=True
    )
    (found,) = torch.autograd.grad(spikes, x, sent)
    wide = x.detach().double().requires_grad_()
    norm = torch.nn.functional.batch_norm(wide.flatten(0, 1), None, None, training=True).unflatten(0, (6, 4))
    wanted, _, potential = sf.functional.integrate_and_fire(norm + residual.double(), return_potential=True)
    differ = (spikes != wanted).any(0)
    assert differ.double().mean() <= 1e-4
    assert (h - potential)[:, ~differ].abs().max() <= 1e-4
    (gradient,) = torch.autograd.grad(wanted, wide, sent.double())
    assert (found - gradient)[:, ~differ].abs().max() <= 1e-3 * gradient.abs().max()
