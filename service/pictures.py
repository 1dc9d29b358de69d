"""States of chains -> pictures and animations a person looks at: grey, nearest-neighbour, the same bytes every time."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from service.png import encode_png

MAX_SCALE = 32
FRAME_MILLISECONDS = 100
LAST_FRAME_MILLISECONDS = 1500  # the end of a dream stays in view before the animation begins again
SEPARATOR = 96  # grey of the thin lines between images
ANIMATED = ("gif", "webp", "apng")


def render(
    frames: Sequence[np.ndarray] | np.ndarray,
    *,
    view: str = "final",
    scale: int = 8,
    format: str = "png",
    inputs: np.ndarray | None = None,
) -> bytes:
    """A picture of chains, or with gif, webp and apng an animation of all frames.

    Args:
      frames: images in 0..1, one [chains, height, width] a frame, oldest first.
      view: "final": the chains of a frame in a near-square grid; "pair": `inputs` above and dreams below, one column a
        chain; "strip": one column a frame and one row a chain, which is a still picture in every format.
      scale: screen pixels a model pixel, 1 to 32.
      format: "png" shows the last frame (or the strip).
      inputs: [chains, height, width], what the chains started from; "pair" needs it.

    Returns:
      The file. The same arguments give the same bytes.

    Raises:
      ValueError: if an argument has the wrong shape or range.
    """
    _check(frames, view, scale, format, inputs)
    if view == "strip":
        pages = [_strip(frames)]
    else:
        shown = frames if format in ANIMATED else frames[-1:]
        pages = [_page(np.asarray(frame), inputs if view == "pair" else None) for frame in shown]
    return _encoded(pages, scale, format)


def picture_pixels(
    num_frames: int,
    num_chains: int,
    image_shape: tuple[int, int],
    *,
    view: str = "final",
    scale: int = 8,
    format: str = "png",
) -> int:
    """Screen pixels that `render` would paint, over all frames; for refusing what is too large before any work."""
    height, width = picture_size(num_frames, num_chains, image_shape, view=view, scale=scale)
    return height * width * (num_frames if format in ANIMATED and view != "strip" else 1)


def picture_size(
    num_frames: int, num_chains: int, image_shape: tuple[int, int], *, view: str = "final", scale: int = 8
) -> tuple[int, int]:
    """Height and width of each page that `render` would paint, in screen pixels."""
    height, width = image_shape
    rows, columns = {"final": _grid(num_chains), "pair": (2, num_chains), "strip": (num_chains, num_frames)}[view]
    return _length(rows, height) * scale, _length(columns, width) * scale


def filters_picture(weights: np.ndarray, image_shape: tuple[int, int], scale: int = 2, format: str = "png") -> bytes:
    """The columns of `weights` [visible, hidden] as images in a near-square grid: what each hidden unit looks for.

    One grey scale for all, and the same distance from mid-grey for the same weight of either sign: mid-grey 0, white
    and black the 99.5th percentile of |weight| and beyond, so that a few strong weights do not hide the others.
    """
    if weights.ndim != 2 or weights.shape[0] != image_shape[0] * image_shape[1]:
        raise ValueError(f"`weights` must be [pixels of {image_shape}, hidden]. Received shape {weights.shape}.")
    limit = max(float(np.quantile(np.abs(weights), 0.995)), 1e-12)
    tiles = np.clip(0.5 + 0.5 * weights.T / limit, 0, 1).reshape(-1, *image_shape)
    return _encoded([_tiled(tiles, *_grid(len(tiles)))], scale, format)


def _check(
    frames: Sequence[np.ndarray] | np.ndarray, view: str, scale: int, format: str, inputs: np.ndarray | None
) -> None:
    if len(frames) == 0 or np.ndim(frames[0]) != 3 or any(np.shape(frame) != np.shape(frames[0]) for frame in frames):
        raise ValueError("`frames` must hold at least one [chains, height, width], all of one shape.")
    if view not in ("final", "pair", "strip") or format not in ("png", *ANIMATED):
        raise ValueError(
            f"`view` is final, pair or strip; `format` png, gif, webp, apng. Received: {view!r}, {format!r}"
        )
    if not 1 <= scale <= MAX_SCALE:
        raise ValueError(f"`scale` must be 1 to {MAX_SCALE}. Received: {scale}")
    shape = np.shape(frames[0])
    if view == "pair" and (inputs is None or inputs.shape != shape):
        received = None if inputs is None else inputs.shape
        raise ValueError(f'View "pair" needs `inputs`; they must be {shape}, one image a chain. Received {received}.')


def _page(images: np.ndarray, inputs: np.ndarray | None) -> np.ndarray:
    if inputs is None:
        return _tiled(images, *_grid(len(images)))
    return _tiled(np.concatenate([inputs, images]), 2, len(images))


def _strip(frames: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    by_chain = np.stack([np.asarray(frame) for frame in frames], axis=1)
    num_chains, num_frames = by_chain.shape[:2]
    return _tiled(by_chain.reshape(num_chains * num_frames, *by_chain.shape[2:]), num_chains, num_frames)


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns of a near-square grid, wider than high; up to five images stand in one row."""
    columns = count if count <= 5 else math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def _length(count: int, size: int) -> int:
    """Length of `count` images in a row with lines one model pixel wide between them."""
    return count * size + count - 1


def _tiled(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Images [n, height, width] in 0..1 -> one uint8 picture, row by row; empty places are filled like the lines."""
    grey = np.empty(images.shape, np.uint8)
    np.rint(images * np.float32(255), out=grey, casting="unsafe")
    if len(grey) == rows == columns == 1:
        return grey[0]
    height, width = images.shape[1:]
    page = np.full((_length(rows, height), _length(columns, width)), SEPARATOR, np.uint8)
    for number, image in enumerate(grey):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        page[top : top + height, left : left + width] = image
    return page


def _encoded(pages: list[np.ndarray], scale: int, format: str) -> bytes:
    if len(pages) == 1 and format in ("png", "apng"):
        return encode_png(pages[0], scale)
    images = [Image.fromarray(page.repeat(scale, axis=0).repeat(scale, axis=1)) for page in pages]
    stream = io.BytesIO()
    options: dict[str, Any] = {"lossless": True, "method": 2} if format == "webp" else {}
    if len(pages) > 1:
        durations = [FRAME_MILLISECONDS] * (len(pages) - 1) + [LAST_FRAME_MILLISECONDS]
        options |= {"save_all": True, "append_images": images[1:], "duration": durations, "loop": 0}
    images[0].save(stream, "PNG" if format == "apng" else format.upper(), **options)
    return stream.getvalue()
