"""How fast a kernel can be: a closed queueing network of a multiprocessor's scheduler and the memory behind it.

A warp's way through a kernel (emulator.py) is a number of instructions to issue, of bytes to move, and of cycles in
which it waits for its loads and does nothing else. The warps that are resident at once do so side by side: they queue
for the scheduler, for the slow pipes, for the memory and for the second-level cache, and wait for latencies without
queueing. Mean-value analysis (Reiser and Lavenberg 1980) gives how many warps a cycle that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sass.emulator import Step
from sass.listing import Kernel

LATENCIES = (650, 775, 900)
"""Cycles from a load to its value from memory, under load; the middle one is what tables show."""

CACHED = 150  # cycles to a value that was read before, from the first-level cache or the second
SHARED = 30  # cycles to a value in shared memory, and of a barrier between few warps
SECTOR = 32  # bytes
COPY = 0.92  # of the peak bandwidth that a copy reaches, which is what predictions are fractions of

TENSORS, TABLES = 1 << 44, (1 << 44) + (6 << 40)  # where arguments.cpp has tensors with time; all else is small

PIPES = {
    "MUFU": 8.0,  # cycles of a scheduler's share of a pipe that a warp's instruction takes, where it is more than 1
    "F2F": 8.0,
    "F2FP": 2.0,
    "I2F": 8.0,
    "F2I": 8.0,
    "DADD": 2.0,
    "DMUL": 2.0,
    "DFMA": 2.0,
    "LDG": 2.0,
    "STG": 2.0,
    "LDL": 2.0,
    "STL": 2.0,
    "LDS": 2.0,
    "STS": 2.0,
}


@dataclass(frozen=True)
class Device:
    """Of a GPU, as its makers state it."""

    name: str
    architecture: str
    multiprocessors: int
    clock: float  # GHz
    bandwidth: float  # GB/s of memory, at peak
    cache_bandwidth: float  # GB/s of the second-level cache
    warps: int = 64  # of a multiprocessor at most
    shared: int = 228 << 10  # bytes of a multiprocessor
    doubles: float = 2.0  # cycles of a warp's instruction on float64

    def per_scheduler(self, bandwidth: float) -> float:
        """Bytes a cycle for each of a multiprocessor's four schedulers."""
        return bandwidth / self.clock / self.multiprocessors / 4


DEVICES = (
    Device("A100", "sm_80", 108, 1.41, 2039, 5100, shared=164 << 10),
    Device("H100", "sm_90", 132, 1.755, 3350, 5500),
    Device("H200", "sm_90", 132, 1.755, 4800, 7000),
    Device("RTX 5090", "sm_120", 170, 2.41, 1792, 7000, warps=48, shared=100 << 10, doubles=16.0),
)


@dataclass(frozen=True)
class Way:
    """A warp's way through a kernel."""

    instructions: int
    bytes: int  # to and from memory
    loaded: int  # of these, from it
    sectors: int  # that the second-level cache is asked for
    waits: dict[int, float]  # by latency: cycles in which nothing is issued
    together: int  # loads in flight at once, at most
    narrowest: int  # bytes of the narrowest access that moves packs
    spilled: int  # local loads and stores
    pipes: dict[str, float]  # cycles of the slow ones


def way(steps: Sequence[Step], wide: int, element: int) -> Way:
    """Of the steps of one thread, whose neighbours access the memory beside it.

    Args:
        wide: bytes of a thread's packs.
        element: bytes of one value; what loads a single one (a channel's pivot) is no pack.
    """
    memory = [step.access for step in steps if step.access and not step.access.local]
    packs = [one for one in memory if TENSORS <= one.address < TABLES and (one.store or one.bytes > element)]
    seen: set[int] = set()
    moved = loaded = sectors = 0
    for one in memory:
        # A store of less than a thread's pack asks for as many sectors as one of all of it would.
        sectors += 32 * max(wide if one.store else 0, one.bytes) // SECTOR if one in packs else 1
        if one in packs and (one.store or one.address not in seen):
            moved += 32 * one.bytes
            loaded += 0 if one.store else 32 * one.bytes
        seen.add(one.address)
    pipes: dict[str, float] = {}
    for step in steps:
        kind = step.opcode.split(".")[0]
        if kind in PIPES:
            pipe = "memory" if kind[:2] in ("LD", "ST") else "double" if kind[0] == "D" else "special"
            pipes[pipe] = pipes.get(pipe, 0.0) + PIPES[kind]
    timed = {latency: timeline(steps, latency) for latency in LATENCIES}
    return Way(
        instructions=len(steps),
        bytes=moved,
        loaded=loaded,
        sectors=sectors,
        waits={latency: waited for latency, (waited, _) in timed.items()},
        together=timed[LATENCIES[1]][1],
        narrowest=min((one.bytes for one in packs), default=0),
        spilled=sum(step.access.local for step in steps if step.access),
        pipes=pipes,
    )


