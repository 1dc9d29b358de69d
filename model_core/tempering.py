"""Equilibrium samples of any model, and a third estimate of log Z, by parallel tempering along the annealing path.

A ladder has one replica at each of a few temperatures from independent pixels (which are drawn exactly) to the model.
Replicas move by Gibbs steps, and neighbours exchange their states with the probability that keeps all of them at
equilibrium (Swendsen and Wang 1986; Desjardins et al. 2010 for RBMs). A mode that plain Gibbs steps would not find
in a million steps is reached by way of the hot end. Even and odd pairs take turns, so that states travel
through the ladder instead of diffusing (Syed et al. 2022). The log-weights that decide the swaps also give log Z by
Bennett's ratio, rung by rung.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from model_core.annealing import (
    Annealer,
    base_log_z,
    numba_annealer,
    rounded_params,
    sample_base,
    spread_betas,
    thermodynamic_length,
)
from model_core.likelihood import bennett_log_ratio, log_mean_exp, rounding_gap
from model_core.randomness import VISIBLE_LAYER, chain_seeds, uniforms
from model_core.rbm import RBMParams

_RUNG_LENGTH = 1.2  # standard deviations of the log-weight between neighbours: a Gaussian swaps erfc(0.6) = 0.4
_MAX_RUNGS = 60  # a model that would need more swaps less often, and the report warns
_START_STEPS = 2_000  # Gibbs steps of the annealing run that the replicas start from
_STEPS_A_ROUND = 3
_GROUPS = 10  # of ladders; the scatter of their estimates is the error


class Tempered(NamedTuple):
    """What a set of ladders gives."""

    samples: np.ndarray  # uint8 [chains, visible], states at the model itself
    log_z: float  # nats, by Bennett's ratio along the rungs
    error: float  # its standard error, from the scatter between independent groups of ladders
    betas: np.ndarray  # float64 [rungs], rising from 0 to 1
    swap_acceptance: np.ndarray  # float64 [rungs - 1], mean over ladders and rounds


def equilibrium_samples(
    params: RBMParams,
    num_chains: int,
    *,
    base_visible_bias: np.ndarray,
    seed: int,
    num_rounds: int = 300,
    num_ladders: int = 100,
    engine: Annealer | None = None,
) -> Tempered:
    """Draws samples of the model by parallel tempering.

    Each ladder starts from an annealing run of its own; the first third of its rounds is burn-in and thrown away. In
    a round every replica does three Gibbs steps and half of the neighbours try to swap. Then the replicas at the
    model are collected at even intervals. Ladders are independent of each other; samples of one ladder are not quite.

    It misleads where the path has a bottleneck: if `swap_acceptance` has a value below about 0.1, or the model holds
    modes that no warmer rung has, samples stay near where annealing left them, and nothing here notices.

    Args:
      params: the model.
      num_chains: how many samples.
      base_visible_bias: float [visible], see `annealing.base_rate_bias`.
      seed: the same seed gives the same samples.
      num_rounds: at least 3; about 100 rounds carry a state through the ladder and back on a good 784x500 model.
      num_ladders: at least 4, cut to `num_chains`.
      engine: who moves the replicas; None is the Numba engine.

    Raises:
      ValueError: if a number is too small.
    """
    num_ladders = min(num_ladders, num_chains)
    if num_ladders < 4 or num_rounds < 3:
        raise ValueError(f"At least 4 ladders and 3 rounds are needed. Received: {num_ladders}, {num_rounds}")
    ladders = _Ladders(params, base_visible_bias, seed, num_ladders, engine or numba_annealer())
    burn_in = num_rounds // 3
    wanted = -(-num_chains // num_ladders)
    collect_at = np.linspace(burn_in, num_rounds - 1, wanted + 1)[1:].astype(int)
    samples = []
    for number in range(num_rounds):
        ladders.advance(keep=number >= burn_in)
        samples += [ladders.states[-1].copy()] * int((collect_at == number).sum())
    found = np.concatenate(samples)[:num_chains]
    log_z, error = ladders.log_z()
    log_z += log_mean_exp(rounding_gap(params, ladders.rounded, found))
    return Tempered(found, log_z, error, ladders.betas, ladders.acceptance())


def choose_rungs(params: RBMParams, base_visible_bias: np.ndarray, seed: int, engine: Annealer) -> np.ndarray:
    """As many temperatures, at equal thermodynamic length, as make neighbours swap about 4 times in 10."""
    grid, lengths = thermodynamic_length(params, base_visible_bias, seed=seed, engine=engine)
    num_steps = int(np.clip(np.ceil(lengths[-1] / _RUNG_LENGTH), 2, _MAX_RUNGS))
    return spread_betas(grid, lengths, num_steps, even_share=0.0)


class _Ladders:
    """Replicas on their rungs, and the log-weights that their swaps have shown."""

    def __init__(self, params: RBMParams, base: np.ndarray, seed: int, num_ladders: int, engine: Annealer) -> None:
        self._engine, self._prepared, self._base = engine, engine.prepare(params), base
        self.rounded = rounded_params(self._prepared)
        self.betas = choose_rungs(params, base, seed, engine)
        self._base_log_z = base_log_z(base, params.num_hidden)
        self._seeds = chain_seeds(seed, len(self.betas) * num_ladders).reshape(len(self.betas), num_ladders)
        self._swap_seeds = chain_seeds(seed, num_ladders, first_chain=self._seeds.size)
        self._step, self._round = 1, 0
        pairs = range(len(self.betas) - 1)
        self._up: list[list[np.ndarray]] = [[] for _ in pairs]  # a pair's log-weights [ladders] of every kept round
        self._down: list[list[np.ndarray]] = [[] for _ in pairs]
        self.states = self._annealed_start()

    def _annealed_start(self) -> np.ndarray:
        """The states of one annealing run a ladder as it passes the rungs, uint8 [rungs, ladders, visible]."""
        states = [sample_base(self._base, self._seeds[0])]
        steps = max(1, _START_STEPS // len(self.betas))
        for lower, upper in zip(self.betas[:-1], self.betas[1:], strict=True):
            states.append(self._anneal(np.linspace(lower, upper, steps + 1), states[-1], self._seeds[0])[1])
            self._step += steps
        return np.stack(states)

    def _anneal(self, betas: np.ndarray, states: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._engine.anneal(self._prepared, self._base, betas, states, seeds, self._step)

    def advance(self, *, keep: bool) -> None:
        """One round: Gibbs steps on every rung, then swaps of the even or the odd pairs."""
        for rung, beta in enumerate(self.betas):
            stay = np.full(_STEPS_A_ROUND + 1, beta)
            self.states[rung] = self._anneal(stay, self.states[rung], self._seeds[rung])[1]
        self._step += _STEPS_A_ROUND
        draws = uniforms(self._swap_seeds, self._round, VISIBLE_LAYER, len(self.betas))
        for lower in range(self._round % 2, len(self.betas) - 1, 2):
            pair = self.betas[lower : lower + 2]
            up = self._engine.weigh(self._prepared, self._base, pair, self.states[lower])
            down = self._engine.weigh(self._prepared, self._base, pair[::-1], self.states[lower + 1])
            swapped = np.log(draws[:, lower]) < up + down
            self.states[lower : lower + 2, swapped] = self.states[lower : lower + 2, swapped][::-1]
            if keep:
                self._up[lower].append(up)
                self._down[lower].append(down)
        self._step += 1
        self._round += 1

    def log_z(self) -> tuple[float, float]:
        """log Z of the top rung and its standard error in nats."""
        num_ladders = self._seeds.shape[1]
        everyone = self._log_z_of(np.arange(num_ladders))
        groups = np.array_split(np.arange(num_ladders), min(_GROUPS, num_ladders // 2))
        return everyone, float(np.std([self._log_z_of(group) for group in groups], ddof=1) / np.sqrt(len(groups)))

    def _log_z_of(self, ladders: np.ndarray) -> float:
        pairs = zip(self._up, self._down, strict=True)
        return self._base_log_z + sum(
            bennett_log_ratio(np.stack(up)[:, ladders].ravel(), np.stack(down)[:, ladders].ravel())[0]
            for up, down in pairs
        )

    def acceptance(self) -> np.ndarray:
        """Mean probability of a swap, float64 [rungs - 1]."""
        pairs = zip(self._up, self._down, strict=True)
        return np.array([np.exp(np.minimum(np.stack(up) + np.stack(down), 0)).mean() for up, down in pairs])
