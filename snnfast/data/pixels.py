"""What every augmentation of batches of images needs: their checks, random numbers for each image, and grey."""

from __future__ import annotations

import torch
from torch import Tensor

from snnfast._arguments.checks import dense
from snnfast._arguments.checks import generator as check_generator

_LUMA = (0.299, 0.587, 0.114)  # red's, green's and blue's share of the grey that the eye sees (ITU-R BT.601)


def check_images(images: Tensor) -> None:
    """Raises unless ``images`` is a float tensor [B, C, H, W]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor with intensities from 0 to 1, got {got}")
    dense("images", images)
    if images.dim() != 4:
        raise ValueError(f"images must have the shape [B, C, H, W], got {list(images.shape)}")


def check_rgb(what: str, images: Tensor) -> None:
    """Raises unless ``images`` is a float tensor [B, 3, H, W]; ``what`` needs it."""
    check_images(images)
    if images.shape[1] != 3:
        raise ValueError(f"{what} needs RGB images [B, 3, H, W], got {list(images.shape)}")


def drawn(images: Tensor, generator: torch.Generator | None, *shape: int) -> Tensor:
    """Numbers from [0, 1) for each image, float32 [B, *shape], on the generator's device (default: the images')."""
    check_generator("generator", generator)
    device = images.device if generator is None else generator.device
    # float32 whatever the images are, so that the seed alone decides.
    return torch.rand(len(images), *shape, generator=generator, device=device, dtype=torch.float32)


def uniform(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """One number from [0, 1) per image, on the images' device and in their dtype."""
    return drawn(images, generator).to(images.device, images.dtype, non_blocking=True)


def place(images: Tensor, generator: torch.Generator | None, places: int) -> Tensor:
    """One whole number from 0 to below ``places`` per image, int64, on the images' device."""
    shares = drawn(images, generator).to(images.device, non_blocking=True)
    return (shares * places).long().clamp(max=places - 1)  # rounding could make a share of just below 1 the whole


def grey(images: Tensor) -> Tensor:
    """The grey of each pixel that the eye sees: [B, 3, H, W] to [B, 1, H, W]."""
    red, green, blue = images.split(1, 1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def blend(images: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    """``base`` at a factor of 0, the images at 1, and beyond them above; intensities stay within 0 to 1."""
    return (base + factor * (images - base)).clamp(0, 1)
