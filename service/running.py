"""Jobs under way: a job's chains cut into parts that move independently, and frames put together from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from service.jobs import ChainJob, Frame
from service.tickets import Ticket


class Run:
    """An accepted job on its way to its last frame. Touched on the event loop only."""

    def __init__(self, ticket: Ticket, sequence: int, *, whole: bool = False) -> None:
        self.ticket, self.sequence = ticket, sequence
        self.job = job = ticket.job
        self.rank = job.rank
        self.cost_left = job.cost
        size = job.num_chains if whole else 1
        self.parts = [Part(self, slice(start, start + size)) for start in range(0, job.num_chains, size)]
        self.waiting: list[Part] = []  # those in line, in order
        self._unfinished: dict[int, _UnfinishedFrame] = {}

    @property
    def order(self) -> tuple[int, int]:
        """Place in line: small jobs first, then first come, first served."""
        return (self.rank.size, self.sequence)

    def arrive(self, part: Part, probs: np.ndarray) -> Frame | None:
        """Puts in the rows of a part that has come to a frame; returns the frame when all parts have."""
        if part.num_chains == self.job.num_chains:
            if self.job.every:  # one of many, which wait for each other: the only one goes at once
                return Frame(part.step, _own(part.visible), _own(probs))
            return Frame(part.step, part.visible, probs)
        unfinished = self._unfinished.get(part.step)
        if unfinished is None:
            unfinished = self._unfinished[part.step] = _UnfinishedFrame(self.job, part.step)
        unfinished.put(part, probs)
        return self._unfinished.pop(part.step).frame if unfinished.num_missing == 0 else None


class Part:
    """Chains of one job that move together: what a slice is made of."""

    def __init__(self, run: Run, rows: slice) -> None:
        self.run, self.rows = run, rows
        self.num_chains = rows.stop - rows.start
        self.step = 0  # done so far
        self.visible = run.job.visible[rows]  # the states after `step` steps; never written to
        self.replicas: Any = None  # those of equilibrium sampling after `step` rounds; None before the first

    @property
    def clamp(self) -> np.ndarray:
        """bool [chains, visible]; all free where the job has no mask."""
        mask = self.run.job.clamp
        return np.zeros(self.visible.shape, bool) if mask is None else mask[self.rows]

    @property
    def leg(self) -> int:
        """Steps to the next frame."""
        job = self.run.job
        left = job.num_steps - self.step
        return min(left, job.every - self.step % job.every) if job.every else left

    @property
    def order(self) -> tuple[int, int]:
        """Place among the parts of its run: whoever is behind by a frame goes first, so that frames come one by one."""
        every = self.run.job.every
        return (self.step // every if every else 0, self.rows.start)

    def move(self, num_steps: int, visible: np.ndarray, probs: np.ndarray) -> Frame | None:
        """Takes in the result of `num_steps` steps; returns a frame if this was all it still needed."""
        at_frame = num_steps == self.leg
        self.step += num_steps
        self.visible = visible if self.finished else _own(visible)
        return self.run.arrive(self, probs) if at_frame else None

    @property
    def finished(self) -> bool:
        return self.step == self.run.job.num_steps


def _own(rows: np.ndarray) -> np.ndarray:
    """A copy, if these are some of the rows of a slice: they would keep those of all its companions in memory."""
    return rows if rows.base is None or rows.base.nbytes == rows.nbytes else rows.copy()


class _UnfinishedFrame:
    def __init__(self, job: ChainJob, step: int) -> None:
        self.frame = Frame(step, np.empty_like(job.visible), np.empty(job.visible.shape, np.float32))
        self.num_missing = job.num_chains

    def put(self, part: Part, probs: np.ndarray) -> None:
        self.frame.visible[part.rows] = part.visible
        self.frame.visible_probs[part.rows] = probs
        self.num_missing -= part.num_chains


def first_frame(job: ChainJob) -> Frame:
    """Step 0: the start itself."""
    return Frame(0, job.visible.copy(), job.visible.astype(np.float32))
