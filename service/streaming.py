"""Waiting for work while watching the client, and server-sent events.

A client that leaves cancels its work: our own server tells of it, and under another one a task awaits `receive`, which
tells too, also behind middleware. A server that stops tells whoever still waits: the last event of a stream, or 503.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import busy, problem_body, to_problem
from service.jobs import DeadlinePassed, Frame
from service.negotiation import MEDIA_TYPES
from service.once import GONE, Once
from service.tickets import Ticket

logger = logging.getLogger("rbm.stream")
T = TypeVar("T")
_STOPPED = "The server is shutting down and could not finish this"


class Lifecycle:
    """Where the server is in its life: `draining` since the first signal, `stop` happens just before the end."""

    def __init__(self) -> None:
        self.draining = False
        self.stop = Once()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves or the server stops.

    `work` stays in this task and is interrupted as `asyncio.timeout` does it. The body must have been read, or must not
    be wanted: under another server it is read away.

    Raises:
      ClientDisconnect: the client left.
      Problem: 503, the server stops.
    """
    task = asyncio.current_task()
    assert task is not None
    reasons: list[Exception] = []
    before = task.cancelling()

    def interrupt(reason: Exception) -> None:
        if not reasons:
            reasons.append(reason)
            task.cancel()

    def left() -> None:
        interrupt(ClientDisconnect())

    def stopping() -> None:
        interrupt(busy(503, _STOPPED, 1.0))

    stop, gone, watcher = request.app.state.lifecycle.stop, request.scope.get(GONE), None
    if stop.happened or (gone is not None and gone.happened):
        work.close()  # it may have no place to be interrupted at, and what is awaited next would be
        raise busy(503, _STOPPED, 1.0) if stop.happened else ClientDisconnect
    if gone is None:
        gone = Once()
        watcher = asyncio.get_running_loop().create_task(_watch(request, gone))
    try:
        stop.tell(stopping)
        gone.tell(left)
        return await work
    except asyncio.CancelledError:
        if reasons and task.uncancel() <= before:
            raise reasons.pop() from None  # the frame, which the traceback holds, lets go of it
        raise
    finally:
        stop.forget(stopping)
        gone.forget(left)
        if watcher is not None:
            watcher.cancel()


async def while_wanted(request: Request, work: Coroutine[Any, Any, T], deadline: float | None) -> T:
    """As `while_connected`, and until the deadline, in `time.monotonic()` seconds.

    Raises:
      DeadlinePassed: it has passed.
    """
    try:
        async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
            return await while_connected(request, work)
    except TimeoutError:
        raise DeadlinePassed("The deadline passed before the work was finished.") from None


async def _watch(request: Request, gone: Once) -> None:
    """Waits for the client's leaving."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.happen()


def event(name: str, data: dict[str, Any]) -> bytes:
    """One server-sent event; JSON has no line breaks, so one data line is enough."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream(StreamingResponse):
    """The events of a job, which is cancelled when the answer is over: also if not one of them was sent."""

    def __init__(self, stream: AsyncIterator[bytes], ticket: Ticket, headers: dict[str, str]) -> None:
        super().__init__(stream, headers=headers, media_type=MEDIA_TYPES["sse"])
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()


async def events(
    request: Request,
    ticket: Ticket,
    show_frame: Callable[[Frame], Awaitable[dict[str, Any]]],
    summary: dict[str, Any],
    heartbeat_seconds: float,
) -> AsyncIterator[bytes]:
    """The stream of one job: `queued`, `frame`..., then `done` or `error`; a comment when nothing happens for long.

    Args:
      show_frame: the data of a frame's event.
      summary: the data of `done`, besides the last step.
    """
    stopping = asyncio.ensure_future(request.app.state.lifecycle.stop.wait())
    frames = aiter(ticket.frames())
    following: asyncio.Future[Frame | None] | None = None
    step = 0
    try:
        position = ticket.position
        yield event("queued", {"position": position})
        while True:
            following = following or asyncio.ensure_future(_next(frames))
            await asyncio.wait({following, stopping}, timeout=heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                frame, following = following.result(), None
                if frame is None:
                    break
                step = frame.step
                yield event("frame", {"step": step, **await show_frame(frame)})
            if stopping.done():
                raise busy(503, _STOPPED, 1.0)
            if following is None:
                continue
            if ticket.position != position:
                position = ticket.position
                yield event("queued", {"position": position})
            else:
                yield b": still here\n\n"
        yield event("done", {**summary, "step": step})
    except Exception as error:
        yield event("error", _last_words(request, error))
    finally:
        stopping.cancel()
        if following is not None:
            following.cancel()
            following = None  # it may hold the error, and the error this frame


async def _next(frames: AsyncIterator[Frame]) -> Frame | None:
    return await anext(frames, None)


def _last_words(request: Request, error: Exception) -> dict[str, Any]:
    problem = to_problem(error, logger, "unexpected error in a stream")
    return problem_body(problem, request.state.request_id, request.scope["path"])
