"""Where chains begin: seeds, noise, grey images drawn as 0 or 1. The service's way to `model_core.randomness`."""

from __future__ import annotations

import random

import numpy as np

from model_core import randomness
from model_core.randomness import VISIBLE_LAYER, chain_seeds, uniforms

__all__ = ["binarize", "chain_seeds", "draw_seed", "noise"]
_START_STEP = 2**63 - 1  # a step that no chain reaches, as in `noise`: no chain starts at both


def draw_seed() -> int:
    """A seed for a request that named none. It is told, so it needs not be a secret."""
    return random.getrandbits(63)


def noise(seeds: np.ndarray, num_visible: int) -> np.ndarray:
    """`randomness.noise` as bool [chains, visible]: by its type it holds nothing but 0 and 1, so nobody has to look."""
    return randomness.noise(seeds, num_visible).view(bool)


def binarize(pixels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Draws each pixel as 1 with its grey value as the probability: uint8 [chains, visible].

    Args:
      pixels: float32 [chains, visible] in 0..1. Where they are 0 or 1 nothing is random.
      seeds: uint64 [chains]; the same seed draws the same image.
    """
    return (uniforms(seeds, _START_STEP, VISIBLE_LAYER, pixels.shape[1]) < pixels).astype(np.uint8)
