"""The Restricted Boltzmann Machine itself: parameters, energies and conditionals.

    E(v, h) = -a.v - b.h - v'Wh                      energy, nats
    F(v)    = -a.v - sum_j softplus(b_j + (vW)_j)    free energy, nats
    p(v)    = exp(-F(v)) / Z

with visible bias a, hidden bias b and weights W (Smolensky 1986; Hinton 2012, "A Practical Guide to
Training Restricted Boltzmann Machines", sections 2 and 16.1). Parameters are float32; where a sum decides
(energies), the sum is float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray


class RBMParams(NamedTuple):
    """Parameters of a Bernoulli-Bernoulli RBM, float32 arrays."""

    weights: Array  # [visible, hidden]
    visible_bias: Array  # [visible]
    hidden_bias: Array  # [hidden]

    @property
    def num_visible(self) -> int:
        return int(self.weights.shape[0])

    @property
    def num_hidden(self) -> int:
        return int(self.weights.shape[1])


def checked_params(weights: Array, visible_bias: Array, hidden_bias: Array) -> RBMParams:
    """Returns `RBMParams` of contiguous float32 arrays, or says what is wrong with them.

    Raises:
      ValueError: if a shape does not fit the others or a number is not finite.
    """
    params = shaped_params(weights, visible_bias, hidden_bias)
    for name, array in zip(RBMParams._fields, params, strict=True):
        check_finite(name, array)
    return params


def shaped_params(weights: Array, visible_bias: Array, hidden_bias: Array) -> RBMParams:
    """As `checked_params`, but looks at no number."""
    params = RBMParams(*(np.ascontiguousarray(array, np.float32) for array in (weights, visible_bias, hidden_bias)))
    if params.weights.ndim != 2 or min(params.weights.shape) < 1:
        raise ValueError(f"`weights` must be [visible, hidden]. Received shape {params.weights.shape}.")
    expected = {"visible_bias": (params.num_visible,), "hidden_bias": (params.num_hidden,)}
    for name, shape in expected.items():
        received = getattr(params, name).shape
        if received != shape:
            raise ValueError(
                f"`{name}` must have shape {shape} to fit weights {params.weights.shape}. Received {received}."
            )
    return params


def check_finite(name: str, numbers: Array) -> None:
    """Raises ValueError if a number is NaN or infinite."""
    if not np.isfinite(numbers).all():
        raise ValueError(f"`{name}` holds NaN or infinite numbers; the model cannot be used.")


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow, in the dtype of `logits`."""
    return (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(logits.dtype, copy=False)


def softplus(logits: Array) -> Array:
    """log(1 + exp(x)) without overflow, float64."""
    return np.logaddexp(0.0, logits, dtype=np.float64)


def hidden_logits(params: RBMParams, visible: Array) -> Array:
    """b + vW: the inputs of the hidden units, float32 [rows, hidden]."""
    return np.asarray(visible, np.float32) @ params.weights + params.hidden_bias


def visible_logits(params: RBMParams, hidden: Array) -> Array:
    """a + Wh: the inputs of the visible units, float32 [rows, visible]."""
    return np.asarray(hidden, np.float32) @ params.weights.T + params.visible_bias


def hidden_probs(params: RBMParams, visible: Array) -> Array:
    """p(h=1 given v), the features of an image; float32 [rows, hidden]."""
    return sigmoid(hidden_logits(params, visible))


def visible_probs(params: RBMParams, hidden: Array) -> Array:
    """p(v=1 given h), float32 [rows, visible]."""
    return sigmoid(visible_logits(params, hidden))


def energy(params: RBMParams, visible: Array, hidden: Array) -> Array:
    """E(v, h) in nats, float64 [rows]."""
    visible, hidden = np.asarray(visible, np.float64), np.asarray(hidden, np.float64)
    interaction = np.einsum("rv,rv->r", visible, hidden @ params.weights.astype(np.float64).T)
    biases = visible @ params.visible_bias.astype(np.float64) + hidden @ params.hidden_bias.astype(np.float64)
    return -biases - interaction


def free_energy(params: RBMParams, visible: Array) -> Array:
    """F(v) = -log sum_h exp(-E(v, h)) in nats, float64 [rows]."""
    visible = np.asarray(visible, np.float32)
    visible_term = visible.astype(np.float64) @ params.visible_bias.astype(np.float64)
    return -visible_term - softplus(hidden_logits(params, visible)).sum(axis=-1)
