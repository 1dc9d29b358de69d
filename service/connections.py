"""Limits on what uvicorn's HTTP protocol waits for: it has none of its own, and a socket can be silent for ever.

A connection is in one of five phases, each with its clock:

    head   from its opening, or the first byte of a further request, until the head is complete   `header_seconds`
    body   until the body is complete                        `body_seconds` plus its bytes / `min_body_rate`
    work   until the answer is sent                          none here: deadlines are the scheduler's
    idle   kept alive between requests                       `idle_seconds`, by uvicorn itself
    end    answered for the last time, until the client stops sending                        `linger_seconds`

The last: to close with bytes unread resets the connection, and a reset overtakes the answer (RFC 9112, section 9.6).
So who is still sending is told the end, and what comes is thrown away. Who was late is not waited for once more.

A client must read its answer in `write_seconds` plus the bytes taken / `min_body_rate`, or is dropped. Connections in
phase head, idle or end cost a socket and hardly more; above `max_idle_connections` of them the oldest is closed, so a
thousand silent sockets never stand in the way of one that has something to ask.

The parser is llhttp, by way of httptools, which is half the price of a request in Python. What comes while a request is
worked on is not parsed before that one is answered; what came in the same read as its end is, and waits in uvicorn.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.below import last_answer
from service.door import Door
from service.errors import Problem, new_request_id
from service.logs import Answered
from service.middleware import MAX_TARGET_BYTES, REFUSED, REQUEST_ID
from service.once import GONE, Once
from service.settings import Settings
from service.writes import GatheringTransport, ReadersClock

_PIECE_BYTES = 16_384  # of a body, before the app is told: to wake it for each byte would cost as much as a request


def make_protocol(
    settings: Settings,
    door: Door,
    *,
    report: Callable[[Answered], None] = lambda answered: None,
    is_draining: Callable[[], bool] = lambda: False,
) -> type[HttpToolsProtocol]:
    """A protocol class with the limits of `settings`; uvicorn makes one instance a connection. They share a door.

    Args:
      report: told of what is refused before it is a request, and so is in no log of the app's.
      is_draining: whether each answer is to be the last of its connection.
    """
    silent: dict[LimitedProtocol, None] = {}  # in phase head, idle or end, oldest first

    class Protocol(LimitedProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.limits, self.silent, self.door = settings, silent, door
            self.report, self.is_draining = report, is_draining

    return Protocol


class LimitedProtocol(HttpToolsProtocol):
    """See the module; `make_protocol` gives it its limits."""

    limits: Settings
    silent: dict[LimitedProtocol, None]
    door: Door
    report: Callable[[Answered], None]
    is_draining: Callable[[], bool]
    _phase = ""
    _clock: asyncio.TimerHandle | None = None
    _phase_began = 0.0
    _received = 0  # bytes in this phase
    _reading = ""  # the part of a request that the parser is in: "head", "body", or "" between requests
    _active: RequestResponseCycle | None = None  # the request that is being answered, or was last
    _held = b""  # what came after it
    _wrong: Problem | None = None  # with what the parser was given; None: it is no HTTP

    # What asyncio tells.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        gathering = GatheringTransport(transport, self.loop, self._last_answer)
        self._readers_clock = ReadersClock(gathering, self.loop, self.limits.write_seconds, self.limits.min_body_rate)
        super().connection_made(gathering)  # type: ignore[arg-type]
        self._enter("head")
        if len(self.silent) > self.limits.max_idle_connections:
            next(iter(self.silent))._close()

    def data_received(self, data: bytes) -> None:
        between = self._phase == "idle" or (self._phase == "head" and not self._received)
        date = self.server_state.default_headers
        if between and not self._reading and (refusal := self.door.refusal(data, date)) is not None:
            self._enter("idle")
            self._is_heard()
            self.transport.write_now(refusal)  # type: ignore[attr-defined]
            self._unset_keepalive_if_required()
            self._expect_more()
        elif self._phase == "work":
            self._held += data
            self.flow.pause_reading()
        elif self._phase != "end":
            super().data_received(data)
            self._look()
            self._received += len(data)
            if self._phase == "head" and self._received > self.limits.max_header_bytes:
                self._refuse(Problem(431, f"The request head has more than {self.limits.max_header_bytes:,} bytes."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter("")
        self._readers_clock.stop()
        if self._active is not None and not self._active.response_complete:
            _abandon(self._active)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._readers_clock.start()

    def resume_writing(self) -> None:
        self._readers_clock.stop()
        super().resume_writing()
        if self.transport.is_closing():
            self._readers_clock.start()  # nobody writes any more, and some is left

    # What the parser and the answer tell.

    def on_message_begin(self) -> None:
        self._reading = "head"
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._wrong = Problem(414, f"The address has more than {MAX_TARGET_BYTES:,} bytes.")
            raise ValueError("too long")  # uvicorn takes it for nonsense, and calls `send_400_response`

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() == "1.1" and [name for name, _ in self.headers].count(b"host") != 1:
            raise ValueError("one Host is needed (RFC 9112, section 3.2)")  # uvicorn answers 400
        super().on_headers_complete()
        self._reading = "body"

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            return  # nobody wants it any more
        self.cycle.body += body
        if len(self.cycle.body) >= _PIECE_BYTES:
            super().on_body(b"")  # wakes the app, which the end of the body does as well

    def on_message_complete(self) -> None:
        self._reading = ""
        super().on_message_complete()
        self.flow.resume_reading()  # a large body paused it; the client's leaving must be heard

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        cycle.keep_alive = cycle.keep_alive and not self.is_draining()
        _scope(cycle)[GONE] = Once()
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.transport.flush()  # type: ignore[attr-defined]
        super().on_response_complete()
        self._look()
        if self._held and self._phase in ("head", "body", "idle"):
            held, self._held = self._held, b""
            self.data_received(held)

    def _unsupported_upgrade_warning(self) -> None:
        self.cycle.keep_alive = False  # the request is answered, and nothing can follow it: the parser has stopped

    # Phases.

    def _look(self) -> None:
        """Enters the phase that the connection is in by now."""
        if self.transport.is_closing():
            self._enter("end" if self._phase == "end" else "")
        elif self._is_reading_body():
            self._enter("body")
        elif self._active is not None and not self._active.response_complete:
            self._enter("work")
        elif self._reading or self._phase == "head":
            self._enter("head")
        else:
            self._enter("idle")
            self._expect_more()

    def _is_reading_body(self) -> bool:
        """Of the request that is being answered, or was answered before its end had come."""
        return self._reading == "body" and self._active is self.cycle

    def _expect_more(self) -> None:
        """Starts uvicorn's clock of idle connections, if it does not run."""
        if self.timeout_keep_alive_task is None:
            handler = self.timeout_keep_alive_handler
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, handler)

    def _enter(self, phase: str) -> None:
        if phase == self._phase:
            return
        # A request is inside while it is worked on; a body may dawdle, and shall keep nobody out.
        self.door.num_inside += (phase == "work") - (self._phase == "work")
        self._phase, self._phase_began, self._received = phase, time.monotonic(), 0
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        if phase == "head":
            self._clock = self.loop.call_later(self.limits.header_seconds, self._head_is_late)
        elif phase == "body":
            self._clock = self.loop.call_later(self.limits.body_seconds, self._body_is_late)
        elif phase == "end":
            self._clock = self.loop.call_later(self.limits.linger_seconds, self._close)
        self._is_heard()

    def _is_heard(self) -> None:
        """Takes the connection out of the silent ones, or puts it at their young end."""
        self.silent.pop(self, None)
        if self._phase in ("head", "idle", "end"):
            self.silent[self] = None

    def _head_is_late(self) -> None:
        if self._received or self._reading:
            self._refuse(Problem(408, f"The request head did not arrive within {self.limits.header_seconds:g} s."))
        else:
            self._close()

    def _body_is_late(self) -> None:
        allowed = self.limits.body_seconds + self._received / self.limits.min_body_rate
        left = allowed - (time.monotonic() - self._phase_began)
        if left > 0:
            self._clock = self.loop.call_later(left, self._body_is_late)
            return
        self._refuse(Problem(408, f"The body did not arrive within {allowed:.0f} s."))

    # Endings.

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._wrong or Problem(400, "This is not a valid HTTP/1.1 request."))

    def _refuse(self, problem: Problem) -> None:
        """Answers from below the app: a head that never became a request has no other way."""
        active, request_id, may_answer = self._active, "", not self.transport.is_closing()
        if active is not None and not active.response_complete:
            if not self._is_reading_body():  # what is refused came after it
                active.keep_alive = False
                return
            may_answer = may_answer and not active.response_started
            request_id, _scope(active)[REFUSED] = _scope(active).get(REQUEST_ID, ""), problem.status
            _abandon(active)
        elif self._is_reading_body():
            may_answer = False  # it was answered
        if may_answer:
            request_id = request_id or self._report(problem.status)
            self.transport.write(last_answer(problem, request_id, self.server_state.default_headers))
        self._close(linger=problem.status != 408)

    def _report(self, status: int) -> str:
        """Tells of a refusal that the app knows nothing of; returns the id that was made for it."""
        request_id, now = new_request_id(), time.time()
        seconds = time.monotonic() - self._phase_began
        self.report(Answered(now, logging.INFO, request_id, "-", "-", status, seconds))
        return request_id

    def _last_answer(self) -> None:
        """uvicorn closes: the answer is the last of this connection, or there was none."""
        self._close(linger=bool(self._reading or self._held))

    def _close(self, linger: bool = False) -> None:
        """Ends the connection, at once or as soon as the client has stopped sending."""
        self._held = b""
        if linger and not self.transport.is_closing():
            self._enter("end")
            self.transport.end_writing()  # type: ignore[attr-defined]
            self.flow.resume_reading()
        else:
            self._enter("")
            self.transport.end()  # type: ignore[attr-defined]
        if self.transport.get_write_buffer_size():
            self._readers_clock.start()


def _abandon(cycle: RequestResponseCycle) -> None:
    """Tells the app that its client has left: it answers nothing."""
    cycle.disconnected = True
    cycle.message_event.set()
    _scope(cycle)[GONE].happen()


def _scope(cycle: RequestResponseCycle) -> Any:
    """More stands in it than its type says."""
    return cycle.scope
