"""Admission: arithmetic on work and speed, with a clock that only the engine moves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.admission import Speeds
from service.jobs import FRAME_STEPS, Busy, ChainJob, DeadlinePassed, Kind, TooMuch
from service.scheduler import Scheduler
from tests.service.fakes import SPEED, Clock, FakeEngine, make_job, step_by_hand

KIND = Kind(784, 500, "gibbs")


def make_scheduler(**options: Any) -> tuple[Scheduler, Clock]:
    clock = Clock()
    return Scheduler(engine=FakeEngine(clock), clock=clock, **{"num_threads": 1, **options}), clock


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


def test_speed_follows_what_is_measured() -> None:
    speeds = Speeds()
    for _ in range(2000):
        speeds.observe(KIND, 200, 200 / 70_000)
    assert speeds.chain_steps(KIND) == pytest.approx(70_000, rel=0.01)
    for _ in range(4000):
        speeds.observe(KIND, 200, 200 / 140_000)
    assert speeds.chain_steps(KIND) == pytest.approx(140_000, rel=0.1)


def test_one_slow_call_does_not_spoil_the_speed() -> None:
    speeds = Speeds()
    before = speeds.chain_steps(KIND)
    speeds.observe(KIND, 1, 30.0)  # a compiler ran
    speeds.observe(KIND, 0, 1.0)
    assert speeds.chain_steps(KIND) == pytest.approx(before, rel=0.05)


def test_what_was_measured_at_the_start_takes_the_place_of_the_guess() -> None:
    """A fresh server must not call impossible what it does in a second."""

    async def check() -> None:
        scheduler, _ = make_scheduler(max_job_seconds=1.0)
        job = make_job(5 * SPEED)
        with pytest.raises(TooMuch):
            scheduler.submit(job)
        scheduler.start()
        try:
            await asyncio.to_thread(scheduler.expect, job.kind, 10 * SPEED, 1.0)
            scheduler.submit(job).cancel()
            scheduler.expect(job.kind, 1, 1.0)  # what is known counts for more
            await asyncio.sleep(0)
            scheduler.submit(job).cancel()
        finally:
            await scheduler.stop()

    run(check())


@pytest.mark.parametrize(("num_chains", "num_threads", "every"), [(1, 1, 0), (1, 2, 0), (64, 2, 0), (5, 1, 7)])
def test_too_much_names_the_largest_steps_that_fit(num_chains: int, num_threads: int, every: int) -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler(max_job_seconds=1.0, num_threads=num_threads)
        with pytest.raises(TooMuch) as refusal:
            scheduler.submit(make_job(10**6, num_chains, every=every), stream=True)
        largest = refusal.value.largest
        lanes = min(num_chains, num_threads)
        if not every:
            assert largest == SPEED * lanes // num_chains - FRAME_STEPS
        assert str(largest) in refusal.value.reason
        scheduler.submit(make_job(largest, num_chains, every=every), stream=True)
        with pytest.raises(TooMuch):
            scheduler.submit(make_job(largest + 1 + every, num_chains, every=every), stream=True)

    run(check())


def test_a_job_waits_at_most_the_queue_budget() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler(max_queue_seconds=1.0)
        job = make_job(SPEED // 4 - FRAME_STEPS)
        for _ in range(5):  # the fifth has 1 s before it, the sixth 1.25 s
            scheduler.submit(job)
        with pytest.raises(Busy) as refusal:
            scheduler.submit(job)
        assert refusal.value.retry_after == pytest.approx(0.25, abs=0.01)

    run(check())


def test_short_jobs_are_not_refused_for_long_ones() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler(max_queue_seconds=1.0)
        for _ in range(3):
            scheduler.submit(make_job(SPEED // 2 - FRAME_STEPS))
        with pytest.raises(Busy):
            scheduler.submit(make_job(SPEED // 2))
        scheduler.submit(make_job(20))

    run(check())


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=30), st.integers(1, 20_000))
@settings(max_examples=40, deadline=None)
def test_retry_after_is_honest(sizes: list[int], size: int) -> None:
    """When nothing else comes, the job is accepted after the seconds that `Busy` named (and a slice)."""

    async def check() -> None:
        scheduler, clock = make_scheduler(max_queue_seconds=0.5)
        for number in sizes:
            try:
                scheduler.submit(make_job(number))
            except Busy:
                break
        job = make_job(size)
        try:
            scheduler.submit(job)
        except Busy as refusal:
            wanted = clock.now + refusal.retry_after + 0.004
            while clock.now < wanted and step_by_hand(scheduler, 1):
                pass
            scheduler.submit(job)

    run(check())


def test_a_deadline_that_the_queue_cannot_meet() -> None:
    async def check() -> None:
        scheduler, clock = make_scheduler()
        scheduler.submit(make_job(SPEED))  # 1 s
        steps = SPEED // 10

        def with_timeout(seconds: float, num_steps: int = steps * 9) -> ChainJob:
            return make_job(num_steps, deadline=clock.now + seconds)

        scheduler.submit(with_timeout(2.0))
        with pytest.raises(Busy) as busy:
            scheduler.submit(with_timeout(2.0))  # 1.9 s wait before its 0.9 s
        assert busy.value.retry_after == pytest.approx(0.8, abs=0.01)
        with pytest.raises(TooMuch) as too_much:  # waiting would not help
            scheduler.submit(with_timeout(0.5))
        assert too_much.value.largest == pytest.approx(SPEED / 2, rel=0.001)
        with pytest.raises(DeadlinePassed):
            scheduler.submit(with_timeout(0.0))

    run(check())


def test_frames_that_are_kept_cost_memory() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler(max_job_seconds=1e9, max_queue_seconds=1e9)
        job = make_job(2000, 6000, every=1)  # 2001 frames of 480 kB
        with pytest.raises(TooMuch, match="every") as refusal:
            scheduler.submit(job)
        scheduler.submit(make_job(refusal.value.largest, 6000, every=1))
        scheduler.submit(make_job(20, 6000, every=1), stream=True)

    run(check())


def test_refusals_are_counted_by_reason() -> None:
    async def check() -> None:
        scheduler, _ = make_scheduler(max_queue_seconds=0.0, max_job_seconds=2.0)
        scheduler.submit(make_job(SPEED))
        with pytest.raises(Busy):
            scheduler.submit(make_job(SPEED))
        with pytest.raises(TooMuch):
            scheduler.submit(make_job(9 * SPEED))
        text = scheduler._metrics.render().decode()
        assert 'rbm_rejected_total{reason="queue_full"} 1.0' in text
        assert 'rbm_rejected_total{reason="too_much"} 1.0' in text
        assert "rbm_queue_depth 1.0" in text

    run(check())
