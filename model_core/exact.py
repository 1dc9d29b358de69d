"""Small machines by enumeration: exact log Z, probabilities, moments and gradients, all in float64.

Z = sum over v, h of exp(-E(v, h)). One layer sums out in closed form (`rbm.free_energy`), so only the states of the
smaller layer are enumerated. This is the truth that samplers and estimates are tested against; states are numbered
with unit 0 as the lowest bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from model_core.rbm import RBMParams

Array = np.ndarray

MAX_ENUMERATED_UNITS = 20
_CHUNK_BITS = 12  # states at a time: 2^12 rows of 784 float64 logits are 26 MB
_PRODUCT_TERMS = 512  # factors in [1, 2] whose product stays below float64's 2^1024


def all_states(num_units: int) -> Array:
    """Every state of a layer, uint8 [2**num_units, num_units]; row `code` holds the bits of `code`, lowest first."""
    return _states(0, 2**num_units, num_units)


def state_codes(states: Array) -> Array:
    """The row of each state in `all_states`, int64 [rows]."""
    return np.asarray(states, np.int64) @ (1 << np.arange(np.shape(states)[-1], dtype=np.int64))


def log_partition(params: RBMParams) -> float:
    """Exact log Z in nats.

    Raises:
      ValueError: if the smaller layer has more than `MAX_ENUMERATED_UNITS` units.
    """
    smaller = min(params.num_visible, params.num_hidden)
    if smaller > MAX_ENUMERATED_UNITS:
        raise ValueError(
            f"Exact log Z is limited to {MAX_ENUMERATED_UNITS} units in the smaller layer, because it enumerates"
            f" their 2^n states. Received {params.num_visible} visible and {params.num_hidden} hidden units;"
            " estimate log Z by annealed importance sampling instead (model_core.likelihood)."
        )
    if params.num_visible > params.num_hidden:
        params = RBMParams(params.weights.T, params.hidden_bias, params.visible_bias)
    return _log_sum_exp(_log_weights(params))


def log_likelihood(params: RBMParams, visible: Array) -> Array:
    """Exact log p(v) = -F(v) - log Z in nats, float64 [rows]; limited as `log_partition` is."""
    return _minus_free_energy(params, visible) - log_partition(params)


def visible_distribution(params: RBMParams) -> Array:
    """Exact p(v) of every visible state, float64 [2**visible], in the order of `all_states`.

    Raises:
      ValueError: if there are more than `MAX_ENUMERATED_UNITS` visible units.
    """
    _check_visible(params)
    log_weights = _log_weights(params)
    return np.exp(log_weights - _log_sum_exp(log_weights))


def data_moments(params: RBMParams, visible: Array) -> RBMParams:
    """Awake phase: the means over rows of v h, v and h, with h at p(h=1 given v); float64, shaped as the parameters."""
    visible = np.asarray(visible, np.float64)
    return _moments(params, visible, np.full(len(visible), 1.0 / len(visible)))


def model_moments(params: RBMParams) -> RBMParams:
    """Asleep phase, exactly: the means of v h, v and h under the model; float64, shaped as the parameters.

    Raises:
      ValueError: if there are more than `MAX_ENUMERATED_UNITS` visible units.
    """
    distribution, total = visible_distribution(params), RBMParams(*(np.zeros(np.shape(array)) for array in params))
    for start, states in _chunks(params.num_visible):
        part = _moments(params, states.astype(np.float64), distribution[start : start + len(states)])
        total = RBMParams(*(left + right for left, right in zip(total, part, strict=True)))
    return total


def log_likelihood_gradient(params: RBMParams, visible: Array) -> RBMParams:
    """Exact gradient of the mean of log p(v) over the rows: awake minus asleep moments, float64; limited as these."""
    awake, asleep = data_moments(params, visible), model_moments(params)
    return RBMParams(*(left - right for left, right in zip(awake, asleep, strict=True)))


def _check_visible(params: RBMParams) -> None:
    if params.num_visible > MAX_ENUMERATED_UNITS:
        raise ValueError(
            f"The distribution of whole visible states is limited to {MAX_ENUMERATED_UNITS} visible units, because it"
            f" has 2^n entries. Received {params.num_visible} visible units; use log_likelihood for given states."
        )


def _states(start: int, stop: int, num_units: int) -> Array:
    codes = np.arange(start, stop, dtype=np.int64)
    return (codes[:, None] >> np.arange(num_units, dtype=np.int64) & 1).astype(np.uint8)


def _chunks(num_units: int) -> Iterator[tuple[int, Array]]:
    """All states of a layer, some at a time: (number of the first, states)."""
    num_rows = 2 ** min(num_units, _CHUNK_BITS)
    for start in range(0, 2**num_units, num_rows):
        yield start, _states(start, start + num_rows, num_units)


def _log_weights(params: RBMParams) -> Array:
    """-F(v) of every visible state, float64 [2**visible]."""
    return np.concatenate([_minus_free_energy(params, states) for _, states in _chunks(params.num_visible)])


def _minus_free_energy(params: RBMParams, visible: Array) -> Array:
    """-F(v) with float64 logits, [rows]; `rbm.free_energy` is the float32 one for large machines."""
    weights, visible_bias, hidden_bias = (np.asarray(array, np.float64) for array in params)
    visible = np.asarray(visible, np.float64)
    return visible @ visible_bias + _sum_softplus(visible @ weights + hidden_bias)


def _sum_softplus(logits: Array) -> Array:
    """Sum over units of log(1 + exp(x)), [rows].

    softplus(x) = max(x, 0) + log(1 + exp(-|x|)), and the logarithms of many factors are one logarithm of their
    product: 2.6 times faster than adding `np.logaddexp`, and as exact.
    """
    total = np.maximum(logits, 0.0).sum(axis=-1)
    factors = 1.0 + np.exp(-np.abs(logits))
    for first in range(0, logits.shape[-1], _PRODUCT_TERMS):
        total += np.log(factors[..., first : first + _PRODUCT_TERMS].prod(axis=-1))
    return total


def _log_sum_exp(values: Array) -> float:
    largest = values.max()
    return float(largest + math.log(np.exp(values - largest).sum()))


def _moments(params: RBMParams, visible: Array, row_weights: Array) -> RBMParams:
    """Weighted sums over rows of v h, v and h, with h at its conditional mean."""
    logits = visible @ params.weights.astype(np.float64) + params.hidden_bias
    hidden = 0.5 * (1.0 + np.tanh(0.5 * logits))
    weighted = visible * row_weights[:, None]
    return RBMParams(weighted.T @ hidden, weighted.sum(axis=0), row_weights @ hidden)
