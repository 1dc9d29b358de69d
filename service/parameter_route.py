"""Routes whose parameters are one Pydantic model: Pydantic reads the query string straight away, and once.

FastAPI asks for each field of such a model by itself, on every request: half a millisecond, which is a third of what
the chain of a sample takes. The signatures are FastAPI's all the same, so the OpenAPI document is made from them.
What a query string means never changes, and most requests repeat one: those that were valid are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import validation_problem
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
        model: Any = parameters.field_info.annotation
        validate, known = model.__pydantic_validator__.validate_python, list(model.model_fields)

        @lru_cache(_REMEMBERED)
        def read(query: bytes) -> Any:
            return _checked(validate, dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)), known, "query")

        async def handle(request: Request) -> Response:
            params = read(request.scope["query_string"])
            given = request.headers.get(_TIMEOUT)
            timeout = None if given is None else _checked(_SECONDS.validate_python, given, known, "header", _TIMEOUT)
            return await self.endpoint(request, params, timeout)

        return handle


class ShortWay:
    """Looks the routes of fixed paths up; the router asks each by its pattern, behind layers that have no work here.

    One of those layers calls the exception handlers of the app. What a route raises here, `middleware.Problems` tells.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        fixed = [route for route in routes if isinstance(route, ParameterRoute) and not route.param_convertors]
        self.app = app
        self._routes = {(method, route.path): route for route in fixed for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = None
        if scope["type"] == "http" and not scope.get("root_path"):
            route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            await self.app(scope, receive, send)
        else:
            scope.update(route=route, endpoint=route.endpoint, path_params={})
            await route.app(scope, receive, send)


def _checked(validate: Callable[[Any], T], value: Any, known: Sequence[str], *where: str) -> T:
    """Raises Problem, 422."""
    try:
        return validate(value)
    except ValidationError as error:
        found = [{**item, "loc": (*where, *item["loc"])} for item in error.errors(include_url=False)]
    raise validation_problem(found, known)
