"""The PNG writer: whatever the page, a decoder sees each pixel `scale` times in both directions."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.png import encode_png

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("scale", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (28, 28), (57, 231)])
def test_pixels_come_back(shape: tuple[int, int], scale: int) -> None:
    for page in (RNG.integers(0, 256, shape), RNG.integers(0, 2, shape) * 255, np.full(shape, 96)):
        page = page.astype(np.uint8)
        image = Image.open(io.BytesIO(encode_png(page, scale)))
        image.load()
        assert image.format == "PNG" and image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), page.repeat(scale, axis=0).repeat(scale, axis=1))


def test_a_digit_is_no_larger_than_pillow_makes_it() -> None:
    page = np.zeros((28, 28), np.uint8)
    page[4:24, 8:20] = RNG.integers(0, 256, (20, 12))
    pillow = io.BytesIO()
    Image.fromarray(page.repeat(8, axis=0).repeat(8, axis=1)).save(pillow, "PNG")
    assert len(encode_png(page, 8)) <= 1.1 * len(pillow.getvalue())
