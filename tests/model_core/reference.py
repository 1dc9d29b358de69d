"""The step of `chains`, stated in plain NumPy: what both engines must do, and what the mutants get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from model_core import chains
from model_core.chains import Engine
from model_core.randomness import HIDDEN_LAYER, VISIBLE_LAYER, uniforms
from model_core.rbm import RBMParams, checked_params

Array = np.ndarray

# The same functions without their types: tests hand options over in dictionaries, which a type checker cannot follow.
run_chains: Callable[..., Any] = chains.run_chains
make_chains: Callable[..., chains.Chains] = chains.make_chains
make_params: Callable[..., RBMParams] = checked_params


class Step(NamedTuple):
    """One sweep of a batch of chains."""

    visible: Array  # uint8 [chains, visible]
    visible_probs: Array  # float64 [chains, visible], given the hidden states of this step
    margin: Array  # float64 [chains], the least |u - p| of any unit: how far rounding is from changing a state


def gibbs_step(params: RBMParams, visible: Array, seeds: Array, step: int, temperature: float = 1.0) -> Step:
    """Draws every hidden unit, then every visible unit, with the noise of `randomness` and float64 logits."""
    weights = params.weights.astype(np.float64)
    hidden_uniforms = uniforms(seeds, step, HIDDEN_LAYER, params.num_hidden)
    visible_uniforms = uniforms(seeds, step, VISIBLE_LAYER, params.num_visible)
    hidden_probs = probs((visible.astype(np.float64) @ weights + params.hidden_bias) / temperature)
    hidden = hidden_uniforms < hidden_probs
    visible_probs = probs((hidden @ weights.T + params.visible_bias) / temperature)
    margins = [np.abs(hidden_uniforms - hidden_probs), np.abs(visible_uniforms - visible_probs)]
    margin = np.concatenate(margins, axis=1).min(axis=1)
    return Step((visible_uniforms < visible_probs).astype(np.uint8), visible_probs, margin)


def run_reference(
    params: RBMParams, visible: Array, seeds: Array, num_steps: int, *, temperature: float = 1.0, clamp: Any = False
) -> Step:
    """Several steps from step 0; `margin` is the least of any step."""
    probs_now, margin = visible.astype(np.float64), np.full(len(visible), np.inf)
    for step in range(num_steps):
        drawn = gibbs_step(params, visible, seeds, step, temperature)
        visible = np.where(clamp, visible, drawn.visible).astype(np.uint8)
        probs_now, margin = drawn.visible_probs, np.minimum(margin, drawn.margin)
    return Step(visible, probs_now, margin)


def probs(logits: Array) -> Array:
    """Sigmoid in float64; tanh does not overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def sampled_params(engine: Engine, params: RBMParams) -> RBMParams:
    """The model whose chains an engine runs: the Numba engine rounds the weights to fixed point."""
    if engine.name != "numba":
        return params
    from model_core.engine_numba import rounded_params

    return rounded_params(engine.prepare(params))
