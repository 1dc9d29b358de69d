"""Runs the app in uvicorn: binds, limits connections, drains on SIGTERM and exits 0.

uvicorn alone exits with the signal's status, waits for ever for an endless stream, and prints a bare line when the port
is taken. Its HTTP protocol has no limits of its own: those are in `connections`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.connections import make_protocol
from service.door import Door
from service.logs import Answered, flush_logs, log_request, set_up_logs
from service.settings import Settings, unknown_variables

logger = logging.getLogger("rbm.server")
_BACKLOG = 2048
_M_MMAP_THRESHOLD = -3  # of malloc.h
_TICKS_A_SECOND = 10  # of uvicorn's clock
_YOUNG, _ALL = 1, 2  # generations of the collector
_LOOKS_A_FULL_LOOK = 10
# Seconds before the limit at which requests that still wait are told that the server stops; of a short limit a quarter.
_LAST_WORDS = 1.0


def serve(settings: Settings | None = None) -> int:
    """Serves until a signal comes. Returns the exit status: 0 after a clean drain, 1 if it could not start."""
    settings = settings or Settings()
    set_up_logs(settings.log_format, settings.log_level)
    for name in unknown_variables():
        logger.warning("There is no setting %s", name)
    try:
        settings.check_exposure()
        listener = bind(settings.host, settings.port)
    except (ValueError, OSError) as error:
        print(f"rbm serve: {error}", file=sys.stderr)
        return 1
    _allow_many_sockets()
    _give_back_large_blocks()
    app = create_app(settings)
    metrics = app.state.metrics
    num_answers, num_rejected = metrics.requests.labels("/sample", "429"), metrics.rejected.labels("queue_full")

    def refused() -> None:
        num_answers.inc()
        num_rejected.inc()

    door = Door(settings.max_requests, refused)
    host, port = listener.getsockname()[:2]
    logger.info("serving on http://%s:%d (API: /docs; stop: Ctrl-C)", f"[{host}]" if ":" in host else host, port)
    server = DrainingServer(_config(app, settings, door), app, settings, door)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def _config(app: FastAPI, settings: Settings, door: Door) -> uvicorn.Config:
    def report(answered: Answered) -> None:
        app.state.metrics.requests.labels("unmatched", str(answered.status)).inc()
        log_request(answered)

    return uvicorn.Config(
        app,
        http=make_protocol(settings, door, report=report, is_draining=lambda: app.state.lifecycle.draining),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks for the client's address or scheme
        backlog=_BACKLOG,
        timeout_keep_alive=max(1, round(settings.idle_seconds)),
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
      OSError: with a sentence that says what to do.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        hint = "Is another server running? Choose another port: --port or RBM_PORT (0 takes a free one)."
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}. {hint}") from error
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, which these do not; without it
    # a body waits up to 40 ms for the client's acknowledgement of the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _allow_many_sockets() -> None:
    """Raises the soft limit of open files to the hard one: 1,024 would be used up by idle sockets."""
    try:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        soft = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ImportError, ValueError, OSError):
        logger.debug("the limit of open files stays as it is")


def _give_back_large_blocks() -> None:
    """Tells glibc to take blocks over a megabyte from the system and to give them back, always.

    By itself it raises that line to 32 MB as soon as such a block is freed, and keeps the next ones. Measured with
    three bodies of 49 MB: 435 MB at the peak and 389 MB afterwards, instead of 320 MB and 207 MB.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


class DrainingServer(uvicorn.Server):
    """SIGTERM, SIGINT: not ready at once, accept for `drain_delay`, finish what was accepted, exit 0. Again: now."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: Settings, door: Door) -> None:
        super().__init__(config)
        self._app, self._settings, self._door = app, settings, door
        self._draining_since: float | None = None
        self._settled = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining_since is not None or not self.started:
            self._door.tell()
            flush_logs()
            os._exit(0 if not self.started and sig == signal.SIGTERM else 128 + sig)
        self._draining_since = time.monotonic()
        self._app.state.lifecycle.draining = True

    async def on_tick(self, counter: int) -> bool:
        flush_logs()
        if not self._settled and self._app.state.registry.ready():
            self._settled = True
            # What is here by now, mostly code, stays to the end. To look all of it through for garbage again and again
            # would hold everybody up for 0.1 s at a time.
            gc.freeze()
            # The collector goes by the count of new objects. Under load it would look through whatever waits dozens of
            # times a second, a tenth of all that the event loop does; once a second is enough. And what has survived
            # that, a thousand idle connections, is looked at ten times less.
            gc.disable()
        if counter % _TICKS_A_SECOND == 0:
            self._door.tell()
            if self._settled:
                gc.collect(_ALL if counter % (_TICKS_A_SECOND * _LOOKS_A_FULL_LOOK) == 0 else _YOUNG)
        if self._draining_since is not None:
            self.should_exit = time.monotonic() - self._draining_since >= self._settings.drain_delay
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the listener, reads what had come in by then, and waits for the rest within the limit."""
        self._door.tell()
        flush_logs(gather=False)  # the clock has stopped
        for server in self.servers:
            server.close()
        await asyncio.sleep(0.05)
        limit = self._settings.drain_seconds
        last_words = limit - min(_LAST_WORDS, limit / 4)
        asyncio.get_running_loop().call_later(last_words, self._app.state.lifecycle.stop.happen)
        await super().shutdown(sockets)
