"""CIFAR and Imagenette are read as their files say, and a file that is wrong is named with what was expected."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from snnfast.data import DataError, ImageData, load
from snnfast.data.imagenette import CLASSES

CIFAR10_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR100_FILES = ("train.bin", "test.bin")
FILES = {"cifar10": CIFAR10_FILES, "cifar100": CIFAR100_FILES}
UNPACKED = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}


def small_cifar(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels, uint8 [3, label bytes], and images of noise, uint8 [3, 3, 32, 32], for each file."""
    noise = np.random.RandomState(0)
    most = (10,) if name == "cifar10" else (20, 100)
    return {
        file: (
            np.stack([noise.randint(0, classes, 3) for classes in most], 1).astype(np.uint8),
            noise.randint(0, 256, (3, 3, 32, 32)).astype(np.uint8),
        )
        for file in FILES[name]
    }


def cifar_bytes(labels: np.ndarray, images: np.ndarray) -> bytes:
    return np.concatenate([labels, images.reshape(len(images), -1)], 1).tobytes()


def write_cifar(name: str, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    parts = small_cifar(name)
    for file, part in parts.items():
        (folder / file).write_bytes(cifar_bytes(*part))
    return parts


@pytest.mark.parametrize("place", ["as given", "as unpacked", "by name"])
@pytest.mark.parametrize("name", FILES)
def test_cifar_files_are_read_back_as_written(name: str, place: str, tmp_path: Path) -> None:
    subfolder = {"as given": "", "as unpacked": UNPACKED[name], "by name": name}[place]
    parts = write_cifar(name, tmp_path / subfolder)
    data = load(name, tmp_path)
    assert data.name == name
    assert data.image_shape == (3, 32, 32)
    assert data.classes == {"cifar10": 10, "cifar100": 100}[name]
    for split, files in ((data.train, FILES[name][:-1]), (data.test, FILES[name][-1:])):
        labels, images = (np.concatenate([parts[file][at] for file in files]) for at in (0, 1))
        assert np.array_equal(split.images.numpy(), images)
        assert np.array_equal(split.labels.numpy(), labels[:, -1])  # the fine labels of CIFAR-100
        assert split.labels.dtype == torch.int64
        assert torch.equal(split[:][0], split.images / 255.0)


def test_cifar_files_may_be_compressed(tmp_path: Path) -> None:
    parts = write_cifar("cifar100", tmp_path)
    for file, part in parts.items():
        (tmp_path / file).unlink()
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(cifar_bytes(*part)))
    assert np.array_equal(load("cifar100", tmp_path).test.images.numpy(), parts["test.bin"][1])


