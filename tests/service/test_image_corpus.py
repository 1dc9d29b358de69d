"""Damaged and hostile files: each is read or refused, none escapes as another exception.

Files that others collected (for instance `Tests/images` of Pillow's source) are taken from the folder RBM_IMAGE_CORPUS.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.images import ImageError, decode_image, model_image
from tests.service.drawn import drawn_digit, to_bytes

MAX_BYTES = 1_000_000  # what the service takes in


def outcome(body: bytes) -> str:
    """ "read", or the refusal's status; any other exception is the test's failure."""
    try:
        pixels = model_image(decode_image(body)).pixels
    except ImageError as error:
        assert error.status in (413, 415, 422) and error.detail
        return str(error.status)
    assert pixels.shape == (28, 28) and np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1
    return "read"


def small_files() -> list[bytes]:
    """One small file of every format and kind that is read."""
    page = Image.fromarray(np.rint((1 - drawn_digit(56, 5)) * 255).astype(np.uint8))
    deep = np.asarray(page, np.uint16) * 257
    files = [to_bytes(page.convert(mode)) for mode in ("L", "1", "P", "LA", "RGB", "RGBA")]
    files += [to_bytes(deep), to_bytes(page, "JPEG"), to_bytes(page.convert("RGB"), "JPEG", progressive=True)]
    files += [to_bytes(page.convert("CMYK"), "JPEG"), to_bytes(page, "GIF"), to_bytes(page, "BMP")]
    files += [to_bytes(page.convert("RGBA"), "WEBP"), to_bytes(page.convert("RGB"), "WEBP", lossless=True)]
    files += [to_bytes(page, "GIF", save_all=True, append_images=[Image.new("L", page.size)] * 3)]
    return files


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """Files with flipped bits, cut short, spliced with one another, or with runs of bytes set to 0 or 255."""
    files, rng = small_files(), np.random.default_rng(seed)
    for number in range(count):
        body = bytearray(files[number % len(files)])
        kind, place = rng.integers(4), int(rng.integers(4, len(body)))
        if kind == 0:
            for position in rng.integers(4, len(body), rng.integers(1, 12)):
                body[position] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del body[place:]
        elif kind == 2:
            other = files[rng.integers(len(files))]
            body[place:] = other[int(rng.integers(len(other))) :]
        else:
            body[place : place + 8] = bytes([255 * int(rng.integers(2))]) * 8
        yield bytes(body)


def test_mutated_files_are_read_or_refused() -> None:
    counts = Counter(outcome(body) for body in mutants(1500, seed=0))
    assert counts["read"] > 100 and counts["422"] > 100  # the mutants are neither all harmless nor all broken at once


@pytest.mark.parametrize(
    "magic", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"RIFF\x40\0\0\0WEBPVP8 "]
)
def test_noise_behind_a_right_beginning_is_refused(magic: bytes) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        assert outcome(magic + rng.bytes(200)) in ("413", "422")


def test_files_that_others_collected() -> None:
    folder = os.environ.get("RBM_IMAGE_CORPUS")
    if not folder:
        pytest.skip("needs a corpus: set RBM_IMAGE_CORPUS to a folder of image files")
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_size <= MAX_BYTES]
    counts = Counter(outcome(path.read_bytes()) for path in paths)
    print(f"{len(paths)} files: {dict(counts)}")
    assert sum(counts.values()) == len(paths) > 0
