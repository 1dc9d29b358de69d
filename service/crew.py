"""The engine's threads, and the event loop's end of their queue.

    post --> pipe --> whichever thread is free --> pipe --> finished

All books are kept on the event loop; a thread only computes. Calls of the Numba engine are described in a table that
compiled code reads, so a thread that does them never asks for the interpreter's lock (`kernels_calls`). Everything
else, from other engines to equilibrium sampling, is a function that a thread leaves the compiled loop for.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from model_core.chains import Advanced, Chains, Engine, QueueEngine

_NICENESS = 5  # of the engine threads; at 10 they starved under ten times the load that fits
_NUMBER_BYTES = 8
_NOBODY = -1  # in place of a call's number


class Finished(NamedTuple):
    """A call that is over."""

    tag: Any
    outcome: Advanced | Exception
    seconds: float


class _Call:
    def __init__(self, tag: Any) -> None:
        self.tag = tag
        self.begun_at: float | None = None  # None: it waits for a thread
        self.function: Callable[[], Advanced] | None = None  # None: described in the table
        self.outcome: Advanced | Exception = RuntimeError("The call was not made.")
        self.seconds = 0.0
        self.kept: Any = None  # what the table knows by address

    def compute(self) -> None:
        """Calls the function, on the thread that took the call."""
        assert self.function is not None
        started = time.monotonic()
        try:
            self.outcome = self.function()
        except Exception as error:
            self.outcome = error
        self.seconds = time.monotonic() - started


class Crew:
    """`num_threads` threads that do at most `room` calls at a time, some of which wait their turn.

    Every method is the event loop's.
    """

    def __init__(self, engine: Engine, num_threads: int, room: int, clock: Callable[[], float]) -> None:
        self._engine, self._num_threads, self._room, self._clock = engine, num_threads, room, clock
        self._compiled = engine if isinstance(engine, QueueEngine) else None
        self._table: Any = None if self._compiled is None else self._compiled.make_calls(room)
        self._calls: dict[int, _Call] = {}  # under way, by number, oldest first
        self._free = list(range(room))
        self._closed = False
        self._queue, self._queue_end = os.pipe()
        self._done_end, self._done = os.pipe()
        os.set_blocking(self._done_end, False)
        self._threads = [
            threading.Thread(target=self._work, name=f"rbm-engine-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Calls under way."""
        return len(self._calls)

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    def fileno(self) -> int:
        """Readable when a call is over."""
        return self._done_end

    def advance(self, tag: Any, prepared: Any, chains: Chains) -> None:
        """Posts `engine.advance(prepared, chains)`."""
        if self._compiled is None or not self._compiled.can_queue(prepared):
            self.run(tag, lambda: self._engine.advance(prepared, chains))
            return
        number, call = self._free[-1], _Call(tag)
        row = self._table[number : number + 1]
        call.outcome, call.kept = self._compiled.describe_call(row, prepared, chains)
        self._post(number, call)

    def run(self, tag: Any, function: Callable[[], Advanced]) -> None:
        """Posts a call of `function`."""
        number, call = self._free[-1], _Call(tag)
        call.function = function
        self._post(number, call)

    def finished(self) -> list[Finished]:
        """The calls that are over since the last look."""
        try:
            numbers = os.read(self._done_end, _NUMBER_BYTES * self._room)
        except BlockingIOError:
            return []
        found = []
        for start in range(0, len(numbers), _NUMBER_BYTES):
            number = int.from_bytes(numbers[start : start + _NUMBER_BYTES], sys.byteorder) % self._room
            call = self._calls.pop(number)
            if call.function is None:
                call.seconds = 1e-9 * int(self._table["nanoseconds"][number])
            self._free.append(number)
            found.append(Finished(call.tag, call.outcome, call.seconds))
        self._note_begun()
        return found

    def longest_seconds(self) -> float:
        """How long a thread has been at one call."""
        begun = [call.begun_at for call in self._calls.values() if call.begun_at is not None]
        return self._clock() - min(begun) if begun else 0.0

    @property
    def alive(self) -> bool:
        """Whether all threads are."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """The threads end when they have done what is posted."""
        self._closed = True
        os.close(self._queue_end)

    def join(self, timeout: float) -> None:
        """Waits for the threads, `timeout` seconds for each; to be called once, after `close`."""
        for thread in self._threads:
            thread.join(timeout)
        if not any(thread.is_alive() for thread in self._threads):
            for end in (self._queue, self._done_end, self._done):
                os.close(end)

    def _post(self, number: int, call: _Call) -> None:
        self._free.pop()
        self._calls[number] = call
        # A number beyond the table is a function's.
        word = number if call.function is None else number + self._room
        os.write(self._queue_end, word.to_bytes(_NUMBER_BYTES, sys.byteorder))
        self._note_begun()

    def _note_begun(self) -> None:
        """First in, first out: of the calls under way the oldest, one a thread, have begun."""
        for call in islice(self._calls.values(), self._num_threads):
            if call.begun_at is None:
                call.begun_at = self._clock()

    # On the threads.

    def _work(self) -> None:
        _let_others_first()
        hand = np.full(1, _NOBODY, np.int64)
        while True:
            hand[0] = _NOBODY
            try:
                number = self._next(hand)
            except Exception as error:  # out of memory in compiled code, or it could not be compiled
                number = int(hand[0])
                if number == _NOBODY:
                    raise
                self._calls[number].outcome = error
            else:
                if number == _NOBODY:
                    return
                self._calls[number % self._room].compute()
            os.write(self._done, number.to_bytes(_NUMBER_BYTES, sys.byteorder))

    def _next(self, hand: np.ndarray) -> int:
        """The number of the next call that is a function's; _NOBODY at the end."""
        if self._compiled is None:
            word = os.read(self._queue, _NUMBER_BYTES)
            return int.from_bytes(word, sys.byteorder) if word else _NOBODY
        while True:
            number = self._compiled.work_off(self._queue, self._done, self._table, hand)
            if number != _NOBODY or self._closed:
                return number
            time.sleep(0.01)  # too many signals, in days


def warm_up(engine: Engine) -> None:
    """Compiles what the threads run, so that no first call has to wait for it."""
    if isinstance(engine, QueueEngine):
        queue, end = os.pipe()
        os.close(end)
        try:
            engine.work_off(queue, queue, engine.make_calls(1), np.empty(1, np.int64))
        finally:
            os.close(queue)


def _let_others_first() -> None:
    """Lowers the priority of this thread a little: where cores are short, the event loop goes before the engine.

    Refusals, health checks and first frames then take milliseconds under any load. Linux counts priorities by thread.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS))
