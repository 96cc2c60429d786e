"""A whole training step of one of the paper's networks: snnfast, other neurons in the same network, and the ANN twin.

    python -m snnfast.benchmarks.training --model resnet11 --width 16 --image-size 16 --batch-size 8

The network is the same object structure for all sides, with the same weights; only what stands after each convolution
differs. The twin has ReLU in the neurons' places and no time, and is given T times the batch: what the linear maps cost
then is the same, but for the first one, which spiking networks compute once and not T times.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnfast import models
from snnfast._arguments.checks import LARGEST_COUNT
from snnfast._errors import is_out_of_memory, one_line
from snnfast.cli.command import USAGE, Parser, integer, seconds
from snnfast.comparing.timing import Neighbours, clock_for, interleaved
from snnfast.layers import BatchNormNeuron
from snnfast.models import Activation, Network
from snnfast.surrogate import FastSigmoid
from snnfast.training.options import OptionError, choose_device
from snnfast.training.output import OutputError, OutputFolder

from . import environment
from .baselines import OURS, Neuron, Unsupported, find
from .batch_norm import BatchNormAnd
from .kept import peak_memory

TWIN = "ann-twin"
SIDES = (OURS, "naive", "spikingjelly", "spikingjelly-native", "spikingjelly-triton", TWIN)
# Of SpikingJelly's SoftSign(2), whose height is half its sharpness: one surrogate for all sides.
SURROGATE = FastSigmoid(gamma=2.0, beta=1.0)
EXACT, CLOSE = 1e-9, 0.02
"""How far two losses may be apart, relative: in float64, and where a side has no float64, in which spikes flip."""


@dataclass(frozen=True)
class _Other:
    """Another implementation's neuron as a network's activation; see :meth:`snnfast.models.Network.with_activation`."""

    baseline: str
    device: torch.device
    batch_norm: bool = True
    spiking: bool = True

    def replacing(self, layer: nn.Module) -> nn.Module:
        neuron = find(self.baseline).make(Neuron("IF", {"surrogate": SURROGATE}), self.device)
        if not isinstance(layer, BatchNormNeuron):  # on a current that is normalized elsewhere
            alone = BatchNormAnd(1, neuron)
            alone.norm = nn.Identity()
            return alone.to(self.device)
        made = BatchNormAnd(layer.num_features, neuron)
        made.norm.load_state_dict(layer.state_dict())
        return made.to(layer.weight)


def build(name: str, image_size: int, steps: int, **options: Any) -> Network:
    """Our side: the network with batch normalization and the surrogate of all sides; the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = (3, image_size, image_size)
        made = models.for_images(name, shape, 10, steps=steps, surrogate=SURROGATE, batch_norm=True, **options)
    assert isinstance(made, Network), f"{name} has no ANN twin"
    return made


def side_of(name: str, ours: Network, device: torch.device) -> Network:
    """A network of one of :data:`SIDES`, with the weights of ``ours``. Raises :class:`Unsupported`."""
    if name == OURS:
        return copy.deepcopy(ours)
    if name == TWIN:
        return ours.with_activation(Activation("relu", True))
    reason = find(name).why_not(device, torch.float32)
    if reason:
        raise Unsupported(reason)
    return ours.with_activation(_Other(name, device))


