"""Data sets: MNIST, scikit-learn's digits, a user's own images; training, validation and test sets that never mix.

The parts behind it: `data_mnist` finds or downloads, `data_files` reads a user's files, `data_binary` makes 0 and 1 of
grey pixels and batches of images.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_core.data_binary import TEST_DRAW, TRAIN_DRAW, Batches, Binarisation, binarize, epoch_order, pixel_probs
from model_core.data_files import DataError, Images, as_images, load_arrays, load_own_arrays, load_picture_folder
from model_core.data_mnist import load_mnist

__all__ = [
    "Batches",
    "Binarisation",
    "DataError",
    "Dataset",
    "EvaluationArrays",
    "binarize",
    "epoch_order",
    "load_dataset",
    "load_evaluation_arrays",
    "pixel_probs",
]
_TEST_SHARE = 0.1  # of a user's images, where no test set is given
_DIGITS_TEST_SHARE = 0.2
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Images in three sets: pixels are uint8 0..255 or float32 0..1, [images, visible]; labels int64 [images]."""

    name: str
    image_shape: tuple[int, int]  # (rows, columns)
    train: np.ndarray
    validation: np.ndarray  # held out of the training images; may be empty
    test: np.ndarray
    train_labels: np.ndarray | None
    validation_labels: np.ndarray | None
    test_labels: np.ndarray | None
    sha256: str  # of all arrays as they were found, before validation images were set aside
    source: str  # where they came from and how they were split, for people


class EvaluationArrays(NamedTuple):
    """Binary images to judge a model on."""

    test: np.ndarray  # uint8 0 or 1, [images, visible]
    train: np.ndarray | None
    already_binary: bool  # False: grey pixels were drawn once
    image_shape: tuple[int, int]


def load_dataset(
    data: str | Path = "mnist", *, data_dir: str | Path | None = None, num_validation: int = 0, seed: int = 0
) -> Dataset:
    """Loads a data set and splits it.

    Args:
      data: "mnist", "digits", or the path of an `.npz`, an `.npy` or a folder of pictures.
      data_dir: where to look for MNIST first.
      num_validation: how many training images to hold out.
      seed: chooses the validation images, and nothing else; the test set is always the same.

    Raises:
      DataError: if files are missing, damaged or of the wrong kind.
    """
    if data == "mnist":
        arrays, source = load_mnist(data_dir)
        train = as_images(arrays["x_train"], arrays["y_train"], "MNIST")
        test = as_images(arrays["x_test"], arrays["y_test"], "MNIST")
        return _make_dataset("mnist", train, test, source, num_validation, seed)
    if data == "digits":
        train, test = _load_digits()
        return _make_dataset(
            "digits", train, test, "scikit-learn's 8x8 digits, a fixed fifth for the test", num_validation, seed
        )
    path = Path(data)
    own, given_test, source = _load_own(path)
    if given_test is not None:
        _warn_of_overlap(own, given_test, path)
        return _make_dataset(path.stem, own, given_test, source, num_validation, seed)
    train, test = _hold_out(own, max(1, round(_TEST_SHARE * len(own.pixels))), b"test", stratify=True)
    return _make_dataset(path.stem, train, test, f"{source}, a fixed tenth for the test", num_validation, seed)


def load_evaluation_arrays(path: str | Path, *, seed: int = 0) -> EvaluationArrays:
    """The images of an `.npz` to judge a model on: `x_test`, and `x_train` where it is there.

    Images are whole numbers 0/1 or 0..255 (or floats 0..1), [images, visible] or [images, rows, columns]. Grey ones are
    binarised by one fixed stochastic draw, a function of `seed`.

    Raises:
      DataError: if the file is not readable or has no `x_test`.
    """
    arrays = load_arrays(Path(path))
    if "x_test" not in arrays:
        raise DataError(
            f"{path}: expected the array `x_test`, and maybe `x_train`. Received: {', '.join(arrays) or 'nothing'}."
        )
    found = {key: as_images(arrays[key], None, f"{path}, `{key}`") for key in ("x_test", "x_train") if key in arrays}
    if len({images.image_shape for images in found.values()}) > 1:
        raise DataError(f"{path}: the images of `x_test` and `x_train` are not of one size.")
    binary = {}
    for key, draw in (("x_test", TEST_DRAW), ("x_train", TRAIN_DRAW)):
        if key in found:
            binary[key] = binarize(found[key].pixels, seed=seed, draw=draw)  # leaves 0 and 1 as they are
    already = all(np.array_equal(binary[key], pixel_probs(found[key].pixels)) for key in found)
    return EvaluationArrays(binary["x_test"], binary.get("x_train"), already, found["x_test"].image_shape)


