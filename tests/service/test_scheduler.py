"""The scheduler: every accepted job ends exactly one way, with its own bits, whatever happens beside it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.chains import run_chains
from model_core.randomness import chain_seeds
from model_core.rbm import RBMParams
from service.jobs import Cancelled, ChainJob, DeadlinePassed, EngineFailed, Frame, NotReady
from service.scheduler import Scheduler, serving_engine
from service.tickets import HELD_FRAMES, Ticket
from tests.service.fakes import POISON, Clock, FakeEngine, fake_model, final_state, make_job, outcome, step_by_hand


def make_scheduler(**options: Any) -> tuple[Scheduler, FakeEngine, Clock]:
    clock = Clock()
    engine = FakeEngine(clock)
    return Scheduler(engine=engine, clock=clock, **{"num_threads": 1, **options}), engine, clock


def assert_nothing_left(scheduler: Scheduler, held: Sequence[Ticket] = ()) -> None:
    """The books balance: no job, no part, no work is still entered, and only the memory of tickets that are held."""
    roster, ledger = scheduler._roster, scheduler._roster._admission
    assert (len(roster), roster.num_waiting, roster.backlog_seconds) == (0, 0, 0)
    frame_bytes = sum(ticket.frame_bytes for ticket in held if ticket.job.num_steps)
    assert (dict(ledger._left), ledger._frame_bytes, ledger._num_jobs) == ({}, frame_bytes, 0)


def assert_right_frames(job: ChainJob, frames: list[Frame]) -> None:
    """All frames, in order, each with the bits of a direct computation."""
    steps = [0, *range(job.every, job.num_steps, job.every)] if job.every else []
    assert [frame.step for frame in frames] == [*steps, job.num_steps] if job.num_steps else [0]
    np.testing.assert_array_equal(frames[-1].visible, final_state(job))
    np.testing.assert_array_equal(frames[-1].visible_probs, final_state(job))


SUBMIT = st.tuples(
    st.just("submit"), st.integers(0, 900), st.integers(1, 5), st.sampled_from([0, 1, 7, 100, 1000]),
    st.sampled_from([None, 0.001, 0.02, 9.0]), st.sampled_from(["one", "two", "failing"]),
    st.sampled_from([True, *[False] * 9]),
)  # fmt: skip
CANCEL, RUN = st.tuples(st.just("cancel"), st.integers(0, 30)), st.tuples(st.just("run"), st.integers(1, 9))
ACTION = st.one_of(SUBMIT, CANCEL, RUN)


@given(st.lists(ACTION, max_size=40))
@settings(max_examples=150, deadline=None)
def test_every_job_ends_one_way_and_hurts_no_other(actions: list[tuple[Any, ...]]) -> None:
    async def check() -> None:
        scheduler, engine, clock = make_scheduler()
        models = {name: fake_model(name) for name in ("one", "two", "failing")}
        engine.failing.add("failing")
        tickets: list[Ticket] = []
        cancelled, doomed = set(), set()
        for action, *values in actions:
            if action == "submit":
                num_steps, num_chains, every, timeout, name, poisoned = values
                deadline = None if timeout is None else clock.now + timeout
                job = make_job(
                    num_steps, num_chains, seed=len(tickets), model=models[name], every=every, deadline=deadline
                )
                if poisoned:
                    job.seeds[-1] = POISON
                if name == "failing" or poisoned:
                    doomed.add(len(tickets))
                try:
                    tickets.append(scheduler.submit(job))
                except Exception:
                    doomed.discard(len(tickets))
            elif action == "cancel" and values[0] < len(tickets):
                if not tickets[values[0]].ended:
                    cancelled.add(values[0])
                tickets[values[0]].cancel()
                tickets[values[0]].cancel()
            elif action == "run":
                step_by_hand(scheduler, values[0])
        step_by_hand(scheduler)
        assert_nothing_left(scheduler, tickets)
        for number, ticket in enumerate(tickets):
            end = await outcome(ticket)
            if number in cancelled:
                assert isinstance(end, Cancelled)
            elif number in doomed and ticket.job.num_steps:
                assert isinstance(end, EngineFailed | DeadlinePassed)
            elif isinstance(end, DeadlinePassed):
                assert ticket.job.deadline is not None and ticket.job.deadline <= clock.now
            else:
                assert isinstance(end, list), end
                assert_right_frames(ticket.job, end)

    asyncio.run(check())


def test_threads_and_clients_that_leave_at_random() -> None:
    """Two engine threads, 300 clients of whom a third leaves: no future is lost and no answer is wrong."""

    async def check() -> None:
        scheduler = Scheduler(engine=FakeEngine(), num_threads=2, max_queue_seconds=1e9)
        scheduler.start()
        dice = random.Random(0)

        async def client(number: int) -> bool:
            await asyncio.sleep(dice.random() / 4)
            job = make_job(dice.randrange(5000), dice.randrange(1, 9), seed=number, every=dice.choice([0, 500]))
            work = asyncio.ensure_future(scheduler.submit(job).result())
            if number % 3 == 0:
                await asyncio.sleep(dice.random() / 50)
                if work.cancel():
                    await asyncio.wait([work])
                    return False
            assert_right_frames(job, await work)
            return True

        async with asyncio.timeout(30):
            assert sum(await asyncio.gather(*map(client, range(300)))) >= 200
            await scheduler.drain()
        assert_nothing_left(scheduler)
        await scheduler.stop()

    asyncio.run(check())


@pytest.mark.parametrize("mode", ["gibbs", "mean_field"])
def test_same_bytes_alone_and_in_company(machine: RBMParams, mode: Any) -> None:
    """The real engine: a seeded job among 40 others, cut into slices of a few steps, equals `run_chains`."""
    engine = serving_engine()
    model: Any = SimpleNamespace(name="m", version=1, num_visible=4, num_hidden=4, prepared=engine.prepare(machine))

    def job(number: int) -> ChainJob:
        dice = np.random.default_rng(number)
        visible = dice.integers(0, 2, (1 + number % 3, 4)).astype(np.uint8)
        clamp = dice.integers(0, 2, visible.shape).astype(bool) if number % 2 else None
        return ChainJob(
            model=model, visible=visible, seeds=chain_seeds(number, len(visible)), num_steps=37 * (number % 5),
            temperature=1 + number % 4, clamp=clamp, mode=mode, every=number % 6,
        )  # fmt: skip

    async def check() -> None:
        scheduler = Scheduler(engine=engine, num_threads=2, slice_seconds=1e-9, max_queue_seconds=1e9)
        scheduler.start()
        tickets = [scheduler.submit(job(number)) for number in range(40)]
        for ticket in tickets:
            last = (await ticket.result())[-1]
            options = {"temperature": ticket.job.temperature, "clamp": ticket.job.clamp, "mode": mode}
            states, probs = run_chains(
                machine, ticket.job.visible, num_steps=ticket.job.num_steps, seeds=ticket.job.seeds,
                return_probs=True, engine=engine, **options,
            )  # fmt: skip
            np.testing.assert_array_equal(last.visible, states)
            np.testing.assert_array_equal(last.visible_probs, probs)
        await scheduler.stop()

    asyncio.run(check())


def test_a_slow_reader_of_a_stream_misses_frames_but_not_the_last() -> None:
    async def check() -> None:
        scheduler, _, _ = make_scheduler()
        ticket = scheduler.submit(make_job(1000, every=1), stream=True)
        step_by_hand(scheduler)
        end = await ticket.result()
        assert [frame.step for frame in end] == list(range(1001 - HELD_FRAMES, 1001))

    asyncio.run(check())


def test_frames_come_one_by_one_for_many_chains() -> None:
    """No chain of a job runs ahead of a frame that the others have not come to."""

    async def check() -> None:
        scheduler, _, _ = make_scheduler()
        frames = aiter(scheduler.submit(make_job(1000, 8, every=100), stream=True).frames())
        for number in range(11):
            assert (await anext(frames)).step == 100 * number
            step_by_hand(scheduler, 8)

    asyncio.run(check())


def test_cancel_frees_the_slot_within_a_slice() -> None:
    async def check() -> None:
        scheduler, engine, _ = make_scheduler()
        ticket, other = scheduler.submit(make_job(100_000)), scheduler.submit(make_job(200_000))
        turns = scheduler.pick_slice()
        ticket.cancel()
        scheduler.run_slice(turns)  # what was under way when the client left comes to nothing
        engine.calls.clear()
        step_by_hand(scheduler, 5)
        assert {int(call.seeds[0]) for call in engine.calls} == {int(other.job.seeds[0])}
        with pytest.raises(Cancelled):
            await ticket.result()

    asyncio.run(check())


def test_leaving_the_frames_cancels_the_job() -> None:
    async def check() -> None:
        scheduler, _, _ = make_scheduler()
        frames = scheduler.submit(make_job(1000, every=10)).frames()
        await anext(frames)
        await frames.aclose()
        assert_nothing_left(scheduler)

    asyncio.run(check())


def test_drain_finishes_what_was_accepted_and_takes_nothing_new() -> None:
    async def check() -> None:
        scheduler = Scheduler(engine=FakeEngine(), num_threads=2)
        tickets = [scheduler.submit(make_job(3000, seed=seed)) for seed in range(50)]
        scheduler.start()
        draining = asyncio.ensure_future(scheduler.drain())
        await asyncio.sleep(0)
        with pytest.raises(NotReady):
            scheduler.submit(make_job(1))
        with pytest.raises(NotReady):
            await scheduler.run_quick(int)
        async with asyncio.timeout(10):
            await draining
        for ticket in tickets:
            assert isinstance(await outcome(ticket), list)
        await scheduler.stop()

    asyncio.run(check())


def test_stop_tells_those_who_wait() -> None:
    async def check() -> None:
        scheduler, _, _ = make_scheduler()
        ticket = scheduler.submit(make_job(1000))
        await scheduler.stop()
        assert isinstance(await outcome(ticket), Cancelled)

    asyncio.run(check())


def test_expired_work_is_dropped_before_it_is_begun() -> None:
    async def check() -> None:
        scheduler, engine, clock = make_scheduler()
        scheduler.submit(make_job(1000, seed=1))
        ticket = scheduler.submit(make_job(1000, seed=2, deadline=clock.now + 1))
        clock.now += 2
        step_by_hand(scheduler)
        assert isinstance(await outcome(ticket), DeadlinePassed)
        assert all(int(ticket.job.seeds[0]) not in call.seeds for call in engine.calls)

    asyncio.run(check())