def training_step(
    model: Network, images: Tensor, labels: Tensor, precision: torch.dtype | None
) -> Callable[[], Tensor]:
    """Forward, backward and AdamW's update of one batch; returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, dtype=precision, enabled=precision is not None):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def check(model: Network, ours: Network, images: Tensor, labels: Tensor) -> str:
    """Says that two spiking networks of equal weights have the same loss on a few images; raises RuntimeError."""

    def loss(network: Network, dtype: torch.dtype) -> float:
        with torch.no_grad():
            return F.cross_entropy(network.to(dtype)(images[:2].to(dtype)), labels[:2]).item()

    for dtype, tolerance in ((torch.float64, EXACT), (torch.float32, CLOSE)):
        try:
            theirs = loss(model, dtype)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            if dtype == torch.float64:  # a side without float64
                continue
            raise RuntimeError(f"does not run: {error}") from error
        mine = loss(ours, dtype)
        difference = abs(mine - theirs) / abs(mine)
        if not difference <= tolerance:
            raise RuntimeError(f"its loss is {theirs}, ours {mine}: not the same network")
        return f"same loss in {str(dtype).removeprefix('torch.')} within {max(difference, 1e-16):.0e}"
    raise AssertionError


def measure(
    name: str,
    device: torch.device,
    *,
    image_size: int = 32,
    batch_size: int = 32,
    steps: int = 10,
    precision: torch.dtype | None = None,
    seconds: float = 20.0,
    sides: Sequence[str] = SIDES,
    **options: Any,
) -> dict[str, Any]:
    """Times training steps of all sides in turns.

    Args:
        name: of the network, one of ``snnfast.models.names()`` with batch normalization.
        image_size, batch_size, steps: of the images [B, 3, H, W] and the time T; the twin is given T * B images.
        precision: of autocast; None for float32.
        seconds: to spend on all sides together.
        sides: of :data:`SIDES`.
        **options: of the network.

    Returns:
        A dict: ``setting``, and ``sides``: name -> {seconds (median), images_per_second, ratio (its time over ours),
        peak_bytes (None on the CPU), check} or {skipped: why}.
    """
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch_size, 3, image_size, image_size, generator=generator).to(device)
    labels = torch.randint(10, (batch_size,), generator=generator).to(device)
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    found: dict[str, Any] = {}
    running: dict[str, Callable[[], Tensor]] = {}
    ours = build(name, image_size, steps, **options).to(device)
    for side in sides:
        try:
            model = side_of(side, ours, device).to(device)
            remark = "" if side in (OURS, TWIN) else check(model, copy.deepcopy(ours), images, labels)
        except (Unsupported, ImportError, RuntimeError) as error:
            if side == OURS:
                raise
            found[side] = {"skipped": one_line(error)}
            continue
        model = model.to(torch.float32).to(memory_format=layout)  # type: ignore[call-overload]  # torch declares no layout
        batch, wanted = (images.repeat(steps, 1, 1, 1), labels.repeat(steps)) if side == TWIN else (images, labels)
        running[side] = training_step(model, batch.contiguous(memory_format=layout), wanted, precision)
        running[side]()
        found[side] = {"check": remark, "peak_bytes": peak_memory(running[side], device)}
    neighbours = Neighbours()
    timings = interleaved(running, clock_for(device), seconds=seconds, fewest=5)
    for side, timing in timings.items():
        found[side] |= {
            "seconds": timing.median,
            "images_per_second": batch_size / timing.median,
            "ratio": timing.median / timings[OURS].median,
        }
    setting = {
        "model": name,
        **options,
        "image_size": image_size,
        "batch_size": batch_size,
        "steps": steps,
        "precision": str(precision or torch.float32).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "neighbours": neighbours.cores(),
    }
    return {"setting": setting, "sides": found}


def table(results: dict[str, Any]) -> str:
    """The results in words."""
    setting = results["setting"]
    lines = [
        "training step of " + ", ".join(f"{key} {value}" for key, value in setting.items() if value is not None),
        f"{'':<20}{'ms':>10}{'images/s':>12}{'over ours':>11}{'peak MB':>10}",
    ]
    for side, found in results["sides"].items():
        if "skipped" in found:
            lines.append(f"{side:<20}  {found['skipped']}")
            continue
        peak = "-" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e6:.0f}"
        lines.append(
            f"{side:<20}{found['seconds'] * 1e3:>10.2f}{found['images_per_second']:>12.1f}{found['ratio']:>10.2f}×"
            f"{peak:>10}  {found['check']}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong arguments."""
    size = integer(1, LARGEST_COUNT)
    parser = Parser(prog="python -m snnfast.benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet11", choices=[name for name in models.names() if name != "digits"])
    parser.add_argument("--width", type=size, help="channels of the first convolution (default: the network's own)")
    parser.add_argument("--image-size", type=size, default=32)
    parser.add_argument("--batch-size", type=size, default=32)
    parser.add_argument("--steps", type=size, default=10)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", help="default: a GPU where there is one with kernels for it")
    parser.add_argument("--seconds", type=seconds, default=20.0, help="to spend on all sides together")
    parser.add_argument("--side", action="append", choices=SIDES, help="only these, ours always; may be repeated")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args(argv)
    options = {} if arguments.width is None else {"width": arguments.width}
    sides = [side for side in SIDES if side == OURS or not arguments.side or side in arguments.side]
    precision = None if arguments.precision == "float32" else getattr(torch, arguments.precision)
    try:
        folder = None if arguments.out is None else file_folder(arguments.out)
        device = choose_device(arguments.device)
        results = measure(
            arguments.model,
            device,
            image_size=arguments.image_size,
            batch_size=arguments.batch_size,
            steps=arguments.steps,
            precision=precision,
            seconds=arguments.seconds,
            sides=sides,
            **options,
        )
    except (OptionError, OutputError, TypeError, ValueError) as error:
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return USAGE
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "choose a smaller --width, --image-size or --batch-size, or fewer --steps"
        print(f"{parser.prog}: error: out of memory: {remedy}", file=sys.stderr)
        return USAGE
    print(table(results))
    if folder is not None:
        results["environment"] = environment.describe(device)
        folder.write_text(arguments.out.name, json.dumps(results, indent=2, default=str) + "\n")
    return 0


def file_folder(file: Path) -> OutputFolder:
    """The folder of a file to be written; OutputError where it cannot be."""
    if not file.name or os.path.isdir(file):
        raise OutputError(f"--out must name a file, got {str(file)!r}")
    folder = OutputFolder(file.parent)
    try:
        file.exists()
    except OSError as error:  # a name that cannot be
        raise OutputError(f"--out: {str(file)!r} cannot be written: {error.strerror}") from error
    return folder


if __name__ == "__main__":
    sys.exit(main())
