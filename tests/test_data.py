"""Data sets read what their files say, and say which file is wrong and why."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from snnfast.data import DataError, Split, data_sets, load

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx_bytes(values: np.ndarray) -> bytes:
    """The IDX file of an array of unsigned bytes."""
    return struct.pack(f">{1 + values.ndim}I", 0x0800 | values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def small_mnist() -> dict[str, np.ndarray]:
    """Seven training and three test images of noise, in MNIST's four parts."""
    noise = np.random.RandomState(0)
    return {
        TRAIN_IMAGES: noise.randint(0, 256, (7, 28, 28)),
        TRAIN_LABELS: np.array([0, 1, 2, 3, 4, 5, 9]),
        TEST_IMAGES: noise.randint(0, 256, (3, 28, 28)),
        TEST_LABELS: np.array([7, 8, 9]),
    }


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    for name, values in small_mnist().items():
        (tmp_path / name).write_bytes(idx_bytes(values))
    return tmp_path


def test_digits_are_split_without_overlap_and_evenly_over_the_classes() -> None:
    digits = load("digits")
    assert digits.image_shape == (1, 8, 8)
    assert digits.classes == 10
    assert len(digits.train) + len(digits.test) == 1797
    share = digits.test.labels.bincount() / (digits.test.labels.bincount() + digits.train.labels.bincount())
    assert share.shape == (10,)
    assert ((share > 0.19) & (share < 0.21)).all()
    training = {image.numpy().tobytes() for image in digits.train.images}
    assert not training & {image.numpy().tobytes() for image in digits.test.images}


def test_digits_are_the_same_every_time() -> None:
    first, second = load("digits"), load("digits")
    assert torch.equal(first.test.images, second.test.images)
    assert torch.equal(first.train.labels, second.train.labels)


