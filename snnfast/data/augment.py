"""Random flips, crops and colours for batches of images, on their own device (the paper's section 3.1).

Every function takes float images [B, C, H, W] with intensities from 0 to 1, gives each image its own random numbers,
works on the whole batch at once, and returns new images of the same shape, dtype and device. The random numbers come
from ``generator`` and are drawn on its device: a CPU generator means the same augmentation on every device, one on the
images' device saves the copy of a few numbers per image. None is the default generator of the images' device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from snnfast._arguments.checks import dense, integer, number_within
from snnfast._arguments.checks import generator as check_generator

__all__ = ["CIFAR", "Augmentation", "color_jitter", "horizontal_flip", "random_crop"]

MOST_PADDING = 2**16  # pixels: more than any image has
_LUMA = (0.299, 0.587, 0.114)  # red's, green's and blue's share of the grey that the eye sees (ITU-R BT.601)


@dataclass(frozen=True)
class Augmentation:
    """Flip, crop and colour jitter in that order: ``augment(images, generator=None)``.

    * ``flip``: the probability of :func:`horizontal_flip`.
    * ``padding``: of :func:`random_crop`, in pixels.
    * ``brightness``, ``contrast``, ``saturation``, ``hue``: of :func:`color_jitter`; where all are 0, images may have
      any number of channels.

    What is 0 is left out and draws no random numbers. Raises TypeError or ValueError for an option out of its range.
    """

    flip: float = 0.5
    padding: int = 4
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05

    def __post_init__(self) -> None:
        _check_share("flip", self.flip)
        _check_padding(self.padding)
        for field in fields(self)[2:]:
            _check_strength(field.name, getattr(self, field.name))

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augmented images; see :mod:`snnfast.data.augment`."""
        _check_images(images)
        if self.flip:
            images = horizontal_flip(images, self.flip, generator=generator)
        if self.padding:
            images = random_crop(images, self.padding, generator=generator)
        strengths = {field.name: getattr(self, field.name) for field in fields(self)[2:]}
        return color_jitter(images, **strengths, generator=generator) if any(strengths.values()) else images


def horizontal_flip(images: Tensor, probability: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """Mirrors left and right, each image with ``probability`` (0 to 1).

    Raises TypeError for what are no float images [B, C, H, W], ValueError for another shape or probability.
    """
    _check_images(images)
    _check_share("probability", probability)
    flipped = _uniform(images, generator) < probability
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def random_crop(images: Tensor, padding: int = 4, *, generator: torch.Generator | None = None) -> Tensor:
    """Moves each image by up to ``padding`` whole pixels in each direction: a crop of its size, out of a black margin.

    Raises as :func:`horizontal_flip`, ValueError for a negative padding.
    """
    _check_images(images)
    _check_padding(padding)
    places = 2 * padding + 1
    # Rounding could make a share of just below 1 the whole.
    top, left = ((_uniform(images, generator) * places).long().clamp(max=places - 1) for _ in range(2))
    padded = F.pad(images, (padding,) * 4)
    # All the crops that there are, as views [B, C, top, left, H, W]: only those that are wanted are copied.
    windows = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


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
    _check_images(images)
    if images.shape[1] != 3:
        raise ValueError(f"colour jitter needs RGB images [B, 3, H, W], got {list(images.shape)}")
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for name, strength in strengths.items():
        _check_strength(name, strength)

    def factor(strength: float) -> Tensor:
        low = max(0.0, 1 - strength)
        share = _uniform(images, generator)[:, None, None, None]
        return low + (1 + strength - low) * share

    if brightness:
        images = (images * factor(brightness)).clamp(0, 1)
    if contrast:
        images = _blend(images, _grey(images).mean((2, 3), keepdim=True), factor(contrast))
    if saturation:
        images = _blend(images, _grey(images), factor(saturation))
    if hue:
        turn = hue * (2 * _uniform(images, generator) - 1)
        images = _turn_hue(images, turn[:, None, None])
    return images


def _blend(images: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    return (base + factor * (images - base)).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, 1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


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


def _uniform(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """One number from [0, 1) per image, on the images' device and in their dtype."""
    check_generator("generator", generator)
    device = images.device if generator is None else generator.device
    # float32 whatever the images are, so that the seed alone decides.
    drawn = torch.rand(len(images), generator=generator, device=device, dtype=torch.float32)
    return drawn.to(images.device, images.dtype, non_blocking=True)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor with intensities from 0 to 1, got {got}")
    dense("images", images)
    if images.dim() != 4:
        raise ValueError(f"images must have the shape [B, C, H, W], got {list(images.shape)}")


def _check_share(name: str, value: float) -> None:
    number_within(name, value, least=0, most=1)


def _check_padding(padding: int) -> None:
    integer("padding", padding, least=0, most=MOST_PADDING)


def _check_strength(name: str, value: float) -> None:
    number_within(name, value, least=0, most=0.5 if name == "hue" else None)


CIFAR = Augmentation()
"""What the paper names for CIFAR-10 and CIFAR-100. It gives no strengths; the padding of 4 is the field's, the jitter's
are mild ones of our choice."""
