"""Writes that leave together: a head and its body in one packet, one call of the system, one awakening of the client.

uvicorn writes them one after the other, and a transport that has nothing waiting sends each at once.
"""

from __future__ import annotations

import asyncio
import contextlib
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