def test_a_batch_is_intensities_from_0_to_1_with_their_labels() -> None:
    images, labels = load("digits").train[:100]
    assert images.shape == (100, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.min() == 0.0
    assert images.max() == 1.0


def numbered(count: int) -> Split:
    """A split whose n-th image has the value n and the label n."""
    numbers = torch.arange(count)
    return Split(numbers.to(torch.uint8).reshape(count, 1, 1, 1), numbers, full_scale=1.0)


def test_a_shuffled_pass_meets_every_image_once_with_its_own_label() -> None:
    order = torch.Generator().manual_seed(3)
    batches = list(numbered(23).batches(5, shuffle=order))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    met = torch.cat([labels for _, labels in batches])
    assert torch.equal(met.sort().values, torch.arange(23))
    assert not torch.equal(met, torch.arange(23))
    for images, labels in batches:
        assert torch.equal(images.flatten(), labels.float())


def test_the_order_is_the_seeds_and_changes_with_every_pass() -> None:
    def passes(seed: int) -> list[list[int]]:
        order = torch.Generator().manual_seed(seed)
        return [torch.cat([y for _, y in numbered(20).batches(6, shuffle=order)]).tolist() for _ in range(2)]

    assert passes(1) == passes(1)
    assert passes(1) != passes(2)
    assert passes(1)[0] != passes(1)[1]


def test_without_shuffling_batches_come_in_stored_order_and_a_short_last_one_can_be_dropped() -> None:
    assert [y.tolist() for _, y in numbered(5).batches(2)] == [[0, 1], [2, 3], [4]]
    assert [y.tolist() for _, y in numbered(5).batches(2, drop_last=True)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(numbered(5).batches(0))


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("subfolder", ["", "mnist", "MNIST/raw"])
def test_mnist_files_are_read_back_as_written(tmp_path: Path, compressed: bool, subfolder: str) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(parents=True, exist_ok=True)
    parts = small_mnist()
    for name, values in parts.items():
        content = idx_bytes(values)
        file = folder / (name + (".gz" if compressed else ""))
        file.write_bytes(gzip.compress(content) if compressed else content)
    mnist = load("mnist", tmp_path)
    assert mnist.image_shape == (1, 28, 28)
    for split, images, labels in (
        (mnist.train, parts[TRAIN_IMAGES], parts[TRAIN_LABELS]),
        (mnist.test, parts[TEST_IMAGES], parts[TEST_LABELS]),
    ):
        assert np.array_equal(split.images.squeeze(1).numpy(), images)
        assert np.array_equal(split.labels.numpy(), labels)
        assert torch.equal(split[:][0], split.images / 255.0)


def test_the_environment_variable_names_the_folder(mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNFAST_DATA", str(mnist_folder))
    assert len(load("mnist").train) == 7


def test_an_unknown_data_set_lists_the_known_ones() -> None:
    with pytest.raises(DataError) as caught:
        load("minst")
    assert str(caught.value) == f"unknown data set 'minst'; known: {', '.join(data_sets())}"


def test_the_data_sets_of_releases_keep_their_names() -> None:
    assert {"digits", "mnist", "cifar10", "cifar100", "imagenette"} <= set(data_sets())


def test_a_folder_that_is_needed_but_not_named_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNNFAST_DATA", raising=False)
    with pytest.raises(DataError, match=r"--data-dir.*SNNFAST_DATA"):
        load("mnist")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere' does not exist"):
        load("mnist", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file' is not a folder"):
        load("mnist", tmp_path / "file")


def test_every_missing_file_is_named_and_no_other(mnist_folder: Path) -> None:
    (mnist_folder / TRAIN_LABELS).unlink()
    (mnist_folder / TEST_IMAGES).unlink()
    with pytest.raises(DataError) as caught:
        load("mnist", mnist_folder)
    message = str(caught.value)
    assert TRAIN_LABELS in message
    assert TEST_IMAGES in message
    assert str(mnist_folder) in message
    assert TRAIN_IMAGES not in message


def cut(content: bytes) -> bytes:
    return content[:-1]


def wrong_checksum(content: bytes) -> bytes:
    return gzip.compress(content)[:-8] + b"\0" * 8


DAMAGES: dict[str, tuple[str, Callable[[dict[str, np.ndarray]], bytes], str]] = {
    "cut short": (TRAIN_IMAGES, lambda p: cut(idx_bytes(p[TRAIN_IMAGES])), r"truncated, 5487 .* expected 5488 \(7×28"),
    "header only in part": (TEST_LABELS, lambda p: b"\0\0\x08\x01\0", "truncated, 5 bytes do not hold the IDX header"),
    "empty": (TEST_LABELS, lambda p: b"", "truncated, 0 bytes"),
    "too long": (TEST_LABELS, lambda p: idx_bytes(p[TEST_LABELS]) + b"x", "too long, 4 bytes of values, expected 3"),
    "gzip cut short": (TRAIN_LABELS, lambda p: cut(gzip.compress(idx_bytes(p[TRAIN_LABELS]))), "truncated, its gzip"),
    "gzip damaged": (TRAIN_LABELS, lambda p: wrong_checksum(idx_bytes(p[TRAIN_LABELS])), "damaged gzip stream"),
    "labels where images belong": (TRAIN_IMAGES, lambda p: idx_bytes(p[TRAIN_LABELS]), "number 2049, expected 2051"),
    "images where labels belong": (TEST_LABELS, lambda p: idx_bytes(p[TEST_IMAGES]), "number 2051, expected 2049"),
    "not an IDX file": (TRAIN_IMAGES, lambda p: b"<!DOCTYPE html><html>" * 9, "magic number .* expected 2051"),
    "labels of the other split": (TEST_LABELS, lambda p: idx_bytes(p[TRAIN_LABELS]), "3 images but .* 7 labels"),
    "other image size": (TEST_IMAGES, lambda p: idx_bytes(p[TEST_IMAGES][:, :8, :8]), "8×8 pixels, expected 28×28"),
    "label out of range": (TEST_LABELS, lambda p: idx_bytes(p[TEST_LABELS] + 3), "label 12, expected 0 to 9"),
    "no images": (TEST_IMAGES, lambda p: idx_bytes(p[TEST_IMAGES][:0]), "holds no images"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_what_was_expected(mnist_folder: Path, damage: str) -> None:
    name, content, message = DAMAGES[damage]
    (mnist_folder / name).write_bytes(content(small_mnist()))
    with pytest.raises(DataError, match=message) as caught:
        load("mnist", mnist_folder)
    assert str(mnist_folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_real_mnist_is_whole() -> None:
    if not os.environ.get("SNNFAST_DATA"):
        pytest.skip("SNNFAST_DATA names no folder with the MNIST files")
    try:
        mnist = load("mnist")
    except DataError as error:
        pytest.skip(f"no MNIST: {error}")
    assert (len(mnist.train), len(mnist.test)) == (60000, 10000)
    assert mnist.train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # The published mean intensity of the training images.
    assert mnist.train.images.double().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


def test_a_data_set_is_printed_without_its_pixels() -> None:
    digits = load("digits")
    assert repr(digits.train) == f"Split({len(digits.train)} images [1, 8, 8], torch.uint8, cpu)"
    assert repr(digits.train) in repr(digits) and len(repr(digits)) < 200
