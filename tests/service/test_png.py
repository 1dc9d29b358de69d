"""The PNG writer: whatever the page, a decoder sees each pixel `scale` times in both directions."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.deflate import FARTHEST, pack_enlarged
from service.png import encode_png

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("scale", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 9), (28, 28), (28, 144), (64, 64), (57, 231), (2, 1300)])
def test_pixels_come_back(shape: tuple[int, int], scale: int) -> None:
    for page in (RNG.integers(0, 256, shape), RNG.integers(0, 2, shape) * 255, np.full(shape, 96)):
        page = page.astype(np.uint8)
        image = Image.open(io.BytesIO(encode_png(page, scale)))
        image.load()
        assert image.format == "PNG" and image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), page.repeat(scale, axis=0).repeat(scale, axis=1))


@given(data=st.data(), scale=st.integers(1, 32))
@settings(max_examples=300, deadline=None)
def test_any_small_page_is_what_zlib_unpacks(data: st.DataObject, scale: int) -> None:
    """zlib checks the codes, the distances and the sum of Adler; the lines are compared here."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    pixels = data.draw(st.lists(st.sampled_from([0, 1, 2, 143, 144, 254, 255]), min_size=1, max_size=30))
    page = np.resize(np.array(pixels, np.uint8), (height, width))
    lines = np.zeros((height * scale, 1 + width * scale), np.uint8)
    lines[:, 1:] = page.repeat(scale, axis=0).repeat(scale, axis=1)
    assert zlib.decompress(pack_enlarged(page, scale)) == lines.tobytes()


@pytest.mark.parametrize("length", [*range(1, 12), *range(255, 266), *range(513, 524), 10_000])
def test_runs_of_every_length_leave_no_rest_that_cannot_be_copied(length: int) -> None:
    page = np.array([[7] * length + [9]], np.uint8)
    assert zlib.decompress(pack_enlarged(page, 1)) == b"\0" + page.tobytes()
    column = np.array([[7]] * length, np.uint8)
    assert zlib.decompress(pack_enlarged(column, 1)) == b"\0\7" * length
    assert zlib.decompress(pack_enlarged(column, 3)) == b"\0\7\7\7" * length * 3


def test_pages_that_lie_otherwise_in_memory() -> None:
    page = RNG.integers(0, 256, (6, 9)).astype(np.uint8)
    expected = pack_enlarged(page, 2)
    frozen = page.copy()
    frozen.flags.writeable = False
    for other in (np.asfortranarray(page), page.repeat(2, axis=1)[:, ::2], page[::-1][::-1], frozen):
        assert pack_enlarged(other, 2) == expected
    with pytest.raises(ValueError, match="must have a pixel"):
        pack_enlarged(page[:, :0], 2)


def test_the_longest_line_and_one_that_is_too_long() -> None:
    row = RNG.integers(0, 256, (1, FARTHEST)).astype(np.uint8)
    line = b"\0" + row[0, 1:].tobytes()
    assert zlib.decompress(pack_enlarged(row[:, 1:].repeat(3, axis=0), 1)) == 3 * line  # copies from the window's edge
    with pytest.raises(ValueError, match="at most 32768 bytes"):
        pack_enlarged(row, 1)
    page = row[:, :2048]  # small enough, but enlarged its lines are too long
    assert Image.open(io.BytesIO(encode_png(page, 16))).size == (32_768, 16)


def digits(count: int) -> np.ndarray:
    """So many digits' worth of strokes in a row."""
    page = np.zeros((28, 28 * count), np.uint8)
    for left in range(0, 28 * count, 28):
        page[4:24, left + 8 : left + 20] = RNG.integers(0, 256, (20, 12))
    return page


@pytest.mark.parametrize(("count", "factor"), [(1, 1.5), (2, 1.1), (16, 1.1)])
def test_a_picture_is_about_as_large_as_pillow_makes_it(count: int, factor: float) -> None:
    page = digits(count)
    pillow = io.BytesIO()
    Image.fromarray(page.repeat(8, axis=0).repeat(8, axis=1)).save(pillow, "PNG")
    assert len(encode_png(page, 8)) <= factor * len(pillow.getvalue())
