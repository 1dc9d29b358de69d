"""Cheap calls (one matrix product: features, energies) on threads of their own: they never wait behind chains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from service.jobs import Busy

_T = TypeVar("_T")
MAX_WAITING = 64


class QuickCalls:
    """A small pool of threads with a short queue."""

    def __init__(self, num_threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(num_threads, "rbm-quick")
        self._num_threads = num_threads
        self._num_pending = 0
        self._mean_seconds = 0.01  # of one call, fading

    def __len__(self) -> int:
        return self._num_pending

    async def run(self, fn: Callable[..., _T], *args: Any) -> _T:
        """Returns `fn(*args)`.

        Raises:
          Busy: if too many calls wait already. Whatever `fn` raises.
        """
        if self._num_pending >= MAX_WAITING:
            wait = self._num_pending * self._mean_seconds / self._num_threads
            raise Busy(f"{self._num_pending} requests for features or energies wait already.", wait)
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
