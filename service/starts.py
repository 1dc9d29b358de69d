"""Where chains begin: seeds, noise, grey images drawn as 0 or 1. The service's way to `model_core.randomness`."""

from __future__ import annotations

import random

import numpy as np

from model_core.randomness import GAMMA, VISIBLE_LAYER, chain_seeds, layer_keys, mix, uniforms

__all__ = ["binarize", "chain_seeds", "draw_seed", "noise"]
_START_STEP = 2**63 - 1  # a step that no chain reaches, as in `noise`: no chain starts at both


def draw_seed() -> int:
    """A seed for a request that named none. It is told, so it needs not be a secret."""
    return random.getrandbits(63)


def noise(seeds: np.ndarray, num_visible: int) -> np.ndarray:
    """Fair coin flips, bool [chains, visible]: `randomness.noise` by a shorter way, for this is done on every request.

    A flip is the highest bit of half a word. By its type the result holds nothing but 0 and 1: nobody has to look.
    """
    num_words = (num_visible + 1) // 2
    counters = np.arange(1, num_words + 1, dtype=np.uint64) * np.uint64(GAMMA)
    words = mix(layer_keys(seeds, _START_STEP, VISIBLE_LAYER)[:, None] + counters)
    flips = np.empty((len(seeds), num_words, 2), bool)
    flips[:, :, 0] = words & np.uint64(1 << 31)
    flips[:, :, 1] = words & np.uint64(1 << 63)
    return flips.reshape(len(seeds), -1)[:, :num_visible]


def binarize(pixels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Draws each pixel as 1 with its grey value as the probability: uint8 [chains, visible].

    Args:
      pixels: float32 [chains, visible] in 0..1. Where they are 0 or 1 nothing is random.
      seeds: uint64 [chains]; the same seed draws the same image.
    """
    return (uniforms(seeds, _START_STEP, VISIBLE_LAYER, pixels.shape[1]) < pixels).astype(np.uint8)
