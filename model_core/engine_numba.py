"""Block Gibbs chains on a CPU without a matrix product: the engine that serving and training use.

The idea. A state is 0 or 1, so `vW` is a sum of the rows of W whose units are on: no multiplication, and a
chain costs the same alone or in company. From one step to the next few units flip, so the sums are kept and
only the rows of flipped units are added or taken away. With floats that would drift; here the weights are
rounded to fixed point and the sums are integers, so every sum is exact, whatever the order of the rows, the
number of threads, the slicing into runs of steps, or the instruction set. What is not an integer is IEEE float32
in a fixed order: **the same bits everywhere**.

Rounding moves a logit by about 1e-3 and the test log-likelihood of the shipped model by less than 0.02 nat (a test
holds that); `rounded_params` returns the model that is sampled. The compiled kernels are in `kernels`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from model_core import kernels
from model_core.chains import Advanced, Chains
from model_core.engine_numba_moments import PhaseMoments, phase_moments
from model_core.kernels_calls import CALL, FIRST_STEP, SEED, STEPS, TEMPERATURE, work_off
from model_core.kernels_rounding import round_weights
from model_core.kernels_rows import NARROW_MAX, Rows, empty_tiles, padded
from model_core.rbm import RBMParams, check_finite, shaped_params

_NARROW_LIMIT = 8.0  # largest |weight| for which 16 bits round finely enough (to 0.001)
_WORTH_SHARING = 1e8  # weights, about a millisecond: to wake another thread takes a tenth of that
_PADDING_LOGIT = -1e30  # the bias of a padding unit: it never turns on


@dataclass(frozen=True)
class Prepared:
    """A model in fixed point: logit = bias + sum * unit."""

    to_hidden: Rows
    to_visible: Rows
    unit: np.float32
    params: RBMParams

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.params.weights.size

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """`kernels_calls.OF_MODEL`."""
        sides = self.to_hidden, self.to_visible
        return tuple(
            number
            for side in sides
            for number in (side.tiles.ctypes.data, side.bias.ctypes.data, side.width, len(side.bias))
        )


def prepare(params: RBMParams) -> Prepared:
    """Rounds the weights to multiples of `unit`: 16-bit ones, or 32-bit ones where a weight is above 8.

    Raises:
      ValueError: if a number is not finite.
    """
    weights = params.weights
    extremes = np.array([weights.min(), weights.max()])  # NaN if any weight is
    numbers = extremes, params.visible_bias, params.hidden_bias
    for name, array in zip(RBMParams._fields, numbers, strict=True):
        check_finite(name, array)
    largest = float(np.abs(extremes).max())
    narrow = largest <= _NARROW_LIMIT
    if narrow:
        coarse = largest / NARROW_MAX
    else:
        # A sum over all units must fit into 32 bits.
        absolute = np.abs(weights.astype(np.float64))
        coarse = float(max(absolute.sum(axis=0).max(), absolute.sum(axis=1).max())) / 2.0**30
    unit = np.float32(coarse if coarse > 0 else 1.0)
    dtype = np.int16 if narrow else np.int32
    to_hidden = empty_tiles(params.num_hidden, params.num_visible, dtype)
    to_visible = empty_tiles(params.num_visible, params.num_hidden, dtype)
    round_weights(weights, unit, to_hidden, to_visible)
    return Prepared(
        Rows(to_hidden, padded(params.hidden_bias, _PADDING_LOGIT), params.num_hidden),
        Rows(to_visible, padded(params.visible_bias, _PADDING_LOGIT), params.num_visible),
        unit,
        params,
    )


def rounded_params(prepared: Prepared) -> RBMParams:
    """The model whose chains the engine runs: the given one with its weights rounded."""
    num_visible, num_hidden = prepared.params.weights.shape
    rows = np.moveaxis(prepared.to_hidden.tiles[:, :num_visible], 0, 1).reshape(num_visible, -1)[:, :num_hidden]
    return prepared.params._replace(weights=rows.astype(np.float32) * prepared.unit)


class NumbaEngine:
    """Advances chains on `num_threads` threads (all cores by default); the GIL is released meanwhile."""

    name = "numba"

    def __init__(self, num_threads: int | None = None, worth_sharing: float = _WORTH_SHARING) -> None:
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self.worth_sharing = worth_sharing

    def prepare(self, params: RBMParams) -> Prepared:
        return prepare(shaped_params(*params))

    def advance(self, prepared: Prepared, chains: Chains) -> Advanced:
        """Gibbs sampling; see `chains.Engine`."""
        probs = np.empty(chains.visible.shape, np.float32)
        return self._gibbs(prepared, chains, probs, np.empty((0, 0), np.int32)), probs

    def make_calls(self, num_calls: int) -> np.ndarray:
        """A table for `describe_call` and `work_off`."""
        return np.zeros(num_calls, CALL)

    def can_queue(self, prepared: Prepared) -> bool:
        """Whether `describe_call` takes the model: the compiled loop knows weights of 16 bits."""
        return prepared.to_hidden.tiles.dtype == np.int16

    def describe_call(self, call: np.ndarray, prepared: Prepared, chains: Chains) -> tuple[Advanced, Any]:
        """Writes a call of `advance` into a row of a table.

        Args:
          call: `calls[number : number + 1]`.
          prepared: a model that `can_queue` takes.

        Returns:
          What `advance` would return, to be filled in by the thread that does the call; and what has to be kept till
          then, for the table knows addresses only.
        """
        visible, probs = np.array(chains.visible, np.uint8, order="C"), np.empty(chains.visible.shape, np.float32)
        numbers = np.empty((4, len(visible)), np.int64)
        numbers[SEED], numbers[STEPS] = chains.seeds.view(np.int64), chains.num_steps
        numbers[FIRST_STEP] = chains.first_step
        numbers[TEMPERATURE].view(np.float32)[: len(visible)] = chains.temperature
        clamp = np.empty((0, 0), bool) if chains.clamp is None else np.ascontiguousarray(chains.clamp, bool)
        call[0] = (
            *(_address(visible), _address(probs), _address(numbers), clamp.ctypes.data),
            *(len(visible), len(clamp)),
            *prepared.addresses,
            0,
            prepared.unit,
        )
        return (visible, probs), (prepared, clamp, numbers)

    def work_off(self, queue: int, done: int, calls: np.ndarray, hand: np.ndarray) -> int:
        """See `kernels_calls.work_off`."""
        return work_off(queue, done, calls, hand)

    def advance_for_moments(self, prepared: Prepared, chains: Chains) -> tuple[np.ndarray, np.ndarray]:
        """The final visible states, and the sums of the hidden units given them, which `phase_moments` can use."""
        hidden_sums = np.empty((len(chains.visible), len(prepared.to_hidden.bias)), np.int32)
        return self._gibbs(prepared, chains, np.empty((0, 0), np.float32), hidden_sums), hidden_sums

    def _gibbs(self, prepared: Prepared, chains: Chains, probs: np.ndarray, hidden_sums: np.ndarray) -> np.ndarray:
        visible = np.array(chains.visible, np.uint8, order="C")
        clamp = np.zeros((0, 0), bool) if chains.clamp is None else chains.clamp

        def work(part: slice) -> None:
            kernels.gibbs(
                visible[part], probs[part], hidden_sums[part], chains.seeds[part], chains.num_steps[part],
                chains.first_step[part], chains.temperature[part], clamp[part],
                prepared.to_hidden, prepared.to_visible, prepared.unit,
            )  # fmt: skip

        self._share(work, len(visible), chains.num_steps.sum() * prepared.size)
        return visible

    def advance_mean_field(self, prepared: Prepared, chains: Chains) -> Advanced:
        """The article's deterministic map, in floats and in a fixed order; see `chains.Engine`."""
        visible = np.array(chains.visible, np.float32, order="C")
        clamp = np.zeros((0, 0), bool) if chains.clamp is None else chains.clamp
        weights, visible_bias, hidden_bias = prepared.params
        transposed = np.ascontiguousarray(weights.T)

        def work(part: slice) -> None:
            kernels.mean_field(
                visible[part], chains.num_steps[part], chains.temperature[part], clamp[part],
                weights, transposed, visible_bias, hidden_bias,
            )  # fmt: skip

        self._share(work, len(visible), chains.num_steps.sum() * prepared.size)
        return visible, visible.copy()

    def anneal(
        self,
        prepared: Prepared,
        base_visible_bias: np.ndarray,
        betas: np.ndarray,
        visible: np.ndarray,
        seeds: np.ndarray,
        first_step: int = 0,
        *,
        moving: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Annealing between independent pixels (beta 0) and the model (beta 1), along any sequence of betas.

        For each k: log_weights += log p*[betas[k+1]](v) - log p*[betas[k]](v), then one step at betas[k+1], with
        p*[beta](v) = exp((1-beta) a0.v + beta a.v) prod_j (1 + exp(beta (b_j + (vW)_j))); see `likelihood`.

        Args:
          base_visible_bias: a0, float32 [visible].
          betas: float64 [num_betas], rising for AIS, falling for the reverse direction.
          visible: uint8 [chains, visible], samples of the distribution at betas[0].
          seeds: uint64 [chains]. first_step: number of the first step, which keys the random numbers.

        Returns:
          log_weights, float64 [chains], of the *rounded* model, and the final visible states.
        """
        visible = np.array(visible, np.uint8, order="C")
        log_weights = np.zeros(len(visible))
        base = padded(np.asarray(base_visible_bias, np.float32), _PADDING_LOGIT)
        betas = np.ascontiguousarray(betas, np.float64)
        seeds = np.ascontiguousarray(seeds, np.uint64)

        def work(part: slice) -> None:
            kernels.anneal(
                visible[part], log_weights[part], seeds[part], first_step, betas, moving, base,
                prepared.to_hidden, prepared.to_visible, prepared.unit,
            )  # fmt: skip

        self._share(work, len(visible), len(visible) * len(betas) * prepared.size)
        return log_weights, visible

    def weigh(
        self, prepared: Prepared, base_visible_bias: np.ndarray, betas: np.ndarray, visible: np.ndarray
    ) -> np.ndarray:
        """The log-weights of `anneal` along `betas` for states that stay where they are, float64 [chains]."""
        seeds = np.zeros(len(visible), np.uint64)
        return self.anneal(prepared, base_visible_bias, betas, visible, seeds, moving=False)[0]

    def free_energy(self, prepared: Prepared, visible: np.ndarray) -> np.ndarray:
        """F(v) in nats of the rounded model, float64 [rows]; costs about as much as half a step of a chain each."""
        visible = np.ascontiguousarray(visible, np.uint8)
        energies = np.empty(len(visible))

        def work(part: slice) -> None:
            to_hidden, visible_bias = prepared.to_hidden, prepared.to_visible.bias
            kernels.free_energies(visible[part], energies[part], to_hidden, visible_bias, prepared.unit)

        self._share(work, len(visible), 0.5 * len(visible) * prepared.size)
        return energies

    def phase_moments(
        self,
        prepared: Prepared,
        awake: np.ndarray,
        asleep: np.ndarray,
        visible_offset: np.ndarray | None = None,
        hidden_offset: np.ndarray | None = None,
        asleep_sums: np.ndarray | None = None,
    ) -> PhaseMoments:
        """<v h'>, <v> and <h> of the awake states less those of the asleep ones, h at its conditional mean.

        Args:
          awake, asleep: uint8 0 or 1, [rows, visible]; each phase is averaged over its own rows.
          visible_offset, hidden_offset: mu [visible] and lambda [hidden], float32: the gradient in coordinates centred
            there, as `gradients.centred` has it; None for 0, the plain gradient.
          asleep_sums: the second result of `advance_for_moments`, which saves the work of finding it again.
        """
        offsets = visible_offset, hidden_offset
        return phase_moments(prepared.to_hidden, prepared.unit, awake, asleep, offsets, asleep_sums, self._share)

    def _share(self, work: Callable[[slice], None], num_chains: int, cost: float) -> None:
        """Runs `work` on about equal parts of the chains, one part a thread; `cost` is in weights looked at."""
        num_parts = min(self.num_threads, num_chains)
        if num_parts <= 1 or cost < self.worth_sharing:
            if num_chains:
                work(slice(0, num_chains))
            return
        bounds = [num_chains * part // num_parts for part in range(num_parts + 1)]
        parts = [slice(first, last) for first, last in pairwise(bounds)]
        others = [self._pool.submit(work, part) for part in parts[1:]]
        work(parts[0])
        for other in others:
            other.result()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.num_threads - 1, thread_name_prefix="chains")


def _address(array: np.ndarray) -> int:
    """Where an array that is not empty begins; four times as fast as `array.ctypes.data`, for arrays of one's own."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]  # it is a buffer
