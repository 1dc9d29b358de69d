"""How probable a model finds data: log Z from below, from above and exactly, with error bars.

log p(v) = -F(v) - log Z, and log Z is the hard part. Annealed importance sampling (Neal 2001; Salakhutdinov and
Murray 2008) is unbiased for Z, so by Jensen's inequality its log is **low** on average: a model whose chains mix
badly gets a log-likelihood that flatters it, by tens of nats for CD-1. The same path walked from equilibrium
samples of the model down to independent pixels is unbiased for 1/Z, so it errs on the **high** side. Neither can
be believed alone; where the two agree, both can. All sums are float64, all figures nats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from model_core.annealing import Annealer, base_log_z, numba_annealer, rounded_params, sample_base
from model_core.randomness import chain_seeds
from model_core.rbm import RBMParams, free_energy, sigmoid

_ROWS_AT_ONCE = 5_000
_REVERSE_SEED = 0x5EED0F4E7E45E


class Estimate(NamedTuple):
    """A Monte Carlo estimate of log Z."""

    log_z: float  # nats
    error: float  # standard error of log_z in nats, by the delta method; too small where ESS is small
    effective_sample_size: float  # (sum w)^2 / sum w^2, of `len(log_weights)`
    log_weights: np.ndarray  # nats, float64 [chains]


def log_mean_exp(log_weights: np.ndarray) -> float:
    """log of the mean of exp(log_weights), without overflow."""
    log_weights = np.asarray(log_weights, np.float64)
    return float(np.logaddexp.reduce(log_weights) - np.log(len(log_weights)))


def estimate_log_z_ais(
    params: RBMParams,
    *,
    base_visible_bias: np.ndarray,
    num_chains: int,
    betas: np.ndarray,
    seed: int,
    engine: Annealer | None = None,
) -> Estimate:
    """Estimates log Z by annealed importance sampling from independent pixels up to the model.

    mean(exp(log_weights)) is unbiased for Z at any number of temperatures, so `log_z` is low on average, and a few
    chains that missed a mode look just as sure of themselves: a *high* test log-likelihood can be an artefact. The
    effective sample size warns of few temperatures, not of modes that no chain has found.

    Args:
      params: the model.
      base_visible_bias: float [visible], see `annealing.base_rate_bias`; logits of the pixel means work well.
      num_chains: at least 2, else there is no standard error.
      betas: float [steps + 1] rising from 0 to 1, see `annealing.standard_betas` and `spread_betas`.
      seed: the same seed gives the same estimate.
      engine: who does the sweep; None is the Numba engine.

    Raises:
      ValueError: if an argument has the wrong shape or range.
    """
    betas = _checked_betas(betas)
    _check_sizes(params, base_visible_bias, num_chains)
    seeds = chain_seeds(seed, num_chains)
    engine = engine or numba_annealer()
    prepared = engine.prepare(params)
    start = sample_base(base_visible_bias, seeds)
    log_weights, visible = engine.anneal(prepared, base_visible_bias, betas, start, seeds, 1)
    # One importance step more, from the engine's rounded weights to the model itself.
    log_weights = log_weights + rounding_gap(params, rounded_params(prepared), visible)
    log_weights += base_log_z(base_visible_bias, params.num_hidden)
    return _estimate(log_mean_exp(log_weights), log_weights)


def estimate_log_z_reverse(
    params: RBMParams,
    samples: np.ndarray,
    *,
    base_visible_bias: np.ndarray,
    betas: np.ndarray,
    seed: int,
    engine: Annealer | None = None,
) -> Estimate:
    """Estimates log Z by the same path walked backwards, from equilibrium samples of the model to independent pixels.

    mean(exp(log_weights)) is unbiased for 1/Z if `samples` are equilibrium samples, so `log_z` is **high** on average:
    a stochastic upper bound. It is only as good as the samples, and misleads in its own way for each kind:
      - `tempering.equilibrium_samples`, a ladder's or exact draws: the honest choice;
      - persistent chains of the training: near equilibrium if they went on long enough at the final weights; modes that
        they hold too often or too rarely shift the estimate either way;
      - chains started at data: high by nats where chains mix slowly (6 nats on a 16-unit model in the literature), for
        data are not samples of the model; started at noise, they may miss modes: the figure can fall *below* log Z.
    `error` takes the samples as independent; it is too small for chains that share an ancestor.

    Args:
      params, base_visible_bias, seed, engine: as in `estimate_log_z_ais`.
      samples: [chains, visible], 0 or 1.
      betas: the *rising* temperatures that AIS used; they are walked from 1 to 0.
    """
    betas = _checked_betas(betas)
    samples = np.asarray(samples)
    _check_sizes(params, base_visible_bias, len(samples))
    if samples.shape != (len(samples), params.num_visible) or not np.isin(samples, (0, 1)).all():
        raise ValueError(f"`samples` must be 0 or 1, [chains, {params.num_visible}]. Received {samples.shape}.")
    # Other seeds than those of the forward direction: the two estimates shall not share their luck.
    seeds = chain_seeds(seed ^ _REVERSE_SEED, len(samples))
    engine = engine or numba_annealer()
    prepared = engine.prepare(params)
    log_weights = -rounding_gap(params, rounded_params(prepared), samples)
    log_weights += engine.anneal(prepared, base_visible_bias, betas[::-1], samples.astype(np.uint8), seeds, 0)[0]
    log_weights -= base_log_z(base_visible_bias, params.num_hidden)
    return _estimate(-log_mean_exp(log_weights), log_weights)


def bennett_log_ratio(forward: np.ndarray, reverse: np.ndarray) -> tuple[float, float]:
    """log(Z_b / Z_a) from samples of both sides, by Bennett's acceptance ratio, and its standard error, in nats.

    The best combination of the two (Bennett 1976; Shirts et al. 2003): equal to a logistic regression that tells the
    sides apart by their log-weights with only its intercept free. It needs overlap: where neither side's samples
    are plausible on the other, both figures are meaningless. Samples are taken as independent.

    Args:
      forward: log-weights from a to b, log p*_b(x) - log p*_a(x) for x from a, [samples]; or AIS's log-weights.
      reverse: log-weights from b to a, log p*_a(x) - log p*_b(x) for x from b, [samples]; or reverse AIS's.
    """
    forward, reverse = np.asarray(forward, np.float64), np.asarray(reverse, np.float64)
    if not (len(forward) and len(reverse) and np.isfinite(forward).all() and np.isfinite(reverse).all()):
        raise ValueError("Bennett's ratio needs finite log-weights of at least one sample from each side.")
    offset = np.log(len(reverse) / len(forward))
    everything = np.concatenate([forward, -reverse])  # log p*_b - log p*_a of all samples
    low, high = everything.min() - abs(offset) - 1, everything.max() + abs(offset) + 1
    for _ in range(200):  # bisection: the excess below falls with log_ratio
        log_ratio = 0.5 * (low + high)
        excess = sigmoid(forward - log_ratio + offset).sum() - sigmoid(reverse + log_ratio - offset).sum()
        low, high = (log_ratio, high) if excess > 0 else (low, log_ratio)
        if high - low < 1e-10:
            break
    probs = sigmoid(everything - log_ratio + offset)
    information = (probs * (1 - probs)).sum()
    variance = 1 / max(information, np.finfo(float).tiny) - (1 / len(forward) + 1 / len(reverse))
    return float(log_ratio), float(np.sqrt(max(variance, 0.0)))


def mean_log_likelihood(params: RBMParams, visible: np.ndarray, log_z: float) -> float:
    """Mean log p(v) in nats over the rows of `visible`, [rows, visible] of 0 or 1."""
    starts = range(0, len(visible), _ROWS_AT_ONCE)
    total = sum(float(free_energy(params, visible[start : start + _ROWS_AT_ONCE]).sum()) for start in starts)
    return -total / len(visible) - log_z


def _estimate(log_z: float, log_weights: np.ndarray) -> Estimate:
    """Standard error of a log of a mean, std(w) / (mean(w) sqrt(n)), and the effective sample size."""
    weights = np.exp(log_weights - log_weights.max())
    error = weights.std(ddof=1) / (weights.mean() * np.sqrt(len(weights)))
    return Estimate(log_z, float(error), float(weights.sum() ** 2 / (weights**2).sum()), log_weights)


def rounding_gap(params: RBMParams, rounded: RBMParams, visible: np.ndarray) -> np.ndarray:
    """log p*(v) - log p*_rounded(v) in nats, float64 [chains]."""
    if rounded is params:
        return np.zeros(len(visible))
    return free_energy(rounded, visible) - free_energy(params, visible)


def _checked_betas(betas: np.ndarray) -> np.ndarray:
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or (np.diff(betas) < 0).any():
        raise ValueError("`betas` must rise from exactly 0 to exactly 1; see annealing.standard_betas.")
    return betas


def _check_sizes(params: RBMParams, base_visible_bias: np.ndarray, num_chains: int) -> None:
    if np.shape(base_visible_bias) != (params.num_visible,):
        raise ValueError(
            f"`base_visible_bias` must have shape ({params.num_visible},). Received {np.shape(base_visible_bias)}."
        )
    if num_chains < 2:
        raise ValueError(f"At least 2 chains are needed for a standard error. Received: {num_chains}")
