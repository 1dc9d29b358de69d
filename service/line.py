"""The line of parts that wait for their next slice, and the rule that says who goes first."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import NamedTuple

from service.jobs import Kind
from service.running import Part, Run

OLDEST_EVERY = 4  # every so many slices one goes to the oldest job
_MOST = 2  # budgets in a slice: a short rest is not worth a slice of its own, nor is each of many small jobs
# Each slice costs the event loop about 0.17 ms, and chains side by side fetch the weights once for all of them. So in a
# crowd half of the parts that wait may go together: a tenth more is answered. Who comes then waits up to 16 ms for a
# slice to end, where it was 4.
_CROWD, _MOST_IN_CROWD = 2, 8


class Turn(NamedTuple):
    """What a part does in one slice."""

    part: Part
    num_steps: int


class Line:
    """Runs with parts that wait, small sizes first, then in the order in which they came.

    Every fourth slice goes to the oldest run instead, whatever its size. So a short job is never held up by more
    than one slice in four, and no stream of short jobs can starve a long one.

    Args:
      sharing: whether chains of several jobs may go into one call of the engine.
    """

    def __init__(self, *, sharing: bool) -> None:
        self._sharing = sharing
        self._runs: list[Run] = []  # those with a waiting part, in order
        self._num_parts = 0
        self._num_picks = 0

    def __len__(self) -> int:
        return self._num_parts

    def put(self, part: Part) -> None:
        run = part.run
        if not run.waiting:
            insort(self._runs, run, key=attrgetter("order"))
        insort(run.waiting, part, key=attrgetter("order"))
        self._num_parts += 1

    def drop(self, run: Run) -> None:
        """Takes all parts of a run out."""
        if run.waiting:
            self._runs.remove(run)
            self._num_parts -= len(run.waiting)
            run.waiting.clear()

    def pick(self, chain_steps: Callable[[Kind], int], num_takers: int = 1) -> list[Turn]:
        """Takes the parts of the next slice out; an empty list if nobody waits.

        Args:
          chain_steps: work of one slice for jobs of a kind.
          num_takers: threads that want work now. They share what waits, else the first would take it all.
        """
        if not self._runs:
            return []
        lead = self._lead()
        self._num_picks += 1
        turns = self._fill(lead, chain_steps(lead.rank.kind), math.ceil(self._num_parts / num_takers))
        for turn in turns:
            turn.part.run.waiting.remove(turn.part)
        self._num_parts -= len(turns)
        self._runs = [run for run in self._runs if run.waiting]
        return turns

    def next_is_whole(self, chain_steps: Callable[[Kind], int]) -> bool:
        """Whether the next slice takes somebody to a frame or the end; False if it is a piece of a long way."""
        return bool(self._runs) and _is_whole((lead := self._lead()).waiting[0], chain_steps(lead.rank.kind))

    def _lead(self) -> Run:
        """Whose turn it is."""
        if (self._num_picks + 1) % OLDEST_EVERY:
            return self._runs[0]
        return min(self._runs, key=attrgetter("sequence"))

    def _fill(self, lead: Run, budget: int, max_parts: int) -> list[Turn]:
        """The lead's first part, cut to the slice; then whoever is next in line, as long as it fits whole."""
        first = lead.waiting[0]
        num_steps = first.leg if _is_whole(first, budget) else max(1, budget // first.num_chains)
        turns = [Turn(first, num_steps)]
        work = num_steps * first.num_chains
        for part in self._companions(lead):
            work += part.leg * part.num_chains
            # Small jobs never wait for large ones in the same slice of a crowd, only for their like.
            alike = part.run.rank == lead.rank and _is_whole(first, budget) and _is_whole(part, budget)
            most = _MOST_IN_CROWD if alike and len(turns) < self._num_parts // _CROWD else _MOST
            # A part that is cut has to be set up once more, so only the lead's is.
            if len(turns) >= max_parts or work > most * budget:
                break
            turns.append(Turn(part, part.leg))
        return turns

    def _companions(self, lead: Run) -> Iterator[Part]:
        """Whose chains may share a call with the lead's: other parts of its own, then of others on the same model."""
        if not self._sharing:
            return
        yield from lead.waiting[1:]
        for run in self._runs:
            if run is not lead and run.job.model is lead.job.model and run.job.mode == lead.job.mode:
                yield from run.waiting


def _is_whole(part: Part, budget: int) -> bool:
    return part.leg * part.num_chains <= _MOST * budget
