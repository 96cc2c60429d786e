"""What the tests of training runs share: a small run, as options and as a command, and its losses."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import torch

from snnfast.data import ImageData, Split
from snnfast.training import TrainOptions

CPU = torch.device("cpu")


PLAIN = TrainOptions(
    model="plain_net",
    model_options={"layers": 3, "width": 4},
    steps=3,
    epochs=2,
    batch_size=240,
    lr=0.01,
    gamma=2.0,
    device="cpu",
    threads=1,
    checkpoint_every=0,
)


COMMAND = [
    *("train", "--model", "plain_net", "--model-option", "layers=3", "--model-option", "width=4", "--steps", "3"),
    *("--batch-size", "120", "--gamma", "2", "--lr", "0.01", "--device", "cpu", "--threads", "1"),
]


def losses(folder: Path) -> list[float]:
    with (folder / "history.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def run(arguments: list[str], folder: Path, **kwargs: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "snnfast", *arguments, "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def colours(classes: int = 3) -> ImageData:
    """Random colour images, whose labels cannot be learned."""
    generator = torch.Generator().manual_seed(5)
    splits = [
        Split(
            torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator),
            torch.randint(classes, (count,), generator=generator),
            255.0,
        )
        for count in (40, 20)
    ]
    return ImageData("digits", classes, *splits)
