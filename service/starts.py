"""Where chains begin: seeds, noise, grey images drawn as 0 or 1. The service's way to `model_core.randomness`."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from model_core import kernels_draws
from model_core.randomness import START_STEP, VISIBLE_LAYER, chain_seeds, uniforms

__all__ = ["binarize", "chain_seeds", "draw_seed", "in_blocks", "noise", "warm_up"]
BLOCK_ROWS = 1024  # a few MB


def draw_seed() -> int:
    """A seed for a request that named none. It is told, so it needs not be a secret."""
    return random.getrandbits(63)


def noise(seeds: np.ndarray, num_visible: int) -> np.ndarray:
    """`randomness.noise`, compiled, as bool [chains, visible]: by its type it holds nothing but 0 and 1."""
    states = np.empty((len(seeds), num_visible), np.uint8)
    kernels_draws.noise(states, seeds)
    return states.view(bool)


def warm_up() -> None:
    """Compiles what `noise` calls."""
    noise(chain_seeds(0, 1), 1)


def binarize(pixels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Draws each pixel as 1 with its grey value as the probability: uint8 [chains, visible].

    Args:
      pixels: float32 [chains, visible] in 0..1. Where they are 0 or 1 nothing is random.
      seeds: uint64 [chains]; the same seed draws the same image. The numbers are those of `noise`: no chain starts at
        both.
    """

    def drawn(pixels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        return (uniforms(seeds, START_STEP, VISIBLE_LAYER, pixels.shape[1]) < pixels).astype(np.uint8)

    return in_blocks(drawn, pixels, seeds)


def in_blocks(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """`function(*arrays)`, so many rows at a time that what it needs in between stays small."""
    starts = range(0, len(arrays[0]), BLOCK_ROWS)
    if len(starts) < 2:
        return function(*arrays)
    return np.concatenate([function(*(array[start : start + BLOCK_ROWS] for array in arrays)) for start in starts])
