"""The memory of frames: counted while it is there, and no more of it than they need."""

from __future__ import annotations

import asyncio

from tests.service.fakes import make_job, step_by_hand
from tests.service.test_scheduler import make_scheduler


def test_frames_count_until_nobody_needs_them() -> None:
    """They outlive their job: they are encoded, and then somebody reads the answer, perhaps slowly."""

    async def check() -> None:
        scheduler, _, _ = make_scheduler()
        ledger = scheduler._roster._admission
        ticket = scheduler.submit(make_job(1000, every=1))
        step_by_hand(scheduler)
        frames = await ticket.result()
        assert len(frames) == 1001 and ledger._frame_bytes == ticket.frame_bytes > 0
        del ticket
        assert ledger._frame_bytes == 0

    asyncio.run(check())


def test_a_frame_does_not_keep_the_chains_of_others() -> None:
    async def check() -> None:
        scheduler, _, _ = make_scheduler()
        tickets = [scheduler.submit(make_job(20, seed=seed, every=5)) for seed in range(20)]
        step_by_hand(scheduler)
        for ticket in tickets:
            for frame in await ticket.result():
                for rows in (frame.visible, frame.visible_probs):
                    assert rows.base is None or rows.base.nbytes == rows.nbytes

    asyncio.run(check())
