"""Independent draws from the model itself, through a ladder of temperatures that is published with it.

A plain chain from noise stays for a very long time near where it settles first: among 500-step samples some digits are
rare. Here every sample has a ladder of its own: one replica at each of a few dozen temperatures between independent
pixels, which are drawn exactly and anew in every round, and the model. Replicas move by Gibbs steps and neighbours
exchange states, even and odd pairs in turn (Swendsen and Wang 1986; Syed et al. 2022), so a fresh draw at the foot
reaches the top, changed rung by rung into a sample of the model. A sample depends on its own seed alone.

All rungs share the one set of rounded weights (the path of `NumbaEngine.anneal`), so a ladder costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as format_safetensors

from model_core.chains import Chains
from model_core.engine_numba import NumbaEngine, Prepared
from model_core.randomness import VISIBLE_LAYER, mix, uniforms
from model_core.rbm import sigmoid

LADDER_FILE = "ladder.safetensors"
NUM_ROUNDS = 150  # by default; the README says what that costs and how it was chosen
STEPS_A_ROUND = 3
_RUNG_SALT = 0x9B1F


class Ladder(NamedTuple):
    """Where the rungs are."""

    betas: np.ndarray  # float64 [rungs], rising from 0 (independent pixels) to 1 (the model)
    base_visible_bias: np.ndarray  # float32 [visible], of the independent pixels


def format_ladder(ladder: Ladder) -> bytes:
    """The ladder as the content of a `ladder.safetensors`."""
    return bytes(format_safetensors({name: np.ascontiguousarray(array) for name, array in ladder._asdict().items()}))


def parse_ladder(content: bytes, num_visible: int) -> Ladder:
    """Reads a `ladder.safetensors`.

    Raises:
      ValueError: if it is damaged or does not fit the model.
    """
    try:
        tensors = parse_safetensors(content)
        ladder = Ladder(tensors["betas"].astype(np.float64), tensors["base_visible_bias"].astype(np.float32))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{LADDER_FILE} cannot be read: {error}") from None
    betas, bias = ladder
    if betas.ndim != 1 or len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not (np.diff(betas) > 0).all():
        raise ValueError(f"{LADDER_FILE}: `betas` must rise from exactly 0 to exactly 1.")
    if bias.shape != (num_visible,) or not np.isfinite(bias).all():
        raise ValueError(f"{LADDER_FILE}: `base_visible_bias` must be {num_visible} finite numbers.")
    return ladder


class EquilibriumSampler:
    """Samples of a prepared model by its ladder.

    Args:
      prepared: the model, of `engine`.
      ladder: its rungs; `tempering.choose_rungs` places them.
      engine: the Numba engine.
    """

    def __init__(self, prepared: Prepared, ladder: Ladder, engine: NumbaEngine | None = None) -> None:
        self.engine = engine or NumbaEngine()
        self.prepared, self.ladder = prepared, ladder
        self._foot_probs = sigmoid(ladder.base_visible_bias)

    def cost(self, num_rounds: int = NUM_ROUNDS) -> int:
        """About how many chain-steps one sample costs, for admission and for the README."""
        return num_rounds * (len(self.ladder.betas) - 1) * (STEPS_A_ROUND + 1)

    def sample(self, seeds: np.ndarray, num_rounds: int = NUM_ROUNDS) -> tuple[np.ndarray, np.ndarray]:
        """One independent sample for each seed, uint64 [samples].

        Returns:
          the states, uint8 [samples, visible], and `visible_probs` of their last step, float32.
        """
        seeds = np.ascontiguousarray(seeds, np.uint64)
        visible = np.empty((0, len(self._foot_probs)), np.uint8)
        for visible in self.rounds(seeds, num_rounds):  # noqa: B007
            pass
        return self._last_step(visible, seeds)

    def rounds(self, seeds: np.ndarray, num_rounds: int = NUM_ROUNDS) -> Iterator[np.ndarray]:
        """Yields the replicas at the model after every round, so that a server can do other work in between."""
        seeds = np.ascontiguousarray(seeds, np.uint64)
        betas = self.ladder.betas
        with np.errstate(over="ignore"):
            rung_seeds = [mix(seeds + np.uint64(_RUNG_SALT + rung)) for rung in range(len(betas))]
        replicas = [self._draw_foot(seeds, 0)]
        for rung in range(1, len(betas)):
            replicas.append(self._anneal(betas[[rung - 1] + [rung] * STEPS_A_ROUND], replicas[-1], rung_seeds[rung], 0)[1])
        for number in range(1, num_rounds + 1):
            replicas[0] = self._draw_foot(seeds, number)
            self._exchange_neighbours(replicas, seeds, number)
            for rung in range(1, len(betas)):
                stay = np.full(STEPS_A_ROUND + 1, betas[rung])
                replicas[rung] = self._anneal(stay, replicas[rung], rung_seeds[rung], number)[1]
            yield replicas[-1]

    def _last_step(self, visible: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One more step at the model, which also tells the probabilities that a person looks at."""
        ones, first = np.ones(len(visible), np.int64), np.full(len(visible), 2**61, np.int64)
        return self.engine.advance(self.prepared, Chains(visible, seeds, ones, first, ones.astype(np.float32), None))

    def _draw_foot(self, seeds: np.ndarray, number: int) -> np.ndarray:
        return (uniforms(seeds, number, VISIBLE_LAYER, len(self._foot_probs)) < self._foot_probs).astype(np.uint8)

    def _anneal(
        self, betas: np.ndarray, visible: np.ndarray, seeds: np.ndarray, number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        first_step = number * STEPS_A_ROUND
        return self.engine.anneal(self.prepared, self.ladder.base_visible_bias, betas, visible, seeds, first_step)

    def _exchange_neighbours(self, replicas: list[np.ndarray], seeds: np.ndarray, number: int) -> None:
        """Exchanges every other pair where the sum of the two log-weights allows it."""
        draws = np.log(uniforms(seeds + np.uint64(1), number, VISIBLE_LAYER, len(replicas)))
        for lower in range(number % 2, len(replicas) - 1, 2):
            x, y = replicas[lower], replicas[lower + 1]
            gain = self._log_weights(lower, lower + 1, x) + self._log_weights(lower + 1, lower, y)
            swapped = (draws[:, lower] < gain)[:, None]
            replicas[lower], replicas[lower + 1] = np.where(swapped, y, x), np.where(swapped, x, y)

    def _log_weights(self, rung: int, other: int, visible: np.ndarray) -> np.ndarray:
        """log p*[other](v) - log p*[rung](v), float64 [replicas]."""
        betas = self.ladder.betas[[rung, other]]
        return self.engine.weigh(self.prepared, self.ladder.base_visible_bias, betas, visible)
