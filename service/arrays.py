"""Arrays as clients send them -> rows of pixels."""

from __future__ import annotations

import io
import json
import math

import numpy as np

from service.errors import Problem
from service.json_arrays import BadJson, numbers_of, read_arrays

PLAIN_JSON_BYTES = 256 * 1024  # parsed in one call, about 5 ms; larger ones row by row
MAX_NPY_HEADER = 16 * 1024  # NumPy's own reader stops at 10,000 characters
MAX_NPY_LENGTH = 2**31
MAX_NUMBERS = 2**25  # 43,000 digits; as float32 they take 128 MB


def arrays_from_json(content: bytes | bytearray, fields: set[str]) -> dict[str, np.ndarray]:
    """The arrays of a JSON object that has exactly these `fields`, float32.

    Raises:
      Problem: 400 not JSON, 422 not such an object.
    """
    try:
        document = json.loads(content) if len(content) <= PLAIN_JSON_BYTES else read_arrays(content)
    except BadJson as error:
        raise Problem(422, f"The JSON must be an object of arrays of numbers; {error}.") from None
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"The body is not JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict) or set(document) != fields:
        example = '{"images": [[...]], "mask": [...]}' if "mask" in fields else '{"images": [[...], ...]}'
        raise Problem(422, f"The JSON must be an object {example} and hold nothing else.")
    return {name: _json_array(name, value) for name, value in document.items()}


def _json_array(name: str, value: object) -> np.ndarray:
    if isinstance(value, np.ndarray):  # from `read_arrays`
        return value
    try:
        if isinstance(value, list):
            return numbers_of(value)
    except ValueError:
        pass
    what = "rows of numbers, all of one length"
    raise Problem(422, f"`{name}` must be {what}.", errors=[{"pointer": f"/{name}", "detail": what}])


def array_from_npy(content: bytes | bytearray) -> np.ndarray:
    """The array of an NPY file, checked against its own header before anything is allocated; never a pickle."""
    stream = io.BytesIO(content[:MAX_NPY_HEADER])
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = readers[version](stream)
    except Exception:  # the header is a Python literal: NumPy's reader lets many kinds of error through
        raise Problem(422, "The body is not an NPY file of version 1 or 2, as numpy.save writes it.") from None
    if dtype.hasobject or dtype.kind not in "fu" or (dtype.kind == "u" and dtype.itemsize != 1):
        raise Problem(422, f"The NPY array must be uint8 or float. Received: {dtype}.")
    if len(shape) > 3 or any(type(length) is not int or not 0 <= length <= MAX_NPY_LENGTH for length in shape):
        raise Problem(422, "The NPY array must be [n, pixels] or [n, height, width].")
    expected = dtype.itemsize * math.prod(shape)
    data = memoryview(content)[stream.tell() :]
    if expected != len(data):
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
    if array.size > MAX_NUMBERS:
        most = MAX_NUMBERS // num_visible
        raise Problem(413, f"`{name}` holds {len(array):,} images, the limit is {most:,} at a time. Send fewer.")
    rows = array.reshape(len(array), num_visible)
    if rows.dtype == np.uint8:
        return (rows / np.float32(255 if rows.max() > 1 else 1)).astype(np.float32, copy=False)
    if not (np.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 1):
        raise Problem(422, f"`{name}` must hold numbers from 0 to 1; one is NaN, infinite or outside. Divide by 255?")
    return rows.astype(np.float32, copy=False)
