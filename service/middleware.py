"""What every request passes through, as pure ASGI.

No `BaseHTTPMiddleware`: behind it a handler cannot see that its client has left, and context variables break.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import CLIENT_GONE, Problem, new_request_id, problem_response, to_problem
from service.logs import REQUESTS, Answered, log_request, request_id_now
from service.metrics import Metrics

logger = logging.getLogger(REQUESTS)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_TARGET_BYTES, MAX_PARAMETERS = 8192, 64
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_SECURITY_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
_ANSWER = "rbm.answer"  # where in the scope
# What the connection and the context of a request tell each other in its scope: its id, and the status of a refusal
# that came from below.
REQUEST_ID, REFUSED = "rbm.request_id", "rbm.refused"
PROBES = ("/healthz", "/readyz", "/metrics")
# Documentation and probes: nothing here computes, and a browser cannot add a header to open a page.
OPEN_PATHS = ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
OPEN_FOLDERS = ("/web/", "/problems/")


class RequestContext:
    """Outermost: request id, security headers, log line, metrics, HEAD."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = scope[REQUEST_ID] = _request_id(scope)
        answer = _Answer(send, request_id, without_body=scope["method"] == "HEAD")
        inner = {**scope, "state": {**scope.get("state", {}), "request_id": request_id}, _ANSWER: answer}
        if scope["method"] == "HEAD":
            inner["method"] = "GET"
        token = request_id_now.set(request_id)
        try:
            await self.app(inner, _counted(receive, self.metrics), answer.send)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(inner.get("route"), "path", None) or "unmatched"
            status = answer.status or scope.get(REFUSED) or CLIENT_GONE
            self.metrics.answered(route, status, seconds, answer.num_bytes)
            self._log(scope, request_id, status, seconds)
            request_id_now.reset(token)

    def _log(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        method, path = scope["method"], scope["path"]
        level = logging.DEBUG if path in PROBES and status < 500 else logging.INFO
        log_request(Answered(time.time(), level, request_id, method, path, status, seconds))


class _Answer:
    """The sending side of one request: adds headers to whatever is answered, errors included."""

    def __init__(self, send: Send, request_id: str, without_body: bool) -> None:
        self._send, self.request_id, self.without_body = send, request_id, without_body
        self.status = self.num_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [header for header in message.get("headers", ()) if header[0] != b"x-request-id"]
            names = {name for name, _ in headers}
            headers.append((b"x-request-id", self.request_id.encode()))
            headers += [header for header in _SECURITY_HEADERS if header[0] not in names]
            message["headers"] = headers
        elif self.without_body and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        self.num_bytes += len(message.get("body", b""))
        await self._send(message)


class Problems:
    """Every error becomes a problem document, 500 too. Inside CORS: a page may read why it was refused."""

    def __init__(self, app: ASGIApp, max_header_bytes: int) -> None:
        self.app, self.max_header_bytes = app, max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            _check_head(scope, self.max_header_bytes)
            _check_query(scope["query_string"])
            await self.app(scope, receive, send)
        except Exception as error:
            await self._refuse(error, scope, receive, send)

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers an error. A function of its own: a frame that the error went through must not hold it, or both, and
        with them the whole upload, wait for the next look for garbage."""
        problem, answer = to_problem(error, logger, "unexpected error"), scope[_ANSWER]
        if not answer.status and problem.status != CLIENT_GONE:
            await problem_response(problem, answer.request_id, scope["path"])(scope, receive, send)


class Cors(CORSMiddleware):
    """Starlette's, with its refusals as problem documents."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        problem = Problem(answer.status_code, f"{bytes(answer.body).decode()}. This server allows other origins, "
                                              "methods or headers.", headers={"Vary": "Origin"})  # fmt: skip
        return problem_response(problem, request_id_now.get(), "")


class ApiKeys:
    """Asks for a key everywhere but on the open paths. Compares digests in constant time, every key each time."""

    def __init__(self, app: ASGIApp, digests: Sequence[bytes]) -> None:
        self.app, self.digests = app, list(digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope["path"]) and not self._knows(Headers(scope=scope)):
            raise Problem(
                401,
                "This service needs an API key. Send it in the header X-API-Key, or as Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        await self.app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = (headers.get("x-api-key") or (token if scheme.lower() == "bearer" else "")).strip(" \t")
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        return sum(hmac.compare_digest(digest, known) for known in self.digests) > 0


def _counted(receive: Receive, metrics: Metrics) -> Receive:
    async def counted() -> Message:
        message = await receive()
        if body := message.get("body"):
            metrics.received_bytes.inc(len(body))
        return message

    return counted


def _request_id(scope: Scope) -> str:
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    return given if _REQUEST_ID.fullmatch(given) else new_request_id()


def _check_head(scope: Scope, max_header_bytes: int) -> None:
    """The connection limits a head that is incomplete; one that came in a single read gets here."""
    target = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if target > MAX_TARGET_BYTES:
        raise Problem(414, f"The address has {target:,} bytes; the limit is {MAX_TARGET_BYTES:,}.")
    size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size > max_header_bytes:
        raise Problem(431, f"The headers have {size:,} bytes; the limit is {max_header_bytes:,}.")


def _check_query(query: bytes) -> None:
    """Of two values for one parameter the framework would silently take one; and what is said of each takes time."""
    if b"&" not in query:
        return
    if (number := 1 + query.count(b"&")) > MAX_PARAMETERS:
        raise Problem(422, f"The address has {number:,} parameters; no route knows more than {MAX_PARAMETERS}.")
    names = Counter(name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        errors = [{"parameter": name, "detail": "given twice; send it once."} for name in twice]
        raise Problem(422, "; ".join(f"`{name}`: given twice; send it once." for name in twice), errors=errors)
