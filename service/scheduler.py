"""Runs the chains of many requests side by side (DESIGN section 5).

Engine threads, one a core, take **slices** of about 2 ms of work from one line, and nothing is ever waited for:

    submit --admission--> line --pick--> engine.advance --settle--> line again, or a frame, or the end

Who goes first is the `Line`'s rule: small jobs, with every fourth slice for the oldest. One slice holds chains of
several jobs of the same model where they fit. That is free: a chain's bits depend neither on its neighbours nor on
how its steps are cut.

The event loop takes the lock for a few microseconds of bookkeeping and never computes. The threads never touch a
future: they leave frames with the `Ticket` and wake the loop, so a client that has gone cannot break them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from model_core.chains import Chains, Engine, get_engine
from service.admission import Limits
from service.jobs import Busy, Cancelled, ChainJob, DeadlinePassed, EngineFailed, NotReady
from service.line import Turn
from service.metrics import Metrics
from service.quick import QuickCalls
from service.roster import DRAINING, Roster, runs_of
from service.running import Run
from service.tickets import HELD_FRAMES, Ticket

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_NICENESS = 5  # of the engine threads; at 10 they starved under ten times the load that fits


def _let_others_first() -> None:
    """Lowers the priority of this thread a little: where cores are short, the event loop goes before the engine.

    Refusals, health checks and first frames then take milliseconds under any load. Linux counts priorities by thread.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS))


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
      slice_seconds: work between two looks at the line.
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
        self._changed = threading.Condition()  # the roster's lock
        self._quick = QuickCalls()
        self._threads: list[threading.Thread] = []
        self._num_idle = 0
        self._stopping = False
        self._busy_since: dict[int, float] = {}  # by thread
        self._metrics.queue_depth.set_function(lambda: self._read("num_queued"))
        self._metrics.queue_seconds.set_function(lambda: self._read("backlog_seconds"))
        self._metrics.running_chains.set_function(lambda: self._read("num_chains"))

    def start(self) -> None:
        """Starts the engine threads."""
        for number in range(self._num_threads):
            thread = threading.Thread(target=self._work, name=f"rbm-engine-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def submit(self, job: ChainJob, *, stream: bool = False) -> Ticket:
        """Takes a job on; called on the event loop that reads the ticket, and waits for nothing.

        Args:
          job: what to run.
          stream: the reader takes frames as they come, and a slow one may miss some in the middle. Otherwise all are
            kept for it, and their memory is part of admission.

        Raises:
          Busy, TooMuch, NotReady (draining), DeadlinePassed: see `jobs`.
        """
        now = self._clock()
        ticket = Ticket(job, num_held=HELD_FRAMES if stream else None, submitted_at=now, clock=self._clock)
        with self._changed:
            run = self._roster.accept(ticket, now)
            if run is not None:
                ticket.connect(lambda: self._cancel(run), lambda: self._position(run))
                self._changed.notify(len(run.parts))
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

    def stop(self) -> None:
        """Ends the threads after their slices; jobs that have not ended get `Cancelled`."""
        with self._changed:
            self._roster.draining = self._stopping = True
            self._roster.end_all(Cancelled("The server stopped before this was finished."))
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=self._stall_seconds)
        self._quick.stop()

    def health(self) -> str | None:
        """None while all is well, else what is wrong: for the liveness probe."""
        longest = max((self._clock() - since for since in list(self._busy_since.values())), default=0.0)
        if longest > self._stall_seconds:
            return f"A call of the engine has not come back for {longest:.0f} s."
        if not self._stopping and not all(thread.is_alive() for thread in self._threads):
            return "An engine thread has died."
        return None

    def _cancel(self, run: Run) -> None:
        with self._changed:
            self._roster.end(run, Cancelled("The client left."))

    def _position(self, run: Run) -> int:
        with self._changed:
            return self._roster.position(run)

    def _read(self, field: str) -> float:
        with self._changed:
            return float(getattr(self._roster, field))

    # On the engine threads.

    def _work(self) -> None:
        _let_others_first()
        while turns := self._next_slice():
            self.run_slice(turns)

    def _next_slice(self) -> list[Turn]:
        """Waits for work; an empty list says that the server stops."""
        with self._changed:
            while not self._stopping:
                if turns := self.pick_slice():
                    return turns
                self._num_idle += 1
                self._changed.wait()
                self._num_idle -= 1
        return []

    def pick_slice(self) -> list[Turn]:
        """The next slice; an empty list if there is nothing to do."""
        with self._changed:
            turns = self._roster.pick(self._clock(), 1 + self._num_idle)
            if self._num_idle and self._roster.num_waiting:
                self._changed.notify()
        return turns

    def run_slice(self, turns: list[Turn]) -> None:
        """Computes a slice and enters the result. Whatever goes wrong, the thread lives and other jobs are spared."""
        thread, started = threading.get_ident(), self._clock()
        self._busy_since[thread] = started
        try:
            visible, probs = self._advance(turns)
        except Exception as error:
            self._isolate(turns, error)
            return
        finally:
            self._busy_since.pop(thread, None)
        with self._changed:
            try:
                self._roster.settle(turns, visible, probs, self._clock() - started)
            except Exception as error:
                self._fail(turns, error)

    def _advance(self, turns: list[Turn]) -> tuple[np.ndarray, np.ndarray]:
        job = turns[0].part.run.job
        if job.mode == "equilibrium":
            return _advance_ladders(turns)
        advance = self.engine.advance_mean_field if job.mode == "mean_field" else self.engine.advance
        return advance(job.model.prepared, chains_of(turns))

    def _isolate(self, turns: list[Turn], error: Exception) -> None:
        """The engine raised: every job of the slice tries again alone, and fails alone."""
        runs = runs_of(turns)
        if len(runs) > 1:
            for run in runs:
                self.run_slice([turn for turn in turns if turn.part.run is run])
            return
        with self._changed:
            self._fail(turns, error)

    def _fail(self, turns: list[Turn], error: Exception) -> None:
        for run in runs_of(turns):
            model = run.job.model
            _log.error("The engine failed on model %s, version %s", model.name, model.version, exc_info=error)
            failure = EngineFailed(f"The engine failed: {error}")
            failure.__cause__ = error
            self._roster.end(run, failure)


