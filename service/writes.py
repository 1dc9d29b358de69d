"""Writes that leave together: a head and its body in one packet, one call of the system, one awakening of the client.

uvicorn writes them one after the other, and a transport that has nothing waiting sends each at once. And a clock for
the client who does not read them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

_LARGE, _MANY = 65_536, 16  # bytes of a write, and writes, that do not wait: a slow reader must pause its writer


class GatheringTransport:
    """A transport that sends what is written in one turn of the event loop at the next turn, or by `flush`.

    Args:
      on_close: called when `close` is, the first time, instead of closing: how to end is the protocol's to say, by
        `end_writing` or `end`.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, on_close: Callable[[], None]
    ) -> None:
        self._transport, self._loop, self._on_close = transport, loop, on_close
        self._waiting: list[bytes] = []
        self._is_ended = False

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(data)
        if len(data) > _LARGE or len(self._waiting) > _MANY:
            self.flush()

    def write_now(self, data: bytes) -> None:
        """Sends at once, behind what waits."""
        self._waiting.append(data)
        self.flush()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting and not self.is_closing():
            self._transport.writelines(waiting)

    def close(self) -> None:
        if not self.is_closing():
            self._on_close()

    def is_closing(self) -> bool:
        return self._is_ended or self._transport.is_closing()

    def end_writing(self) -> None:
        """Sends what waits and then the end; the transport still reads."""
        self.flush()
        self._is_ended = True
        with contextlib.suppress(OSError):  # a client that has gone: reading will tell
            self._transport.write_eof()

    def end(self) -> None:
        """Sends what waits, and closes."""
        self.flush()
        self._is_ended = True
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class ReadersClock:
    """Drops a client who does not read its answers in `seconds` plus the bytes that it takes / `min_rate`."""

    def __init__(
        self, transport: GatheringTransport, loop: asyncio.AbstractEventLoop, seconds: float, min_rate: int
    ) -> None:
        self._transport, self._loop, self._seconds, self._min_rate = transport, loop, seconds, min_rate
        self._timer: asyncio.TimerHandle | None = None
        self._began, self._unsent = 0.0, 0  # and the bytes that waited for the client then

    def start(self) -> None:
        if self._timer is None:
            self._began, self._unsent = time.monotonic(), self._transport.get_write_buffer_size()
            self._timer = self._loop.call_later(self._seconds, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        taken = self._unsent - self._transport.get_write_buffer_size()
        left = self._seconds + taken / self._min_rate - (time.monotonic() - self._began)
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._transport.abort()
