"""Logs with the id of the request: lines for people or JSON for machines."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import time
from collections import deque
from contextvars import ContextVar
from typing import NamedTuple, TextIO

REQUESTS = "rbm.http"  # the logger of requests
request_id_now: ContextVar[str] = ContextVar("request_id", default="-")


@functools.lru_cache(1)
def _time_of_day(second: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(second))


class _Console(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        now, level = _time_of_day(int(record.created)), record.levelname.lower()
        line = f"{now} {level:7} {_request_id(record)} {record.getMessage()}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": _request_id(record),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _request_id(record: logging.LogRecord) -> str:
    return getattr(record, "request_id", None) or request_id_now.get()


class Answered(NamedTuple):
    """A request that is over, and when."""

    time: float
    level: int
    request_id: str
    method: str
    path: str
    status: int
    seconds: float


def log_request(answered: Answered) -> None:
    """Writes the line of a request; where our own handler does it, together with others and a little later."""
    logger = logging.getLogger(REQUESTS)
    if not logger.isEnabledFor(answered.level):
        return
    handler = next((one for one in logging.getLogger().handlers if isinstance(one, Gathering)), None)
    if handler is None:
        logger.handle(_record(answered))
    else:
        handler.keep(answered)


def _record(answered: Answered) -> logging.LogRecord:
    when, level, request_id, method, path, status, seconds = answered
    fields = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
    # %r: a path is the client's text, and a line break in it must not forge a line of the log.
    record = logging.LogRecord(REQUESTS, level, "", 0, "%s %r %d %.1f ms", (method, path, status, 1e3 * seconds), None)
    vars(record).update(created=when, msecs=1e3 * (when % 1), fields=fields, request_id=request_id)
    return record


class Gathering(logging.StreamHandler):
    """Lines of requests wait for `flush`, or for any other line: together they cost a third, and a write for all.

    Lines that cannot be written, to a full disk or a pipe that nobody reads any more, are lost; the service goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.most_waiting = 1000
        self._waiting: deque[Answered] = deque()
        self._lines: list[str] = []

    def keep(self, answered: Answered) -> None:
        self._waiting.append(answered)
        if len(self._waiting) >= self.most_waiting:
            self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put_together()
            self._lines.append(self.format(record) + "\n")
        except Exception:
            self.handleError(record)
        self.flush()

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            self._put_together()
            lines, self._lines = self._lines, []
            with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
                if lines:
                    self.stream.write("".join(lines))
                super().flush()

    def _put_together(self) -> None:
        while self._waiting:  # one by one: a second signal in the middle finds the rest
            self._lines.append(self.format(_record(self._waiting[0])) + "\n")
            self._waiting.popleft()


def flush_logs(*, gather: bool = True) -> None:
    """Writes what waits; the server calls it ten times a second, and when nobody will any more, not to gather."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Gathering) and not gather:
            handler.most_waiting = 1
        handler.flush()


def set_up_logs(log_format: str, level: str) -> None:
    """Sends the logs of this process, uvicorn's too, to stderr in one format; requests' wait for `flush_logs`."""
    # What no format here shows is not looked for (logging HOWTO, "Optimization"): half the price of a line. The
    # first also turns `stack_info` off, which nobody here asks for.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = Gathering(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Console())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # our own line has the request's id and its time
