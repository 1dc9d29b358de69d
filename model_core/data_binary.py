"""From grey pixels to 0 and 1, and from images to batches; every random bit is a function of a seed and a number.

An RBM's visible units are 0 or 1. A grey pixel is taken as the probability of a 1 and drawn (stochastic), anew for
each update, as Salakhutdinov and Murray (2008) do, or once (fixed); or it is cut at one half (threshold), which makes
an easier set whose likelihoods are not comparable with the other two.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Binarisation = Literal["stochastic", "fixed", "threshold"]
_ORDER, _DRAW = 0, 1  # what a generator is for: part of its key
# Draws that no update reaches, for the sets that are drawn once.
FIXED_DRAW, TEST_DRAW, TRAIN_DRAW = 2**62, 2**62 + 1, 2**62 + 2


def pixel_probs(images: np.ndarray) -> np.ndarray:
    """Pixels as probabilities, float32 0..1: uint8 is divided by 255, floats are passed through."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if images.dtype.kind != "f":
        raise ValueError(f"Pixels must be uint8 0..255 or floats 0..1. Received dtype {images.dtype}.")
    return images.astype(np.float32, copy=False)


def binarize(
    images: np.ndarray, method: Literal["stochastic", "threshold"] = "stochastic", *, seed: int = 0, draw: int = 0
) -> np.ndarray:
    """Binary images of grey ones, uint8 0 or 1, in the shape of `images`.

    Args:
      images: uint8 0..255 or floats 0..1.
      method: "stochastic" draws each pixel with its grey value as the probability; "threshold" cuts at one half.
      seed: at least 0.
      draw: number of the draw, such as the update of a training; different numbers give independent draws.
    """
    probs = pixel_probs(images)
    if method == "threshold":
        return (probs >= 0.5).astype(np.uint8)
    if method != "stochastic":
        raise ValueError(f'`method` must be "stochastic" or "threshold". Received: {method!r}')
    # random() is below 1 and never below 0, so that black and white pixels are never flipped.
    return (_generator(seed, _DRAW, draw).random(probs.shape, np.float32) < probs).astype(np.uint8)


def epoch_order(num_images: int, epoch: int, seed: int) -> np.ndarray:
    """The order in which an epoch visits the images: a permutation, int64 [num_images], keyed by (seed, epoch)."""
    return _generator(seed, _ORDER, epoch).permutation(num_images)


class Batches:
    """The batches of a training; the one of update t is a function of (images, options, t) and of nothing else.

    So a training that resumes at any update sees the bits that it would have seen without the stop. An epoch leaves out
    the images that do not fill a batch, other ones each time.
    """

    def __init__(
        self, images: np.ndarray, batch_size: int, *, seed: int, binarisation: Binarisation = "stochastic"
    ) -> None:
        """`images` are uint8 0..255 or floats 0..1, [images, visible]."""
        if batch_size < 1 or len(images) < 1:
            raise ValueError(f"`batch_size` must be at least 1. Received: {batch_size}, for {len(images)} images.")
        if binarisation not in ("stochastic", "fixed", "threshold"):
            raise ValueError(f'`binarisation` must be "stochastic", "fixed" or "threshold". Received: {binarisation!r}')
        self.batch_size = min(batch_size, len(images))
        self.num_batches = len(images) // self.batch_size  # an epoch
        self._seed = seed
        self._redraw = binarisation == "stochastic"
        method: Literal["stochastic", "threshold"] = "threshold" if binarisation == "threshold" else "stochastic"
        self._images = images if self._redraw else binarize(images, method, seed=seed, draw=FIXED_DRAW)
        self._epoch, self._order = -1, np.empty(0, np.int64)  # only a cache

    def at(self, update: int) -> np.ndarray:
        """The batch of an update, counted from 0 over all epochs; uint8 0 or 1 [batch, visible]."""
        epoch, index = divmod(update, self.num_batches)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(len(self._images), epoch, self._seed)
        batch = self._images[self._order[index * self.batch_size : (index + 1) * self.batch_size]]
        return binarize(batch, seed=self._seed, draw=update) if self._redraw else batch


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    if seed < 0 or number < 0:
        raise ValueError(f"Seeds and numbers of draws must be at least 0. Received: {seed}, {number}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(purpose, number))))
