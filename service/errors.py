"""Every error as RFC 9457 `application/problem+json`: one table from exceptions to answers.

The body has `type, title, status, detail, instance, request_id`, `error` (one line, which is what clients of the Open
Inference Protocol read) and `errors[]` for single fields. `type` is a path of this service that explains the problem.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.images import ImageError
from service.jobs import Busy, Cancelled, DeadlinePassed, EngineFailed, NotReady, TooMuch, UnknownModel, UnknownVersion

CONTENT_TYPE = "application/problem+json"
CLIENT_GONE = 499  # nobody reads it; it is what logs and metrics say

# status -> (title, what a client can do about it); GET /problems/{status} answers with this.
PROBLEMS: dict[int, tuple[str, str]] = {
    400: ("Malformed request", "The request could not be read: look at the syntax of its body and headers."),
    401: ("API key needed", "Send a valid key in the header X-API-Key, or as Authorization: Bearer KEY."),
    404: ("Not found", "Nothing is served under this path, model name or version. GET /models lists the models."),
    405: ("Method not allowed", "The path exists, but not for this method; the header Allow lists those it has."),
    406: ("Not acceptable", "No format that this route makes fits the Accept header. Use one that `detail` names."),
    408: ("Request timeout", "The request did not arrive in time. Send it faster, or in smaller pieces."),
    413: ("Content too large", "The body is over the limit that `detail` names. Send less."),
    414: ("URI too long", "The address is too long. Send fewer or shorter parameters."),
    415: ("Unsupported media type", "The body is not of a kind that this route reads; `detail` names those it reads."),
    422: ("Unprocessable content", "The request was read but cannot be used; `errors` says which parts and why."),
    429: ("Too many requests", "The service is full. Try again after the seconds in the header Retry-After."),
    431: ("Request header fields too large", "The headers are too long. Send fewer or shorter ones."),
    500: ("Internal server error", "A defect of the service. Report the request_id to whoever runs it."),
    503: ("Service unavailable", "A model is being loaded, or the server stops. Try again after Retry-After seconds."),
    504: ("Time limit passed", "The work was not finished in time. Ask for fewer steps or chains, or for more time."),
}


class Problem(Exception):
    """An expected failure, with its answer.

    Args:
      status: the HTTP status.
      detail: a sentence that tells a person what to do.
      errors: for single fields, each {"parameter" or "pointer": where, "detail": what is wrong}.
      headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), dict(headers or {})


def new_request_id() -> str:
    """Not a secret, so it costs no call of the system."""
    return f"{random.getrandbits(128):032x}"


def bad_parameter(name: str, detail: str, status: int = 422) -> Problem:
    """The problem of one query parameter."""
    return Problem(status, f"`{name}`: {detail}", errors=[{"parameter": name, "detail": detail}])


def busy(status: int, reason: str, retry_after: float) -> Problem:
    """429 or 503, with Retry-After in whole seconds, at least one."""
    seconds = max(1, math.ceil(min(retry_after, 3600.0)))
    return Problem(status, f"{reason.rstrip('.')}. Try again in {seconds} s.", headers={"Retry-After": str(seconds)})


def problem_body(problem: Problem, request_id: str, instance: str) -> dict[str, Any]:
    """The members of RFC 9457, `request_id`, `error` and, where there are any, `errors`."""
    title = PROBLEMS.get(problem.status, ("Error", ""))[0]
    body: dict[str, Any] = {
        "type": f"/problems/{problem.status}",
        "title": title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": instance,
        "request_id": request_id,
        "error": " ".join(problem.detail.split()),
    }
    if problem.errors:
        body["errors"] = problem.errors
    return body


def problem_response(problem: Problem, request_id: str, instance: str) -> Response:
    content = json.dumps(problem_body(problem, request_id, instance)).encode()
    headers = {"Cache-Control": "no-store", **problem.headers}
    return Response(content, problem.status, headers, media_type=CONTENT_TYPE)


def to_problem(error: Exception, logger: logging.Logger, unexpected: str) -> Problem:
    """The one table: what an exception means to a client. A defect of ours is a 500, and is logged as `unexpected`."""
    for kind, translate in _TABLE.items():
        if isinstance(error, kind):
            return translate(error)
    logger.error(unexpected, exc_info=error)
    return Problem(500, "An unexpected error; it was logged under this request_id.")


def _from_http(error: Any) -> Problem:
    headers: dict[str, str] = dict(error.headers or {})
    detail = str(error.detail)
    if error.status_code == 404:
        detail = "There is nothing under this path. GET /docs lists the routes."
    if error.status_code == 405:
        allowed = {name.strip() for name in headers.get("Allow", "").split(",") if name.strip()}
        allowed |= {"HEAD"} if "GET" in allowed else set()
        headers = {"Allow": ", ".join(sorted(allowed))}
        detail = f"This path does not answer this method. It answers {headers['Allow']}."
    return Problem(error.status_code, detail, headers=headers)


def _from_too_much(error: Any) -> Problem:
    return Problem(422, error.reason, errors=[{"parameter": error.parameter, "detail": f"at most {error.largest}"}])


_TABLE: dict[type[Exception], Callable[[Any], Problem]] = {
    Problem: lambda error: error,
    Busy: lambda error: busy(429, error.reason, error.retry_after),
    NotReady: lambda error: busy(503, error.reason, error.retry_after),
    Cancelled: lambda error: busy(503, "The server stopped before this was finished", 1.0),
    TooMuch: _from_too_much,
    DeadlinePassed: lambda error: Problem(
        504, "The time limit of this request passed before it was finished. Ask for less, or for a longer `timeout`."
    ),
    EngineFailed: lambda error: Problem(500, "The engine failed on this request; why is in the log."),
    UnknownModel: lambda error: Problem(404, str(error)),
    UnknownVersion: lambda error: Problem(404, str(error)),
    ClientDisconnect: lambda error: Problem(CLIENT_GONE, "The client left."),
    ImageError: lambda error: Problem(error.status, error.detail),
    HTTPException: _from_http,
}


def validation_problem(found: Sequence[Mapping[str, Any]], known: Sequence[str]) -> Problem:
    """A parameter that is unknown or out of range: says which, and the nearest name of those `known`.

    Args:
      found: what Pydantic says is wrong, each with its place (where, name).
    """
    details: dict[str, str] = {}
    for item in found:
        name = str(item["loc"][1] if len(item["loc"]) > 1 else item["loc"][0])  # (where, name, branch of a union)
        detail = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(name, known, 1, 0.5)
            knows = f"this route knows {', '.join(sorted(known))}." if known else "this route takes none."
            hint = f"did you mean `{nearest[0]}`?" if nearest else knows
            detail = f"there is no such parameter; {hint}"
        details.setdefault(name, detail)
    fields = [{"parameter": name, "detail": detail} for name, detail in details.items()]
    return Problem(422, "; ".join(f"`{field['parameter']}`: {field['detail']}" for field in fields), errors=fields)


def known_parameters(request: Request) -> list[str]:
    """Names of the query parameters of the route that `request` matched."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None:
        return []
    names: list[str] = []
    for parameter in dependant.query_params:
        fields = getattr(parameter.field_info.annotation, "model_fields", None)
        names += [parameter.alias] if fields is None else list(fields)
    return names


def add_error_table(app: FastAPI) -> None:
    """Replaces the framework's own answers: its exceptions become `Problem`s, which `RequestContext` answers."""

    async def from_framework(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            raise validation_problem(error.errors(), known_parameters(request)) from None
        raise _from_http(error) from None

    app.add_exception_handler(RequestValidationError, from_framework)
    app.add_exception_handler(HTTPException, from_framework)
