"""Random flips, crops and colours for batches of images, on their own device (the paper's section 3.1), and more.

Every function takes float images [B, C, H, W] with intensities from 0 to 1, gives each image its own random numbers,
works on the whole batch at once, and returns new images of the same shape, dtype and device. The random numbers come
from ``generator`` and are drawn on its device: a CPU generator means the same augmentation on every device, one on the
images' device saves the copy of a few numbers per image. None is the default generator of the images' device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from snnfast._arguments.checks import flag, integer, number_within
from snnfast.data.autoaugment import auto_augment
from snnfast.data.pixels import blend, check_images, check_rgb, grey, place, uniform

__all__ = [
    "CIFAR",
    "CIFAR_STRONG",
    "Augmentation",
    "auto_augment",
    "color_jitter",
    "cutout",
    "horizontal_flip",
    "random_crop",
]

MOST_PIXELS = 2**16  # more than any image has in a row
_STRENGTHS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Augmentation:
    """Flip, crop, colour jitter, AutoAugment and cutout in that order: ``augment(images, generator=None)``.

    * ``flip``: the probability of :func:`horizontal_flip`.
    * ``padding``: of :func:`random_crop`, in pixels.
    * ``brightness``, ``contrast``, ``saturation``, ``hue``: of :func:`color_jitter`.
    * ``auto``: whether :func:`auto_augment` is used. Without it and with strengths of 0, images may have any number of
      channels.
    * ``cutout``: the side of :func:`cutout`'s square, in pixels.

    What is 0 or False is left out and draws no random numbers. Raises TypeError or ValueError for an option out of its
    range.
    """

    flip: float = 0.5
    padding: int = 4
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    auto: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        _check_share("flip", self.flip)
        _check_pixels("padding", self.padding)
        for name, strength in self._strengths().items():
            _check_strength(name, strength)
        flag("auto", self.auto)
        _check_pixels("cutout", self.cutout)

    def _strengths(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in _STRENGTHS}

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augmented images; see :mod:`snnfast.data.augment`."""
        check_images(images)
        if self.flip:
            images = horizontal_flip(images, self.flip, generator=generator)
        if self.padding:
            images = random_crop(images, self.padding, generator=generator)
        if any(self._strengths().values()):
            images = color_jitter(images, **self._strengths(), generator=generator)
        if self.auto:
            images = auto_augment(images, generator=generator)
        return cutout(images, self.cutout, generator=generator) if self.cutout else images


def horizontal_flip(images: Tensor, probability: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """Mirrors left and right, each image with ``probability`` (0 to 1).

    Raises TypeError for what are no float images [B, C, H, W], ValueError for another shape or probability.
    """
    check_images(images)
    _check_share("probability", probability)
    flipped = uniform(images, generator) < probability
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def random_crop(images: Tensor, padding: int = 4, *, generator: torch.Generator | None = None) -> Tensor:
    """Moves each image by up to ``padding`` whole pixels in each direction: a crop of its size, out of a black margin.

    Raises as :func:`horizontal_flip`, ValueError for a negative padding.
    """
    check_images(images)
    _check_pixels("padding", padding)
    places = 2 * padding + 1
    top, left = (place(images, generator, places) for _ in range(2))
    padded = F.pad(images, (padding,) * 4)
    # All the crops that there are, as views [B, C, top, left, H, W]: only those that are wanted are copied.
    windows = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def cutout(images: Tensor, size: int = 16, *, generator: torch.Generator | None = None) -> Tensor:
    """Makes a square of each image grey (0.5): of ``size`` pixels, around any of the image's (DeVries and Taylor 2017).

    At the edges part of it lies outside. That paper has 16 for CIFAR-10 and 8 for CIFAR-100. Raises as
    :func:`horizontal_flip`, ValueError for a negative size.
    """
    check_images(images)
    _check_pixels("size", size)
    inside = []
    for length in images.shape[2:]:
        first = place(images, generator, length) - size // 2
        along = torch.arange(length, device=images.device)
        inside.append((along >= first[:, None]) & (along < first[:, None] + size))
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.5)


def color_jitter(
    images: Tensor,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    hue: float = 0.05,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Changes brightness, contrast, saturation and hue of RGB images, in that order; intensities stay within 0 to 1.

    Args:
        images: [B, 3, H, W].
        brightness: intensities are multiplied by a factor from [1 - brightness, 1 + brightness], at least 0.
        contrast: so is their distance from the image's mean grey.
        saturation: so is their distance from the pixel's grey.
        hue: colours are turned by up to this part of the colour circle, in either direction; at most 0.5.
        generator: see :mod:`snnfast.data.augment`. A strength of 0 leaves its property as it is, exactly.

    Raises:
        TypeError: not a float tensor, or a strength that is no number.
        ValueError: another shape, a strength below 0 or not finite, a hue above 0.5.
    """
    check_rgb("colour jitter", images)
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for name, strength in strengths.items():
        _check_strength(name, strength)

    def factor(strength: float) -> Tensor:
        low = max(0.0, 1 - strength)
        share = uniform(images, generator)[:, None, None, None]
        return low + (1 + strength - low) * share

    if brightness:
        images = (images * factor(brightness)).clamp(0, 1)
    if contrast:
        images = blend(images, grey(images).mean((2, 3), keepdim=True), factor(contrast))
    if saturation:
        images = blend(images, grey(images), factor(saturation))
    if hue:
        turn = hue * (2 * uniform(images, generator) - 1)
        images = _turn_hue(images, turn[:, None, None])
    return images


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Adds ``turn`` (a part of the circle) to the hue in hexagonal coordinates; value and chroma stay."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))  # grey has no hue, and comes out grey
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = sextant + 6 * turn
    # How far each of red, green and blue is below the value: not at all within one sextant of its own hue on either
    # side, by the whole chroma from two sextants on.
    distances = ((hue - own + 3).remainder(6).sub(3).abs() for own in (0, 2, 4))
    return torch.stack([value - chroma * (distance - 1).clamp(0, 1) for distance in distances], 1).clamp(0, 1)


def _check_share(name: str, value: float) -> None:
    number_within(name, value, least=0, most=1)


def _check_pixels(name: str, value: int) -> None:
    integer(name, value, least=0, most=MOST_PIXELS)


def _check_strength(name: str, value: float) -> None:
    number_within(name, value, least=0, most=0.5 if name == "hue" else None)


CIFAR = Augmentation()
"""What the paper names for CIFAR-10 and CIFAR-100. It gives no strengths; the padding of 4 is the field's, the jitter's
are mild ones of our choice."""

CIFAR_STRONG = Augmentation(brightness=0, contrast=0, saturation=0, hue=0, auto=True, cutout=16)
"""Flips and crops, AutoAugment's policy for CIFAR-10 in the place of the jitter, and cutout. Beyond the paper."""
