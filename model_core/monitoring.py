"""How training goes, in numbers that cost little: no estimate here needs the partition function.

Hinton (2012), "A Practical Guide to Training Restricted Boltzmann Machines", sections 5-7 and 15, says which of them to
trust: the reconstruction error only a little, the free-energy gap for overfitting, histograms for everything else.
`monitoring_events` writes them for TensorBoard, `monitoring_progress` for a terminal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from model_core.randomness import VISIBLE_LAYER, uniforms
from model_core.rbm import RBMParams, free_energy, hidden_logits, hidden_probs, softplus, visible_probs

Array = np.ndarray
_TILE = 2_000_000  # numbers in one piece of a large intermediate array: 16 MB of float64


class HiddenHealth(NamedTuple):
    """What the hidden units do on a batch of data; see `hidden_health`."""

    mean_activity: float  # of all units on all images, in 0..1
    num_dead: int  # units that are almost never on
    num_saturated: int  # units that are almost never off


class UpdateRatio(NamedTuple):
    """Mean absolute update over mean absolute value, of each parameter; about 1e-3 is healthy for the weights."""

    weights: float
    visible_bias: float
    hidden_bias: float


def reconstruction_error(params: RBMParams, visible: Array) -> float:
    """Mean squared error per pixel of one step down and up without sampling: v -> p(h|v) -> p(v|h).

    Watch it, do not trust it: it falls while the chains stop mixing (Hinton 2012, section 5).

    Args:
      params: the model.
      visible: images, [rows, visible], in 0..1.
    """
    reconstruction = visible_probs(params, hidden_probs(params, visible))
    return float(np.mean(np.square(reconstruction - visible), dtype=np.float64))


def free_energy_gap(params: RBMParams, training: Array, held_out: Array) -> float:
    """mean F(held out) - mean F(training), in nats. Z cancels; a growing gap is overfitting (Hinton 2012, section 6).

    Args:
      params: the model.
      training: a subset of the training images, the same at every call, [rows, visible].
      held_out: images that training never sees, binarised in the same way, [rows, visible].
    """
    return float(free_energy(params, held_out).mean() - free_energy(params, training).mean())


def flip_log_odds(params: RBMParams, visible: Array, pixels: Array) -> Array:
    """F(v with one pixel flipped) - F(v) = log p(v_i | others) - log p(1 - v_i | others), in nats.

    Args:
      params: the model.
      visible: 0 or 1, [rows, visible].
      pixels: which pixels to flip, one after the other, integers [rows, pixels].

    Returns:
      float64 [rows, pixels].
    """
    logits = hidden_logits(params, visible)  # [rows, hidden]
    change = 1.0 - 2.0 * np.take_along_axis(np.asarray(visible, np.float64), pixels, axis=1)  # +1: switched on
    here = softplus(logits).sum(axis=1)
    flipped = np.empty(pixels.shape)
    for column, pixel in enumerate(pixels.T):
        moved = logits + change[:, column, None].astype(np.float32) * params.weights[pixel]
        flipped[:, column] = softplus(moved).sum(axis=1)
    return -change * params.visible_bias[pixels].astype(np.float64) - flipped + here[:, None]


def estimate_pseudo_likelihood(params: RBMParams, visible: Array, *, seed: int, num_pixels: int = 8) -> float:
    """Mean over images of sum_i log p(v_i | all other pixels), in nats: Besag's pseudo-likelihood.

    A Monte Carlo estimate, unbiased: `num_pixels` pixels of each image, drawn uniformly, stand for all of them. As many
    as the image has, or more, and every pixel is computed once and nothing is drawn. High values do not mean good
    samples: each term conditions on a real image.

    Args:
      params: the model.
      visible: 0 or 1, [rows, visible].
      seed: the same seed, the same pixels.
      num_pixels: of each image, at least 1.

    Raises:
      ValueError: if `visible` is not binary or `num_pixels` is below 1.
    """
    if not np.isin(visible, (0, 1)).all():
        raise ValueError("`visible` must hold only 0 and 1; binarise grey images first (model_core.data.binarize).")
    if num_pixels < 1:
        raise ValueError(f"`num_pixels` must be at least 1. Received: {num_pixels}")
    num_rows, num_visible = visible.shape
    if num_pixels >= num_visible:
        pixels = np.broadcast_to(np.arange(num_visible), visible.shape)
    else:
        numbers = uniforms(np.asarray([seed % 2**64], np.uint64), 0, VISIBLE_LAYER, num_rows * num_pixels)
        pixels = (numbers * num_visible).astype(np.int64).reshape(num_rows, num_pixels)
    rows_at_once = max(1, _TILE // params.num_hidden)
    total = 0.0
    for first in range(0, num_rows, rows_at_once):
        part = slice(first, first + rows_at_once)
        total -= softplus(-flip_log_odds(params, visible[part], pixels[part])).sum()  # log sigmoid(log odds)
    return total * num_visible / pixels.size


def hidden_health(params: RBMParams, visible: Array, *, threshold: float = 0.01) -> HiddenHealth:
    """Mean activity of the hidden units on `visible` [rows, visible], and how many of them are stuck.

    A unit is dead if its mean probability is below `threshold`, saturated if above 1 - `threshold`: it then says
    nothing about the image, and its weights no longer learn.
    """
    activity = hidden_probs(params, visible).mean(axis=0, dtype=np.float64)
    return HiddenHealth(
        mean_activity=float(activity.mean()),
        num_dead=int((activity < threshold).sum()),
        num_saturated=int((activity > 1 - threshold).sum()),
    )


def update_ratio(before: RBMParams, after: RBMParams) -> UpdateRatio:
    """Mean |after - before| over mean |before|, of each parameter; infinite where all of it was zero and moved.

    Hinton (2012), section 7: about 1e-3 for the weights of one update, more for biases.
    """
    ratios = []
    for old, new in zip(before, after, strict=True):
        change, size = np.abs(new - old).mean(dtype=np.float64), np.abs(old).mean(dtype=np.float64)
        ratios.append(float(change / size) if size else (0.0 if not change else float("inf")))
    return UpdateRatio(*ratios)
