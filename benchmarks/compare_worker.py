"""One revision's side of a comparison: a process that answers requests, a JSON line each, on stdin and stdout."""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from snnfast.comparing.timing import clock_for

from . import random_calls
from .baselines import OURS, find
from .cases import CASES
from .measure import Workload


class Worker:
    """The requests, by name. A case is prepared once and then sampled in bursts, the other revision's in between."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = clock_for(device)
        self.step: Callable[[], object] | None = None
        self.repeats = 1

    def version(self) -> str:
        import snnfast

        return f"{snnfast.__version__} from {snnfast.__path__[0]}"

    def digests(self, first: int, count: int) -> list[dict[str, str]]:
        """What random calls give; an error counts as a result, by its type and words."""
        found = []
        for seed in range(first, first + count):
            try:
                found.append(random_calls.digests(random_calls.draw(seed), self.device))
            except Exception as error:
                found.append({"error": f"{type(error).__name__}: {error}"})
        return found

    def prepare(self, name: str) -> str:
        """Builds a case, runs it, and returns a digest of its results."""
        self.step = None
        case = next(case for case in CASES if case.name == name)
        torch.manual_seed(0)
        workload = Workload.of(case, self.device)
        side = find(OURS).make(case.neuron, self.device)
        result = workload.run(side)
        bits = hashlib.sha256()
        for tensor in (result.output, *result.gradients):
            bits.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.step = workload.step(side)
        once = min(self.clock.sample(self.step, 1) for _ in range(3))
        self.repeats = max(1, min(2000, round(self.clock.shortest / max(once, 1e-7))))
        return bits.hexdigest()

    def sample(self, seconds: float) -> list[float]:
        """Seconds per iteration: the median and the least of the samples that fit that time, three at least."""
        assert self.step is not None, "prepare comes first"
        self.clock.sample(self.step, self.repeats)  # what the other process left in the caches
        taken = [self.clock.sample(self.step, self.repeats)]
        more = max(2, min(200, int(seconds / (taken[0] * self.repeats))))
        taken += [self.clock.sample(self.step, self.repeats) for _ in range(more)]
        return [statistics.median(taken), min(taken)]


def main() -> None:
    worker = Worker(torch.device(sys.argv[1]))
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        try:
            answer = {"value": getattr(worker, request.pop("call"))(**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
