"""Draws from the model itself, every mode at its right frequency, through a small file that is published with it.

A plain chain from noise stays for a very long time near where it settles first: among 500-step samples some digits are
rare. Here every sample has a ladder of its own, with one replica on each rung. At the foot are stored equilibrium
samples (a reservoir), of which one is drawn in every round; the rungs above are versions of the model, each near enough
to the next to exchange states; the top is the model. Replicas move by Gibbs steps, and neighbours exchange states, even
and odd pairs in turn (Syed et al. 2022), so a draw at the foot reaches the top, changed rung by rung into a sample of
the model. A sample depends on its own seed alone, apart from the reservoir that all share.

Rungs come from a training on a ladder (`ladder.TrajectoryLadder`: the last one and its reservoir). A model that was
trained without has none that would do: measured on a 784x500 one, heating passes first-order transitions (annealing in
12,000 steps weighs 1 run in 25), and the versions of its training exchange no states once their chains are at
equilibrium. Then the ladder is the reservoir alone, of the model itself (`fill_reservoir`): a sample is one of its
members, moved on by Gibbs steps until it has forgotten which. It is as good as the reservoir.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as format_safetensors

from model_core.chains import plain_chains
from model_core.engine_numba import NumbaEngine
from model_core.randomness import VISIBLE_LAYER, chain_seeds, mix, uniforms
from model_core.rbm import RBMParams, checked_params

LADDER_FILE = "ladder.safetensors"
# Until a sample has forgotten its member. On a 784x500 model the two share a class 27 times in 100 after 1,000 steps,
# 17.5 after 2,000 and 12.4 after 4,000, where chance says 10.7: the excess falls by e in about 1,400 steps.
NUM_ROUNDS = 5_000
MAX_ROUNDS = 100_000
STEPS_A_ROUND = 1
_RUNG_SALT, _SWAP_SALT, _MEMBER_SALT = 0x9B1F, 0x51A9, 0x3E3B
_RESERVOIR_SEED = 0x2E5E


class Ladder(NamedTuple):
    """What lies below the model."""

    rungs: tuple[RBMParams, ...]  # rising; none: the reservoir is one of the model itself
    members: np.ndarray  # uint8 [members, visible], equilibrium samples of the lowest of (*rungs, the model)
    num_rounds: int = NUM_ROUNDS  # after which a sample is taken


class Replicas(NamedTuple):
    """The ladders of some samples between two rounds."""

    states: np.ndarray  # uint8 [rungs + 1, samples, visible]; the last are at the model
    visible_probs: np.ndarray  # float32 [samples, visible], of the last step at the model
    num_rounds: int  # done so far


def fill_reservoir(
    params: RBMParams,
    chains: np.ndarray,
    *,
    num_members: int = 5_000,
    burn_in: int = 10_000,
    steps_apart: int = 2_000,
    seed: int = 0,
    engine: NumbaEngine | None = None,
) -> np.ndarray:
    """Moves the persistent chains of a training on at its final parameters, and collects where they are.

    Persistent chains have followed a model that moved, so they are not at equilibrium when it stands still: on a
    784x500 one their share of zeros rose from 12 % to the model's own 17 % within 4,000 steps, and chains from noise
    arrived there after 7,000. It misleads where `burn_in` steps do not do that: compare with chains from noise.

    Args:
      chains: [chains, visible], 0 or 1.

    Returns:
      members, uint8 [num_members, visible].
    """
    engine = engine or NumbaEngine()
    prepared, visible = engine.prepare(params), chains.astype(np.uint8)
    seeds = chain_seeds(seed ^ _RESERVOIR_SEED, len(chains))
    visible, _ = engine.advance(prepared, plain_chains(visible, seeds, 0, burn_in))
    members = []
    for number in range(-(-num_members // len(chains))):
        first_step = burn_in + number * steps_apart
        visible, _ = engine.advance(prepared, plain_chains(visible, seeds, first_step, steps_apart))
        members.append(visible)
    return np.concatenate(members)[:num_members]


def format_ladder(ladder: Ladder) -> bytes:
    """The ladder as the content of a `ladder.safetensors`: weights in half precision, for a rung may be any model."""
    num_visible = ladder.members.shape[1]
    tensors = {
        "members": np.packbits(ladder.members, axis=1),
        "num_visible": np.array([num_visible], np.int64),
        "num_rounds": np.array([ladder.num_rounds], np.int64),
    }
    for number, rung in enumerate(ladder.rungs):
        tensors |= {f"{name}.{number}": array for name, array in rung._asdict().items()}
        tensors[f"weights.{number}"] = rung.weights.astype(np.float16)
    return bytes(format_safetensors({name: np.ascontiguousarray(array) for name, array in tensors.items()}))


def parse_ladder(content: bytes, num_visible: int, num_hidden: int) -> Ladder:
    """Reads a `ladder.safetensors`.

    Raises:
      ValueError: if it is damaged or does not fit the model.
    """
    try:
        tensors = parse_safetensors(content)
        num_rungs = sum(name.startswith("weights.") for name in tensors)
        rungs = [checked_params(*(tensors[f"{name}.{k}"] for name in RBMParams._fields)) for k in range(num_rungs)]
        packed, num_rounds = tensors["members"], int(tensors["num_rounds"][0])
        stored_visible = int(tensors["num_visible"][0])
    except (SafetensorError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{LADDER_FILE} cannot be read: {error}") from None
    shapes = {(stored_visible, num_hidden), *(rung.weights.shape for rung in rungs)}
    if shapes != {(num_visible, num_hidden)}:
        raise ValueError(f"{LADDER_FILE} is of another model: expected {num_visible}x{num_hidden}. Received: {shapes}")
    if packed.dtype != np.uint8 or packed.ndim != 2 or len(packed) < 1 or packed.shape[1] != -(-num_visible // 8):
        raise ValueError(f"{LADDER_FILE}: `members` must be packed states. Received: {packed.dtype} {packed.shape}")
    if not 1 <= num_rounds <= MAX_ROUNDS:
        raise ValueError(f"{LADDER_FILE}: `num_rounds` must be 1 to {MAX_ROUNDS:,}. Received: {num_rounds}")
    return Ladder(tuple(rungs), np.unpackbits(packed, axis=1, count=num_visible), num_rounds)


class EquilibriumSampler:
    """Samples of a model by its ladder. Immutable: threads may share it.

    Args:
      params: the model.
      ladder: its rungs.
      engine: the Numba engine; its samples are those of the model with rounded weights, see `engine_numba`.
    """

    def __init__(self, params: RBMParams, ladder: Ladder, engine: NumbaEngine | None = None) -> None:
        self.engine = engine or NumbaEngine()
        self.num_rounds = ladder.num_rounds
        self._members = ladder.members
        self._rungs = [self.engine.prepare(rung) for rung in (*ladder.rungs, params)]

    @property
    def steps_a_round(self) -> int:
        """About how many chain-steps one round of one sample costs: an exchange weighs like one step of each rung."""
        return (len(self._rungs) - 1) * (STEPS_A_ROUND + 1) or STEPS_A_ROUND

    def sample(self, seeds: np.ndarray, num_rounds: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """One sample for each seed, uint64 [samples]; `num_rounds` is the ladder's own by default.

        Returns:
          the states, uint8 [samples, visible], and `visible_probs` of their last step, float32.
        """
        replicas = self.advance(self.start(seeds), seeds, self.num_rounds if num_rounds is None else num_rounds)
        return replicas.states[-1], replicas.visible_probs

    def rounds(self, seeds: np.ndarray, num_rounds: int | None = None) -> Iterator[np.ndarray]:
        """Yields the states at the model after every round, uint8 [samples, visible]."""
        replicas = self.start(seeds)
        for _ in range(self.num_rounds if num_rounds is None else num_rounds):
            replicas = self.advance(replicas, seeds, 1)
            yield replicas.states[-1]

    def draw_foot(self, seeds: np.ndarray, number: int = 0) -> np.ndarray:
        """A member of the reservoir for each seed: what a sample starts from, uint8 [samples, visible]."""
        draws = uniforms(_salted(seeds, _MEMBER_SALT), number, VISIBLE_LAYER, 1)[:, 0]
        return self._members[(draws * len(self._members)).astype(np.int64)]

    def start(self, seeds: np.ndarray) -> Replicas:
        """Carries a draw of the foot up through all rungs, and leaves a copy on each."""
        seeds = np.ascontiguousarray(seeds, np.uint64)
        states = [self.draw_foot(seeds)]
        probs = states[0].astype(np.float32)
        for rung in range(1, len(self._rungs)):
            visible, probs = self._move(rung, states[-1], seeds, 0)
            states.append(visible)
        return Replicas(np.stack(states), probs, 0)

    def advance(self, replicas: Replicas, seeds: np.ndarray, num_rounds: int) -> Replicas:
        """Further rounds: any cut of the rounds into calls gives the same bits. What comes in is left as it is."""
        seeds, states = np.ascontiguousarray(seeds, np.uint64), replicas.states.copy()
        probs, first = replicas.visible_probs, replicas.num_rounds + 1
        top = len(self._rungs) - 1
        if top == 0:  # the reservoir is the model's own
            chains = plain_chains(states[0], seeds, first * STEPS_A_ROUND, num_rounds * STEPS_A_ROUND)
            visible, probs = self.engine.advance(self._rungs[0], chains)
            return Replicas(visible[None], probs, first + num_rounds - 1)
        for number in range(first, first + num_rounds):
            states[0] = self.draw_foot(seeds, number)
            self._exchange_neighbours(states, seeds, number)
            for rung in range(1, top + 1):
                states[rung], probs = self._move(rung, states[rung], seeds, number)
        return Replicas(states, probs, first + num_rounds - 1)

    def _move(self, rung: int, visible: np.ndarray, seeds: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Gibbs steps on a rung, with noise of its own: replicas that share noise would grow alike."""
        chains = plain_chains(visible, _salted(seeds, _RUNG_SALT + rung), number * STEPS_A_ROUND, STEPS_A_ROUND)
        return self.engine.advance(self._rungs[rung], chains)

    def _exchange_neighbours(self, states: np.ndarray, seeds: np.ndarray, number: int) -> None:
        """Exchanges every other pair where the sum of the two log-weights allows it; changes `states`."""
        draws = np.log(uniforms(_salted(seeds, _SWAP_SALT), number, VISIBLE_LAYER, len(states)))
        for lower in range(number % 2, len(states) - 1, 2):
            pair = states[lower : lower + 2]
            gain = self._log_weights(lower, lower + 1, pair[0]) + self._log_weights(lower + 1, lower, pair[1])
            swapped = draws[:, lower] < gain
            pair[:, swapped] = pair[::-1, swapped]

    def _log_weights(self, rung: int, other: int, visible: np.ndarray) -> np.ndarray:
        """log p*[other](v) - log p*[rung](v), float64 [samples]."""
        free_energy = self.engine.free_energy
        return free_energy(self._rungs[rung], visible) - free_energy(self._rungs[other], visible)


def _salted(seeds: np.ndarray, salt: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return mix(seeds + np.uint64(salt))
