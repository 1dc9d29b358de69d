"""The line of parts that wait for their next slice, and the rule that says who goes first."""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import NamedTuple

from service.jobs import Kind, Rank
from service.running import Part, Run

OLDEST_SHARE = 1 / 4  # of all work goes to the oldest run
_MOST = 2  # budgets in a slice: a short rest is not worth a slice of its own, nor is each of many small jobs
# Each slice costs the event loop about 0.17 ms, and chains side by side fetch the weights once for all of them. So in a
# crowd half of the parts that are alike may go together: a tenth more is answered. Who comes then waits up to 16 ms for
# a thread, where it was 4.
_CROWD, _MOST_IN_CROWD = 2, 8
_MOST_OWED = _MOST_IN_CROWD // _MOST  # budgets that the oldest is given at a time


class Turn(NamedTuple):
    """What a part does in one slice."""

    part: Part
    num_steps: int


class Line:
    """Runs with parts that wait, small sizes first, then in the order in which they came.

    For every three budgets of others the oldest run is owed one, whatever its size. So a short job is held up little,
    and no stream of short jobs can starve a long one.

    Args:
      sharing: whether chains of several jobs may go into one call of the engine.
    """

    def __init__(self, *, sharing: bool) -> None:
        self._sharing = sharing
        self._runs: list[Run] = []  # those with a waiting part, in order
        self._num_waiting: Counter[Rank] = Counter()  # parts
        self._owed = 0.0  # budgets, to the oldest run

    def __len__(self) -> int:
        return self._num_waiting.total()

    def put(self, part: Part) -> None:
        run = part.run
        if not run.waiting:
            insort(self._runs, run, key=attrgetter("order"))
        insort(run.waiting, part, key=attrgetter("order"))
        self._num_waiting[run.rank] += 1

    def drop(self, run: Run) -> None:
        """Takes all parts of a run out."""
        if run.waiting:
            self._runs.remove(run)
            self._num_waiting[run.rank] -= len(run.waiting)
            run.waiting.clear()

    def pick(self, chain_steps: Callable[[Kind], int], num_takers: int = 1) -> list[Turn]:
        """Takes the parts of the next slice out; an empty list if nobody waits.

        Args:
          chain_steps: work of one slice for jobs of a kind: its budget.
          num_takers: threads that want work now. They share what waits, else the first would take it all.
        """
        if not self._runs:
            return []
        lead, num_budgets = self._lead()
        budget = chain_steps(lead.rank.kind)
        turns = self._fill(lead, num_budgets * budget, budget, num_takers)
        self._account(turns, budget)
        for turn in turns:
            turn.part.run.waiting.remove(turn.part)
            self._num_waiting[turn.part.run.rank] -= 1
        self._runs = [run for run in self._runs if run.waiting]
        return turns

    def next_is_whole(self, chain_steps: Callable[[Kind], int]) -> bool:
        """Whether the next slice takes somebody to a frame or the end; False if it is a piece of a long way."""
        if not self._runs:
            return False
        lead, num_budgets = self._lead()
        return _is_whole(lead.waiting[0], num_budgets * chain_steps(lead.rank.kind))

    def _lead(self) -> tuple[Run, int]:
        """Whose turn it is, and for how many budgets."""
        if self._owed < 1:
            return self._runs[0], 1
        return self._oldest(), min(int(self._owed), _MOST_OWED)

    def _oldest(self) -> Run:
        return min(self._runs, key=attrgetter("sequence"))

    def _account(self, turns: list[Turn], budget: int) -> None:
        """Enters who is given what in a slice."""
        oldest = self._oldest()
        for part, num_steps in turns:
            num_budgets = num_steps * part.num_chains / budget
            self._owed += -num_budgets if part.run is oldest else num_budgets * OLDEST_SHARE / (1 - OLDEST_SHARE)
        self._owed = min(max(0.0, self._owed), _MOST_OWED)

    def _fill(self, lead: Run, allowance: int, budget: int, num_takers: int) -> list[Turn]:
        """The lead's first part, cut to the allowance; then whoever is next in line, as long as it fits whole."""
        first, num_alike = lead.waiting[0], self._num_waiting[lead.rank]
        is_whole = _is_whole(first, allowance)
        num_steps = first.leg if is_whole else max(1, allowance // first.num_chains)
        turns = [Turn(first, num_steps)]
        work, all_alike = num_steps * first.num_chains, is_whole
        max_parts = len(self) if num_takers == 1 else math.ceil(num_alike / num_takers)
        for part in self._companions(lead):
            work += part.leg * part.num_chains
            # Small jobs never wait for large ones in the same slice of a crowd, only for their like.
            all_alike = all_alike and part.run.rank == lead.rank and _is_whole(part, budget)
            most = _MOST_IN_CROWD if all_alike and len(turns) < num_alike // _CROWD else _MOST
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
