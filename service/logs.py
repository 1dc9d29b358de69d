"""Logs with the id of the request: lines for people or JSON for machines."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import NamedTuple, TextIO

REQUESTS = "rbm.http"  # the logger of requests
_MOST_WAITING = 1000
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


class RequestLog:
    """The lines of requests. Our server writes them together: one by one they cost three times as much, and a write."""

    def __init__(self) -> None:
        self.gathering = False  # somebody calls `flush_logs` every now and then
        self._logger = logging.getLogger(REQUESTS)
        self._waiting: list[Answered] = []

    def add(self, answered: Answered) -> None:
        self._waiting.append(answered)
        if not self.gathering or len(self._waiting) >= _MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for answered in waiting:
            if self._logger.isEnabledFor(answered.level):
                self._logger.handle(self._record(answered))

    def _record(self, answered: Answered) -> logging.LogRecord:
        when, level, request_id, method, path, status, seconds = answered
        fields = {"method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
        extra = {"fields": fields, "request_id": request_id}
        # %r: a path is the client's text, and a line break in it must not forge a line of the log.
        values = (method, path, status, 1e3 * seconds)
        record = self._logger.makeRecord(REQUESTS, level, "", 0, "%s %r %d %.1f ms", values, None, extra=extra)
        record.created, record.msecs = when, 1e3 * (when % 1)
        return record


request_log = RequestLog()


class _Handler(logging.StreamHandler):
    """Writes what is no request's, and is no good news, at once; lines of requests wait for `flush`."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record) + "\n")
        if record.name != REQUESTS or record.levelno > logging.INFO:
            self.flush()

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("".join(lines))
            super().flush()


def flush_logs() -> None:
    """Writes what waits; the server calls it ten times a second."""
    request_log.flush()
    for handler in logging.getLogger().handlers:
        handler.flush()


def set_up_logs(log_format: str, level: str) -> None:
    """Sends the logs of this process, uvicorn's too, to stderr in one format; requests' wait for `flush_logs`."""
    # What no format here shows is not looked for (logging HOWTO, "Optimization"): half the price of a line. The
    # first also turns `stack_info` off, which nobody here asks for.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Console())
    request_log.gathering = True
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # our own line has the request's id and its time
