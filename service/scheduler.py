"""Runs the chains of many requests side by side (DESIGN section 5).

Engine threads, one a core, do **slices** of 2 to 4 ms of work, 16 in a crowd, from one line; nothing is waited for:

    submit --admission--> line --pick--> the crew: engine.advance --settle--> line again, or a frame, or the end

Who goes first is the `Line`'s rule: small jobs, with a quarter of the work for the oldest. One slice holds chains of
several jobs of the same model where they fit. That is free: a chain's bits depend neither on its neighbours nor on
how its steps are cut.

All books are kept on the event loop, a few dozen microseconds a slice, and so need no lock; it never computes. The
threads (`crew`) know nothing of jobs. A slice that takes somebody to a frame or the end is posted ahead, so that no
thread stands idle while the loop is busy; a piece of a long way waits for a free thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from model_core.chains import Advanced, Chains, Engine, get_engine
from service.admission import Limits
from service.crew import Crew
from service.jobs import Busy, Cancelled, ChainJob, DeadlinePassed, EngineFailed, Kind, NotReady
from service.line import Turn
from service.metrics import Metrics
from service.quick import QuickCalls
from service.roster import DRAINING, Roster, runs_of
from service.running import Run
from service.tickets import HELD_FRAMES, Ticket

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_TICK_SECONDS = 0.25


def serving_engine() -> Engine:
    """The engine of `RBM_ENGINE`; Numba's with one thread, because the scheduler brings a thread a core."""
    if (os.environ.get("RBM_ENGINE") or "numba") != "numba":
        return get_engine()
    from model_core.engine_numba import NumbaEngine

    return NumbaEngine(num_threads=1)


