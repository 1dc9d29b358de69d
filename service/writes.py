"""Writes that leave together: a head and its body in one packet, one call of the system, one awakening of the client.

uvicorn writes them one after the other, and a transport that has nothing waiting sends each at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

_LARGE, _MANY = 65_536, 16  # bytes of a write, and writes, that do not wait: a slow reader must pause its writer


class GatheringTransport:
    """A transport that sends what is written in one turn of the event loop at the next turn, or by `flush`."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(data)
        if len(data) > _LARGE or len(self._waiting) > _MANY:
            self.flush()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting and not self._transport.is_closing():
            self._transport.writelines(waiting)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
