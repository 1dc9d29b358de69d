"""Calls that compiled threads take from a pipe have the bits of calls from Python."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from model_core.chains import Chains, make_chains
from model_core.engine_numba import NumbaEngine
from model_core.kernels_calls import NOBODY
from model_core.randomness import chain_seeds
from model_core.rbm import RBMParams, checked_params

NUM_CALLS = 6


class Queue:
    """A table of calls, its two pipes, and threads that work it off."""

    def __init__(self, engine: NumbaEngine, num_threads: int) -> None:
        self.calls = engine.make_calls(NUM_CALLS)
        self.taken, self._post = os.pipe()
        self._finished, self._finish = os.pipe()
        self.returned: list[int] = []
        self.threads = [threading.Thread(target=self._work, args=(engine,)) for _ in range(num_threads)]
        for thread in self.threads:
            thread.start()

    def _work(self, engine: NumbaEngine) -> None:
        hand = np.zeros(1, np.int64)
        while self.returned[-1:] != [NOBODY]:
            self.returned.append(engine.work_off(self.taken, self._finish, self.calls, hand))

    def post(self, number: int) -> None:
        os.write(self._post, number.to_bytes(8, sys.byteorder))

    def next_done(self) -> int:
        return int.from_bytes(os.read(self._finished, 8), sys.byteorder)

    def close(self) -> None:
        os.close(self._post)
        for thread in self.threads:
            thread.join(60)
        for end in (self.taken, self._finished, self._finish):
            os.close(end)


@pytest.fixture
def queue() -> Iterator[Queue]:
    queue = Queue(NumbaEngine(num_threads=1), 2)
    yield queue
    queue.close()
    assert not any(thread.is_alive() for thread in queue.threads)
    assert queue.returned[-1] == NOBODY


def odd_machine() -> RBMParams:
    """Sizes that fill no tile, in either layer."""
    rng = np.random.default_rng(3)
    return checked_params(0.3 * rng.standard_normal((70, 131)), rng.standard_normal(70), rng.standard_normal(131))


def one_weight(weight: float) -> RBMParams:
    return checked_params(np.full((1, 1), weight), np.zeros(1), np.full(1, 0.5))


def chains_for(params: RBMParams, number: int) -> Chains:
    """One to six chains, each with its own number of steps, some of none, and every second time with a mask."""
    rng, num_chains = np.random.default_rng(number), 1 + number
    clamp = rng.integers(0, 2, (num_chains, params.num_visible)).astype(bool) if number % 2 else None
    return make_chains(
        params, rng.integers(0, 2, (num_chains, params.num_visible)).astype(np.uint8),
        num_steps=rng.integers(0, 40, num_chains), seeds=chain_seeds(number, num_chains),
        first_step=rng.integers(0, 2**40, num_chains), temperature=rng.uniform(0.5, 2.0, num_chains), clamp=clamp,
    )  # fmt: skip


@pytest.mark.parametrize("make", [odd_machine, lambda: one_weight(1.0)])
def test_queued_calls_have_the_bits_of_plain_ones(queue: Queue, make: Callable[[], RBMParams]) -> None:
    engine = NumbaEngine(num_threads=1)
    prepared = engine.prepare(make())
    for _ in range(3):
        chains = [chains_for(prepared.params, number) for number in range(NUM_CALLS)]
        described = [
            engine.describe_call(queue.calls[number : number + 1], prepared, each) for number, each in enumerate(chains)
        ]
        for number in range(NUM_CALLS):
            queue.post(number)
        assert sorted(queue.next_done() for _ in range(NUM_CALLS)) == list(range(NUM_CALLS))
        assert (queue.calls["nanoseconds"] > 0).all()
        for each, (results, _) in zip(chains, described, strict=True):
            for found, wanted in zip(results, engine.advance(prepared, each), strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_a_mask_may_lie_in_memory_as_it_likes(queue: Queue) -> None:
    """Zero bytes from row to row, as `np.broadcast_to` makes it."""
    engine = NumbaEngine(num_threads=1)
    prepared = engine.prepare(odd_machine())
    chains = chains_for(prepared.params, 4)
    mask = np.broadcast_to(np.arange(70) % 3 == 0, chains.visible.shape)
    results, kept = engine.describe_call(queue.calls[:1], prepared, chains._replace(clamp=mask))
    queue.post(0)
    assert queue.next_done() == 0 and kept
    np.testing.assert_array_equal(results[0], engine.advance(prepared, chains._replace(clamp=mask.copy()))[0])
    np.testing.assert_array_equal(results[0][:, mask[0]], chains.visible[:, mask[0]])


def test_a_number_beyond_the_table_is_the_callers(queue: Queue) -> None:
    queue.post(NUM_CALLS + 5)
    deadline = time.monotonic() + 30
    while not queue.returned and time.monotonic() < deadline:
        time.sleep(0.001)
    assert queue.returned == [NUM_CALLS + 5]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to a thread are a thing of POSIX")
def test_a_signal_does_not_end_a_thread_that_waits(queue: Queue) -> None:
    """It interrupts the read, if the system does not take it up again by itself."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        for _ in range(20):
            for thread in queue.threads:
                signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)
        engine = NumbaEngine(num_threads=1)
        prepared = engine.prepare(odd_machine())
        kept = engine.describe_call(queue.calls[:1], prepared, chains_for(prepared.params, 0))
        queue.post(0)
        assert queue.next_done() == 0 and kept and queue.returned == []
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_weights_of_32_bits_are_not_for_the_queue() -> None:
    engine = NumbaEngine(num_threads=1)
    wide, narrow = (engine.prepare(one_weight(weight)) for weight in (20.0, 2.0))
    assert engine.can_queue(narrow) and not engine.can_queue(wide)