class Scheduler:
    """Accepts jobs on the event loop and runs them on threads of its own.

    Args:
      engine: advances chains; None is `serving_engine()`.
      num_threads: engine threads; None is one a core.
      slice_seconds: work between two looks at the line; up to twice that, if it takes somebody to the end, and up to
        eight times in a crowd of jobs of one size.
      max_queue_seconds: work that may stand before a job that is accepted.
      max_job_seconds: work in one job, alone on an idle server.
      stall_seconds: `health` complains about a call of the engine that lasts longer.
      clock: seconds that only grow; deadlines are on it.
    """

    def __init__(
        self,
        *,
        engine: Engine | None = None,
        num_threads: int | None = None,
        slice_seconds: float = 0.002,
        max_queue_seconds: float = 5.0,
        max_job_seconds: float = 30.0,
        stall_seconds: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        self.engine = engine or serving_engine()
        # A product of TensorFlow rounds differently in another batch shape: there every job has calls of its own, and
        # one thread makes them, for TensorFlow brings its own.
        sharing = self.engine.name != "tensorflow"
        self._num_threads = (num_threads or len(os.sched_getaffinity(0))) if sharing else 1
        self._stall_seconds, self._clock = stall_seconds, clock
        self._metrics = metrics or Metrics()
        self._roster = Roster(
            num_threads=self._num_threads,
            slice_seconds=slice_seconds,
            limits=Limits(max_queue_seconds=max_queue_seconds, max_job_seconds=max_job_seconds),
            sharing=sharing,
            metrics=self._metrics,
        )
        self._crew: Crew | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retries: list[list[Turn]] = []  # of slices that failed: their jobs, one by one
        self._quick = QuickCalls("requests for features or energies", num_threads=2, most=64)
        self._metrics.queue_depth.set_function(lambda: self._roster.num_queued)
        self._metrics.queue_seconds.set_function(lambda: self._roster.backlog_seconds)
        self._metrics.running_chains.set_function(lambda: self._roster.num_chains)

    def start(self) -> None:
        """Starts the engine threads; on the event loop that submits."""
        self._crew = Crew(self.engine, self._num_threads, room=self._num_threads + 1, clock=self._clock)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._crew.fileno(), self._collect)
        self._feed()
        self._look_at_deadlines()

    def _look_at_deadlines(self) -> None:
        """While all threads are in long calls no slice is picked, which else is when they are looked at."""
        if self._crew is not None and self._loop is not None:
            self._roster.expire(self._clock())
            self._loop.call_later(_TICK_SECONDS, self._look_at_deadlines)

    def expect(self, kind: Kind, num_chain_steps: int, seconds: float) -> None:
        """Tells, from any thread, what one thread of the engine was seen to do before any job of this kind came."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._roster.expect, kind, num_chain_steps, seconds)

    def submit(self, job: ChainJob, *, stream: bool = False) -> Ticket:
        """Takes a job on; called on the event loop, and waits for nothing.

        Args:
          job: what to run.
          stream: the reader takes frames as they come, and a slow one may miss some in the middle. Otherwise all are
            kept for it, and their memory is part of admission.

        Raises:
          Busy, TooMuch, NotReady (draining), DeadlinePassed: see `jobs`.
        """
        now = self._clock()
        ticket = Ticket(job, num_held=HELD_FRAMES if stream else None, submitted_at=now, clock=self._clock)
        run = self._roster.accept(ticket, now)
        if run is not None:
            ticket.connect(lambda: self._cancel(run), lambda: self._roster.position(run))
            self._feed()
        return ticket

    async def run_quick(self, fn: Callable[..., _T], *args: Any, deadline: float | None = None) -> _T:
        """Runs a cheap function beside the chains: it never waits behind them.

        Raises:
          Busy: if too many wait. NotReady: if the server is draining. DeadlinePassed. Whatever `fn` raises.
        """
        if self._roster.draining:
            self._metrics.rejected.labels("draining").inc()
            raise NotReady(DRAINING, 1.0, "draining")
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - self._clock())):
                return await self._quick.run(fn, *args)
        except TimeoutError:
            raise DeadlinePassed("The deadline passed before the work was finished.") from None
        except Busy as refusal:
            self._metrics.rejected.labels(refusal.cause).inc()
            raise

    async def drain(self) -> None:
        """Refuses new jobs from now on, and returns when all accepted ones have ended."""
        self._roster.draining = True
        while len(self._roster) or len(self._quick):
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Ends the threads after their slices; jobs that have not ended get `Cancelled`."""
        self._roster.draining = True
        self._roster.end_all(Cancelled("The server stopped before this was finished."))
        self._retries.clear()
        self._quick.stop()
        if (crew := self._crew) is not None:
            self._crew = None
            asyncio.get_running_loop().remove_reader(crew.fileno())
            crew.close()
            await asyncio.to_thread(crew.join, self._stall_seconds)

    def health(self) -> str | None:
        """None while all is well, else what is wrong: for the liveness probe."""
        if self._crew is None:
            return None
        longest = self._crew.longest_seconds()
        if longest > self._stall_seconds:
            return f"A call of the engine has not come back for {longest:.0f} s."
        return None if self._crew.alive else "An engine thread has died."

    def _cancel(self, run: Run) -> None:
        self._roster.end(run, Cancelled("The client left."))

    def _feed(self) -> None:
        """Posts slices while there is room for them."""
        while (crew := self._crew) is not None and self._wants_more(crew) and (turns := self.pick_slice()):
            job = turns[0].part.run.job
            try:
                if job.mode == "gibbs":
                    crew.advance(turns, job.model.prepared, chains_of(turns))
                else:
                    crew.run(turns, partial(self._compute, turns))
            except Exception as error:
                self._settle(turns, error, 0.0)

    def _wants_more(self, crew: Crew) -> bool:
        """A piece of a long job is posted when a thread is free for it: a short one that comes shall not be behind."""
        return len(crew) < self._num_threads or (crew.has_room and self._roster.next_is_whole)

    def _collect(self) -> None:
        """Enters the results that the crew has ready."""
        if self._crew is not None:
            for turns, outcome, seconds in self._crew.finished():
                self._settle(turns, outcome, seconds)
            self._feed()

    def pick_slice(self) -> list[Turn]:
        """The next slice; an empty list if there is nothing to do."""
        while self._retries:
            turns = self._retries.pop(0)
            if not turns[0].part.run.ticket.ended:
                return turns
        num_idle = self._num_threads - (0 if self._crew is None else len(self._crew))
        return self._roster.pick(self._clock(), max(1, num_idle))

    def run_slice(self, turns: list[Turn]) -> None:
        """Computes a slice here and now, and enters the result: what the crew does, without threads."""
        started = self._clock()
        try:
            outcome: Advanced | Exception = self._compute(turns)
        except Exception as error:
            outcome = error
        self._settle(turns, outcome, self._clock() - started)

    def _compute(self, turns: list[Turn]) -> Advanced:
        job = turns[0].part.run.job
        if job.mode == "equilibrium":
            return _advance_ladders(turns)
        advance = self.engine.advance_mean_field if job.mode == "mean_field" else self.engine.advance
        return advance(job.model.prepared, chains_of(turns))

    def _settle(self, turns: list[Turn], outcome: Advanced | Exception, seconds: float) -> None:
        """Enters what became of a slice. Whatever went wrong, other jobs are spared."""
        if isinstance(outcome, Exception):
            runs = runs_of(turns)
            if len(runs) > 1:  # each tries again alone, and fails alone
                self._retries += [[turn for turn in turns if turn.part.run is run] for run in runs]
            else:
                self._fail(runs[0], outcome)
            return
        try:
            self._roster.settle(turns, *outcome, seconds)
        except Exception as error:
            for run in runs_of(turns):
                self._fail(run, error)

    def _fail(self, run: Run, error: Exception) -> None:
        model = run.job.model
        _log.error("The engine failed on model %s, version %s", model.name, model.version, exc_info=error)
        failure = EngineFailed(f"The engine failed: {error}")
        failure.__cause__ = error
        self._roster.end(run, failure)