def timeline(steps: Sequence[Step], latency: int) -> tuple[float, int]:
    """One warp alone: cycles that it waits for loads, and how many are in flight at most."""
    now, waited, most = 0.0, 0.0, 0
    ready: dict[str, float] = {}
    flying: list[float] = []
    seen: set[int] = set()
    for step in steps:
        needed = max((ready.pop(name) for name in [*step.reads, *step.writes] if name in ready), default=now)
        if needed > now:
            waited += needed - now
            now = needed
        now += 1
        kind = step.opcode.split(".")[0]
        if kind == "LDG" and step.access:
            cached = step.access.address in seen
            seen.add(step.access.address)
            done = now + (CACHED if cached else latency)
            if not cached:
                flying = [*(one for one in flying if one > now), done]
                most = max(most, len(flying))
            ready.update(dict.fromkeys(step.writes, done))
        elif kind in ("LDS", "LDL"):
            ready.update(dict.fromkeys(step.writes, now + SHARED))
        elif kind == "BAR":
            waited += SHARED
            now += SHARED
    return waited, most


def resident_warps(device: Device, registers: int, shared: int, threads: int = 128) -> int:
    """Of a multiprocessor that holds as many blocks as it can."""
    of_block = threads // 32
    by_registers = 65536 // (-(-registers * 32 // 256) * 256) // of_block
    by_shared = device.shared // (shared + 1024)
    return min(by_registers, by_shared, device.warps // of_block) * of_block


def throughput(customers: int, demands: Sequence[float], delay: float, stays: Sequence[float] = ()) -> float:
    """Of a closed network, by mean-value analysis: visits a cycle of stations that take ``demands`` cycles each and of
    a delay without a queue.

    A warp's demand is always the same, so that of the customer in service half is left on average (Lazowska and others
    1984, for service times without variance; the exact analysis is for exponential ones).

    Args:
        stays: of each station, the share of its demand that a customer stays for; the rest it leaves behind for the
            station to do meanwhile. 1 without.
    """
    stays = stays or [1.0] * len(demands)
    queues = [0.0] * len(demands)
    found = 0.0
    for n in range(1, customers + 1):
        residences = [d * (1 + q - min(found * d, 1.0) / 2) for d, q in zip(demands, queues, strict=True)]
        found = n / (delay + sum(r * stay for r, stay in zip(residences, stays, strict=True)))
        found = min(found, 1 / max(demands))
        queues = [found * residence for residence in residences]
    return found


@dataclass(frozen=True)
class Prediction:
    """Of one kernel on one device, at the middle of the latencies, and at the worst."""

    fraction: float
    worst: float
    warps: int


def predict(device: Device, taken: Way, useful: int, kernel: Kernel) -> Prediction:
    """``useful``: bytes that a warp must move, which are what counts as done."""
    warps = resident_warps(device, kernel.registers, kernel.shared)
    copied = device.per_scheduler(device.bandwidth) * COPY
    pipes = [cycles * (device.doubles / 2 if name == "double" else 1) for name, cycles in taken.pipes.items()]
    demands = [
        float(taken.instructions),
        taken.bytes / copied,
        taken.sectors * SECTOR / device.per_scheduler(device.cache_bandwidth),
        *pipes,
    ]
    # A warp goes on while what it stored is on its way.
    loads = taken.loaded / taken.bytes
    stays = [1.0, loads, loads, *(1.0 for _ in pipes)]
    rates = [throughput(max(warps // 4, 1), demands, wait, stays) for wait in taken.waits.values()]
    fractions = [min(rate * useful / copied, 1.0) for rate in rates]
    middle = fractions[len(fractions) // 2]
    return Prediction(middle, min(fractions), warps)
