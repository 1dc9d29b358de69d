"""Something that happens at most once, such as a client's leaving: whoever listens is called. The event loop's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Where in a request's scope our own server leaves the `Once` of its client's leaving. To await `receive` for it takes a
# task, which costs a request as much as its parser; under another server it is done so.
GONE = "rbm.gone"


class Once:
    """See the module."""

    def __init__(self) -> None:
        self.happened = False
        self._listeners: set[Callable[[], None]] = set()

    def tell(self, listener: Callable[[], None]) -> None:
        """Calls `listener` when it happens, or now if it has; until `forget`."""
        self._listeners.add(listener)
        if self.happened:
            listener()

    def forget(self, listener: Callable[[], None]) -> None:
        self._listeners.discard(listener)

    def happen(self) -> None:
        if not self.happened:
            self.happened = True
            for listener in list(self._listeners):
                listener()

    async def wait(self) -> None:
        """Returns when it has happened."""
        happened = asyncio.Event()
        self.tell(happened.set)
        try:
            await happened.wait()
        finally:
            self.forget(happened.set)
