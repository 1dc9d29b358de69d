"""Data sets: MNIST and digits as they should be, splits that never mix, and arrays to judge a model on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_core.data import (
    DataError,
    load_dataset,
    load_evaluation_arrays,
)
from tests.model_core.pictures import grey_images, rows


def test_digits_need_no_network_and_their_split_is_fixed_and_stratified() -> None:
    data, again = load_dataset("digits", num_validation=100, seed=1), load_dataset("digits", num_validation=100, seed=2)
    assert data.image_shape == (8, 8) and data.train.dtype == np.float32
    assert data.train.max() == 1 and data.train.min() == 0
    assert len(data.train) + len(data.validation) + len(data.test) == 1797 and len(data.validation) == 100
    assert len({*rows(data.train, data.validation, data.test)}) == 1797, "no image is on two sides"
    assert data.test_labels is not None and np.ptp(np.bincount(data.test_labels)) <= 3
    assert np.array_equal(data.test, again.test) and data.sha256 == again.sha256
    assert not np.array_equal(data.validation, again.validation)


def test_mnist_is_whole_and_its_validation_images_come_out_of_the_training_images(mnist_folder: Path) -> None:
    data = load_dataset("mnist", data_dir=mnist_folder, num_validation=5000, seed=3)
    assert (data.train.shape, data.validation.shape, data.test.shape) == ((55000, 784), (5000, 784), (10000, 784))
    assert data.train_labels is not None and data.validation_labels is not None and data.test_labels is not None
    assert np.bincount(data.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (np.bincount(data.train_labels) + np.bincount(data.validation_labels))[0] == 5923
    assert not {*rows(data.validation)} & {*rows(data.train)}
    plain = load_dataset("mnist", data_dir=mnist_folder)
    assert len(plain.train) == 60000 and plain.validation.shape == (0, 784) and plain.sha256 == data.sha256
    assert np.array_equal(plain.test, data.test)


def test_equal_images_land_on_the_same_side_and_order_does_not_matter(tmp_path: Path) -> None:
    images = np.repeat(grey_images(30), 3, axis=0)
    np.save(tmp_path / "own.npy", images)
    data = load_dataset(tmp_path / "own.npy", num_validation=12)
    sides = [{*rows(side)} for side in (data.train, data.validation, data.test)]
    assert sum(map(len, sides)) == 30 == len(set.union(*sides))
    assert (len(data.test), len(data.validation), data.image_shape) == (9, 12, (4, 5))
    np.save(tmp_path / "own.npy", np.random.default_rng(1).permutation(images))
    assert {*rows(load_dataset(tmp_path / "own.npy").test)} == sides[2]


@pytest.mark.parametrize("num_validation", [-1, 36, 1000])
def test_more_validation_images_than_there_are(num_validation: int, tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", grey_images(40))
    with pytest.raises(DataError, match="0 to 35"):
        load_dataset(tmp_path / "own.npy", num_validation=num_validation)


def test_too_few_different_images(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.zeros((40, 4, 5), np.uint8))
    with pytest.raises(DataError, match="1 of them different"):
        load_dataset(tmp_path / "own.npy")


@pytest.mark.parametrize("shape", [(30, 784), (30, 28, 28)])
def test_evaluation_arrays_say_whether_they_were_binary(shape: tuple[int, ...], tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.savez(tmp_path / "grey.npz", x_test=grey, x_train=grey[:20])
    np.savez(tmp_path / "binary.npz", x_test=grey // 128)
    np.savez(tmp_path / "white.npz", x_test=grey // 128 * 255, x_train=grey // 128)
    drawn, binary = (
        load_evaluation_arrays(tmp_path / "grey.npz", seed=1),
        load_evaluation_arrays(tmp_path / "binary.npz"),
    )
    assert not drawn.already_binary and drawn.image_shape == (28, 28)
    assert (
        drawn.train is not None and drawn.train.shape == (20, 784) and not np.array_equal(drawn.train, drawn.test[:20])
    )
    assert np.array_equal(drawn.test, load_evaluation_arrays(tmp_path / "grey.npz", seed=1).test), "one fixed draw"
    assert not np.array_equal(drawn.test, load_evaluation_arrays(tmp_path / "grey.npz", seed=2).test)
    assert {*np.unique(drawn.test)} == {0, 1} and drawn.test.dtype == np.uint8
    assert binary.already_binary and binary.train is None
    assert np.array_equal(binary.test, (grey // 128).reshape(30, 784))
    white = load_evaluation_arrays(tmp_path / "white.npz")
    assert white.already_binary and white.train is not None
    assert np.array_equal(white.test, binary.test) and np.array_equal(white.train, binary.test)


def test_evaluation_arrays_that_cannot_be_used(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=grey_images())
    with pytest.raises(DataError, match=r"`x_test`.*Received: x"):
        load_evaluation_arrays(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", x_test=grey_images(), x_train=grey_images(shape=(3, 3)))
    with pytest.raises(DataError, match="one size"):
        load_evaluation_arrays(tmp_path / "own.npz")
