"""What the routes share: which model, by when, and headers."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.jobs import Busy
from service.negotiation import MEDIA_TYPES, choose_format
from service.schemas import ModelParams
from service.streaming import while_wanted
from service.uploads import Held

if TYPE_CHECKING:
    from service.served_model import ServedModel

T = TypeVar("T")
PIECE_BYTES = 256 * 1024  # of a large answer; smaller ones are one write to the socket
LARGE_ANSWER = 2**20  # bytes; smaller ones always have room


def deadline_of(request: Request, params: ModelParams, header: float | None) -> float:
    """When the answer is no longer wanted, in `time.monotonic()` seconds: the shorter of parameter and header."""
    given = [seconds for seconds in (params.timeout, header) if seconds is not None]
    return time.monotonic() + min(given, default=request.app.state.settings.default_timeout)


def chosen_format(request: Request, requested: str | None, offered: tuple[str, ...]) -> str:
    accept = b",".join(value for name, value in request.scope["headers"] if name == b"accept")
    return choose_format(requested, accept.decode("latin-1"), offered)


async def chosen_model(request: Request, params: ModelParams) -> ServedModel:
    """The model that `params` name. Raises UnknownModel, UnknownVersion, NotReady."""
    registry, version = request.app.state.registry, params.version
    if version is None:
        return registry.get(params.model)
    newest = registry.newest(params.model)
    if newest is not None and newest.version == version:
        return newest
    return await request.app.state.old_versions.run(registry.get, params.model, version)  # may be read from the disk


async def encode(request: Request, function: Callable[..., T], *args: Any, deadline: float | None = None) -> T:
    """Runs the making of an answer aside: the event loop never computes.

    Raises:
      ClientDisconnect, DeadlinePassed: nobody wants it any more. Busy: too many answers are being made.
    """
    return await while_wanted(request, request.app.state.encoders.run(function, *args), deadline)


def model_headers(model: ServedModel, **further: object) -> dict[str, str]:
    """RBM-Model and RBM-Version, with what else is given: `seed=3` becomes RBM-Seed: 3."""
    return {
        "RBM-Model": model.name,
        "RBM-Version": str(model.version),
        **{f"RBM-{name.capitalize()}": str(value) for name, value in further.items()},
    }


def server_timing(**seconds: float) -> dict[str, str]:
    return {"Server-Timing": ", ".join(f"{name};dur={1e3 * value:.2f}" for name, value in seconds.items())}


def answer(
    content: bytes | Sequence[bytes | memoryview], format_name: str, headers: dict[str, str], *, holds: object = None
) -> Response:
    """The answer; `content` in pieces is sent piece by piece, so that a large one is nowhere held twice.

    Args:
      holds: kept until the answer is sent; with it goes the memory that is counted for what it stands for.
    """
    media_type = MEDIA_TYPES[format_name]
    if media_type.startswith("image/"):
        headers = headers | {"Content-Security-Policy": _PICTURE_POLICY}
    headers = {"Vary": "Accept", **headers}
    pieces = [content] if isinstance(content, bytes) else content
    length = sum(map(len, pieces))
    response: Any
    if length <= PIECE_BYTES:
        response = Response(b"".join(pieces), 200, headers, media_type)
    else:
        response = StreamingResponse(_pieces(pieces), 200, headers | {"Content-Length": str(length)}, media_type)
    response.holds = holds
    return response


async def _pieces(content: Sequence[bytes | memoryview]) -> AsyncIterator[memoryview]:
    """A little at a time, when the reader has taken what was sent: what waits for a slow one is waited for."""
    for piece in content:
        view = memoryview(piece)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]


def hold_room(request: Request, num_bytes: int) -> Held:
    """Room for an answer of so many bytes, which is free again when the result is: give it to `answer`.

    Raises:
      Busy: if other answers, which wait for their readers, fill the memory that is set aside for them.
    """
    held = Held()
    if not held.take(request.app.state.answers, num_bytes, always=num_bytes <= LARGE_ANSWER):
        request.app.state.metrics.rejected.labels("queue_full").inc()
        raise Busy("Answers that others have not read yet fill the memory that is set aside for them", 1.0)
    return held


class Cache:
    """ETag and Cache-Control of a GET whose answer is a pure function of the model's version and its parameters."""

    def __init__(self, request: Request, model: ServedModel, params: BaseModel, format_name: str) -> None:
        """The tag covers all that decides the bytes, so it is known before anything is computed."""
        facts = [request.scope["path"], model.name, model.version, model.manifest["files"], format_name]
        facts += [params.model_dump(exclude={"model", "version", "timeout", "format"}), request.app.version]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        self.etag = f'"{digest[:32]}"'
        who = "private" if request.app.state.needs_key else "public"
        # An answer for "the newest version" goes stale at the next publish; one of a named version never does.
        age = 60 if getattr(params, "version", None) is None else 3600
        self.headers = {"ETag": self.etag, "Cache-Control": f"{who}, max-age={age}", "Vary": "Accept"}
        self._wanted = request.headers.get("if-none-match", "")

    def not_modified(self) -> Response | None:
        """304 if the client has these bytes already."""
        tags = [tag.strip().removeprefix("W/") for tag in self._wanted.split(",")]
        return Response(status_code=304, headers=self.headers) if self.etag in tags or "*" in tags else None


# A browser that opens a picture in a tab of its own lays it out with styles of its own.
_PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
NOT_STORED = {"Cache-Control": "no-store"}
