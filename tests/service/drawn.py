"""Drawings and pages for the tests of uploads: made here, so that the truth about them is known."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def drawn_digit(size: int = 280, width: int = 22) -> np.ndarray:
    """Ink of a 5 without any symmetry, float32 [size, size] in 0..1, drawn off centre with soft edges."""
    page = Image.new("L", (size, size), 0)
    unit = size / 28
    points = [(17, 5), (9, 5), (8.5, 12), (13, 11), (17, 13), (17.5, 17), (14, 20), (8, 19)]
    ImageDraw.Draw(page).line([(x * unit, y * unit) for x, y in points], fill=255, width=width, joint="curve")
    return np.asarray(page.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255


def to_bytes(picture: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """A file of a picture; arrays of floats are 0..1."""
    if isinstance(picture, np.ndarray):
        grey = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8) if picture.dtype.kind == "f" else picture
        picture = Image.fromarray(grey)
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def photograph(ink: np.ndarray, seed: int = 0) -> np.ndarray:
    """Ink on grey paper under uneven light with a shadow's edge and grain, float [rows, columns] in 0..1."""
    rows, columns = np.mgrid[: ink.shape[0], : ink.shape[1]] / max(ink.shape)
    light = 0.55 + 0.35 * columns - 0.1 * rows
    light *= 1 - 0.3 / (1 + np.exp((columns - 0.35 - 0.2 * rows) / 0.02))
    noise = 0.02 * np.random.default_rng(seed).standard_normal(ink.shape)
    return np.clip(light * (1 - 0.75 * ink) + noise, 0, 1)
