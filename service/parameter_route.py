"""Routes whose parameters are one Pydantic model: Pydantic reads the query string straight away, and once.

FastAPI asks for each field of such a model by itself, on every request: half a millisecond, which is a third of what
the chain of a sample takes. The signatures are FastAPI's all the same, so the OpenAPI document is made from them.
What a query string means never changes, and most requests repeat one: those that were valid are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.schemas import Seconds

T = TypeVar("T")
_TIMEOUT = "x-request-timeout"
_REMEMBERED = 256  # query strings of a route; each is at most 8 KB
_SECONDS: TypeAdapter[float] = TypeAdapter(Seconds)


class ParameterRoute(APIRoute):
    """For endpoints `(request, params: Annotated[SomeModel, Query()], x_request_timeout: TimeoutHeader = None)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        handle = self.get_route_handler()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            response = await handle(request)
            await response(scope, receive, send)

        self.app = app  # FastAPI's own keeps two stacks of clean-ups for dependencies; there are none

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        (parameters,) = self.dependant.query_params
        validate = parameters.field_info.annotation.__pydantic_validator__.validate_python  # type: ignore[union-attr]

        @lru_cache(_REMEMBERED)
        def read(query: bytes) -> Any:
            return _checked(validate, dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)), "query")

        async def handle(request: Request) -> Response:
            params = read(request.scope["query_string"])
            given = request.headers.get(_TIMEOUT)
            timeout = None if given is None else _checked(_SECONDS.validate_python, given, "header", _TIMEOUT)
            return await self.endpoint(request, params, timeout)

        return handle


def _checked(validate: Callable[[Any], T], value: Any, *where: str) -> T:
    """Raises RequestValidationError that names the place as FastAPI's own does."""
    try:
        return validate(value)
    except ValidationError as error:
        raise RequestValidationError(
            [{**item, "loc": (*where, *item["loc"])} for item in error.errors(include_url=False)]
        ) from None
