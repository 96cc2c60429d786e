"""What a data set is here: two splits of images and labels, held as tensors on one device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from snnfast._arguments.checks import flag, generator, integer


class DataError(ValueError):
    """A data set that is unknown, or whose files are missing, truncated, or not what their name says."""


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    ``images`` is uint8 ``[N, C, H, W]`` as the files store it, ``full_scale`` the stored value that means full
    intensity, and ``labels`` int64 ``[N]``. Images stay uint8 until a batch is asked for: a quarter of the memory,
    and cheap to keep on a GPU.
    """

    images: torch.Tensor
    labels: torch.Tensor
    full_scale: float

    def __len__(self) -> int:
        return self.images.shape[0]

    def __repr__(self) -> str:
        return f"Split({len(self)} images {list(self.images.shape[1:])}, {self.images.dtype}, {self.images.device})"

    def __getitem__(self, index: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Intensities from 0 to 1, float32 ``[n, C, H, W]``, and labels, int64 ``[n]``."""
        return self.images[index].to(torch.float32).div_(self.full_scale), self.labels[index]

    def to(self, device: torch.device | str) -> Split:
        """The same split with its tensors on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batches(
        self, batch_size: int, *, shuffle: torch.Generator | None = None, drop_last: bool = False
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One pass over the split in batches of ``batch_size``.

        With ``shuffle``, a CPU generator, the order is a permutation drawn from it when the pass begins; without, it
        is the stored one. ``drop_last`` leaves out a last batch that is not full. Raises ``ValueError`` for a batch
        size below 1.
        """
        integer("batch_size", batch_size, least=1)
        generator("shuffle", shuffle)
        flag("drop_last", drop_last)
        order = None
        if shuffle is not None:
            # Drawn on the CPU whatever the device, so that a seed means the same order everywhere.
            order = torch.randperm(len(self), generator=shuffle).to(self.images.device)
        end = len(self) - len(self) % batch_size if drop_last else len(self)
        for start in range(0, end, batch_size):
            part = slice(start, min(start + batch_size, end))
            yield self[part if order is None else order[part]]


@dataclass(frozen=True)
class ImageData:
    """A data set: its name, the number of classes, and its training and test splits, whose images have one shape."""

    name: str
    classes: int
    train: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> ImageData:
        """The same data set with its tensors on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))
