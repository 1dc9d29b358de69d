"""Large JSON arrays, row by row.

`json.loads` of 64 MB is one call that holds the interpreter's lock for seconds, health checks included, and its lists
of Python numbers take ten times the memory of the text. Here other threads run between two rows, and a row is packed
as float32, about half the size of its text, as soon as it is read.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

MAX_ROW_BYTES = 1024 * 1024
MAX_ROWS = 500_000  # empty ones would cost forty times their text
_SPACE = re.compile(rb"[ \t\r\n]*")
_NAME = re.compile(rb'"([a-z_]{1,20})"')


class BadJson(ValueError):
    """The text is not an object of arrays of numbers; says where."""


def read_arrays(content: bytes | bytearray) -> dict[str, np.ndarray]:
    """{"name": [[numbers], ...], ...} -> float32 arrays [columns], [n, columns] or [n, rows, columns].

    What is too large for float32 becomes infinite.

    Raises:
      BadJson: if it is anything else, if rows differ in length, or if there are too many or too long ones.
    """
    return _Reader(content).read()


def numbers_of(value: list[Any]) -> np.ndarray:
    """Lists of numbers, or of such lists, as a float32 array. What is too large for float32 becomes infinite.

    Raises:
      ValueError: if it holds anything else, or lists of different lengths.
    """
    _check_numbers(value, levels=3)
    try:
        numbers = np.array(value)
    except OverflowError as error:
        raise ValueError(str(error)) from None
    if numbers.dtype.kind not in "iuf":
        raise ValueError("not numbers")
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def _check_numbers(value: list[Any], levels: int) -> None:
    """Before NumPy sees it: of a list of texts it makes an array whose every entry is as long as the longest."""
    kinds = set(map(type, value))
    if kinds == {list} and levels > 1:
        for inner in value:
            _check_numbers(inner, levels - 1)
    elif not kinds <= {int, float}:
        raise ValueError("not numbers")


class _Reader:
    def __init__(self, content: bytes | bytearray) -> None:
        self._content, self._place, self._num_rows = content, 0, 0
        self._packed = bytearray()  # the rows of one array, one after the other

    def read(self) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        self._expect(b"{")
        while not arrays or self._goes_on(b"}"):
            name = _NAME.match(self._content, self._skip_space())
            if name is None:
                raise self._bad("a name in quotes is missing")
            self._place = name.end()
            self._expect(b":")
            self._expect(b"[")
            self._packed = bytearray()
            shape = self._read_array(levels=3)
            arrays[name[1].decode()] = np.frombuffer(self._packed, np.float32).reshape(shape)
        if self._skip_space() != len(self._content):
            raise self._bad("something follows the object")
        return arrays

    def _read_array(self, levels: int) -> tuple[int, ...]:
        """Packs what is inside the bracket that was just opened, closing it; returns its shape."""
        if not self._content.startswith(b"[", self._skip_space()):
            return (self._read_row(),)
        if levels == 1:
            raise self._bad("brackets are too deep")
        inner: tuple[int, ...] | None = None
        count = 0
        while not count or self._goes_on(b"]"):
            self._expect(b"[")
            shape = self._read_array(levels - 1)
            if inner not in (None, shape):
                raise self._bad("rows differ in length")
            inner, count = shape, count + 1
        return (count, *(inner or ()))

    def _read_row(self) -> int:
        begin, self._num_rows = self._place, self._num_rows + 1
        end = self._content.find(b"]", begin, begin + MAX_ROW_BYTES)
        if end < 0 or self._num_rows > MAX_ROWS:
            raise self._bad("a row does not end, or there are too many")
        try:
            numbers = numbers_of(json.loads(b"[" + self._content[begin:end] + b"]"))
        except (ValueError, RecursionError):
            raise self._bad("not a row of numbers") from None
        if numbers.ndim != 1:
            raise self._bad("not a row of numbers")
        self._place = end + 1
        self._packed += numbers.tobytes()
        return len(numbers)

    def _goes_on(self, closing: bytes) -> bool:
        """Reads a comma (True) or `closing` (False)."""
        if self._content.startswith(b",", self._skip_space()):
            self._place += 1
            return True
        self._expect(closing)
        return False

    def _expect(self, mark: bytes) -> None:
        if not self._content.startswith(mark, self._skip_space()):
            raise self._bad(f"{mark.decode()} is missing")
        self._place += 1

    def _skip_space(self) -> int:
        found = _SPACE.match(self._content, self._place)
        self._place = found.end() if found else self._place
        return self._place

    def _bad(self, why: str) -> BadJson:
        return BadJson(f"at byte {self._place:,}: {why}")
