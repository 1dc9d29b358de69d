"""The chain contract: a chain is a pure function of (parameters, start, steps, options, seed).

One step draws every hidden unit given the visible ones, then every visible unit given the hidden ones
(block Gibbs sampling). **Hidden units are sampled**: passing their probabilities on, as much published RBM
code does, is a deterministic mean-field map whose states do not have the model's distribution.

Randomness is keyed by (chain's seed, step number), see `randomness`: 500 steps at once, 5 times 100 with
`first_step` moved on, alone or among 1,000 other chains, all give the same chain.
"""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple, Protocol, overload, runtime_checkable

import numpy as np

from model_core.rbm import RBMParams

Mode = Literal["gibbs", "mean_field"]
Advanced = tuple[np.ndarray, np.ndarray]  # the visible states, and `visible_probs`; see `Engine.advance`


class Chains(NamedTuple):
    """A batch of independent chains, each with options of its own: what an engine advances."""

    visible: np.ndarray  # uint8 [chains, visible], 0 or 1; float32 in 0..1 for mean-field chains
    seeds: np.ndarray  # uint64 [chains]
    num_steps: np.ndarray  # int64 [chains], how far to go
    first_step: np.ndarray  # int64 [chains], number of the first of these steps
    temperature: np.ndarray  # float32 [chains]
    clamp: np.ndarray | None  # bool [chains, visible], True: this pixel never changes


def plain_chains(visible: np.ndarray, seeds: np.ndarray, first_step: int, num_steps: int) -> Chains:
    """Chains that all take the same steps, at temperature 1 and with no pixel kept; nothing is checked."""
    num_chains = len(visible)
    return Chains(
        visible=np.ascontiguousarray(visible),
        seeds=seeds,
        num_steps=np.full(num_chains, num_steps, np.int64),
        first_step=np.full(num_chains, first_step, np.int64),
        temperature=np.ones(num_chains, np.float32),
        clamp=None,
    )


class Engine(Protocol):
    """Something that advances chains. `prepare` is slow and done once a model; `advance` is the work."""

    name: str

    def prepare(self, params: RBMParams) -> Any:
        """Puts a model into the form that this engine works on; immutable, safe to share by threads."""

    def advance(self, prepared: Any, chains: Chains) -> Advanced:
        """Gibbs sampling.

        Returns the visible states, uint8 [chains, visible], and `visible_probs` given the last hidden states, float32
        [chains, visible]: the states themselves for clamped pixels, and where a chain had no step to do.
        """

    def advance_mean_field(self, prepared: Any, chains: Chains) -> Advanced:
        """The article's deterministic map: probabilities in place of states; both results are the same array."""


@runtime_checkable
class QueueEngine(Engine, Protocol):
    """An engine with a compiled loop: threads that stay in it never ask for the interpreter's lock.

    A server has its Gibbs chains done so, and not by `advance`, where the model can be queued.
    """

    def make_calls(self, num_calls: int) -> np.ndarray:
        """A table of calls."""

    def can_queue(self, prepared: Any) -> bool:
        """Whether `describe_call` takes this model."""

    def describe_call(self, call: np.ndarray, prepared: Any, chains: Chains) -> tuple[Advanced, Any]:
        """Writes `advance(prepared, chains)` into a row of a table.

        Returns:
          The results, to be filled in, and what has to be kept until they are.
        """

    def work_off(self, queue: int, done: int, calls: np.ndarray, hand: np.ndarray) -> int:
        """Does the calls whose numbers come out of the pipe `queue`, and writes each number into the pipe `done`.

        Returns a number that is not in the table, whose work is the caller's, or -1 when the pipe was closed. `hand`,
        int64 [1], holds the number of the call under way, else -1.
        """


@overload
def run_chains(
    params: RBMParams,
    visible: np.ndarray,
    *,
    num_steps: int,
    seeds: np.ndarray,
    first_step: int = 0,
    temperature: float = 1.0,
    clamp: np.ndarray | None = None,
    mode: Mode = "gibbs",
    return_probs: Literal[False] = False,
    engine: str | Engine | None = None,
) -> np.ndarray: ...


@overload
def run_chains(
    params: RBMParams,
    visible: np.ndarray,
    *,
    num_steps: int,
    seeds: np.ndarray,
    first_step: int = 0,
    temperature: float = 1.0,
    clamp: np.ndarray | None = None,
    mode: Mode = "gibbs",
    return_probs: Literal[True],
    engine: str | Engine | None = None,
) -> tuple[np.ndarray, np.ndarray]: ...


