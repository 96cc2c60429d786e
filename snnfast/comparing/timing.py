"""Timing: medians of interleaved runs, and whether other processes disturbed them."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

Step = Callable[[], object]
"""One iteration of one side: runs the workload once and drops its results."""


class CpuClock:
    """Wall-clock time of an iteration, in seconds."""

    # A sample spans at least this long, so that the clock's own cost vanishes, and what the side before it left in the
    # caches falls on a few of its iterations only.
    shortest = 5e-3

    def sample(self, step: Step, times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            step()
        return (time.perf_counter() - begin) / times


class CudaClock:
    """Device time of an iteration by events, in seconds.

    A sample queues several iterations between its two events: the device then works while the host queues the next, and
    the time is the device's. Where the host is slower than the device (tiny tensors), it is the host's, as for a user.
    """

    shortest = 2e-3

    def sample(self, step: Step, times: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(times):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / times


Clock = CpuClock | CudaClock


def clock_for(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else CpuClock()


@dataclass(frozen=True)
class Timing:
    """Seconds per iteration: the median of `samples` samples, and their quartiles and minimum."""

    median: float
    lower: float
    upper: float
    least: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        lower, median, upper = (
            statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
        )
        return cls(median, lower, upper, min(samples), len(samples))

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def interleaved(
    steps: Mapping[str, Step], clock: Clock, *, seconds: float, fewest: int = 7, most: int = 400
) -> dict[str, Timing]:
    """Times all sides in turns: A B C, B C A, C A B, ..., so that a neighbour's load falls on all of them alike.

    Args:
        steps: a name and an iteration per side; each has run at least once before.
        clock: how a sample is taken.
        seconds: time to spend on all sides together.
        fewest, most: bounds on the number of rounds, whatever the time; but on a machine so slow or loaded that they
            take thrice the time and two seconds more, three rounds do.
    """
    repeats, a_round = {}, 0.0
    for name, step in steps.items():
        clock.sample(step, 1)
        once = max(min(clock.sample(step, 1), clock.sample(step, 1)), 1e-7)
        repeats[name] = max(1, min(2000, math.ceil(clock.shortest / once)))
        a_round += once * repeats[name]
    rounds = max(fewest, min(most, int(seconds / a_round)))
    names = list(steps)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on one side
    try:
        begin = time.perf_counter()
        for turn in range(rounds):
            if turn >= 3 and time.perf_counter() - begin > 3 * seconds + 2:
                break
            at = turn % len(names)
            for name in names[at:] + names[:at]:
                samples[name].append(clock.sample(steps[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(taken) for name, taken in samples.items()}


class Neighbours:
    """How many cores other processes keep busy, from /proc/stat; for a machine whose cores are all in use.

    A neighbour's load does not slow all sides alike: it stalls every parallel region by several ms, so that a side of
    many small operations looks ten times slower than it is. A ratio taken then means nothing, and must be marked.
    """

    def __init__(self) -> None:
        self._begin = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        try:
            with open("/proc/stat") as stat:
                user, nice, system, _, _, irq, softirq, steal = (int(n) for n in stat.readline().split()[1:9])
        except (OSError, ValueError):
            return None
        own = os.times()
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, own.user + own.system

    def cores(self) -> float | None:
        """Cores that others used since this was made, on average; 0 while some core was idle, None if unknown."""
        end = self._now()
        if end is None or self._begin is None:
            return None
        wall, busy, own = (after - before for after, before in zip(end, self._begin, strict=True))
        if wall <= 0 or busy / wall < 0.9 * (os.cpu_count() or 1):
            return 0.0
        return max(0.0, (busy - own) / wall)
