"""The threads that run the chains."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from service.scheduler import Scheduler
from tests.service.fakes import Clock, FakeEngine


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts priorities by thread")
def test_engine_threads_let_the_event_loop_go_first() -> None:
    clock = Clock()
    scheduler = Scheduler(engine=FakeEngine(clock), clock=clock, num_threads=2)
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    scheduler.start()
    try:
        for thread in scheduler._threads:
            deadline = time.monotonic() + 10
            while os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) == mine and time.monotonic() < deadline:
                time.sleep(0.01)
            assert os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) > mine or mine == 19
    finally:
        scheduler.stop()
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine
