"""Pictures of chains: every pixel is where it should be, and the same arguments give the same bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.pictures import SEPARATOR, filters_picture, picture_pixels, render

RNG = np.random.default_rng(3)
FRAMES = RNG.random((4, 3, 5, 7)).astype(np.float32)  # 4 frames of 3 chains of 5x7 images
INPUTS = RNG.random((3, 5, 7)).astype(np.float32)


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def grey(content: bytes) -> np.ndarray:
    return np.asarray(opened(content).convert("L"))


def test_final_shows_the_last_frame_in_one_row() -> None:
    page = grey(render(FRAMES, scale=1))
    assert page.shape == (5, 3 * 7 + 2)
    for chain in range(3):
        np.testing.assert_array_equal(page[:, chain * 8 : chain * 8 + 7], np.rint(FRAMES[-1, chain] * 255))
    assert (page[:, 7] == SEPARATOR).all()


def test_one_chain_has_no_lines_and_scale_is_exact() -> None:
    page = grey(render(FRAMES[:, :1], scale=3))
    np.testing.assert_array_equal(page, np.rint(FRAMES[-1, 0] * 255).repeat(3, axis=0).repeat(3, axis=1))


def test_pair_puts_inputs_above_dreams() -> None:
    page = grey(render(FRAMES, view="pair", scale=1, inputs=INPUTS))
    assert page.shape == (11, 23)
    np.testing.assert_array_equal(page[:5, 8:15], np.rint(INPUTS[1] * 255))
    np.testing.assert_array_equal(page[6:, 8:15], np.rint(FRAMES[-1, 1] * 255))


def test_strip_has_a_column_a_frame_and_a_row_a_chain() -> None:
    page = grey(render(FRAMES, view="strip", scale=1))
    assert page.shape == (3 * 5 + 2, 4 * 7 + 3)
    np.testing.assert_array_equal(page[12:, 8:15], np.rint(FRAMES[1, 2] * 255))


def test_many_chains_stand_in_a_near_square_grid() -> None:
    page = grey(render(RNG.random((1, 64, 5, 7)), scale=1))
    assert page.shape == (8 * 5 + 7, 8 * 7 + 7)


@pytest.mark.parametrize("format", ["gif", "webp", "apng"])
def test_animations_hold_all_frames_exactly(format: str) -> None:
    image = opened(render(FRAMES, scale=2, format=format))
    assert getattr(image, "n_frames", 1) == 4
    for number in range(4):
        image.seek(number)
        shown = np.asarray(image.convert("L"), np.int16)[::2, ::2][:, 8:15]
        assert np.abs(shown - np.rint(FRAMES[number, 1] * 255)).max() <= 1


@pytest.mark.parametrize("format", ["png", "gif", "webp", "apng"])
@pytest.mark.parametrize("view", ["final", "pair", "strip"])
def test_same_arguments_same_bytes_and_counted_pixels(view: str, format: str) -> None:
    first, second = (render(list(FRAMES), view=view, scale=2, format=format, inputs=INPUTS) for _ in range(2))
    assert first == second
    image = opened(first)
    painted = image.width * image.height * (4 if format != "png" and view != "strip" else 1)
    assert painted == picture_pixels(4, 3, (5, 7), view=view, scale=2, format=format)


def test_states_of_whole_numbers_are_black_and_white() -> None:
    states = RNG.integers(0, 2, (1, 1, 5, 7)).astype(np.uint8)
    np.testing.assert_array_equal(grey(render(states, scale=1)), states[0, 0] * 255)


def test_filters_are_columns_on_one_scale() -> None:
    weights = np.zeros((35, 4), np.float32)
    weights[:, 1] = 1.0
    weights[:, 2] = -1.0
    weights[3, 3] = 1.0
    page = grey(filters_picture(weights, (5, 7), scale=1))
    assert (page[:, 8:15] == 255).all() and (page[:, 16:23] == 0).all()
    assert (page[:, :7] == 128).all() and page[0, 24 + 3] == 255 and page[0, 24 + 4] == 128


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0},
        {"scale": 33},
        {"view": "row"},
        {"format": "bmp"},
        {"view": "pair"},
        {"view": "pair", "inputs": INPUTS[:2]},
    ],
)
def test_bad_arguments_are_named(change: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|is final"):
        render(FRAMES, **change)


def test_frames_of_other_shapes_are_refused() -> None:
    for frames in ([], FRAMES[0], [FRAMES[0], FRAMES[0, :2]]):
        with pytest.raises(ValueError, match="frames"):
            render(frames)
    with pytest.raises(ValueError, match="weights"):
        filters_picture(np.zeros((30, 4)), (5, 7))