def _advance_ladders(turns: list[Turn]) -> tuple[np.ndarray, np.ndarray]:
    """Rounds of equilibrium sampling, part by part: the states at the model, and their `visible_probs`."""
    results = []
    for part, num_rounds in turns:
        job, seeds = part.run.job, part.run.job.seeds[part.rows]
        sampler = job.model.sampler
        assert sampler is not None  # the route refuses a model without one
        replicas = part.replicas or sampler.start(seeds)
        results.append(sampler.advance(replicas, seeds, num_rounds))
    for turn, replicas in zip(turns, results, strict=True):
        # Not before all are done: if one fails, the others do their rounds once more, alone.
        turn.part.replicas = replicas
    return (
        np.concatenate([replicas.states[-1] for replicas in results]),
        np.concatenate([replicas.visible_probs for replicas in results]),
    )


def chains_of(turns: list[Turn]) -> Chains:
    """The engine's arguments for a slice: options of each part, spread over its chains."""
    parts = [turn.part for turn in turns]
    jobs = [part.run.job for part in parts]
    counts = [part.num_chains for part in parts]

    def spread(values: list[float], dtype: type) -> np.ndarray:
        return np.repeat(np.array(values, dtype), counts)

    return Chains(
        visible=parts[0].visible if len(parts) == 1 else np.concatenate([part.visible for part in parts]),
        seeds=np.concatenate([job.seeds[part.rows] for job, part in zip(jobs, parts, strict=True)]),
        num_steps=spread([turn.num_steps for turn in turns], np.int64),
        first_step=spread([part.step for part in parts], np.int64),
        temperature=spread([job.temperature for job in jobs], np.float32),
        clamp=np.concatenate([part.clamp for part in parts]) if any(job.clamp is not None for job in jobs) else None,
    )
