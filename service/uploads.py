"""Bodies -> what a client sent: image files or arrays, within byte limits that hold while the body streams in."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from service.errors import Problem
from service.jobs import Busy

T = TypeVar("T")
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")
ARRAY_TYPES = ("application/json", "application/x-npy")
FORM_TYPE = "multipart/form-data"
# What clients send when nobody told them a type: `curl --data-binary @7.png` says it is a form.
UNTOLD_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
NPY_MAGIC = b"\x93NUMPY"
MAX_FILES = 1024
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
    """Reads and decodes bodies for the whole process: one decode at a time, few in waiting, bounded bytes in memory."""

    def __init__(self, max_image_bytes: int, max_array_bytes: int) -> None:
        self.max_image_bytes, self.max_array_bytes = max_image_bytes, max_array_bytes
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._waiting = 0
        self._bytes = 0

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def decode(self, function: Callable[..., T], *args: Any) -> T:
        """Runs `function` in the worker.

        Raises:
          Busy: if too many are waiting already.
        """
        if self._waiting >= MAX_WAITING:
            raise Busy("Too many uploads are waiting to be decoded", 1.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)
        finally:
            self._waiting -= 1

    async def read(self, request: Request, *, many: bool, mask: bool = False) -> Body:
        """The body of `request`.

        Args:
          many: several files may come.
          mask: a mask must come too, so the body is a form or JSON.

        Raises:
          Problem: 400 malformed, 413 too large, 415 of a kind not read here, 422 empty or without the fields needed.
        """
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "Compressed bodies are not read. Send the body without Content-Encoding.")
        if content_type == FORM_TYPE:
            return await self._read_form(request, many=many, mask=mask)
        if content_type not in (*IMAGE_TYPES, *ARRAY_TYPES, *UNTOLD_TYPES) or (mask and content_type in IMAGE_TYPES):
            raise _unsupported(content_type, mask)
        limit = self.max_array_bytes if content_type in ARRAY_TYPES else self.max_image_bytes
        content = await self._read_bytes(request, limit)
        if not content:
            raise Problem(422, "The body is empty. Send an image file or arrays; see /docs.")
        if content_type == "application/json" or (content_type in UNTOLD_TYPES and content[:1] in b"{ \n"):
            return await self.decode(_from_json, content, mask)
        if mask:
            raise _unsupported(content_type, mask)
        if content_type == "application/x-npy" or content.startswith(NPY_MAGIC):
            return Body(array=await self.decode(_from_npy, content))
        return Body(files=[content])

    async def _read_bytes(self, request: Request, limit: int) -> bytes:
        content = bytearray()
        receive = self._limited(request, limit)
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                content += message.get("body", b"")
                if not message.get("more_body", False):
                    return bytes(content)
        finally:
            self._bytes -= len(content)

    def _limited(self, request: Request, limit: int) -> Callable[[], Awaitable[Message]]:
        """`request.receive` that raises 413 past `limit` bytes, whether the length was declared or not."""
        too_large = Problem(413, f"The body is over {limit:,} bytes, the limit of this kind of body. Send less.")
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        received = 0

        async def receive() -> Message:
            nonlocal received
            message = await request.receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            return message

        return receive

    async def _read_form(self, request: Request, *, many: bool, mask: bool) -> Body:
        limit = self.max_array_bytes if many else (1 + mask) * (self.max_image_bytes + FORM_OVERHEAD)
        form_request = Request(request.scope, self._limited(request, limit))
        fields = {"file", "mask"} if mask else {"file"}
        async with form_request.form(max_files=MAX_FILES if many else 1 + mask, max_fields=8) as form:
            parts: dict[str, list[bytes]] = {name: [] for name in fields}
            for name, value in form.multi_items():
                if name not in fields or not isinstance(value, UploadFile):
                    wanted = " and ".join(sorted(fields))
                    raise Problem(422, f"Form field {name[:40]!r} is not read here. Send files as {wanted}.")
                if (value.size or 0) > self.max_image_bytes:
                    raise Problem(413, f"A file is over {self.max_image_bytes:,} bytes, the limit of an image.")
                parts[name].append(await value.read())
        if not parts["file"] or (mask and len(parts["mask"]) != 1):
            wanted = " and one ".join(sorted(fields))
            raise Problem(422, f"The form must hold {wanted}, as files. Example: curl -F file=@7.png")
        return Body(files=parts["file"], mask_file=parts["mask"][0] if mask else None)


def _unsupported(content_type: str, mask: bool) -> Problem:
    listed = (FORM_TYPE, "application/json") if mask else (*IMAGE_TYPES, FORM_TYPE, *ARRAY_TYPES)
    return Problem(415, f"Content-Type {content_type[:80]!r} is not read here. Send one of {', '.join(listed)}.")


def _from_json(content: bytes, mask: bool) -> Body:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"The body is not JSON: {str(error)[:200]}") from None
    fields = {"images", "mask"} if mask else {"images"}
    if not isinstance(document, dict) or set(document) != fields:
        example = '{"images": [[...]], "mask": [...]}' if mask else '{"images": [[...], ...]}'
        raise Problem(422, f"The JSON must be an object {example} and hold nothing else.")
    arrays = {name: _json_array(name, value) for name, value in document.items()}
    return Body(array=arrays["images"], mask_array=arrays.get("mask"))


def _json_array(name: str, value: object) -> np.ndarray:
    problem = Problem(422, f"`{name}` must be rows of numbers, all of one length.", errors=[
        {"pointer": f"/{name}", "detail": "rows of numbers, all of one length"}
    ])  # fmt: skip
    try:
        array = np.array(value)
    except (ValueError, OverflowError, RecursionError):
        raise problem from None
    if not isinstance(value, list) or array.dtype.kind not in "iuf":
        raise problem
    return array.astype(np.float64)


def _from_npy(content: bytes) -> np.ndarray:
    """The array of an NPY file, checked against its own header before anything is allocated; never a pickle."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = readers[version](stream)
    except Exception:  # the header is a Python literal: NumPy's reader lets many kinds of error through
        raise Problem(422, "The body is not an NPY file of version 1 or 2, as numpy.save writes it.") from None
    if dtype.hasobject or dtype.kind not in "fu" or (dtype.kind == "u" and dtype.itemsize != 1):
        raise Problem(422, f"The NPY array must be uint8 or float. Received: {dtype}.")
    expected = dtype.itemsize
    for length in shape:
        expected *= length
    data = memoryview(content)[stream.tell() :]
    if expected != len(data) or min(shape, default=0) < 0:
        raise Problem(422, f"The NPY header promises {expected:,} bytes; {len(data):,} came. The file is damaged.")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def to_rows(array: np.ndarray, image_shape: tuple[int, int], name: str = "images") -> np.ndarray:
    """Arrays as sent -> float32 [n, visible] in 0..1; [n, visible] and [n, height, width] are the same.

    uint8 is 0/1, or 0..255 if anything in it is above 1.

    Raises:
      Problem: 422, if the shape does not fit the model or a number is not in 0..1.
    """
    height, width = image_shape
    num_visible = height * width
    if array.shape[1:] not in ((num_visible,), (height, width)) or len(array) == 0:
        raise Problem(
            422,
            f"`{name}` must be [n, {num_visible}] or [n, {height}, {width}], n above 0. Received {list(array.shape)}.",
        )
    rows = array.reshape(len(array), num_visible)
    if rows.dtype == np.uint8:
        return (rows / np.float32(255 if rows.max() > 1 else 1)).astype(np.float32)
    if not (np.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 1):
        raise Problem(422, f"`{name}` must hold numbers from 0 to 1; one is NaN, infinite or outside. Divide by 255?")
    return rows.astype(np.float32)
