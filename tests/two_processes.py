"""Two gloo processes for the tests of several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# A thread of gloo that outlives its group, which FullyShardedDataParallel keeps, may let go of a tensor while Python is
# finalizing, and end the process (snnfast.training.processes has the whole of it): it is left before that.
LEAVE = "\nimport os, sys; sys.stdout.flush(); sys.stderr.flush(); os._exit(0)\n"


def reports(worker: str, folder: Path, *cases: Any) -> list[Any]:
    """Runs the program ``worker`` as two processes and returns what each printed after "REPORT", read as JSON.

    Its arguments are its number, a file to meet at in ``folder``, and ``cases`` as JSON. Skips where torch has no gloo.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    store = folder / "file"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")}
    workers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", worker + LEAVE, str(rank), str(store), *map(json.dumps, cases)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        done = [process.communicate(timeout=150) for process in workers]
    finally:
        for process in workers:
            process.kill()
    for process, (_, errors) in zip(workers, done, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.split("REPORT")[1].splitlines()[0]) for output, _ in done]
