"""A user's own images: `.npz`, `.npy`, or a folder of pictures, read into arrays of pixels.

Pixels come out as uint8 0..255 or float32 0..1, [images, visible]. Nothing is unpickled, and whatever is wrong with a
file ends in a `DataError` that names it.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAX_PIXELS = 2**16  # of one image: 256x256
_READ_ERRORS = (
    *(
        OSError,
        ValueError,
        EOFError,
        KeyError,
        SyntaxError,
        NotImplementedError,
        RuntimeError,
        OverflowError,
        MemoryError,
    ),
    *(zipfile.BadZipFile, zlib.error),
)
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # by content: a .png may hold anything else
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm"}


class DataError(ValueError):
    """Data that cannot be used: which file, what was expected, what to do."""


class Images(NamedTuple):
    """Pixels, their shape, and labels where there are some."""

    pixels: np.ndarray  # uint8 0..255 or float32 0..1, [images, visible]
    image_shape: tuple[int, int]
    labels: np.ndarray | None = None  # int64 [images]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` by name; that of an `.npy` is called "x"."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Expected an .npz or .npy file.")
    try:
        with path.open("rb") as file:  # np.load leaves a damaged file open that it has opened itself
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            with loaded:
                return {key: loaded[key] for key in loaded.files}
    except _READ_ERRORS as error:
        raise DataError(
            f"{path}: expected arrays of numbers as numpy.save or numpy.savez write them ({error}). "
            "The file may be cut off, or hold Python objects; write it again."
        ) from error


def load_own_arrays(path: Path) -> tuple[Images, Images | None]:
    """Training and, where the file has them, test images of an `.npz` or `.npy`.

    Keys: `x_train` and maybe `x_test`, or `x`, or a single array of any name; labels in `y_train`, `y_test`, `y`.
    """
    arrays = load_arrays(path)
    pictures = [key for key in arrays if not key.startswith("y")]
    key = next((key for key in ("x_train", "x") if key in arrays), pictures[0] if len(pictures) == 1 else None)
    if key is None or key == "x_test":
        raise DataError(
            f"{path}: expected `x_train`, `x` or a single array. Received: {', '.join(arrays) or 'nothing'}."
        )
    train = as_images(arrays[key], arrays.get("y_train" if key == "x_train" else "y"), f"{path}, `{key}`")
    if "x_test" not in arrays:
        return train, None
    test = as_images(arrays["x_test"], arrays.get("y_test"), f"{path}, `x_test`")
    if test.image_shape != train.image_shape or test.pixels.dtype != train.pixels.dtype:
        raise DataError(
            f"{path}: `{key}` and `x_test` must be alike. Received: {train.image_shape} {train.pixels.dtype} "
            f"and {test.image_shape} {test.pixels.dtype}."
        )
    return train, test


def as_images(array: np.ndarray, labels: np.ndarray | None, where: str) -> Images:
    """Checks an array of images and flattens it; `where` is for messages."""
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or not array.size:
        raise DataError(
            f"{where}: expected grey images, [images, rows, columns] or [images, pixels]. Received shape {array.shape}."
        )
    pixels = _as_pixels(array, where).reshape(len(array), -1)
    if pixels.shape[1] > MAX_PIXELS:
        raise DataError(f"{where}: images of {pixels.shape[1]} pixels; at most {MAX_PIXELS}. Make them smaller.")
    side = math.isqrt(pixels.shape[1])
    flat_shape = (side, side) if side * side == pixels.shape[1] else (1, pixels.shape[1])
    image_shape = (array.shape[1], array.shape[2]) if array.ndim == 3 else flat_shape
    return Images(pixels, image_shape, _as_labels(labels, len(array), where))


def _as_pixels(array: np.ndarray, where: str) -> np.ndarray:
    """uint8 0..255 or float32 0..1; whole numbers that are only 0 and 1 are black and white."""
    if array.dtype.kind in "bui":
        lowest, highest = int(array.min()), int(array.max())
        if lowest < 0 or highest > 255:
            raise DataError(f"{where}: whole numbers must be pixels 0..255. Received {lowest}..{highest}.")
        return np.ascontiguousarray(array.astype(np.uint8) * np.uint8(255 if highest <= 1 else 1))
    if array.dtype.kind != "f":
        raise DataError(f"{where}: expected numbers. Received dtype {array.dtype}.")
    if not np.isfinite(array).all():
        raise DataError(f"{where}: holds NaN or infinite numbers. Expected floats 0..1 or whole numbers 0..255.")
    if array.min() < 0 or array.max() > 1:
        raise DataError(
            f"{where}: floats must be in 0..1. Received {array.min():g}..{array.max():g}: "
            "divide by the largest value, or save whole numbers 0..255."
        )
    return np.ascontiguousarray(array, np.float32)


def _as_labels(labels: np.ndarray | None, num_images: int, where: str) -> np.ndarray | None:
    if labels is None:
        return None
    if labels.shape != (num_images,) or labels.dtype.kind not in "ui":
        raise DataError(
            f"{where}: labels must be whole numbers, one an image: shape ({num_images},). "
            f"Received {labels.dtype}, shape {labels.shape}."
        )
    return labels.astype(np.int64)


def load_picture_folder(folder: Path) -> tuple[Images, Images | None]:
    """Training and test images of a folder: of its `train` and `test` if it has both, else all of it and None.

    Pictures lie in the folder itself, or in sub-folders whose names, in alphabetical order, are the labels 0, 1, ...
    """
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = _load_pictures(folder / "train"), _load_pictures(folder / "test")
        if train.image_shape != test.image_shape:
            raise DataError(f"{folder}: the pictures in `train` and in `test` are not of one size.")
        return train, test
    return _load_pictures(folder), None


def _load_pictures(folder: Path) -> Images:
    classes = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    labelled = {path: label for label, entry in enumerate(classes) for path in _pictures(entry.rglob("*"))}
    plain = _pictures(folder.iterdir())
    if not labelled and not plain:
        raise DataError(f"{folder}: holds no picture. Expected {', '.join(sorted(_SUFFIXES))} files.")
    if labelled and plain:
        raise DataError(f"{folder}: holds {plain[0].name} beside sub-folders of pictures. Use either, not both.")
    paths = plain or list(labelled)
    pixels = [_load_grey(path) for path in paths]
    for path, grey in zip(paths, pixels, strict=True):
        if grey.shape != pixels[0].shape:
            raise DataError(
                f"{path}: {grey.shape[1]}x{grey.shape[0]} pixels, but {paths[0].name} has "
                f"{pixels[0].shape[1]}x{pixels[0].shape[0]}. Make all pictures the same size."
            )
    rows, columns = pixels[0].shape
    labels = np.array(list(labelled.values()), np.int64) if labelled else None
    return Images(np.stack(pixels).reshape(len(pixels), -1), (rows, columns), labels)


def _pictures(entries: Iterable[Path]) -> list[Path]:
    return sorted(path for path in entries if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."))


def _load_grey(path: Path) -> np.ndarray:
    """A picture's grey values as they are, uint8 [rows, columns]; of an animation the first frame."""
    from PIL import Image  # only who has pictures pays for it

    try:
        with Image.open(path, formats=_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {picture.width}x{picture.height} pixels; at most {MAX_PIXELS} in all. Shrink it."
                )
            if picture.mode.startswith("I;16"):
                return (np.asarray(picture) >> 8).astype(np.uint8)  # convert("L") would clip at 255
            if picture.mode in ("I", "F"):
                raise DataError(f"{path}: 32 bits a pixel. Save it with 8 or 16.")
            return _flatten(np.asarray(picture.convert("LA"))) if picture.has_transparency_data else _as_grey(picture)
    except DataError:
        raise
    except (*_READ_ERRORS, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: not a picture that can be read ({error}). Remove it or save it again.") from error


def _as_grey(picture: object) -> np.ndarray:
    return np.asarray(picture.convert("L"))  # type: ignore[attr-defined]


def _flatten(grey_alpha: np.ndarray) -> np.ndarray:
    """On black; but where all that is drawn has one tone, the drawing is the alpha channel (black ink on nothing)."""
    grey, alpha = grey_alpha[..., 0], grey_alpha[..., 1]
    drawn = grey[alpha > 0]
    if alpha.min() < 255 and drawn.size and drawn.max() - drawn.min() < 8:
        return alpha.copy()
    return (grey.astype(np.uint16) * alpha // 255).astype(np.uint8)