def _advance_ladders(turns: list[Turn]) -> Advanced:
    """Rounds of equilibrium sampling, part by part: the states at the model, and their `visible_probs`."""
    results = []
    for part, num_rounds in turns:
        job, seeds = part.run.job, part.run.job.seeds[part.rows]
        sampler = job.model.sampler
        assert sampler is not None  # the route refuses a model without one
        replicas = part.replicas or sampler.start(seeds)
        results.append(sampler.advance(replicas, seeds, num_rounds))
    advanced = (
        np.concatenate([replicas.states[-1] for replicas in results]),
        np.concatenate([replicas.visible_probs for replicas in results]),
    )
    for turn, replicas in zip(turns, results, strict=True):
        # Not before all is done: if one fails, the others do their rounds once more, alone.
        turn.part.replicas = replicas
    return advanced


def chains_of(turns: list[Turn]) -> Chains:
    """The engine's arguments for a slice: options of each part, spread over its chains."""
    parts = [turn.part for turn in turns]
    jobs = [part.run.job for part in parts]
    counts = [part.num_chains for part in parts]

    def spread(values: list[float], dtype: type) -> np.ndarray:
        return np.array([value for value, count in zip(values, counts, strict=True) for _ in range(count)], dtype)

    def together(arrays: list[np.ndarray]) -> np.ndarray:
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    return Chains(
        visible=together([part.visible for part in parts]),
        seeds=together([job.seeds[part.rows] for job, part in zip(jobs, parts, strict=True)]),
        num_steps=spread([turn.num_steps for turn in turns], np.int64),
        first_step=spread([part.step for part in parts], np.int64),
        temperature=spread([job.temperature for job in jobs], np.float32),
        clamp=together([part.clamp for part in parts]) if any(job.clamp is not None for job in jobs) else None,
    )
