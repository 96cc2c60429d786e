"""What is not of the kind that a parameter is of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

import snnfast as sf


def nested(*shape: int) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(n, *shape[1:]) for n in (shape or (2,))[:1] * 2])


def mkldnn(*shape: int) -> torch.Tensor:
    return torch.ones(shape or (1,)).to_mkldnn()


HUGE = [2**31, 2**63, 10**30, -(2**63) - 1]
NO_TENSOR = [None, 1.0, [1.0], "x", np.ones(3, np.float32)]


def kinds() -> dict[str, list[Any]]:
    """What is not of a kind. Those that some parameters do take are left out by the table."""
    return {
        "flag": [1, 0, "yes", "False", None, torch.tensor(True), torch.ones(2), np.bool_(True), np.ones(2, bool), []],
        "flag or None": [1, 0, "yes", torch.tensor(True), torch.ones(2), np.bool_(True), np.ones(2, bool), []],
        "number": ["1", None, True, [1.0], np.ones(2), 1j, math.nan, 10**400, torch.ones(2, 2, dtype=torch.bool)],
        "one number": ["1", None, True, [1.0], np.ones(2), 1j, math.nan, 10**400, torch.tensor(0.5), torch.ones(2)],
        "size": [1.0, "3", None, True, [1], np.ones(2), torch.tensor(3), -1, 0, *HUGE],
        "features": [1.0, "3", None, True, [1], np.ones(2), torch.tensor(3), -1, *HUGE],
        "steps or None": [1.0, "3", True, [1], np.ones(2), torch.tensor(3), -1, 0, *HUGE],
        "count": [1.0, "3", None, True, [1], np.ones(2), torch.tensor(3), -1, *HUGE[1:]],
        "axis": [1.0, "0", None, True, [1], np.ones(2), torch.tensor(1), -1, 2, 2**63],
        "word": [1, None, "nonsense", "", [], ["hard"], np.array(["hard", "soft"]), torch.ones(2), True],
        "floats": [
            *NO_TENSOR,
            torch.ones(2, 3, 4, dtype=torch.int64),
            torch.ones(2, 3, 4, dtype=torch.complex64),
            torch.ones(2, 3, 4).to_sparse(),
            nested(3, 4),
            mkldnn(2, 3, 4),
        ],
        "floats or None": [
            *NO_TENSOR[1:],
            torch.ones(2, 3, 4, dtype=torch.int64),
            torch.ones(3, dtype=torch.bool),
            torch.ones(2, 3, 4).to_sparse(),
            nested(3, 4),
            mkldnn(2, 3, 4),
        ],
        "tensor": [*NO_TENSOR, nested(3, 4), mkldnn(2, 3, 4), torch.ones(2, 3, 4).to_sparse()],
        "surrogate": [1, "FastSigmoid", sf.surrogate.FastSigmoid, [], torch.ones(2), np.ones(2)],
        "module": [None, 1, "x", [], nn.Linear, torch.ones(2)],
        "module or None": [1, "x", [], nn.Linear, torch.ones(2)],
        "batches": [None, 1, iter([]), [], [1], [(torch.ones(1),)], torch.tensor(1.0)],
        "function": [None, 1, "x", torch.ones(2)],
        "device": [-1, -(2**63), 10**30, "", "nonsense", "cuda:-1", "cuda:99999999999", 1.5, [], torch.ones(2)],
        "dtype": ["float32", 1, torch.int64, torch.bool, torch.complex64, [], torch.ones(2)],
        "group": [1, "nonsense", [], torch.ones(2)],
        "generator": [1, "x", [], torch.ones(2), True],
        "path": [1.5, [], torch.ones(2)],
    }


KINDS = kinds()
KINDS |= {
    "momentum": [v for v in KINDS["one number"] if v is not None] + [-0.5, 1.5],
    "number or None": [v for v in KINDS["number"] if v is not None],
    "sample": [None, 1, [1.0], "x"],
    "widths": [1, None, "abc", (1, 2), (1, 2, 3, 4), (0, 1, 1), (1.0, 2, 3), (1, 2, 2**63), [True, 1, 1], "123"],
    "image shape": [1, None, "abc", (1, 8), (1, 8, 8, 8), (0, 8, 8), (1.0, 8, 8), (1, 2**63, 2**63), (-1, 8, 8)],
    "layers": [6, None, "5", 5.0, True, [], torch.ones(2), 2**63],
    "options": [1, "x", [1], None],
    "options or None": [1, "x", [1]],
    "function or None": KINDS["function"][1:],
    "images": [None, 1, [], [1], [None]],
}
