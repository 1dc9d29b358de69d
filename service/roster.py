"""The books of the scheduler: who was accepted, who is next, what is left to do. No threads, no engine, no clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import partial

import numpy as np

from service.admission import Admission, Limits, Speeds
from service.jobs import FRAME_STEPS, Busy, Cancelled, DeadlinePassed, Kind, NotReady, TooMuch
from service.line import OLDEST_SHARE, Line, Turn
from service.metrics import Metrics
from service.running import Part, Run, first_frame
from service.tickets import Ticket

DRAINING = "The server is shutting down and takes no new work."


class Roster:
    """Jobs from admission to their end; all of it on the event loop.

    Args:
      num_threads: how many slices are worked on at a time.
      slice_seconds: work of one slice.
      sharing: whether chains of several jobs, or some of the chains of one, may go into a call of the engine.
    """

    def __init__(
        self, *, num_threads: int, slice_seconds: float, limits: Limits, sharing: bool, metrics: Metrics
    ) -> None:
        self._slice_seconds, self._sharing, self._metrics = slice_seconds, sharing, metrics
        self._speeds = Speeds()
        self._admission = Admission(self._speeds, num_threads, limits, oldest_share=OLDEST_SHARE)
        self._line = Line(sharing=sharing)
        self._runs: dict[int, Run] = {}  # accepted and not ended, oldest first
        self._sequence = itertools.count()
        self._next_deadline = math.inf
        self.draining = False

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def num_waiting(self) -> int:
        """Parts in line."""
        return len(self._line)

    @property
    def num_queued(self) -> int:
        """Jobs that have not begun."""
        return sum(not run.ticket.started for run in self._runs.values())

    @property
    def num_chains(self) -> int:
        return sum(run.job.num_chains for run in self._runs.values())

    @property
    def backlog_seconds(self) -> float:
        return self._admission.backlog_seconds

    def expect(self, kind: Kind, num_chain_steps: int, seconds: float) -> None:
        """See `Speeds.expect`."""
        self._speeds.expect(kind, num_chain_steps, seconds)

    def accept(self, ticket: Ticket, now: float) -> Run | None:
        """Puts a new job in line; returns None if it had nothing to do and has ended.

        Raises:
          Busy, TooMuch, NotReady, DeadlinePassed: if it is refused.
        """
        try:
            self._check(ticket, now)
        except (Busy, TooMuch, NotReady, DeadlinePassed) as refusal:
            self._metrics.rejected.labels(refusal.cause).inc()
            raise
        job = ticket.job
        if job.every or not job.num_steps:
            ticket.offer(first_frame(job))
        if not job.num_steps:
            ticket.finish()
            return None
        run = Run(ticket, next(self._sequence), whole=not self._sharing)
        self._runs[run.sequence] = run
        self._admission.add(run.rank, run.cost_left, ticket.frame_bytes)
        # Frames outlive their job: they are encoded, and the answer waits for its reader. Who still needs either holds
        # the ticket.
        ticket.on_gone = partial(self._admission.forget_frames, ticket.frame_bytes)
        self._next_deadline = min(self._next_deadline, _deadline(run))
        for part in run.parts:
            self._line.put(part)
        return run

    def _check(self, ticket: Ticket, now: float) -> None:
        if self.draining:
            raise NotReady(DRAINING, 1.0, "draining")
        if ticket.job.deadline is not None and ticket.job.deadline <= now:
            raise DeadlinePassed("The deadline passed before the work was begun.")
        self._admission.check(ticket.job, ticket.frame_bytes, now)

    def end(self, run: Run, error: Exception | None = None) -> None:
        """Ends a job, exactly once: whoever comes second finds nothing to do."""
        if self._runs.pop(run.sequence, None) is None:
            return
        self._line.drop(run)
        self._admission.remove(run.rank, run.cost_left)
        if isinstance(error, Cancelled | DeadlinePassed):
            self._metrics.cancelled.labels("running" if run.ticket.started else "queued").inc()
        elif error is not None:
            self._metrics.failed.inc()
        run.parts.clear()  # a circle of references, which would keep the arrays until the next garbage collection
        run.ticket.finish(error)

    def end_all(self, error: Exception) -> None:
        for run in list(self._runs.values()):
            self.end(run, error)

    def position(self, run: Run) -> int:
        """1: the next to begin; 0: has begun or ended."""
        if run.ticket.started or run.sequence not in self._runs:
            return 0
        others = self._runs.values()
        return 1 + sum(not other.ticket.started and other.order < run.order for other in others)

    def pick(self, now: float, num_takers: int) -> list[Turn]:
        """The next slice; jobs whose deadline has passed are dropped first."""
        self.expire(now)
        turns = self._line.pick(self._steps_of_slice, num_takers)
        for run in runs_of(turns):
            if not run.ticket.started:
                run.ticket.start(now)
                self._metrics.queue_wait_seconds.observe(run.ticket.queue_seconds)
        return turns

    @property
    def next_is_whole(self) -> bool:
        """See `Line.next_is_whole`."""
        return self._line.next_is_whole(self._steps_of_slice)

    def _steps_of_slice(self, kind: Kind) -> int:
        return max(1, int(self._speeds.chain_steps(kind) * self._slice_seconds))

    def expire(self, now: float) -> None:
        """Ends the jobs whose deadline has passed."""
        if now < self._next_deadline:
            return
        for run in [run for run in self._runs.values() if _deadline(run) <= now]:
            self.end(run, DeadlinePassed("The deadline passed before the work was finished."))
        self._next_deadline = min(map(_deadline, self._runs.values()), default=math.inf)

    def settle(self, turns: list[Turn], visible: np.ndarray, probs: np.ndarray, seconds: float) -> None:
        """Takes in what the engine made of a slice in `seconds`: new states, frames, ends."""
        num_chains = sum(turn.part.num_chains for turn in turns)
        num_chain_steps = sum(turn.part.num_chains * turn.num_steps for turn in turns)
        self._speeds.observe(turns[0].part.run.rank.kind, num_chain_steps, seconds)
        self._metrics.slice_seconds.observe(seconds)
        self._metrics.slice_chains.observe(num_chains)
        self._metrics.steps.inc(num_chain_steps)
        start = 0
        for part, num_steps in turns:
            stop = start + part.num_chains
            # A job that ended meanwhile (its client left, its deadline passed) has no place to put this.
            if not part.run.ticket.ended:
                part.run.ticket.compute_seconds += seconds * part.num_chains * num_steps / num_chain_steps
                self._move(part, num_steps, visible[start:stop], probs[start:stop])
            start = stop

    def _move(self, part: Part, num_steps: int, visible: np.ndarray, probs: np.ndarray) -> None:
        run, work = part.run, num_steps + (FRAME_STEPS if num_steps == part.leg else 0)
        run.cost_left -= work * part.num_chains
        self._admission.work_done(run.rank, work * part.num_chains)
        frame = part.move(num_steps, visible, probs)
        if frame is not None:
            run.ticket.offer(frame, last=part.finished)
        if not part.finished:
            self._line.put(part)
        elif frame is not None:  # the last part of the last frame
            self.end(run)


def runs_of(turns: Iterable[Turn]) -> list[Run]:
    """The jobs that take part in a slice."""
    return list({turn.part.run.sequence: turn.part.run for turn in turns}.values())


def _deadline(run: Run) -> float:
    return math.inf if run.job.deadline is None else run.job.deadline
