"""Calls that are no chains, on threads of their own with a short queue: they never wait behind chains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from service.jobs import Busy

_T = TypeVar("_T")


class QuickCalls:
    """A small pool of threads with a short queue.

    Args:
      what: the plural of what waits, for a person.
      most: calls that may wait or run.
    """

    def __init__(self, what: str, *, num_threads: int, most: int) -> None:
        self._what, self._num_threads, self._most = what, num_threads, most
        self._pool = ThreadPoolExecutor(num_threads, "rbm-quick")
        self._num_pending = 0
        self._mean_seconds = 0.01  # of one call, fading

    def __len__(self) -> int:
        return self._num_pending

    async def run(self, fn: Callable[..., _T], *args: Any) -> _T:
        """Returns `fn(*args)`.

        Raises:
          Busy: if too many calls wait already. Whatever `fn` raises.
        """
        if self._num_pending >= self._most:
            wait = self._num_pending * self._mean_seconds / self._num_threads
            raise Busy(f"{self._num_pending} {self._what} wait already.", wait)
        self._num_pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._timed, fn, *args))
        finally:
            self._num_pending -= 1

    def _timed(self, fn: Callable[..., _T], *args: Any) -> _T:
        started = time.monotonic()
        try:
            return fn(*args)
        finally:
            self._mean_seconds += 0.1 * (time.monotonic() - started - self._mean_seconds)

    def stop(self) -> None:
        """Drops what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