def run_chains(
    params: RBMParams,
    visible: np.ndarray,
    *,
    num_steps: int,
    seeds: np.ndarray,
    first_step: int = 0,
    temperature: float = 1.0,
    clamp: np.ndarray | None = None,
    mode: Mode = "gibbs",
    return_probs: bool = False,
    engine: str | Engine | None = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Advances chains by `num_steps` steps.

    Args:
      params: the model.
      visible: where the chains are, [chains, visible], entries 0 or 1 (0..1 in mode "mean_field").
      num_steps: at least 0.
      seeds: one unsigned 64-bit integer a chain; see `randomness.chain_seeds`.
      first_step: number of the first step, 0 for a new chain; a chain that is continued passes the number of
        steps done so far.
      temperature: T samples from p(v, h)^(1/T), that is with every logit divided by T.
      clamp: bool [visible] or [chains, visible]; pixels that are True keep the value they start with.
      mode: "gibbs", or "mean_field" for the deterministic picture, in which `visible` holds probabilities.
      return_probs: also return `visible_probs` given the last hidden states, what a person looks at.
      engine: "numba", "tensorflow", an engine object, or None for the default (`RBM_ENGINE`, else "numba").

    Returns:
      The final visible states in the dtype of `visible` (float32 in mode "mean_field"), [chains, visible]; with
      `return_probs`, a pair of them and float32 `visible_probs`, [chains, visible].

    Raises:
      ValueError: if an argument has the wrong shape or range.
    """
    chains = make_chains(
        params,
        visible,
        num_steps=num_steps,
        seeds=seeds,
        first_step=first_step,
        temperature=temperature,
        clamp=clamp,
        mode=mode,
    )
    chosen = get_engine(engine) if engine is None or isinstance(engine, str) else engine
    prepared = chosen.prepare(params)
    advance = chosen.advance_mean_field if mode == "mean_field" else chosen.advance
    states, probs = advance(prepared, chains)
    if mode == "gibbs":
        states = states.astype(np.asarray(visible).dtype, copy=False)
    return (states, probs) if return_probs else states


def make_chains(
    params: RBMParams,
    visible: np.ndarray,
    *,
    num_steps: int | np.ndarray,
    seeds: np.ndarray,
    first_step: int | np.ndarray = 0,
    temperature: float | np.ndarray = 1.0,
    clamp: np.ndarray | None = None,
    mode: Mode = "gibbs",
) -> Chains:
    """Checks the arguments of `run_chains` and spreads single values over all chains."""
    visible = np.asarray(visible)
    if visible.ndim != 2 or visible.shape[1] != params.num_visible:
        raise ValueError(f"`visible` must be [chains, {params.num_visible}]. Received shape {visible.shape}.")
    num_chains = len(visible)
    seeds = np.asarray(seeds)
    if seeds.shape != (num_chains,):
        raise ValueError(f"`seeds` must hold one integer a chain, shape ({num_chains},). Received {seeds.shape}.")
    if mode not in ("gibbs", "mean_field"):
        raise ValueError(f'`mode` must be "gibbs" or "mean_field". Received: {mode!r}')
    if mode == "gibbs" and not np.isin(visible, (0, 1)).all():
        raise ValueError("`visible` must hold only 0 and 1; binarise grey images first (model_core.data.binarize).")
    if mode == "mean_field" and not (
        np.isfinite(visible).all() and visible.min(initial=0) >= 0 and visible.max(initial=0) <= 1
    ):
        raise ValueError("`visible` must hold numbers between 0 and 1.")
    options = {}
    for name, value, dtype in (
        ("num_steps", num_steps, np.int64),
        ("first_step", first_step, np.int64),
        ("temperature", temperature, np.float32),
    ):
        # A copy: for a view of one number, which cannot be written to, everything would be compiled once more.
        options[name] = np.array(np.broadcast_to(np.asarray(value, dtype), num_chains))
    if (options["num_steps"] < 0).any() or (options["first_step"] < 0).any():
        raise ValueError(f"`num_steps` and `first_step` must not be negative. Received: {num_steps}, {first_step}")
    if not (np.isfinite(options["temperature"]) & (options["temperature"] > 0)).all():
        raise ValueError(f"`temperature` must be above 0. Received: {temperature}")
    if clamp is not None:
        clamp = np.asarray(clamp, bool)
        if clamp.shape not in ((params.num_visible,), visible.shape):
            raise ValueError(
                f"`clamp` must be a mask [{params.num_visible}] or {list(visible.shape)}. Received shape {clamp.shape}."
            )
        clamp = np.array(np.broadcast_to(clamp, visible.shape))
    states = np.ascontiguousarray(visible, np.float32 if mode == "mean_field" else np.uint8)
    return Chains(states, np.ascontiguousarray(seeds, np.uint64), clamp=clamp, **options)


def get_engine(name: str | None = None) -> Engine:
    """The engine called "numba" or "tensorflow"; None is `RBM_ENGINE` in the environment, else "numba".

    Engines are imported here, on first use, so that a serving process on a CPU never loads TensorFlow.
    """
    name = name or os.environ.get("RBM_ENGINE") or "numba"
    if name == "numba":
        from model_core.engine_numba import NumbaEngine

        return NumbaEngine()
    if name == "tensorflow":
        from model_core.engine_tensorflow import TensorFlowEngine

        return TensorFlowEngine()
    raise ValueError(f'`engine` must be "numba" or "tensorflow". Received: {name!r}')
