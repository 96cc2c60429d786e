"""One step of a small convolutional network, as a stream and as other libraries run single steps.

    python -m snnfast.benchmarks.streaming

Events [B, 2, H, W] through conv 3×3 – batch norm – IF – average pool, twice, then two linear layers with an IF between
them. All sides have the same weights, and are compared over a sequence, spikes counted by the last layer's currents,
before they are timed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from snnfast._arguments.checks import LARGEST_COUNT
from snnfast._errors import one_line
from snnfast.cli.command import USAGE, Parser, integer, seconds
from snnfast.comparing.timing import Neighbours, clock_for, interleaved
from snnfast.layers import IF, OverTime, detach_state, reset_state
from snnfast.streams.stream import streaming
from snnfast.training.options import OptionError, choose_device
from snnfast.training.output import OutputError

from . import environment
from .baselines import OURS, Unsupported, find
from .training import file_folder

SIDES = (OURS, "carried", "spikingjelly", "spikingjelly-folded")
"""The stream; our layers as they are, with a state carried and a step a call; SpikingJelly's single-step mode, as its
users write it; and that with torch's own folding of its batch norms."""
CHECKED = 8
"""Steps that all sides are compared over."""
CLOSE = 1e-9

Step = Callable[[Tensor], Tensor]


def build(width: int, size: int) -> list[nn.Module]:
    """The stateless parts between the neurons, in evaluation, with running statistics unlike those at the start."""
    generator = torch.Generator().manual_seed(0)
    features = 2 * width * (size // 4) ** 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [
            nn.Sequential(nn.Conv2d(2, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
            nn.Sequential(
                nn.AvgPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width)
            ),
            nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(features, 128)),
            nn.Linear(128, 10),
        ]
    for part in parts:
        for norm in part.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.uniform_(-0.2, 0.2, generator=generator)
                norm.running_var.uniform_(0.05, 0.2, generator=generator)
            elif isinstance(norm, nn.Linear):
                nn.init.normal_(norm.weight, std=2 / norm.in_features**0.5, generator=generator)
    return [part.eval() for part in parts]


def ours(parts: list[nn.Module], **options: Any) -> nn.Sequential:
    """The network of our layers, over time. Equality fires, as in SpikingJelly."""
    layers: list[nn.Module] = []
    for part in deepcopy(parts):
        layers += [OverTime(part), IF(fire_on_equal=True, **options)]
    return nn.Sequential(*layers[:-1]).eval()


def stream_side(parts: list[nn.Module], sample: Tensor) -> tuple[Step, Callable[[], Any]]:
    stream = streaming(ours(parts).to(sample.device, sample.dtype), sample)
    return stream, stream.reset


def carried_side(parts: list[nn.Module], sample: Tensor) -> tuple[Step, Callable[[], Any]]:
    network = ours(parts, carry_state=True).to(sample.device, sample.dtype)

    def step(events: Tensor) -> Tensor:
        with torch.no_grad():
            return network(events[None])[0]

    return step, lambda: (reset_state(network), detach_state(network))


def spikingjelly_side(parts: list[nn.Module], sample: Tensor, folded: bool) -> tuple[Step, Callable[[], Any]]:
    """SpikingJelly's neurons in single-step mode between torch's own layers, as its single-step networks are."""
    reason = find("spikingjelly").why_not(sample.device, sample.dtype)
    if reason:
        raise Unsupported(reason)
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based import neuron as sj

    layers: list[nn.Module] = []
    for part in deepcopy(parts):
        flat = list(part) if isinstance(part, nn.Sequential) else [part]
        if folded and isinstance(flat[-1], nn.BatchNorm2d):
            flat = [*flat[:-2], fuse_conv_bn_eval(flat[-2], flat[-1])]
        layers += [*flat, sj.IFNode(step_mode="s")]
    network = nn.Sequential(*layers[:-1]).eval().to(sample.device, sample.dtype)

    def step(events: Tensor) -> Tensor:
        with torch.no_grad():
            return network(events)

    return step, lambda: functional.reset_net(network)


def make_side(name: str, parts: list[nn.Module], sample: Tensor) -> tuple[Step, Callable[[], Any]]:
    """A side's step and how it begins a sequence. Raises :class:`Unsupported`."""
    if name == OURS:
        return stream_side(parts, sample)
    if name == "carried":
        return carried_side(parts, sample)
    return spikingjelly_side(parts, sample, name == "spikingjelly-folded")


