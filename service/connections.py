"""Limits on what uvicorn's h11 protocol waits for: it has none of its own, and a socket can be silent for ever.

A connection is in one of four phases, each with its clock:

    head   from its opening, or the first byte of a further request, until the head is complete   `header_seconds`
    body   until the body is complete                        `body_seconds` plus its bytes / `min_body_rate`
    work   until the answer is sent                          none here: deadlines are the scheduler's
    idle   kept alive between requests                       `idle_seconds`, by uvicorn itself

A client that does not read its answer is dropped after `write_seconds`. Connections in phase head or idle cost a
socket and nothing else; above `max_idle_connections` of them the oldest is closed, so a thousand silent sockets
never stand in the way of one that has something to ask.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.door import Door
from service.errors import CONTENT_TYPE, Problem, problem_body
from service.middleware import SECURITY_HEADERS
from service.settings import Settings

_INSIDE = ("work",)  # the phase of a request that is under way; a body may dawdle, and shall keep nobody out


def make_protocol(settings: Settings, door: Door) -> type[H11Protocol]:
    """A protocol class with the limits of `settings`; uvicorn makes one instance a connection. They share a door."""
    silent: dict[LimitedProtocol, None] = {}  # in phase head or idle, oldest first

    class Protocol(LimitedProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.limits, self.silent, self.door = settings, silent, door

    return Protocol


class LimitedProtocol(H11Protocol):
    """See the module; `make_protocol` gives it its limits."""

    limits: Settings
    silent: dict[LimitedProtocol, None]
    door: Door
    _phase = ""
    _clock: asyncio.TimerHandle | None = None
    _write_clock: asyncio.TimerHandle | None = None
    _phase_began = 0.0
    _received = 0  # bytes in this phase

    # What asyncio tells.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._enter("head")
        if len(self.silent) > self.limits.max_idle_connections:
            next(iter(self.silent))._close()

    def data_received(self, data: bytes) -> None:
        between = self._phase == "idle" or (self._phase == "head" and not self._received)
        if between and (refusal := self.door.refusal(data)) is not None:
            self._enter("idle")
            self.transport.write(refusal)
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            return
        if self._phase == "idle":
            self._enter("head")
        self._received += len(data)
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter("")
        self._stop_write_clock()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_clock = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_clock()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    # Phases.

    def _look(self) -> None:
        """Enters the phase that the connection is in by now."""
        if self.transport.is_closing():
            self._enter("")
        elif self.conn.their_state is h11.SEND_BODY:
            self._enter("body")
        elif self.conn.their_state is h11.IDLE:
            waits = self._phase == "head" or bool(self.conn.trailing_data[0])
            self._enter("head" if waits else "idle")
        else:
            self._enter("work")

    def _enter(self, phase: str) -> None:
        if phase == self._phase:
            return
        self.door.num_inside += (phase in _INSIDE) - (self._phase in _INSIDE)
        self._phase, self._phase_began, self._received = phase, time.monotonic(), 0
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        if phase == "head":
            self._clock = self.loop.call_later(self.limits.header_seconds, self._head_is_late)
        elif phase == "body":
            self._clock = self.loop.call_later(self.limits.body_seconds, self._body_is_late)
        self.silent.pop(self, None)
        if phase in ("head", "idle"):
            self.silent[self] = None  # at the end: the youngest

    def _head_is_late(self) -> None:
        if self._received:
            self._refuse(Problem(408, f"The request head did not arrive within {self.limits.header_seconds:g} s."))
        else:
            self._close()

    def _body_is_late(self) -> None:
        allowed = self.limits.body_seconds + self._received / self.limits.min_body_rate
        left = allowed - (time.monotonic() - self._phase_began)
        if left > 0:
            self._clock = self.loop.call_later(left, self._body_is_late)
            return
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.disconnected = True  # the app sees that its client has left, and answers nothing
            self.cycle.message_event.set()
            self._refuse(Problem(408, f"The body did not arrive within {allowed:.0f} s."))
        else:
            self._close()

    # Endings.

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn while it handles h11's exception, which knows the better status."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        self._refuse(Problem(status if status in (400, 431) else 400, "This is not a valid HTTP/1.1 request."))

    def _refuse(self, problem: Problem) -> None:
        """Answers from below the app: a head that never became a request has no other way."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            request_id = uuid.uuid4().hex
            content = json.dumps(problem_body(problem, request_id, "")).encode()
            headers = {**SECURITY_HEADERS, "Content-Type": CONTENT_TYPE, "X-Request-ID": request_id}
            headers |= {"Content-Length": str(len(content)), "Connection": "close"}
            response = h11.Response(status_code=problem.status, headers=list(headers.items()))
            for event in (response, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self._close()

    def _close(self) -> None:
        self._enter("")
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_write_clock(self) -> None:
        if self._write_clock is not None:
            self._write_clock.cancel()
            self._write_clock = None
