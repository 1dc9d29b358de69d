"""The path from independent pixels to a model: its distributions, its temperatures, and the sweep along it.

At inverse temperature beta, 0 to 1 (Salakhutdinov and Murray 2008, "On the quantitative analysis of deep belief
networks", section 4.1, with the base model's hidden units uncoupled):

    p_beta(v) ~ exp((1 - beta) a0.v + beta a.v) * prod_j (1 + exp(beta (b_j + (vW)_j)))

with a0 the `base_visible_bias`. That is itself an RBM: weights beta W, hidden bias beta b, visible bias
(1 - beta) a0 + beta a. At 0 the pixels are independent: exact samples, exact log Z. At 1 it is the model.
The same sweep serves importance sampling forwards and backwards (`likelihood`) and tempering (`tempering`).
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol, cast

import numpy as np

from model_core.chains import get_engine
from model_core.randomness import HIDDEN_LAYER, VISIBLE_LAYER, chain_seeds, uniforms
from model_core.rbm import RBMParams, free_energy, sigmoid, softplus

_PILOT_CHAINS, _PILOT_STAGES, _PILOT_STEPS, _PILOT_SEED = 100, 150, 8, 0x9107
_EVEN_SHARE = 0.2  # of the temperatures are spread as `standard_betas`: no stretch is left bare by a noisy pilot


class Annealer(Protocol):
    """What carries chains along the path; `numba_annealer()` is the fast one."""

    def prepare(self, params: RBMParams) -> Any:
        """Puts a model into the form that this engine works on."""

    def anneal(
        self,
        prepared: Any,
        base_visible_bias: np.ndarray,
        betas: np.ndarray,
        visible: np.ndarray,
        seeds: np.ndarray,
        first_step: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `ReferenceAnnealer.anneal`."""

    def weigh(self, prepared: Any, base_visible_bias: np.ndarray, betas: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """The log-weights of `anneal` for chains that stay where they are, float64 [chains]."""


class ReferenceAnnealer:
    """The sweep in plain NumPy and float64: what the fast kernels are tested against."""

    def prepare(self, params: RBMParams) -> RBMParams:
        return params

    def anneal(
        self,
        prepared: RBMParams,
        base_visible_bias: np.ndarray,
        betas: np.ndarray,
        visible: np.ndarray,
        seeds: np.ndarray,
        first_step: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carries chains through `betas`: at each next temperature, weight first, then one Gibbs step there.

        Args:
          prepared: the model.
          base_visible_bias: [visible], the a0 of the path.
          betas: [steps + 1], in either direction; neighbours may be equal (then the weight gains nothing).
          visible: [chains, visible], 0 or 1, where the chains are.
          seeds: uint64 [chains].
          first_step: number of the first step (randomness is keyed by it).

        Returns:
          log_weights, float64 [chains], the sum of log p*[k+1](v[k]) - log p*[k](v[k]) over the path in nats,
          and the final visible states, uint8 [chains, visible].
        """
        weights, visible_bias, hidden_bias = (array.astype(np.float64) for array in prepared)
        base = np.asarray(base_visible_bias, np.float64)
        visible = np.asarray(visible, np.uint8)
        log_weights = np.zeros(len(visible))
        for step, (beta, next_beta) in enumerate(itertools.pairwise(betas), start=first_step):
            logits = visible @ weights + hidden_bias
            # The weight belongs to the old state v[k]; moving first would bias the estimate.
            log_weights += (next_beta - beta) * (visible @ (visible_bias - base))
            log_weights += (softplus(next_beta * logits) - softplus(beta * logits)).sum(axis=1)
            hidden = uniforms(seeds, step, HIDDEN_LAYER, len(hidden_bias)) < sigmoid(next_beta * logits)
            logits = (1 - next_beta) * base + next_beta * (visible_bias + hidden @ weights.T)
            visible = (uniforms(seeds, step, VISIBLE_LAYER, len(base)) < sigmoid(logits)).astype(np.uint8)
        return log_weights, visible

    def weigh(
        self, prepared: RBMParams, base_visible_bias: np.ndarray, betas: np.ndarray, visible: np.ndarray
    ) -> np.ndarray:
        """log p*[last beta](v) - log p*[first beta](v), nats: what lies between them cancels."""
        first, last = (log_p_star(prepared, base_visible_bias, beta, visible) for beta in (betas[0], betas[-1]))
        return last - first


def numba_annealer() -> Annealer:
    """The fast sweep, on one CPU core."""
    return cast(Annealer, get_engine("numba"))


def rounded_params(prepared: Any) -> RBMParams:
    """The model that the sweep really works on: the Numba engine rounds weights to fixed point."""
    if isinstance(prepared, RBMParams):
        return prepared
    from model_core import engine_numba

    return engine_numba.rounded_params(prepared)


def intermediate_params(params: RBMParams, base_visible_bias: np.ndarray, beta: float) -> RBMParams:
    """The RBM at `beta` on the path; its free energy is -log p*_beta(v)."""
    beta32 = np.float32(beta)
    visible_bias = (1 - beta32) * np.asarray(base_visible_bias, np.float32) + beta32 * params.visible_bias
    return RBMParams(beta32 * params.weights, visible_bias, beta32 * params.hidden_bias)


def base_rate_bias(pixel_means: np.ndarray, smallest: float = 0.001) -> np.ndarray:
    """Visible bias of independent pixels with the given means: their log-odds, float32 [visible].

    Means are kept `smallest` away from 0 and 1, or a pixel that is never on would need a bias of minus infinity.
    The base model decides how far the path is, not where it ends: any finite bias gives an unbiased estimate.

    Raises:
      ValueError: if a mean is not a number between 0 and 1.
    """
    means = np.asarray(pixel_means, np.float64)
    if not (np.isfinite(means).all() and means.min(initial=0) >= 0 and means.max(initial=0) <= 1):
        raise ValueError("`pixel_means` must be between 0 and 1; scale grey values by 1/255 first.")
    means = np.clip(means, smallest, 1 - smallest)
    return (np.log(means) - np.log1p(-means)).astype(np.float32)


def base_log_z(base_visible_bias: np.ndarray, num_hidden: int) -> float:
    """log Z of the model at beta 0: sum softplus(a0) + hidden units * log 2, in nats."""
    return float(softplus(np.asarray(base_visible_bias, np.float64)).sum() + num_hidden * np.log(2.0))


def sample_base(base_visible_bias: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Exact draws at beta 0, uint8 [chains, visible]. They use up step 0 of each seed: go on at `first_step=1`."""
    probs = sigmoid(np.asarray(base_visible_bias, np.float64))
    return (uniforms(seeds, 0, VISIBLE_LAYER, len(probs)) < probs).astype(np.uint8)


def standard_betas(num_betas: int) -> np.ndarray:
    """0 to 1 in `num_betas` steps, spaced as Salakhutdinov and Murray's 14,500: float64 [num_betas + 1].

    500 / 14,500 of the steps lead to 0.5, 4,000 to 0.9 and 10,000 to 1, where a good model changes fastest.

    Raises:
      ValueError: if `num_betas` < 1.
    """
    if num_betas < 1:
        raise ValueError(f"`num_betas` must be at least 1. Received: {num_betas}")
    return np.interp(np.arange(num_betas + 1) * (14_500 / num_betas), (0, 500, 4_500, 14_500), (0.0, 0.5, 0.9, 1.0))


def thermodynamic_length(
    params: RBMParams, base_visible_bias: np.ndarray, *, seed: int = 0, engine: Annealer
) -> tuple[np.ndarray, np.ndarray]:
    """How far the path has gone at each beta, measured in standard deviations of the log-weight.

    A pilot run of 100 chains estimates Var_beta(U), U = d log p*_beta(v) / d beta; the length is the integral of
    sqrt(Var U). Equal steps of length give neighbours that are equally hard to tell apart: the same loss of
    effective sample size in annealing, the same swap acceptance in tempering (Crooks 2007; Grosse et al. 2013).
    The pilot is short, so it is not quite at equilibrium: the schedule may be off its best, never biased.

    Returns:
      betas and lengths, float64 [stages + 1], both rising from 0.
    """
    seeds = chain_seeds(seed ^ _PILOT_SEED, _PILOT_CHAINS)
    prepared = engine.prepare(params)
    grid = standard_betas(_PILOT_STAGES)
    visible = sample_base(base_visible_bias, seeds)
    speeds = [_speed(params, base_visible_bias, 0.0, visible)]
    for stage, (beta, next_beta) in enumerate(itertools.pairwise(grid)):
        betas = np.linspace(beta, next_beta, _PILOT_STEPS + 1)
        _, visible = engine.anneal(prepared, base_visible_bias, betas, visible, seeds, 1 + stage * _PILOT_STEPS)
        speeds.append(_speed(params, base_visible_bias, next_beta, visible))
    smooth = np.convolve(np.pad(speeds, 2, mode="edge"), np.full(5, 0.2), mode="valid")
    lengths = np.concatenate([[0.0], np.cumsum(0.5 * (smooth[:-1] + smooth[1:]) * np.diff(grid))])
    return grid, lengths


def _speed(params: RBMParams, base_visible_bias: np.ndarray, beta: float, visible: np.ndarray) -> float:
    """Standard deviation over the chains of U(v) = (a - a0).v + sum_j x_j sigmoid(beta x_j), x = b + vW."""
    logits = visible.astype(np.float32) @ params.weights + params.hidden_bias
    slopes = (logits * sigmoid(beta * logits)).sum(axis=1, dtype=np.float64)
    slopes += visible @ (params.visible_bias.astype(np.float64) - base_visible_bias)
    return float(slopes.std())


def spread_betas(grid: np.ndarray, lengths: np.ndarray, num_betas: int, even_share: float = _EVEN_SHARE) -> np.ndarray:
    """0 to 1 in `num_betas` steps of equal thermodynamic length, float64 [num_betas + 1].

    Args:
      grid, lengths: from `thermodynamic_length`.
      num_betas: at least 1.
      even_share: the part of the steps that are spread as `standard_betas` whatever the pilot says.
    """
    if num_betas < 1:
        raise ValueError(f"`num_betas` must be at least 1. Received: {num_betas}")
    total = max(float(lengths[-1]), np.finfo(float).tiny)
    progress = (1 - even_share) * lengths / total + even_share * np.linspace(0.0, 1.0, len(grid))
    betas = np.interp(np.linspace(0.0, progress[-1], num_betas + 1), progress, grid)
    betas[0], betas[-1] = 0.0, 1.0
    return betas


def log_p_star(params: RBMParams, base_visible_bias: np.ndarray, beta: float, visible: np.ndarray) -> np.ndarray:
    """log p*_beta(v) in nats, float64 [rows]."""
    return -free_energy(intermediate_params(params, base_visible_bias, beta), visible)
