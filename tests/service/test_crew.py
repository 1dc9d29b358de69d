"""The threads that run the chains."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from model_core.chains import Engine, plain_chains
from model_core.engine_numba import NumbaEngine
from model_core.randomness import chain_seeds
from model_core.rbm import RBMParams, checked_params
from service.crew import Crew, Finished
from service.scheduler import serving_engine
from tests.service.fakes import FakeEngine


@contextmanager
def crew_of(engine: Engine, num_threads: int = 2, room: int = 4) -> Iterator[Crew]:
    crew = Crew(engine, num_threads, room, time.monotonic)
    try:
        yield crew
    finally:
        crew.close()
        crew.join(10)
        assert not any(thread.is_alive() for thread in crew._threads)


def wait_for(crew: Crew, count: int) -> dict[Any, Finished]:
    found: dict[Any, Finished] = {}
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        found |= {call.tag: call for call in crew.finished()}
        time.sleep(0.001)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts priorities by thread")
def test_engine_threads_let_the_event_loop_go_first() -> None:
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with crew_of(FakeEngine()) as crew:
        for thread in crew._threads:
            deadline = time.monotonic() + 10
            while os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) == mine and time.monotonic() < deadline:
                time.sleep(0.01)
            assert os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) > mine or mine == 19
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine


@pytest.mark.parametrize("largest", [1.0, 20.0], ids=["described in the table", "called from Python"])
def test_calls_of_all_kinds_side_by_side(machine: RBMParams, largest: float) -> None:
    """Chains of both widths of weights, functions and failures, through one queue."""
    engine = serving_engine()
    weights = machine.weights * np.float32(largest / np.abs(machine.weights).max())
    prepared = engine.prepare(checked_params(weights, machine.visible_bias, machine.hidden_bias))
    starts = np.zeros((3, 4), np.uint8)

    def fail() -> Any:
        raise ArithmeticError("planted")

    with crew_of(engine) as crew:
        for turn in range(50):
            chains = plain_chains(starts, chain_seeds(turn, 3), 0, 20)
            crew.advance("chains", prepared, chains)
            crew.run("function", lambda: (starts, starts))
            crew.run("failure", fail)
            found = wait_for(crew, 3)
            for result, wanted in zip(found["chains"].outcome, engine.advance(prepared, chains), strict=True):  # type: ignore[arg-type]
                np.testing.assert_array_equal(result, wanted)
            assert found["function"].outcome == (starts, starts)
            assert isinstance(found["failure"].outcome, ArithmeticError)
            assert found["chains"].seconds > 0 and len(crew) == 0 and crew.alive


class FailingQueue(NumbaEngine):
    """Its compiled loop runs out of memory in each call that it takes."""

    def work_off(self, queue: int, done: int, calls: np.ndarray, hand: np.ndarray) -> int:
        word = os.read(queue, 8)
        hand[0] = int.from_bytes(word, sys.byteorder) if word else -1
        if word:
            raise MemoryError("planted")
        return -1


def test_a_failure_in_compiled_code_is_told_and_the_thread_lives(machine: RBMParams) -> None:
    engine = FailingQueue(num_threads=1)
    chains = plain_chains(np.zeros((1, 4), np.uint8), chain_seeds(0, 1), 0, 5)
    with crew_of(engine) as crew:
        for turn in range(5):
            crew.advance(turn, engine.prepare(machine), chains)
            assert isinstance(wait_for(crew, 1)[turn].outcome, MemoryError)
            assert len(crew) == 0 and crew.alive


def test_what_waited_behind_a_long_call_is_not_called_stuck() -> None:
    now, released = [100.0], [threading.Event(), threading.Event()]

    def wait(number: int) -> Any:
        released[number].wait(10)
        return (), ()

    crew = Crew(FakeEngine(), 1, 2, lambda: now[0])
    try:
        crew.run("first", lambda: wait(0))
        crew.run("second", lambda: wait(1))
        now[0] += 15
        assert crew.longest_seconds() == 15
        released[0].set()
        assert list(wait_for(crew, 1)) == ["first"] and crew.longest_seconds() == 0
    finally:
        released[1].set()
        crew.close()
        crew.join(10)


def test_a_stuck_thread_shows_while_the_others_go_on() -> None:
    now, released = [100.0], threading.Event()

    def stuck() -> Any:
        released.wait(10)
        return (), ()

    crew = Crew(FakeEngine(), 2, 4, lambda: now[0])
    try:
        crew.run("stuck", stuck)
        for turn in range(5):
            now[0] += 5
            crew.run(turn, lambda: ((), ()))  # type: ignore[arg-type, return-value]
            assert list(wait_for(crew, 1)) == [turn]
        assert crew.longest_seconds() == 25
    finally:
        released.set()
        crew.close()
        crew.join(10)


def test_there_is_room_for_so_many() -> None:
    released = threading.Event()

    def wait() -> Any:
        released.wait(10)
        return (), ()

    with crew_of(FakeEngine(), num_threads=1, room=3) as crew:
        for number in range(3):
            assert crew.has_room
            crew.run(number, wait)
        assert not crew.has_room and len(crew) == 3 and crew.longest_seconds() > 0
        assert crew.finished() == []
        released.set()
        assert sorted(wait_for(crew, 3)) == [0, 1, 2] and crew.has_room and crew.longest_seconds() == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files by /proc")
def test_nothing_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with crew_of(FakeEngine()):
        assert len(os.listdir("/proc/self/fd")) == before + 4
    assert len(os.listdir("/proc/self/fd")) == before
