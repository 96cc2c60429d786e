"""Random configurations of batch-normalized neurons, and what they must equal: torch's batch norm and the loop."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from configurations import OPTIONS, Case, gradients_of, laid_out, make_case, output_gradients, possible

import snnfast as sf

NORMALIZED: dict[str, list[Any]] = {
    **OPTIONS,
    "steps": [1, 2, 4, 5, 7, 16, 17, 35],
    "sizes": [(5, 6), (4, 3, 5), (3, 16, 4), (5, 1, 3), (2, 3, 4, 2), (1, 5, 3, 7), (2, 4, 3, 2, 3), (9, 17)],
    "currents": ["smooth"],  # a batch's statistics are sums, which another order rounds otherwise: no ties
    "residual": ["none", "like the output", "like the output", "held"],
    "residual layout": OPTIONS["layout"],
    "affine": ["weight and bias", "weight and bias", "weight", "bias", "neither"],
    "training": [True, True, False],
}

# What a name says: the dtype is the test's, whatever was drawn.
NAMED = {name: values for name, values in NORMALIZED.items() if name != "dtype"}


def can_be(o: dict[str, Any]) -> bool:
    """Whether a call can have these options."""
    residual = {"held": o["residual"] == "held", "layout": o["residual layout"]}
    return possible(o) and possible(residual) and (o["held"] or o["residual"] != "held")


def draw_normalized(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    drawn = []
    while len(drawn) < count:
        o = {name: rng.choice(values) for name, values in NORMALIZED.items()}
        if can_be(o):
            drawn.append({**o, "seed": len(drawn)})
    return drawn


CONFIGURATIONS = draw_normalized(420, seed=20150211)


@dataclass
class NormalizedCase:
    """A case of the neuron alone, and what the normalization adds to it."""

    neuron: Case
    residual: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    running: tuple[torch.Tensor, torch.Tensor]
    eps: float

    @property
    def leaves(self) -> dict[str, torch.Tensor]:
        more = {"residual": self.residual, "weight": self.weight, "bias": self.bias}
        return {**self.neuron.leaves, **{name: t for name, t in more.items() if t is not None}}


def make_normalized(
    options: dict[str, Any], device: torch.device, dtype: torch.dtype, as_if: torch.dtype | None = None
) -> NormalizedCase:
    """A configuration in a dtype; ``as_if``: with values that this dtype has, too."""
    o = {**options, "dtype": as_if or dtype}
    neuron = make_case(o, device, dtype)
    rng = torch.Generator().manual_seed(o["seed"] + 7)
    table = torch.float64 if dtype == torch.float64 else torch.float32
    sizes, steps, time_dim = list(o["sizes"]), o["steps"], o["time_dim"]

    def per_channel(scale: float, shift: float) -> torch.Tensor:
        values = torch.randn(sizes[1], generator=rng, dtype=torch.float64)
        return (values * scale + shift).float().to(device, table)

    weight, bias = per_channel(0.7, 0.6).requires_grad_(), per_channel(0.4, 0.2).requires_grad_()
    residual = None
    if o["residual"] != "none":
        held = o["residual"] == "held"
        shape = sizes if held else [*sizes[:time_dim], steps, *sizes[time_dim:]]
        values = (torch.randn(shape, generator=rng, dtype=torch.float64) / 2).to(as_if or dtype).to(device, dtype)
        residual = laid_out(values, o["residual layout"], None if held else time_dim).detach().requires_grad_()
    return NormalizedCase(
        neuron,
        residual,
        weight if "weight" in o["affine"] else None,
        bias if "bias" in o["affine"] else None,
        (per_channel(0.5, 0.0), per_channel(0.5, 0.0).square() + 0.1),
        1e-5 if o["seed"] % 2 else 1e-3,
    )


def fused(case: NormalizedCase) -> tuple[torch.Tensor, ...]:
    mean, variance = case.running
    return sf.functional.batch_norm_integrate_and_fire(
        case.neuron.current,
        case.neuron.v0,
        residual=case.residual,
        weight=case.weight,
        bias=case.bias,
        running_mean=mean,
        running_var=variance,
        training=case.neuron.options["training"],
        momentum=0.3,
        eps=case.eps,
        **case.neuron.arguments,
    )


def batch_norm_of_torch(case: NormalizedCase, x: torch.Tensor) -> torch.Tensor:
    """torch.nn.functional.batch_norm of a current [T, B, C, ...], or held [B, C, ...]."""
    held = case.neuron.options["held"]
    merged = x if held else x.flatten(0, 1)
    mean, variance = case.running
    # Contiguous: of a channels-last current of one image, torch returns wrong gradients where the incoming one is not.
    y = torch.nn.functional.batch_norm(
        merged.contiguous(), mean, variance, case.weight, case.bias, case.neuron.options["training"], 0.3, case.eps
    )
    return y if held else y.unflatten(0, x.shape[:2])


def apart(case: NormalizedCase) -> tuple[torch.Tensor, ...]:
    """Batch norm as torch does it, the residual, and the reference loop on the sum."""
    o, arguments = case.neuron.options, {k: v for k, v in case.neuron.arguments.items() if k != "steps"}
    current, time_dim = batch_norm_of_torch(case, case.neuron.current), o["time_dim"]
    if o["held"]:
        if o["residual"] == "held":
            current = current + case.residual
        sizes = o["sizes"]
        current = current.unsqueeze(time_dim).expand(*sizes[:time_dim], o["steps"], *sizes[time_dim:])
    if o["residual"] == "like the output":
        current = current + case.residual
    return getattr(sf.reference, case.neuron.function)(current, case.neuron.v0, **arguments)


def run_case(case: NormalizedCase, call: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Outputs and all gradients of one way to compute a case."""
    outputs = call(case)
    leaves = case.leaves
    found = gradients_of(outputs, output_gradients(outputs, case.neuron.options), list(leaves.values()))
    return outputs, dict(zip(leaves, found, strict=True))
