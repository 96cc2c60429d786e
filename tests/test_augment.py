"""Augmentation moves and colours each image by its own random numbers, exactly, and a seed gives it again."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torch.nn import functional as F

from snnfast.data.augment import CIFAR, Augmentation, color_jitter, horizontal_flip, random_crop


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(200, 3, 7, 9, generator=seeded(1))


def test_a_flip_mirrors_left_and_right_or_leaves_the_image(images: torch.Tensor) -> None:
    flipped = horizontal_flip(images, generator=seeded())
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 60 <= mirrored.sum() <= 140  # of 200, with probability 1/2
    assert torch.equal(horizontal_flip(images, 1.0), images.flip(3))
    assert torch.equal(horizontal_flip(images, 0.0), images)


def test_a_crop_is_the_image_moved_by_whole_pixels_out_of_a_black_margin(images: torch.Tensor) -> None:
    cropped = random_crop(images, 2, generator=seeded())
    padded = F.pad(images, (2, 2, 2, 2))
    met = set()
    for before, after in zip(padded, cropped, strict=True):
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(before[:, top : top + 7, left : left + 9], after)
        ]
        assert len(places) == 1
        met.update(places)
    assert len(met) == 25  # every place, the outermost too
    assert torch.equal(random_crop(images, 0), images)


@pytest.mark.parametrize("strengths", [{"brightness": 0.4}, {"contrast": 0.4}, {"saturation": 0.4}, {"hue": 0.3}])
def test_jitter_changes_each_image_by_its_own_number_and_stays_in_range(
    images: torch.Tensor, strengths: dict[str, float]
) -> None:
    only = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, **strengths}
    jittered = color_jitter(images, **only, generator=seeded())
    assert jittered.min() >= 0
    assert jittered.max() <= 1
    same = color_jitter(images[:1].expand(200, -1, -1, -1), **only, generator=seeded())
    changes = (same - images[:1]).abs().mean((1, 2, 3))
    assert changes.unique().numel() > 150
    assert torch.equal(jittered[:1], same[:1])  # an image's change depends on no other image


def test_brightness_is_a_factor_within_its_bounds() -> None:
    grey = torch.full((500, 3, 2, 2), 0.5)
    factors = color_jitter(grey, 0.2, 0, 0, 0, generator=seeded())[:, 0, 0, 0] / 0.5
    assert 0.8 <= factors.min() < 0.82
    assert 1.18 < factors.max() <= 1.2


def test_contrast_keeps_the_mean_grey_and_saturation_each_pixels_grey() -> None:
    images = 0.3 + 0.3 * torch.rand(50, 3, 8, 8, generator=seeded())  # far enough from 0 and 1 not to be cut off
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]

    def grey(images: torch.Tensor) -> torch.Tensor:
        return (luma * images).sum(1)

    by_contrast = color_jitter(images, 0, 0.5, 0, 0, generator=seeded())
    torch.testing.assert_close(grey(by_contrast).mean((1, 2)), grey(images).mean((1, 2)))
    assert not torch.allclose(grey(by_contrast), grey(images), atol=1e-2)
    by_saturation = color_jitter(images, 0, 0, 0.5, 0, generator=seeded())
    torch.testing.assert_close(grey(by_saturation), grey(images))
    assert not torch.allclose(by_saturation, images, atol=1e-2)


def test_hue_turns_the_colour_circle_by_one_angle_per_image() -> None:
    images = torch.rand(20, 3, 4, 4, generator=seeded(2), dtype=torch.float64)
    turned = color_jitter(images, 0, 0, 0, 0.5, generator=seeded())
    for before, after in zip(images, turned, strict=True):
        hsv = [
            [colorsys.rgb_to_hsv(*map(float, pixel)) for pixel in image.flatten(1).T.tolist()]
            for image in (before, after)
        ]
        angles = {round((b[0] - a[0]) % 1, 6) % 1 for a, b in zip(*hsv, strict=True)}
        assert len(angles) == 1
        for a, b in zip(*hsv, strict=True):
            assert b[1:] == pytest.approx(a[1:], abs=1e-9)
    grey = torch.full((4, 3, 2, 2), 0.25)
    assert torch.equal(color_jitter(grey, 0, 0, 0, 0.5), grey)


def test_the_same_seed_gives_the_same_augmentation_and_leaves_the_global_one_alone(images: torch.Tensor) -> None:
    before = torch.get_rng_state()
    first = CIFAR(images, seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(CIFAR(images, seeded(3)), first)
    assert not torch.equal(CIFAR(images, seeded(4)), first)
    generator = seeded(3)
    assert torch.equal(CIFAR(images, generator), first)
    assert not torch.equal(CIFAR(images, generator), first)  # another one for the next batch
    torch.manual_seed(0)
    default = CIFAR(images)
    torch.manual_seed(0)
    assert torch.equal(CIFAR(images), default)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_recipe_keeps_shape_dtype_range_and_its_input(images: torch.Tensor, dtype: torch.dtype) -> None:
    given = images.to(dtype)
    kept = given.clone()
    augmented = CIFAR(given, seeded())
    assert augmented.shape == given.shape
    assert augmented.dtype == dtype
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    assert torch.equal(given, kept)
    assert len(CIFAR(given[:0], seeded())) == 0


def test_what_is_switched_off_is_left_out() -> None:
    digits = torch.rand(5, 1, 8, 8)
    nothing = Augmentation(flip=0, padding=0, brightness=0, contrast=0, saturation=0, hue=0)
    assert torch.equal(nothing(digits), digits)
    moved = Augmentation(flip=0, brightness=0, contrast=0, saturation=0, hue=0)  # grey images have no colours
    assert torch.equal(moved(digits, seeded()), random_crop(digits, 4, generator=seeded()))


@pytest.mark.cuda
def test_a_cpu_seed_gives_the_same_augmentation_on_a_gpu(images: torch.Tensor) -> None:
    on_gpu = CIFAR(images.cuda(), seeded())
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), CIFAR(images, seeded()))
    own = torch.Generator("cuda").manual_seed(0)
    assert CIFAR(images.cuda(), own).device.type == "cuda"


@pytest.mark.parametrize(
    "function", [horizontal_flip, random_crop, color_jitter, CIFAR], ids=["flip", "crop", "jitter", "CIFAR"]
)
def test_images_of_another_kind_are_refused(function, images: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"float tensor .* got torch\.uint8"):
        function((255 * images).byte())
    with pytest.raises(ValueError, match=r"\[B, C, H, W\], got \[3, 7, 9\]"):
        function(images[0])


def test_grey_images_have_no_colours_to_change(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"RGB images .* got \[200, 1, 7, 9\]"):
        color_jitter(images[:, :1])


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"flip": 1.5}, ValueError, "flip must be between 0 and 1, got 1.5"),
        ({"padding": -1}, ValueError, "padding must not be negative, got -1"),
        ({"padding": 1.5}, TypeError, "padding must be an int, got float"),
        ({"contrast": -0.1}, ValueError, "contrast must be finite and not negative, got -0.1"),
        ({"brightness": float("inf")}, ValueError, "brightness must be finite"),
        ({"hue": 0.6}, ValueError, "hue must be between 0 and 0.5, got 0.6"),
        ({"saturation": "much"}, TypeError, "saturation must be a number, got str"),
    ],
)
def test_an_option_out_of_range_is_named(option: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Augmentation(**option)
