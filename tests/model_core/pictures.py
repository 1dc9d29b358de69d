"""Grey noise to stand for a user's images."""

from __future__ import annotations

import numpy as np


def grey_images(num_images: int = 40, shape: tuple[int, int] = (4, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_images, *shape), np.uint8)


def rows(*arrays: np.ndarray) -> list[bytes]:
    return [row.tobytes() for array in arrays for row in array]