@pytest.mark.parametrize("name", FILES)
def test_every_missing_cifar_file_is_named_with_its_origin_and_no_other(name: str, tmp_path: Path) -> None:
    write_cifar(name, tmp_path)
    gone, kept = (FILES[name][0], FILES[name][-1]), FILES[name][1:-1]
    for file in gone:
        (tmp_path / file).unlink()
    with pytest.raises(DataError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert all(file in message for file in gone)
    assert not any(file in message for file in kept)
    assert str(tmp_path) in message
    assert f"cifar-{name[5:]}-binary.tar.gz" in message
    assert "https://www.cs.toronto.edu/" in message
    assert "\n" not in message


def with_label(value: int, column: int) -> Callable[[np.ndarray, np.ndarray], bytes]:
    def write(labels: np.ndarray, images: np.ndarray) -> bytes:
        labels = labels.copy()
        labels[1, column] = value
        return cifar_bytes(labels, images)

    return write


DAMAGES: dict[str, tuple[str, str, Callable[[np.ndarray, np.ndarray], bytes], str]] = {
    "cut short": (
        "cifar10",
        "data_batch_4.bin",
        lambda *part: cifar_bytes(*part)[:-1],
        "truncated or of another format, 9218 bytes are not a whole number of cifar10 records of 3073 bytes",
    ),
    "of the other set": (
        "cifar10",
        "test_batch.bin",
        lambda *part: cifar_bytes(*small_cifar("cifar100")["test.bin"]),
        "9222 bytes are not a whole number of cifar10 records",
    ),
    "label out of range": ("cifar10", "data_batch_2.bin", with_label(10, 0), "label 10, expected 0 to 9"),
    "coarse label out of range": ("cifar100", "train.bin", with_label(20, 0), "coarse label 20, expected 0 to 19"),
    "fine label out of range": ("cifar100", "test.bin", with_label(100, 1), "fine label 100, expected 0 to 99"),
    "empty": ("cifar100", "test.bin", lambda *part: b"", "holds no images"),
    "gzip cut short": (
        "cifar10",
        "test_batch.bin",
        lambda *part: gzip.compress(cifar_bytes(*part))[:-9],
        "truncated, its gzip stream ends early",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cifar_file_is_named_with_what_was_expected(damage: str, tmp_path: Path) -> None:
    name, file, content, message = DAMAGES[damage]
    parts = write_cifar(name, tmp_path)
    (tmp_path / file).write_bytes(content(*parts[file]))
    with pytest.raises(DataError, match=message) as caught:
        load(name, tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def real(name: str) -> ImageData:
    """The data set from SNNFAST_DATA; skips where it is not there."""
    if not os.environ.get("SNNFAST_DATA"):
        pytest.skip(f"SNNFAST_DATA names no folder with {name}")
    try:
        return load(name)
    except DataError as error:
        pytest.skip(f"no {name}: {error}")


@pytest.mark.parametrize(
    ("name", "classes", "mean"),
    [("cifar10", 10, [0.4914, 0.4822, 0.4465]), ("cifar100", 100, [0.5071, 0.4865, 0.4409])],
)
def test_the_real_cifar_is_whole(name: str, classes: int, mean: list[float]) -> None:
    data = real(name)
    assert (len(data.train), len(data.test)) == (50000, 10000)
    assert data.train.labels.bincount().tolist() == [50000 // classes] * classes
    assert data.test.labels.bincount().tolist() == [10000 // classes] * classes
    # The published mean intensities of the training images.
    assert (data.train.images.double().mean((0, 2, 3)) / 255).tolist() == pytest.approx(mean, abs=1e-4)


@pytest.fixture
def imagenette_folder(tmp_path: Path) -> Path:
    """Two training images and a test image for each class, in the colour (25·label, 0, 100) and (25·label, 0, 200)."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for split, count in (("train", 2), ("val", 1)):
        for label, name in enumerate(CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                picture = image.new("RGB", (40 + label, 30), (25 * label, 0, 100 if split == "train" else 200))
                picture.save(tmp_path / split / name / f"{number}.JPEG", quality=95)
    return tmp_path


@pytest.mark.parametrize("subfolder", ["", "imagenette2-320"])
def test_imagenette_is_read_with_the_folders_labels_at_128_pixels(imagenette_folder: Path, subfolder: str) -> None:
    if subfolder:
        (imagenette_folder / subfolder).mkdir()
        for split in ("train", "val"):
            (imagenette_folder / split).rename(imagenette_folder / subfolder / split)
    data = load("imagenette", imagenette_folder)
    assert data.image_shape == (3, 128, 128)
    assert data.classes == 10
    assert data.train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.test.labels.tolist() == list(range(10))
    for split, blue in ((data.train, 100), (data.test, 200)):
        expected = torch.stack([25 * split.labels, 0 * split.labels, 0 * split.labels + blue], 1)[:, :, None, None]
        assert (split.images.long() - expected).abs().max() <= 3  # JPEG's rounding


def test_imagenette_images_are_scaled_whole_and_grey_ones_become_colours(imagenette_folder: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    columns = np.zeros((50, 256), dtype=np.uint8)
    columns[:, 128:] = 240  # the right half is bright
    image.fromarray(columns).save(imagenette_folder / "val" / CLASSES[3] / "0.JPEG", quality=95)
    picture = load("imagenette", imagenette_folder).test.images[3].long()
    assert picture[:, :, :60].max() <= 5
    assert picture[:, :, 68:].min() >= 235


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def remove(folder: Path) -> None:
    empty(folder)
    folder.rmdir()


def cut_file(file: Path) -> None:
    # Noise, so that cutting it cuts pixels and not only the end.
    from PIL import Image

    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:1500])


IMAGENETTE_DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "class folder missing": (
        f"val/{CLASSES[4]}",
        remove,
        f"no val/{CLASSES[4]} in .*https://github.com/fastai/imagenette",
    ),
    "class folder empty": (f"train/{CLASSES[9]}", empty, "holds no images"),
    "foreign class folder": ("val/n09999999", Path.mkdir, "class folder n09999999, expected the 10 of Imagenette"),
    "image cut short": (f"train/{CLASSES[2]}/1.JPEG", cut_file, "truncated or damaged image"),
    "not an image": (f"val/{CLASSES[0]}/0.JPEG", lambda file: file.write_bytes(b"<html>" * 9), "not an image"),
}


@pytest.mark.parametrize("damage", IMAGENETTE_DAMAGES)
def test_what_is_wrong_in_imagenettes_folders_is_named(damage: str, imagenette_folder: Path) -> None:
    name, spoil, message = IMAGENETTE_DAMAGES[damage]
    spoil(imagenette_folder / name)
    with pytest.raises(DataError, match=message) as caught:
        load("imagenette", imagenette_folder)
    assert Path(name).name in str(caught.value)
    assert str(imagenette_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_imagenette_says_where_it_comes_from(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    with pytest.raises(
        DataError, match=r"no train/n01440764, .* and 10 more in .*https://github.com/fastai/imagenette"
    ):
        load("imagenette", tmp_path)


def test_imagenette_without_pillow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"Pillow.*python -m pip install 'snnfast\[images\]'"):
        load("imagenette", tmp_path)
