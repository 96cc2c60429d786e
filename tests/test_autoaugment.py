"""AutoAugment's operations are Pillow's, on which its authors built it, and each image draws its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from snnfast.data import autoaugment
from snnfast.data.augment import CIFAR_STRONG, Augmentation, auto_augment, cutout

GREY = (128, 128, 128)
NEVER = ("invert", 0.0, 0)
SIZE = (18, 24)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth images of 8 bits, with a range of levels."""
    coarse = torch.rand(6, 3, 5, 5, generator=seeded(1))
    fine = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bicubic") * 0.8 + 0.1
    return (fine.clamp(0, 1) * 255).round() / 255


def only(monkeypatch: pytest.MonkeyPatch, *step: Any) -> None:
    monkeypatch.setattr(autoaugment, "_CIFAR10", ((step, NEVER),))


def pillow(change: Callable[[Any], Any], image: torch.Tensor) -> torch.Tensor:
    from PIL import Image

    bytes_ = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return torch.from_numpy(np.array(change(Image.fromarray(bytes_)))).permute(2, 0, 1) / 255


def pillows(operation: str, level: float, direction: int) -> Callable[[Any], Any]:
    """The operation as in tables 1 and 6 of the paper; ``level`` from 0 to 1."""
    from PIL import Image, ImageEnhance, ImageOps

    signed, (height, width) = level * direction, SIZE

    def affine(*matrix: float) -> Callable[[Any], Any]:
        return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GREY)

    made: dict[str, Callable[[Any], Any]] = {
        "invert": ImageOps.invert,
        "auto_contrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "posterize": lambda image: ImageOps.posterize(image, 8 - round(4 * level)),
        "solarize": lambda image: ImageOps.solarize(image, 256 * (1 - level)),
        "color": lambda image: ImageEnhance.Color(image).enhance(0.1 + 1.8 * level),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.1 + 1.8 * level),
        "brightness": lambda image: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * level),
        "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * level),
        "shear_x": affine(1, 0.3 * signed, 0, 0, 1, 0),
        "shear_y": affine(1, 0, 0, 0.3 * signed, 1, 0),
        "translate_x": affine(1, 0, 150 / 331 * width * signed, 0, 1, 0),
        "translate_y": affine(1, 0, 0, 0, 1, 150 / 331 * height * signed),
        "rotate": lambda image: image.rotate(30 * signed, fillcolor=GREY),
    }
    return made[operation]


@pytest.mark.parametrize("operation", list(autoaugment._OPERATIONS))
@pytest.mark.parametrize("magnitude", [0, 2, 5, 7, 9])
def test_an_operation_is_pillows(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch, operation: str, magnitude: int
) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    only(monkeypatch, operation, 1.0, magnitude)
    met = set()
    for seed in range(6):
        changed = auto_augment(images, generator=seeded(seed))
        for before, after in zip(images, changed, strict=True):
            # Pillow rounds to 8 bits, in places twice; a column whose place is a half is rounded either way.
            shares = [
                ((pillow(pillows(operation, magnitude / 9, way), before) - after).abs() <= 1.6 / 255).float().mean()
                for way in (-1, 1)
            ]
            assert max(shares) > 0.95
            met.add(bool(shares[0] > shares[1]))
    moves = operation.startswith(("shear", "translate", "rotate"))
    assert len(met) == (2 if moves and magnitude else 1)  # either way, where there are two


def test_each_image_draws_its_own_pair_and_a_seed_gives_it_again(images: torch.Tensor) -> None:
    many = images[:1].repeat(400, 1, 1, 1)
    before = many.clone()
    changed = auto_augment(many, generator=seeded())
    assert torch.equal(many, before)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert changed.flatten(1).unique(dim=0).shape[0] > 40  # 25 pairs, and their parts, either way
    assert torch.equal(changed, auto_augment(many, generator=seeded()))
    assert not torch.equal(changed, auto_augment(many, generator=seeded(1)))


@pytest.mark.parametrize("second", [False, True], ids=["first step", "second step"])
def test_an_operation_has_its_own_probability(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch, second: bool
) -> None:
    step = ("invert", 0.3, 0)
    monkeypatch.setattr(autoaugment, "_CIFAR10", ((NEVER, step) if second else (step, NEVER),))
    many = images[:1].repeat(1000, 1, 1, 1)
    changed = (auto_augment(many, generator=seeded()) != many).flatten(1).any(1)
    assert 240 <= changed.sum() <= 360  # 300, of which 15 are one deviation


