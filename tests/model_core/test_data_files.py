"""A user's own arrays and pictures: read as they are, or refused with the file's name and what to do."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_core.data import (
    DataError,
    load_dataset,
)
from tests.model_core.pictures import grey_images, rows


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (grey_images(), grey_images()),
        (grey_images().astype(np.int64), grey_images()),
        (grey_images() > 99, 255 * (grey_images() > 99)),
        ((grey_images() > 99).astype(np.uint8), 255 * (grey_images() > 99)),
        (grey_images() / 255, (grey_images() / 255).astype(np.float32)),
        (grey_images()[..., None], grey_images()),
    ],
    ids=["uint8", "int64", "bool", "0 and 1", "float64", "one channel"],
)
def test_pixels_of_any_type_become_grey_values(stored: np.ndarray, expected: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x_train=stored, x_test=stored[:2], y_train=np.arange(40), y_test=np.arange(2))
    data = load_dataset(tmp_path / "own.npz")
    assert data.train.dtype == (np.float32 if stored.dtype == np.float64 else np.uint8)
    assert np.array_equal(data.train, expected.reshape(40, 20)) and np.array_equal(data.test, data.train[:2])
    assert data.train_labels is not None and data.train_labels.tolist() == list(range(40))
    assert (data.name, data.image_shape) == ("own", (4, 5)) and str(tmp_path) not in data.source


def test_a_split_of_the_users_that_overlaps_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "own.npz", x_train=grey_images(), x_test=grey_images()[:3])
    with caplog.at_level(logging.WARNING):
        load_dataset(tmp_path / "own.npz")
    assert "3 of the 3 test images are training images too" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": grey_images() - 300.0}, "0..1"),
        ({"x": grey_images() * 1.0}, "divide by the largest"),
        ({"x": np.full((5, 4, 4), np.nan)}, "NaN"),
        ({"x": grey_images().astype(int) * 2}, "0..255"),
        ({"x": np.zeros((5, 4, 4, 3), np.uint8)}, "grey images.*(5, 4, 4, 3)"),
        ({"x": np.zeros((0, 4, 4), np.uint8)}, "grey images"),
        ({"x": np.zeros(5, np.uint8)}, "grey images"),
        ({"x": np.zeros((2, 300, 300), np.uint8)}, "at most 65536"),
        ({"x": np.array([["a", "b"]])}, "numbers"),
        ({"x": grey_images(), "y": np.arange(3)}, "one an image"),
        ({"x": grey_images(), "y": np.ones(40)}, "whole numbers"),
        ({"x_test": grey_images()}, "`x_train`"),
        ({"first": grey_images(), "second": grey_images()}, "Received: first, second"),
        ({"x_train": grey_images(), "x_test": grey_images(shape=(5, 5))}, "alike"),
        ({"x_train": grey_images(), "x_test": grey_images() / 255}, "alike"),
        ({}, "Received: nothing"),
    ],
)
def test_arrays_that_cannot_be_used(arrays: dict[str, Any], reason: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(DataError, match=reason) as error:
        load_dataset(tmp_path / "own.npz")
    assert "own.npz" in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez_compressed(path, x=grey_images())
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:100], whole[:-40], whole[:60] + b"\0" * 60 + whole[120:], pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"own\.npz"):
            load_dataset(path)
    np.savez(path, x=np.array([object()]))
    with pytest.raises(DataError, match=r"own\.npz"):
        load_dataset(path)
    for missing in (tmp_path / "none.npz", tmp_path / "none", "mnsit"):
        with pytest.raises(DataError, match="Expected"):
            load_dataset(missing)


def save_picture(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_a_folder_of_pictures_with_labels(mode: str, tmp_path: Path) -> None:
    for index, pixels in enumerate(grey_images()):
        save_picture(tmp_path / "art" / ("cat", "dog")[index % 2] / f"{index:02d}.png", pixels, mode)
    (tmp_path / "art" / "dog" / "notes.txt").touch()
    data = load_dataset(tmp_path / "art")
    assert (data.name, data.image_shape, len(data.train), len(data.test)) == ("art", (4, 5), 36, 4)
    for pixels, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert labels is not None
        expected = {image.tobytes(): index % 2 for index, image in enumerate(grey_images())}
        assert [expected[row] for row in rows(pixels)] == labels.tolist()


def test_a_folder_with_train_and_test_keeps_its_split(tmp_path: Path) -> None:
    for index, pixels in enumerate(grey_images()):
        save_picture(tmp_path / ("test" if index < 7 else "train") / f"{index:02d}.png", pixels)
    data = load_dataset(tmp_path)
    assert rows(data.test) == rows(grey_images()[:7]) and rows(data.train) == rows(grey_images()[7:])


def test_depth_and_transparency_of_pictures(tmp_path: Path) -> None:
    grey = grey_images(1)[0]
    ink = np.zeros((4, 5, 4), np.uint8)  # black ink on nothing
    ink[..., 3] = grey
    Image.fromarray(grey.astype(np.uint16) * 256 + 7).save(tmp_path / "deep.png")
    Image.fromarray(ink).save(tmp_path / "ink.png")
    save_picture(tmp_path / "other.png", grey_images(2)[1])
    data = load_dataset(tmp_path)
    assert sorted(rows(data.train, data.test)) == sorted([grey.tobytes(), grey.tobytes(), grey_images(2)[1].tobytes()])


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no picture"):
        load_dataset(tmp_path)
    save_picture(tmp_path / "a.png", grey_images()[0])
    save_picture(tmp_path / "b.png", grey_images(shape=(4, 6))[0])
    with pytest.raises(DataError, match=r"b\.png: 6x4 pixels, but a\.png has 5x4"):
        load_dataset(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(DataError, match=r"b\.png"):
        load_dataset(tmp_path)
    save_picture(tmp_path / "b.png", np.zeros((400, 400), np.uint8))
    with pytest.raises(DataError, match="400x400"):
        load_dataset(tmp_path)
    (tmp_path / "b.png").unlink()
    save_picture(tmp_path / "class" / "c.png", grey_images()[1])
    with pytest.raises(DataError, match="either, not both"):
        load_dataset(tmp_path)
