"""An engine that fails, or does not come back, harms the job that it was at and no other."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from service.jobs import Cancelled, DeadlinePassed, EngineFailed
from service.scheduler import Scheduler
from tests.service.fakes import POISON, Clock, FakeEngine, make_job, outcome, step_by_hand
from tests.service.test_scheduler import assert_nothing_left, assert_right_frames, make_scheduler


def test_an_engine_exception_fails_only_its_own_job() -> None:
    async def check() -> None:
        scheduler, engine, _ = make_scheduler()
        good, bad = make_job(10, seed=1), make_job(10, seed=2)
        bad.seeds[0] = POISON
        tickets = [scheduler.submit(job) for job in (good, bad, good)]
        step_by_hand(scheduler)
        assert len(engine.calls[0].seeds) == 3  # they did share a call
        first, second, third = [await outcome(ticket) for ticket in tickets]
        assert isinstance(second, EngineFailed) and isinstance(second.__cause__, ArithmeticError)
        for end in (first, third):
            assert isinstance(end, list)
            assert_right_frames(good, end)

    asyncio.run(check())


def test_who_left_is_not_tried_again() -> None:
    async def check() -> None:
        scheduler, engine, _ = make_scheduler()
        bad = make_job(10, seed=2)
        bad.seeds[0] = POISON
        tickets = [scheduler.submit(job) for job in (make_job(10, seed=1), bad)]
        step_by_hand(scheduler, 1)  # fails, and each is to try again alone
        tickets[0].cancel()
        step_by_hand(scheduler)
        assert len(engine.calls) == 2
        assert [type(await outcome(ticket)) for ticket in tickets] == [Cancelled, EngineFailed]
        assert_nothing_left(scheduler, tickets)

    asyncio.run(check())


def test_health_complains_of_an_engine_that_does_not_come_back_and_quick_calls_go_on() -> None:
    class StuckEngine(FakeEngine):
        released, entered = threading.Event(), threading.Event()

        def advance(self, prepared: Any, chains: Any) -> Any:
            self.entered.set()
            self.released.wait(10)
            return super().advance(prepared, chains)

    async def check() -> None:
        clock, engine = Clock(), StuckEngine()
        scheduler = Scheduler(engine=engine, num_threads=1, stall_seconds=20, clock=clock)
        scheduler.start()
        ticket = scheduler.submit(make_job(10))
        await asyncio.to_thread(engine.entered.wait, 10)
        assert scheduler.health() is None
        assert await scheduler.run_quick(sum, [1, 2]) == 3
        clock.now += 21
        assert "not come back for 21 s" in str(scheduler.health())
        engine.released.set()
        assert_right_frames(ticket.job, await ticket.result())
        assert scheduler.health() is None
        await scheduler.stop()

    asyncio.run(check())


def test_a_deadline_is_seen_while_the_engine_is_busy_with_another() -> None:
    class SlowEngine(FakeEngine):
        released = threading.Event()

        def advance(self, prepared: Any, chains: Any) -> Any:
            self.released.wait(20)
            return super().advance(prepared, chains)

    async def check() -> None:
        scheduler = Scheduler(engine=SlowEngine(), num_threads=1)
        scheduler.start()
        try:
            first = scheduler.submit(make_job(10))
            second = scheduler.submit(make_job(10, deadline=time.monotonic() + 0.3))
            async with asyncio.timeout(10):
                assert type(await outcome(second)) is DeadlinePassed
            assert not first.ended
        finally:
            SlowEngine.released.set()
            await scheduler.stop()

    asyncio.run(check())
