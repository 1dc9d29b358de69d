"""Logs with the id of the request: lines for people or JSON for machines."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import TextIO

REQUESTS = "rbm.http"  # the logger of requests
_MOST_LINES = 1000  # that wait
request_id_now: ContextVar[str] = ContextVar("request_id", default="-")


@functools.lru_cache(1)
def _time_of_day(second: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(second))


class _Console(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        now, level = _time_of_day(int(record.created)), record.levelname.lower()
        line = f"{now} {level:7} {request_id_now.get()} {record.getMessage()}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id_now.get(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class _GatheringHandler(logging.StreamHandler):
    """Writes the lines of requests that went well together: a write a request costs as much as its answer's.

    They wait for `flush`, which the server's clock calls, or for any other line.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record) + "\n")
        if record.name != REQUESTS or record.levelno > logging.INFO or len(self._lines) >= _MOST_LINES:
            self.flush()

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("".join(lines))
            super().flush()


def flush_logs() -> None:
    """Writes what waits."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def set_up_logs(log_format: str, level: str) -> None:
    """Sends the logs of this process to stderr, in one format; uvicorn's own go the same way."""
    # What no format here shows is not looked for (logging HOWTO, "Optimization"): half the price of a line. The
    # first also turns `stack_info` off, which nobody here asks for.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _GatheringHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Console())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # our own line has the request's id and its time