def check(name: str, parts: list[nn.Module], sample: Tensor, wanted: Tensor) -> str:
    """Says that a side's steps are those of the whole sequence, in float64; raises RuntimeError."""
    step, reset = make_side(name, parts, sample)
    reset()
    found = torch.stack([step(events) for events in sample])
    apart = ((found - wanted).abs().max() / wanted.abs().max()).item()
    if not apart <= CLOSE:
        raise RuntimeError(f"its steps are {apart:.1g} apart from the whole sequence's, relative to the largest")
    return f"the whole sequence's results in float64 within {max(apart, 1e-16):.0e}"


def measure(
    device: torch.device,
    *,
    width: int = 16,
    size: int = 16,
    batch_size: int = 1,
    seconds: float = 10.0,
    sides: Sequence[str] = SIDES,
) -> dict[str, Any]:
    """Times one step of all sides in turns.

    Args:
        width, size: channels of the first convolution, and pixels of the square events.
        batch_size: sequences at once.
        seconds: to spend on all sides together.
        sides: of :data:`SIDES`.

    Returns:
        A dict: ``setting``, and ``sides``: name -> {ratio (its time over the stream's), check} or {skipped: why}.
    """
    parts = build(width, size)
    generator = torch.Generator().manual_seed(1)
    events = (torch.rand(CHECKED, batch_size, 2, size, size, generator=generator) < 0.3).double().to(device)
    exact = [deepcopy(part).to(device).double() for part in parts]
    with torch.no_grad():
        wanted = ours(exact)(events)
        rates = [layer.mean().item() for layer in _spikes(ours(exact), events)]
    found: dict[str, Any] = {}
    running: dict[str, Callable[[], object]] = {}
    for name in sides:
        try:
            remark = check(name, parts, events, wanted)
            step, reset = make_side(name, parts, events.float())
        except (Unsupported, ImportError, RuntimeError) as error:
            if name == OURS:
                raise
            found[name] = {"skipped": one_line(error)}
            continue
        reset()
        now = events[0].float()
        running[name] = lambda step=step, now=now: step(now)
        running[name]()
        found[name] = {"check": remark}
    neighbours = Neighbours()
    timings = interleaved(running, clock_for(device), seconds=seconds)
    for name, timing in timings.items():
        best = timings[OURS]
        found[name] |= {"ratio": timing.median / best.median, "ratio_of_least": timing.least / best.least}
    setting = {
        **{"width": width, "size": size, "batch_size": batch_size, "threads": torch.get_num_threads()},
        "firing": [round(rate, 3) for rate in rates],
        "neighbours": neighbours.cores(),
    }
    return {"setting": setting, "sides": found}


def _spikes(network: nn.Sequential, events: Tensor) -> list[Tensor]:
    found = []
    for layer in network:
        events = layer(events)
        if isinstance(layer, IF):
            found.append(events)
    return found


def table(results: dict[str, Any]) -> str:
    """The results in words."""
    lines = [
        "one step, " + ", ".join(f"{key} {value}" for key, value in results["setting"].items() if value is not None),
        f"{'':<22}{'over ours':>11}{'of the least':>14}",
    ]
    for side, found in results["sides"].items():
        if "skipped" in found:
            lines.append(f"{side:<22}  {found['skipped']}")
        else:
            lines.append(f"{side:<22}{found['ratio']:>10.2f}×{found['ratio_of_least']:>13.2f}×  {found['check']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 for wrong arguments."""
    size = integer(1, LARGEST_COUNT)
    parser = Parser(prog="python -m snnfast.benchmarks.streaming", description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=size, default=16, help="channels of the first convolution")
    parser.add_argument("--size", type=integer(4, LARGEST_COUNT), default=16, help="pixels of the square events")
    parser.add_argument("--batch-size", type=size, default=1)
    parser.add_argument("--threads", type=size, help="default: torch's own")
    parser.add_argument("--device", help="default: a GPU where there is one with kernels for it")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="to spend on all sides together")
    parser.add_argument("--side", action="append", choices=SIDES, help="only these, ours always; may be repeated")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    arguments = parser.parse_args(argv)
    sides = [side for side in SIDES if side == OURS or not arguments.side or side in arguments.side]
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        folder = None if arguments.out is None else file_folder(arguments.out)
        device = choose_device(arguments.device)
    except (OptionError, OutputError) as error:
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return USAGE
    results = measure(
        device,
        width=arguments.width,
        size=arguments.size,
        batch_size=arguments.batch_size,
        seconds=arguments.seconds,
        sides=sides,
    )
    print(table(results))
    if folder is not None:
        results["environment"] = environment.describe(device)
        folder.write_text(arguments.out.name, json.dumps(results, indent=2, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
