"""Random calls of the public functions and layers, and a digest of all that they give: equal digests, equal bits."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import snnfast as sf

KINDS = ("IF", "LIF", "BatchNormIF", "BatchNormLIF")
SURROGATES = tuple(sf.surrogate.SHAPES)
SIZES = ((2, 16), (3, 5), (2, 3, 4, 2), (4, 8, 3, 3), (5, 1, 3), (2, 2, 3, 2, 5), (3, 64, 9))
LAYOUTS = ("contiguous", "channels last", "time innermost", "every second", "batch expanded")


@dataclass(frozen=True)
class RandomCall:
    """One call: a layer and its options, the tensors that it is given, and what is asked of it."""

    seed: int
    kind: str
    options: dict[str, Any]
    sizes: tuple[int, ...]  # [B, C, ...]
    steps: int
    time_dim: int
    held: bool
    layout: str
    dtype: torch.dtype
    table: str
    residual: str
    training: bool
    calls: int

    def __str__(self) -> str:
        parts = [
            self.kind,
            *(f"{name}={value}" for name, value in self.options.items()),
            f"{list(self.sizes)}",
            f"T={self.steps}",
            str(self.dtype).removeprefix("torch."),
            self.layout,
            f"threshold {self.table}",
        ]
        parts += [f"time_dim={self.time_dim}"] * bool(self.time_dim) + ["held"] * self.held
        parts += [f"residual {self.residual}"] * (self.residual != "none") + ["eval"] * (not self.training)
        return f"#{self.seed} {', '.join(parts)}"


def draw(seed: int) -> RandomCall:
    """The call of that number, the same on every machine."""
    rng = random.Random(seed)
    kind = rng.choice(KINDS)
    reset = rng.choice(("hard", "soft"))
    shape = getattr(sf.surrogate, rng.choice(SURROGATES))(
        gamma=round(rng.uniform(0.3, 8), 3), beta=rng.choice((1.0, 0.7))
    )
    options = {
        "surrogate": shape,
        "reset": reset,
        "reset_value": 0.0 if reset == "soft" else rng.choice((0.0, 0.25)),
        "detach_reset": rng.choice((None, True, False)),
        "fire_on_equal": rng.random() < 0.3,
        "delay": rng.random() < 0.2,
    }
    if kind.endswith("LIF"):
        options |= {
            "tau": rng.choice((1.5, 2.0, 10.0)),
            "decay_input": rng.random() < 0.5,
            "learn_tau": rng.random() < 0.5,
        }
    batch_norm = kind.startswith("BatchNorm")
    if batch_norm:
        options["affine"] = rng.random() < 0.8
    held = rng.random() < 0.25
    return RandomCall(
        seed=seed,
        kind=kind,
        options=options,
        sizes=rng.choice(SIZES),
        steps=rng.choice((1, 2, 4, 7, 10, 16, 17, 33)),
        time_dim=rng.randrange(2),
        held=held,
        layout=rng.choice(LAYOUTS),
        dtype=rng.choice((torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)),
        table=rng.choice(("number", "number", "learned", "per channel")),
        residual=rng.choice(("none", "same", "without time") if held else ("none", "same")) if batch_norm else "none",
        training=rng.random() < 0.8,
        calls=rng.choice((1, 1, 2)),
    )


def laid_out(values: Tensor, layout: str, time_dim: int | None) -> Tensor:
    """The values (of "batch expanded" the first sample's, for all) in a layout of memory that they may come in."""
    batch = 0 if time_dim is None else 1 - time_dim
    if layout == "channels last":
        channel = 1 if time_dim is None else 2
        return values.movedim(channel, -1).contiguous().movedim(-1, channel)
    if layout == "time innermost" and time_dim is not None:
        return values.movedim(time_dim, -1).contiguous().movedim(-1, time_dim)
    if layout == "every second":
        wide = values.new_zeros([*values.shape[:-1], 2 * values.shape[-1]])
        return wide[..., ::2].copy_(values)
    if layout == "batch expanded":
        return values.narrow(batch, 0, 1).expand(values.shape)
    return values.contiguous()


def make_layer(call: RandomCall, device: torch.device) -> torch.nn.Module:
    channels = call.sizes[1]
    rng = torch.Generator().manual_seed(call.seed)
    options = dict(call.options)
    if call.kind.startswith("BatchNorm"):
        options["num_features"] = channels
    if call.table == "per channel":
        options["threshold"] = torch.rand(channels, generator=rng) + 0.5
    options["learn_threshold"] = call.table == "learned" or (call.table == "per channel" and call.seed % 2 == 0)
    layer = getattr(sf, call.kind)(**options, time_dim=call.time_dim).to(device)
    if options.get("affine"):
        with torch.no_grad():
            layer.weight.copy_(torch.rand(channels, generator=rng) + 0.5)
            layer.bias.copy_(torch.rand(channels, generator=rng) - 0.3)
    return layer.train(call.training)


def run(call: RandomCall, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Everything that the call gives, by name: spikes, gradients, running statistics, the state dict."""
    layer = make_layer(call, device)
    rng = torch.Generator().manual_seed(call.seed + 1)
    time_dim = call.time_dim
    full = (*call.sizes[:time_dim], call.steps, *call.sizes[time_dim:])

    def current(shape: Iterable[int], without_time: bool) -> Tensor:
        values = torch.randn(tuple(shape), generator=rng, dtype=torch.float64)
        if call.seed % 3 == 0:
            values = (values * 4).round() / 4  # on a grid that meets the threshold
        values = values.to(device, call.dtype)
        return laid_out(values, call.layout, None if without_time else time_dim).detach().requires_grad_()

    for number in range(call.calls):
        x = current(call.sizes if call.held else full, call.held)
        arguments: dict[str, Any] = {"steps": call.steps} if call.held else {}
        if call.residual != "none":
            without_time = call.residual == "without time"
            arguments["residual"] = current(call.sizes if without_time else full, without_time)
        spikes = layer(x, **arguments)
        leaves = {"current": x, **dict(layer.named_parameters())}
        if "residual" in arguments:
            leaves["residual"] = arguments["residual"]
        gradient = torch.randn(full, generator=rng, dtype=torch.float64).to(device, call.dtype)
        found: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if spikes.requires_grad:
            found = torch.autograd.grad(spikes, tuple(leaves.values()), gradient, allow_unused=True)
        yield f"spikes {number}", spikes
        yield from ((f"gradient {number} of {name}", g) for name, g in zip(leaves, found, strict=True) if g is not None)
    with torch.no_grad():
        yield (
            "inference",
            layer(x.detach(), **{k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()}),
        )
    yield from ((f"state {name}", value) for name, value in layer.state_dict().items())


def digests(call: RandomCall, device: torch.device) -> dict[str, str]:
    """Of each result: dtype, shape, strides and a hash of its bits."""
    found = {}
    for name, tensor in run(call, device):
        dense = tensor.detach().cpu().contiguous()
        bits = hashlib.sha256(dense.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        found[name] = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} {tensor.stride()} {bits[:24]}"
    return found
