"""Who goes first, counted in slices and never in seconds."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from service.line import OLDEST_SHARE, Turn
from service.scheduler import Scheduler
from service.tickets import Ticket
from tests.service.fakes import SPEED, Clock, FakeEngine, fake_model, make_job, step_by_hand

SLICE = SPEED // 500  # chain-steps of a slice of 2 ms


def make_scheduler(num_threads: int = 1) -> tuple[Scheduler, FakeEngine]:
    clock = Clock()
    engine = FakeEngine(clock)
    return Scheduler(engine=engine, clock=clock, num_threads=num_threads, max_queue_seconds=1e9), engine


def slices_until(scheduler: Scheduler, ticket: Ticket) -> int:
    num_slices = 0
    while not ticket.ended:
        num_slices += step_by_hand(scheduler, 1)
    return num_slices


def test_a_short_job_never_waits_for_long_ones() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler()
        for seed in range(50):
            scheduler.submit(make_job(100 * SLICE, seed=seed))
        for lead in range(10):
            step_by_hand(scheduler, lead)
            assert slices_until(scheduler, scheduler.submit(make_job(10))) <= 2

    asyncio.run(check())


@pytest.mark.parametrize("crowd", [1, 4, 16, 63])
@pytest.mark.parametrize("size", [SLICE // 2, SLICE, 2 * SLICE])
def test_the_oldest_job_gets_its_quarter_however_many_short_ones_come(crowd: int, size: int) -> None:
    """The share on which admission builds its promises."""

    async def check() -> None:
        scheduler, engine = make_scheduler()
        long_job = scheduler.submit(make_job(100 * SLICE))
        others = 0.0
        while not long_job.ended:
            while scheduler._roster.num_waiting <= crowd:
                scheduler.submit(make_job(size, seed=len(engine.calls)))
            turns = scheduler.pick_slice()
            others += sum(turn.num_steps for turn in turns if turn.part.run.ticket is not long_job)
            scheduler.run_slice(turns)
        share = 100 * SLICE / (100 * SLICE + others)
        assert 0.95 * OLDEST_SHARE <= share <= 1.05 * OLDEST_SHARE

    asyncio.run(check())


def test_equal_jobs_end_in_the_order_in_which_they_came() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler()
        tickets = [scheduler.submit(make_job(5 * SLICE, seed=seed)) for seed in range(6)]
        assert [ticket.position for ticket in tickets] == [1, 2, 3, 4, 5, 6]
        ends = []
        for number, ticket in enumerate(tickets):
            ends.append(slices_until(scheduler, ticket))
            assert [other.ended for other in tickets] == [other <= number for other in range(6)]
        assert sum(ends) <= 6 * 5 + 6

    asyncio.run(check())


def test_small_jobs_on_one_model_share_a_call() -> None:
    async def check() -> None:
        scheduler, engine = make_scheduler()
        for seed in range(30):
            scheduler.submit(make_job(10, seed=seed))
        scheduler.submit(make_job(10, model=fake_model("other")))
        step_by_hand(scheduler)
        assert [len(call.seeds) for call in engine.calls] == [20, 10, 1]  # two slices' worth in one call, at most

    asyncio.run(check())


def test_the_next_slice_is_known_before_it_is_taken() -> None:
    """Whole or a piece, at every place in the order, the oldest job's turn among them."""

    async def check() -> None:
        scheduler, _ = make_scheduler()
        for seed in range(3):
            scheduler.submit(make_job(20 * SLICE, seed=seed))
        for seed in range(40):
            scheduler.submit(make_job(2 * SLICE, seed=10 + seed))
        told = []
        while scheduler._roster.num_waiting:
            told.append(scheduler._roster.next_is_whole)
            turns = scheduler.pick_slice()
            assert told[-1] == (turns[0].num_steps == turns[0].part.leg)
            scheduler.run_slice(turns)
        assert not scheduler._roster.next_is_whole
        assert told.count(True) >= 3 + 40 // 4 and told.count(False) >= 3 * 4

    asyncio.run(check())


def test_idle_threads_share_what_waits() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler(num_threads=2)
        for seed in range(6):
            scheduler.submit(make_job(2, seed=seed))
        assert len(scheduler.pick_slice()) == 3

    asyncio.run(check())


def test_the_chains_of_a_job_run_side_by_side() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler()
        scheduler.submit(make_job(10 * SLICE, 2))
        first, second = scheduler.pick_slice(), scheduler.pick_slice()
        assert [turn.part.rows.start for turn in (*first, *second)] == [0, 1]

    asyncio.run(check())


def next_slice(scheduler: Scheduler) -> int:
    """Chain-steps of the next slice."""
    return sum(turn.num_steps * turn.part.num_chains for turn in scheduler.pick_slice())


def test_a_slice_is_longer_in_a_crowd_of_equals() -> None:
    async def check() -> None:
        for num_jobs, budgets in ((4, 2), (6, 3), (10, 5), (16, 8), (64, 8)):
            scheduler, _ = make_scheduler()
            for seed in range(num_jobs):
                scheduler.submit(make_job(SLICE, seed=seed))
            assert next_slice(scheduler) == budgets * SLICE, num_jobs

    asyncio.run(check())


def test_no_job_that_would_be_cut_is_taken_whole_in_a_crowd() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler()
        for seed in range(16):
            scheduler.submit(make_job(3 * SLICE, seed=seed))
        for _ in range(2 * 16):
            assert next_slice(scheduler) <= 2 * SLICE

    asyncio.run(check())


def test_behind_a_job_that_is_cut_nobody_makes_a_crowd() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler()
        cut, whole = make_job(2 * SLICE + 2), make_job(2 * SLICE - 20)
        assert cut.rank == whole.rank
        for job in (cut, *[whole] * 20):
            scheduler.submit(job)
        assert next_slice(scheduler) <= 2 * SLICE

    asyncio.run(check())


def test_a_small_job_does_not_share_a_long_slice_with_larger_ones() -> None:
    """Whoever leads the slice: for the turn of the oldest job too, and with idle threads."""

    async def check() -> None:
        for num_threads, num_before in itertools.product((1, 2), range(6)):
            scheduler, _ = make_scheduler(num_threads)
            for seed in range(64):
                scheduler.submit(make_job(SLICE, seed=seed))
            for _ in range(num_before):
                scheduler.pick_slice()
            scheduler.submit(make_job(10))
            turns: list[Turn] = []
            while all(turn.num_steps != 10 for turn in turns):
                turns = scheduler.pick_slice()
            assert sum(turn.num_steps for turn in turns) <= 2 * SLICE

    asyncio.run(check())


def test_large_jobs_that_wait_make_no_crowd_of_small_ones() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler(num_threads=2)
        for seed in range(40):
            scheduler.submit(make_job(20 * SLICE, seed=seed))
        for seed in range(6):
            scheduler.submit(make_job(SLICE, seed=seed))
        assert [len(scheduler.pick_slice()) for _ in range(2)] == [3, 2]

    asyncio.run(check())
