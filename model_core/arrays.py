"""Arrays that start on a cache line, as vector loads and TensorFlow want them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

CACHE_LINE = 64  # bytes


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array that is not filled yet and starts on a multiple of 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + CACHE_LINE, np.uint8)
    offset = -raw.ctypes.data % CACHE_LINE
    return raw[offset : offset + size].view(dtype).reshape(shape)