def test_each_step_is_done_or_not_by_itself(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoaugment, "_CIFAR10", ((("invert", 0.5, 0), ("brightness", 0.5, 0)),))
    many = images[:1].repeat(200, 1, 1, 1)
    changed = auto_augment(many, generator=seeded())
    made = (many, 1 - many, 0.1 * many, 0.1 * (1 - many))
    shares = [torch.isclose(changed, one).flatten(1).all(1).float().mean() for one in made]
    assert min(shares) > 0.15 and sum(shares) == pytest.approx(1)  # a quarter each


def test_the_two_steps_follow_each_other(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoaugment, "_CIFAR10", ((("solarize", 1.0, 5), ("auto_contrast", 1.0, 0)),))
    both = auto_augment(images, generator=seeded())
    only(monkeypatch, "solarize", 1.0, 5)
    once = auto_augment(images, generator=seeded())
    only(monkeypatch, "auto_contrast", 1.0, 0)
    assert torch.equal(both, auto_augment(once, generator=seeded()))


def test_the_policy_is_of_25_pairs_of_known_operations_all_of_which_are_drawn(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [step for pair in autoaugment._CIFAR10 for step in pair]
    assert len(steps) == 2 * 25
    for name, probability, magnitude in steps:
        assert name in autoaugment._OPERATIONS
        assert 0 <= probability <= 1
        assert magnitude in range(10)
    # Each pair as a shift of its own: what is met are the pairs that are drawn.
    shown = tuple((("brightness", 1.0, place / 10), NEVER) for place in range(25))
    monkeypatch.setattr(autoaugment, "_CIFAR10", shown)
    even = torch.full((1000, 3, 2, 2), 0.2)
    assert auto_augment(even, generator=seeded())[:, 0, 0, 0].unique().numel() == 25


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 4)])
def test_other_dtypes_and_small_images(dtype: torch.dtype, size: tuple[int, int]) -> None:
    images = torch.rand(300, 3, *size, generator=seeded(2)).to(dtype)
    changed = auto_augment(images, generator=seeded())
    assert changed.dtype == dtype
    assert changed.shape == images.shape
    assert changed.isfinite().all()
    assert changed.min() >= 0
    assert changed.max() <= 1


@pytest.mark.parametrize("size", [0, 1, 4, 5, 100])
def test_cutout_makes_a_square_around_any_pixel_grey(size: int) -> None:
    images = torch.ones(600, 2, 7, 9)
    cut = cutout(images, size, generator=seeded())
    assert (cut == 0.5).logical_or(cut == 1).all()
    gone = cut == 0.5
    assert torch.equal(gone[:, 0], gone[:, 1])
    rows, columns = gone[:, 0].any(2), gone[:, 0].any(1)
    assert torch.equal(gone[:, 0], rows[:, :, None] & columns[:, None, :])  # a rectangle
    for along, length in ((rows, 7), (columns, 9)):
        lengths = along.sum(1)
        assert lengths.max() == min(size, length)
        if 0 < size < length:
            assert lengths.min() == (size + 1) // 2  # around a pixel at the edge
            whole = along[lengths == size]
            assert (whole.int().diff(dim=1).abs().sum(1) <= 2).all()
            assert whole.float().argmax(1).unique().numel() == length - size + 1
    assert torch.equal(images, torch.ones_like(images))


def test_the_strong_augmentation_cuts_and_changes_colours_after_flip_and_crop(images: torch.Tensor) -> None:
    strong = CIFAR_STRONG(images, seeded())
    assert strong.shape == images.shape
    assert not torch.equal(strong, images)
    assert (strong == 0.5).all(1).flatten(1).sum(1).min() >= 8 * 8  # a quarter of the square at a corner
    assert torch.equal(strong, CIFAR_STRONG(images, seeded()))
    nothing = {"flip": 0.0, "padding": 0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    alone = Augmentation(**nothing, auto=True)
    assert torch.equal(alone(images, seeded()), auto_augment(images, generator=seeded()))
    assert torch.equal(Augmentation(**nothing, cutout=5)(images, seeded()), cutout(images, 5, generator=seeded()))


def test_what_has_no_colours_is_refused() -> None:
    with pytest.raises(ValueError, match=r"AutoAugment needs RGB images \[B, 3, H, W\], got \[2, 1, 4, 4\]"):
        auto_augment(torch.rand(2, 1, 4, 4))
