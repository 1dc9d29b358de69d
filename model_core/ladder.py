"""Parallel trajectory tempering: chains kept at equilibrium by exchange with earlier versions of their own model.

A model in training is a slow walk away from independent pixels, which can be drawn exactly. Whenever it has walked so
far that fewer than three in ten exchanges with the last frozen version would be accepted, it is frozen in turn: the
versions are the rungs of a ladder (Béreux, Decelle, Furtlehner and Seoane 2025, "Fast training and sampling of
Restricted Boltzmann Machines"; 2026, "Equilibrium Training of Energy-Based Models with Parallel Trajectory
Tempering"). Unlike a ladder of temperatures it passes through no first-order transition. Each update

    exchanges every chain with a random member of the last rung's reservoir of equilibrium samples, with probability
        min(1, exp([F_now(x) - F_rung(x)] - [F_now(y) - F_rung(y)])),        x a chain, y a member,

which leaves both distributions as they are. What comes with it: log Z of every rung by Bennett's ratio, and a warning:
where nearly no exchange is accepted any more, the last update has broken the chains' equilibrium, and is refused.

This module knows models and samples, not gradients; `training` calls it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from model_core.chains import plain_chains
from model_core.engine_numba import NumbaEngine, Prepared
from model_core.likelihood import bennett_log_ratio
from model_core.randomness import VISIBLE_LAYER, chain_seeds, uniforms
from model_core.rbm import RBMParams, sigmoid, softplus

FREEZE_BELOW = 0.3  # mean probability of an exchange
REFUSE_BELOW = 0.1
RESERVOIR_FACTOR = 10  # members a chain
_SETTLE_ROUNDS = 20  # of steps and exchanges, before samples of a new rung are kept
_ROUNDS_APART = 4  # between two samples of one chain: an exchange in three refreshes it
_FIRST_FREEZE_STEP = 2**40  # numbers of steps that no training reaches
_CLIMB_ROUNDS = 6  # of steps and exchanges at each version that `climb` visits
# Chains, exchanges and first members never share noise: what decides a swap must know nothing of the state.
_CHAIN_SALT, _EXCHANGE_SALT, _MEMBER_SALT = 0x1ADDE2, 0x5A3B1E, 0x3E3BE2


class Rung(NamedTuple):
    """A frozen version of the model."""

    params: RBMParams
    log_z: float  # nats
    log_z_error: float  # standard error, added up along the ladder


class Exchange(NamedTuple):
    """What one round of exchanges did."""

    lower: np.ndarray  # uint8 [pairs, visible], the states of the lower model afterwards
    upper: np.ndarray  # likewise of the upper one
    acceptance: float  # mean probability, in 0..1


def exchange(
    engine: NumbaEngine, lower: Prepared, upper: Prepared, x: np.ndarray, y: np.ndarray, draws: np.ndarray
) -> Exchange:
    """Proposes to swap x[i], a sample of `lower`, with y[i], a sample of `upper`; draws are uniforms, one a pair."""
    both = np.concatenate([x, y])
    change = engine.free_energy(upper, both) - engine.free_energy(lower, both)
    log_ratio = np.minimum(change[len(x) :] - change[: len(x)], 0.0)
    swapped = (np.log(draws) < log_ratio)[:, None]
    return Exchange(np.where(swapped, y, x), np.where(swapped, x, y), float(np.exp(log_ratio).mean()))


class Proposal(NamedTuple):
    """A round of exchanges with the last rung that has not been made yet."""

    members: np.ndarray  # int64 [chains], rows of the reservoir
    exchange: Exchange  # `lower` are these rows, `upper` the chains, both afterwards


class TrajectoryLadder:
    """The rungs so far, and the reservoir of the last one. `state()` and `load_state()` make it resumable.

    Args:
      visible_bias: float32 [visible], the independent pixels at the foot of the ladder.
      num_hidden, num_chains: of the model in training.
      seed: everything random is keyed by it and by the number of the update or rung.
    """

    def __init__(self, visible_bias: np.ndarray, num_hidden: int, num_chains: int, seed: int) -> None:
        self.engine = NumbaEngine()
        num_visible = len(visible_bias)
        self._chain_seeds = chain_seeds(seed ^ _CHAIN_SALT, num_chains)
        self._exchange_seeds = chain_seeds(seed ^ _EXCHANGE_SALT, num_chains)
        zeros = np.zeros((num_visible, num_hidden), np.float32)
        foot = RBMParams(zeros, visible_bias.astype(np.float32), np.zeros(num_hidden, np.float32))
        log_z = float(softplus(foot.visible_bias).sum() + num_hidden * np.log(2.0))
        self.rungs = [Rung(foot, log_z, 0.0)]
        member_seeds = chain_seeds(seed ^ _MEMBER_SALT, RESERVOIR_FACTOR * num_chains)
        members = uniforms(member_seeds, 0, VISIBLE_LAYER, num_visible)
        self.reservoir = (members < sigmoid(foot.visible_bias)).astype(np.uint8)
        self._last = self.engine.prepare(foot)

    def propose(self, prepared: Prepared, chains: np.ndarray, number: int) -> Proposal:
        """Works out exchanges of every chain with a random member of the last rung's reservoir; changes nothing.

        Args:
          prepared: the model that `chains` are samples of.
          chains: uint8 [chains, visible].
          number: keys the random numbers; each round needs another one.
        """
        draws = uniforms(self._exchange_seeds, number, VISIBLE_LAYER, 3)
        members = _distinct(draws[:, 1], draws[0, 2], len(self.reservoir))
        return Proposal(
            members, exchange(self.engine, self._last, prepared, self.reservoir[members], chains, draws[:, 0])
        )

    def accept(self, proposal: Proposal) -> np.ndarray:
        """Makes the exchanges: changes the reservoir, and returns the chains, uint8 [chains, visible]."""
        self.reservoir[proposal.members] = proposal.exchange.lower
        return proposal.exchange.upper

    def round(self, prepared: Prepared, chains: np.ndarray, number: int) -> tuple[np.ndarray, float]:
        """One Gibbs step of the chains and one exchange; returns the chains and the mean probability of an exchange."""
        chains = move(self.engine, prepared, chains, self._chain_seeds, number, 1)
        proposal = self.propose(prepared, chains, number)
        return self.accept(proposal), proposal.exchange.acceptance

    def freeze(self, params: RBMParams, chains: np.ndarray) -> np.ndarray:
        """Makes `params` the last rung: settles, fills a reservoir, and measures log Z against the rung below.

        Returns the chains, moved on at `params`.
        """
        prepared = self.engine.prepare(params)
        samples = []
        number = _FIRST_FREEZE_STEP + len(self.rungs) * 10_000
        for round_ in range(_SETTLE_ROUNDS + RESERVOIR_FACTOR * _ROUNDS_APART):
            chains, _ = self.round(prepared, chains, number + round_)
            if round_ >= _SETTLE_ROUNDS and (round_ - _SETTLE_ROUNDS) % _ROUNDS_APART == _ROUNDS_APART - 1:
                samples.append(chains)
        reservoir = np.concatenate(samples)
        log_ratio, error = self._log_z_ratio(prepared, reservoir)
        below = self.rungs[-1]
        self.rungs.append(Rung(params, below.log_z + log_ratio, float(np.hypot(below.log_z_error, error))))
        self.reservoir, self._last = reservoir, prepared
        return chains

    def _log_z_ratio(self, prepared: Prepared, samples: np.ndarray) -> tuple[float, float]:
        free_energy = self.engine.free_energy
        up = free_energy(self._last, self.reservoir) - free_energy(prepared, self.reservoir)
        down = free_energy(prepared, samples) - free_energy(self._last, samples)
        return bennett_log_ratio(up, down)

    def climb(self, trajectory: Iterable[RBMParams], chains: np.ndarray) -> np.ndarray:
        """Builds the rungs from the saved versions of a model that was trained without a ladder, oldest first.

        It also leads from the foot to the first parameters of a training. Where the next version is too far off, a
        version half way between is tried: rungs need not be ones that a training has been at.

        Returns the chains at the last version, uint8 [chains, visible].
        """
        current, number = self.rungs[-1].params, _FIRST_FREEZE_STEP // 2
        for target in trajectory:
            candidates = [target]
            while candidates:
                number += _CLIMB_ROUNDS
                prepared = self.engine.prepare(candidates[-1])
                acceptance, tried, reservoir = 1.0, chains, self.reservoir.copy()
                for round_ in range(_CLIMB_ROUNDS):
                    tried, acceptance = self.round(prepared, tried, number + round_)
                if acceptance >= FREEZE_BELOW:
                    current, chains = candidates.pop(), tried
                    continue
                self.reservoir = reservoir  # exchanges with states that are far from equilibrium spoil it
                if current is not self.rungs[-1].params:
                    chains = self.freeze(current, chains)
                else:
                    candidates.append(_half_way(current, candidates[-1]))
        return chains

    def log_z_now(self, params: RBMParams, chains: np.ndarray) -> tuple[float, float]:
        """log Z of the model in training, from its chains and the last reservoir, and its standard error; nats."""
        log_ratio, error = self._log_z_ratio(self.engine.prepare(params), chains)
        return self.rungs[-1].log_z + log_ratio, float(np.hypot(self.rungs[-1].log_z_error, error))

    def state(self) -> dict[str, np.ndarray]:
        """What a training checkpoint keeps: the last rung, its reservoir, and the log Z of all. Rungs are apart."""
        return {
            "reservoir": np.packbits(self.reservoir, axis=1),
            "log_z": np.array([rung.log_z for rung in self.rungs]),
            "log_z_error": np.array([rung.log_z_error for rung in self.rungs]),
        }

    def load_state(self, state: dict[str, np.ndarray], params: list[RBMParams]) -> None:
        """Goes back to a `state()`, given the parameters of all its rungs."""
        rows = zip(params, state["log_z"], state["log_z_error"], strict=True)
        self.rungs = [Rung(model, float(log_z), float(error)) for model, log_z, error in rows]
        self.reservoir = np.unpackbits(state["reservoir"], axis=1, count=self.reservoir.shape[1])
        self._last = self.engine.prepare(self.rungs[-1].params)


def move(
    engine: NumbaEngine, prepared: Any, visible: np.ndarray, seeds: np.ndarray, first_step: int, num_steps: int
) -> np.ndarray:
    """Gibbs steps of plain chains: uint8 in, uint8 out, [chains, visible]."""
    return engine.advance(prepared, plain_chains(visible, seeds, first_step, num_steps))[0]


def _half_way(one: RBMParams, other: RBMParams) -> RBMParams:
    return RBMParams(*(0.5 * (x + y) for x, y in zip(one, other, strict=True)))


def _distinct(draws: np.ndarray, turn: float, num_members: int) -> np.ndarray:
    """One member for each draw in (0, 1), no member twice: each draws from its own share; `turn` deals the shares."""
    share = num_members // len(draws)
    members = np.arange(len(draws)) * share + (draws * share).astype(np.int64)
    return (members + int(turn * num_members)) % num_members
