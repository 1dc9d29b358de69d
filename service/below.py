"""Answers from below the app, as bytes: to what never became a request, and to what never will be a whole one."""

from __future__ import annotations

import json
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.errors import CONTENT_TYPE, Problem, problem_body
from service.middleware import SECURITY_HEADERS

Headers = Iterable[tuple[bytes, bytes]]


def header_lines(headers: Headers) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def last_answer(problem: Problem, request_id: str, date: Headers) -> bytes:
    """A whole problem document, after which the connection ends.

    Args:
      date: headers that every answer of the server has.
    """
    content = json.dumps(problem_body(problem, request_id, "")).encode()
    headers = {**SECURITY_HEADERS, "Content-Type": CONTENT_TYPE, "X-Request-ID": request_id}
    headers |= {"Content-Length": str(len(content)), "Connection": "close"}
    own = header_lines((name.lower().encode(), value.encode()) for name, value in headers.items())
    return STATUS_LINE[problem.status] + header_lines(date) + own + b"\r\n" + content
