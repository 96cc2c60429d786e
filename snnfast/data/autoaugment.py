"""AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019, tables 6 and 7), on a whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from snnfast.data.pixels import blend, check_rgb, drawn, grey

# Two steps in a row: an operation, its probability and its magnitude from 0 to 9. What has none is written with 0.
_CIFAR10 = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("auto_contrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("auto_contrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
)
_MOST = 9
_GREY = 0.5
"""What comes in from outside of an image."""


def auto_augment(images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """AutoAugment with its policy for CIFAR-10 (Cubuk et al. 2019): each image gets one of 25 pairs of operations.

    An operation of the pair is done with its own probability, at its own magnitude, from the ranges of the paper's
    table 6: shears up to 0.3, translations up to 150/331 of the image, rotations up to 30 degrees, each in either
    direction; brightness, color, contrast and sharpness by factors from 0.1 to 1.9; posterizing to 8 to 4 bits;
    solarizing above 256 to 0; inversion, equalization and the greatest contrast. What comes in from outside of an image
    is grey (0.5). Differs from Pillow, on which the paper's authors built it, by rounding to 8 bits alone.

    Args:
        images: float [B, 3, H, W] with intensities from 0 to 1.
        generator: see :mod:`snnfast.data.augment`; one on the CPU spares a GPU the waiting for its numbers.

    Raises:
        TypeError: not a float tensor.
        ValueError: another shape.
    """
    check_rgb("AutoAugment", images)
    numbers = drawn(images, generator, 5).cpu()
    pairs = (numbers[:, 0] * len(_CIFAR10)).long().clamp(max=len(_CIFAR10) - 1)  # rounding could make it the whole
    directions = torch.where(numbers[:, 3:] < 0.5, -1.0, 1.0)
    images = images.clone()
    names = list(_OPERATIONS)
    for step in range(2):
        codes, shares, magnitudes = (
            torch.tensor(column)[pairs]
            for column in zip(*((names.index(pair[step][0]), *pair[step][1:]) for pair in _CIFAR10), strict=True)
        )
        codes[numbers[:, 1 + step] >= shares] = -1
        values = torch.stack([magnitudes / _MOST, directions[:, step]])
        for code, operation in enumerate(_OPERATIONS.values()):
            chosen = (codes == code).nonzero().flatten()
            if len(chosen):
                magnitude, direction = values[:, chosen].to(images.device, images.dtype, non_blocking=True)
                places = chosen.to(images.device, non_blocking=True)
                images[places] = operation(images[places], magnitude, direction)
    return images


# Each operation takes images [N, 3, H, W], magnitudes [N] from 0 to 1, directions [N], -1 or 1; it gives new images.


def _invert(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    return 1 - images


def _auto_contrast(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    least, most = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    varies = most > least
    return torch.where(varies, (images - least) / torch.where(varies, most - least, 1.0), images).clamp(0, 1)


def _equalize(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    """Each channel's levels so that each is as frequent as any, by Pillow's rule."""
    levels = _levels(images).flatten(2).long()
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    above = torch.arange(256, device=images.device) * (counts > 0)
    brightest = counts.gather(2, above.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    # Half a step, and what is darker, counted in steps; where there is no step the channel stays.
    table = ((step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return (table.gather(2, levels) / 255).to(images.dtype).view_as(images)


def _posterize(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    kept = 2 ** _each(4 * magnitude).round()  # of 8 bits the lowest 0 to 4 go
    return ((_levels(images) / kept).floor() * kept / 255).to(images.dtype)


def _solarize(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    return torch.where(_levels(images) >= 256 * (1 - _each(magnitude)), 1 - images, images)


def _color(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    return blend(images, grey(images), _factor(magnitude))


def _contrast(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    return blend(images, grey(images).mean((2, 3), keepdim=True), _factor(magnitude))


def _brightness(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    return blend(images, torch.zeros_like(images), _factor(magnitude))


def _sharpness(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    if min(images.shape[2:]) < 3:
        return images
    weight = images.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(images.shape[1], 1, 3, 3)
    smooth = images.clone()  # at the edges as it is
    smooth[..., 1:-1, 1:-1] = F.conv2d(images, weight, groups=images.shape[1])
    return blend(images, smooth, _factor(magnitude))


def _shear_x(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    return _moved(images, column=(0.0, 0.3 * magnitude * direction, 0.0))


def _shear_y(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    return _moved(images, row=(0.3 * magnitude * direction, 0.0, 0.0))


def _translate_x(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    return _moved(images, column=(0.0, 0.0, 150 / 331 * images.shape[3] * magnitude * direction))


def _translate_y(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    return _moved(images, row=(0.0, 0.0, 150 / 331 * images.shape[2] * magnitude * direction))


def _rotate(images: Tensor, magnitude: Tensor, direction: Tensor) -> Tensor:
    """About the middle."""
    angle = math.radians(30) * magnitude * direction
    height, width = images.shape[2:]
    sine, less = angle.sin(), angle.cos() - 1
    x = -(less * width + sine * height) / 2
    y = -(less * height - sine * width) / 2
    return _moved(images, (less, sine, x), (-sine, less, y))


_Line = tuple[Tensor | float, Tensor | float, Tensor | float]


def _moved(images: Tensor, column: _Line = (0.0, 0.0, 0.0), row: _Line = (0.0, 0.0, 0.0)) -> Tensor:
    """At each place (X, Y) the nearest pixel to (X + aX + bY + c, Y + dX + eY + f).

    In pixels from the upper left corner; ``column`` is (a, b, c) and ``row`` (d, e, f), each of all images or [N].
    """
    height, width = images.shape[2:]
    across = (torch.arange(width, device=images.device) + 0.5)[None, None, :]
    down = (torch.arange(height, device=images.device) + 0.5)[None, :, None]

    def along(place: Tensor, line: _Line) -> Tensor:
        terms = (torch.as_tensor(term, device=images.device).float().expand(len(images)) for term in line)
        of_x, of_y, shift = (term[:, None, None] for term in terms)
        return (place + of_x * across + of_y * down + shift).floor().long()  # [N, H, W]

    columns, rows = along(across, column), along(down, row)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)
    found = images.flatten(2).gather(2, places[:, None].expand(-1, images.shape[1], -1)).view_as(images)
    return found.masked_fill(~inside[:, None], _GREY)


def _levels(images: Tensor) -> Tensor:
    """Intensities of 8 bits, 0 to 255, in float32."""
    return (images.float() * 255).round().clamp(0, 255)


def _factor(magnitude: Tensor) -> Tensor:
    return _each(0.1 + 1.8 * magnitude)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


_OPERATIONS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "invert": _invert,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "solarize": _solarize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
}