def _load_digits() -> tuple[Images, Images]:
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    images = as_images(digits.images / 16.0, digits.target, "scikit-learn's digits")
    return _hold_out(images, round(_DIGITS_TEST_SHARE * len(images.pixels)), b"test", stratify=True)


def _load_own(path: Path) -> tuple[Images, Images | None, str]:
    if path.is_dir():
        return *load_picture_folder(path), f"pictures in {path.name}"
    if path.suffix in (".npz", ".npy"):
        return *load_own_arrays(path), f"arrays in {path.name}"
    raise DataError(
        f"{path}: no such data. Expected `mnist`, `digits`, or the path of an .npz file, an .npy file or a folder of "
        "pictures."
    )


def _warn_of_overlap(train: Images, test: Images, path: Path) -> None:
    """The split is the user's own; all that can be done about images on both sides is to say so."""
    known = {pixels.tobytes() for pixels in train.pixels}
    num_shared = sum(pixels.tobytes() in known for pixels in test.pixels)
    if num_shared:
        _log.warning("%s: %d of the %d test images are training images too", path, num_shared, len(test.pixels))


def _make_dataset(name: str, train: Images, test: Images, source: str, num_validation: int, seed: int) -> Dataset:
    if not 0 <= num_validation < len(train.pixels):
        raise DataError(f"`num_validation` must be 0 to {len(train.pixels) - 1}. Received: {num_validation}")
    sha256 = _hash_of(train.pixels, train.labels, test.pixels, test.labels)
    kept, validation = _hold_out(train, num_validation, b"validation %d" % seed)
    return Dataset(
        name,
        train.image_shape,
        train=kept.pixels,
        validation=validation.pixels,
        test=test.pixels,
        train_labels=kept.labels,
        validation_labels=validation.labels,
        test_labels=test.labels,
        sha256=sha256,
        source=source,
    )


def _hold_out(images: Images, count: int, key: bytes, *, stratify: bool = False) -> tuple[Images, Images]:
    """Parts images into those that stay and about `count` that are held out (exactly, if no image comes twice).

    Images go by a keyed hash of their pixels, so that equal ones always land on the same side, and neither the order
    of the files nor a few new ones move the rest across. `stratify` holds out the same share of each label.
    """
    if not count:
        return images, _choose(images, np.zeros(len(images.pixels), bool))
    groups: dict[bytes, list[int]] = {}
    for index, pixels in enumerate(images.pixels):
        groups.setdefault(hashlib.blake2b(pixels, key=key, digest_size=16).digest(), []).append(index)
    num_images = len(images.pixels)
    strata = images.labels if stratify and images.labels is not None else np.zeros(num_images, np.int64)
    room = {label: round(count * size / num_images) for label, size in Counter(strata.tolist()).items()}
    held = np.zeros(num_images, bool)
    for _, members in sorted(groups.items()):
        label = int(strata[members[0]])
        if len(members) <= room[label]:
            held[members] = True
            room[label] -= len(members)
    if held.all() or not held.any():
        raise DataError(f"{num_images} images, {len(groups)} of them different: too few to hold out {count}. Add more.")
    return _choose(images, ~held), _choose(images, held)


def _choose(images: Images, mask: np.ndarray) -> Images:
    return Images(images.pixels[mask], images.image_shape, None if images.labels is None else images.labels[mask])


def _hash_of(*arrays: np.ndarray | None) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        if array is not None:
            digest.update(f"{array.dtype.str} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
