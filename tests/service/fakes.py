"""Stand-ins for the scheduler's tests: an engine whose chains are one exclusive or, on a clock that only it moves."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np

from model_core.chains import Chains
from model_core.randomness import chain_seeds, mix
from service.jobs import ChainJob, Frame
from service.scheduler import Scheduler
from service.tickets import Ticket

NUM_VISIBLE = 16
SPEED = 50_000  # chain-steps a second; with these sizes it is also what the scheduler guesses before it has measured
POISON = np.uint64(666)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """Step s of a chain turns over the bits of mix(seed + s): exact in any slicing, and as fast as the clock says."""

    name = "fake"

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock
        self.calls: list[Chains] = []
        self.failing: set[Any] = set()  # prepared models

    def prepare(self, params: Any) -> Any:
        return params

    def advance(self, prepared: Any, chains: Chains) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append(chains)
        if prepared in self.failing or (chains.seeds == POISON).any():
            raise ArithmeticError("planted")
        if self.clock is not None:
            self.clock.now += int(chains.num_steps.sum()) / SPEED
        visible = chains.visible.copy()
        for row, seed in enumerate(chains.seeds):
            visible[row] ^= flips(seed, int(chains.first_step[row]), int(chains.num_steps[row]))
        return visible, visible.astype(np.float32)

    advance_mean_field = advance


def flips(seed: np.uint64, first_step: int, num_steps: int) -> np.ndarray:
    steps = np.arange(first_step, first_step + num_steps, dtype=np.uint64)
    word = np.bitwise_xor.reduce(mix(seed + steps), initial=np.uint64(0))
    return ((word >> np.arange(NUM_VISIBLE, dtype=np.uint64)) & np.uint64(1)).astype(np.uint8)


def fake_model(name: str = "fake") -> Any:
    """What the scheduler needs of a `ServedModel`."""
    return SimpleNamespace(name=name, version=1, prepared=name, num_visible=NUM_VISIBLE, num_hidden=25_000)


MODEL = fake_model()


def make_job(num_steps: int, num_chains: int = 1, *, seed: int = 1, model: Any = MODEL, **options: Any) -> ChainJob:
    seeds = chain_seeds(seed, num_chains)
    visible = np.zeros((num_chains, NUM_VISIBLE), np.uint8)
    return ChainJob(model=model, visible=visible, seeds=seeds, num_steps=num_steps, **options)


def final_state(job: ChainJob) -> np.ndarray:
    """Where the chains of `job` end, computed directly."""
    return np.stack([flips(seed, 0, job.num_steps) for seed in job.seeds]) ^ job.visible


def step_by_hand(scheduler: Scheduler, num_slices: int | None = None) -> int:
    """Runs slices without threads: a number of them, or all there are. Returns how many there were."""
    done = 0
    while (num_slices is None or done < num_slices) and (turns := scheduler.pick_slice()):
        scheduler.run_slice(turns)
        done += 1
    return done


async def outcome(ticket: Ticket) -> list[Frame] | Exception:
    """How a job ended; it has to be at its end."""
    async with asyncio.timeout(5):
        try:
            return await ticket.result()
        except Exception as error:
            return error
