"""Bodies -> what a client sent: image files or arrays, within byte limits that hold while the body streams in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Scope

from service.arrays import array_from_npy, arrays_from_json
from service.errors import Problem
from service.jobs import Busy
from service.metrics import Metrics

T = TypeVar("T")
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")
ARRAY_TYPES = ("application/json", "application/x-npy")
FORM_TYPE = "multipart/form-data"
# What clients send when nobody told them a type: `curl --data-binary @7.png` says it is a form.
UNTOLD_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
NPY_MAGIC = b"\x93NUMPY"
MAX_FILES = 1024
MAX_TEXT_BYTES = 4096  # of a form's part that is no file; none is used
FORM_OVERHEAD = 16 * 1024  # boundaries and part headers around one file
MAX_WAITING = 64


@dataclass(frozen=True, eq=False)
class Body:
    """What came in: files to decode, or arrays that are used as they are."""

    files: list[bytes] = field(default_factory=list)
    mask_file: bytes | None = None
    array: np.ndarray | None = None  # [n, ...] as sent: uint8 or float
    mask_array: np.ndarray | None = None


class Intake:
    """Reads and decodes bodies for the whole process: one decode at a time, few in waiting, bounded bytes in memory.

    Small bodies and large ones have room of their own, so that a few arrays that come slowly do not shut out images.
    """

    def __init__(self, max_image_bytes: int, max_array_bytes: int, metrics: Metrics) -> None:
        self.max_image_bytes, self.max_array_bytes, self._metrics = max_image_bytes, max_array_bytes, metrics
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._waiting = 0
        self._small, self._large = Room(max_image_bytes * MAX_WAITING), Room(max_array_bytes * 2)

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def decode(self, function: Callable[..., T], *args: Any) -> T:
        """Runs `function` in the worker.

        Raises:
          Busy: if too many are waiting already.
        """
        if self._waiting >= MAX_WAITING:
            raise self._busy("Too many uploads are waiting to be decoded")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, self._timed, function, *args)
        finally:
            self._waiting -= 1

    def _busy(self, reason: str) -> Busy:
        self._metrics.rejected.labels("queue_full").inc()
        return Busy(reason, 1.0)

    def _timed(self, function: Callable[..., T], *args: Any) -> T:
        with self._metrics.decode_seconds.time():
            return function(*args)

    @contextmanager
    def holding(self) -> Iterator[Held]:
        """Around reading and decoding of one body: gives its room back in the end."""
        held = Held()
        try:
            yield held
        finally:
            held.release()

    async def read(self, request: Request, held: Held, *, many: bool, mask: bool = False) -> Body:
        """The body of `request`.

        Args:
          held: from `holding`; counts the body's bytes.
          many: several files may come.
          mask: a mask must come too, so the body is a form or JSON.

        Raises:
          Problem: 400 malformed, 413 too large, 415 of a kind not read here, 422 empty or without the fields needed.
          Busy: if there is no room for it now.
        """
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "Compressed bodies are not read. Send the body without Content-Encoding.")
        if content_type == FORM_TYPE:
            return await self._read_form(request, held, many=many, mask=mask)
        if content_type not in (*IMAGE_TYPES, *ARRAY_TYPES, *UNTOLD_TYPES) or (mask and content_type in IMAGE_TYPES):
            raise _unsupported(content_type, mask)
        limit = self.max_array_bytes if content_type in ARRAY_TYPES else self.max_image_bytes
        content = await self._read_bytes(request, held, limit)
        if not content:
            raise Problem(422, "The body is empty. Send an image file or arrays; see /docs.")
        if content_type == "application/json" or (content_type in UNTOLD_TYPES and content[:1] in b"{ \n"):
            arrays = await self.decode(arrays_from_json, content, {"images", "mask"} if mask else {"images"})
            return Body(array=arrays["images"], mask_array=arrays.get("mask"))
        if mask:
            raise _unsupported(content_type, mask)
        if content_type == "application/x-npy" or content.startswith(NPY_MAGIC):
            return Body(array=await self.decode(array_from_npy, content))
        return Body(files=[bytes(content)])

    async def _read_bytes(self, request: Request, held: Held, limit: int) -> bytearray:
        content = bytearray()  # grows in place: joining chunks would hold a large body twice
        receive = self._limited(request, held, limit)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            content += message.get("body", b"")
            if not message.get("more_body", False):
                return content

    def _limited(self, request: Request, held: Held, limit: int) -> Callable[[], Awaitable[Message]]:
        """`request.receive` that raises 413 past `limit` bytes, whether the length was declared or not."""

        def check(num_bytes: int) -> None:
            if num_bytes > limit:
                raise Problem(413, f"The body is over {limit:,} bytes, the limit of this kind of body. Send less.")

        declared = request.headers.get("content-length", "0")
        if declared.isdecimal():
            check(int(declared))
        room = self._small if limit <= 2 * (self.max_image_bytes + FORM_OVERHEAD) else self._large

        async def receive() -> Message:
            message = await request.receive()
            if not held.take(room, len(message.get("body", b""))):
                raise self._busy("Uploads of other requests fill the memory that is set aside for them")
            check(held.num_bytes)
            return message

        return receive

    async def _read_form(self, request: Request, held: Held, *, many: bool, mask: bool) -> Body:
        limit = self.max_array_bytes if many else (1 + mask) * (self.max_image_bytes + FORM_OVERHEAD)
        form_request = Request(_with_plain_form(request), self._limited(request, held, limit))
        fields = {"file", "mask"} if mask else {"file"}
        async with form_request.form(max_files=MAX_FILES, max_fields=8, max_part_size=MAX_TEXT_BYTES) as form:
            parts: dict[str, list[bytes]] = {name: [] for name in fields}
            for name, value in form.multi_items():
                if name not in fields or not isinstance(value, UploadFile):
                    wanted = " and ".join(sorted(fields))
                    raise Problem(422, f"Form field {name[:40]!r} is not read here. Send files as {wanted}.")
                if (value.size or 0) > self.max_image_bytes:
                    raise Problem(413, f"A file is over {self.max_image_bytes:,} bytes, the limit of an image.")
                parts[name].append(await value.read())
        if not parts["file"] or (mask and len(parts["mask"]) != 1):
            wanted, example = ("file and one mask", " -F mask=@mask.png") if mask else ("file", "")
            raise Problem(422, f"The form must hold {wanted}, as files. Example: curl -F file=@7.png{example}")
        if not many and len(parts["file"]) > 1:
            raise Problem(422, "Send one image; for several chains from it there is `n`. /features takes several.")
        return Body(files=parts["file"], mask_file=parts["mask"][0] if mask else None)


def _with_plain_form(request: Request) -> Scope:
    """The request's scope with nothing but the boundary in its type: the parser would also let a client choose a codec
    for texts, of which some take minutes for a megabyte.

    Raises:
      Problem: 400, without a boundary.
    """
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
    if not boundary:
        raise Problem(400, "The form has no boundary in its Content-Type. Leave that header to your client.")
    told = [header for header in request.scope["headers"] if header[0] != b"content-type"]
    quoted = boundary.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return {**request.scope, "headers": [*told, (b"content-type", b'multipart/form-data; boundary="%b"' % quoted)]}


class Room:
    """Bytes of bodies that may be in memory at a time."""

    def __init__(self, limit: int) -> None:
        self.limit, self.num_bytes = limit, 0


class Held:
    """The bytes of one body or answer, which give their room back when this is dropped, or before by `release`."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._room: Room | None = None

    def take(self, room: Room, num_bytes: int, *, always: bool = False) -> bool:
        """False if there is not so much room, unless it is to be taken `always`."""
        if not always and room.num_bytes + num_bytes > room.limit:
            return False
        self._room = room
        room.num_bytes += num_bytes
        self.num_bytes += num_bytes
        return True

    def release(self) -> None:
        if self._room is not None:
            self._room.num_bytes -= self.num_bytes
            self._room = None

    __del__ = release


def _unsupported(content_type: str, mask: bool) -> Problem:
    listed = (FORM_TYPE, "application/json") if mask else (*IMAGE_TYPES, FORM_TYPE, *ARRAY_TYPES)
    return Problem(415, f"Content-Type {content_type[:80]!r} is not read here. Send one of {', '.join(listed)}.")
