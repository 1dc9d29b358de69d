"""Compiled: the lines of an enlarged page as a zlib stream (RFC 1950, RFC 1951), written without a search.

A general packer looks for repetitions, through 50 KB of lines and with tables of 256 KB for one digit. Here the page
itself says where they are: a line is runs of equal bytes, and all that repeats it, of the same row or of equal rows
below, is a copy of what came before. The codes are deflate's fixed ones (RFC 1951, section 3.2.6): for a digit eight
times enlarged the stream is half as long again as zlib's and takes a quarter of the time, and for larger pictures more
of both is saved and lost.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from model_core.kernels_draws import jit

FARTHEST = 32_768  # bytes that a copy may lie back: the longest line that can be repeated
_ZLIB_HEAD = 0x78, 0x01  # deflate, a window of 32 KB, packed in a hurry
_LAST_BLOCK_FIXED = 0b011  # three bits: the last block, of fixed codes
_SHORTEST, _LONGEST = 3, 258  # bytes of a copy
_ADLER = 65_521
# A code is a number: its bits, the first one lowest, and from bit 56 on how many they are.
_COUNT_AT = 56
_BITS = np.uint64(2**_COUNT_AT - 1)
_END_OF_BLOCK = np.uint64(7 << _COUNT_AT)
_BYTE, _RUN, _REPEAT = range(3)  # rows of the table of codes


def pack_enlarged(page: np.ndarray, scale: int) -> bytes:
    """The lines of `page`, uint8 [height, width], enlarged by `scale`, each behind a 0: the PNG filter "none".

    Raises:
      ValueError: if there are no pixels, or if a line is longer than `FARTHEST`.
    """
    height, width = page.shape
    line = 1 + width * scale
    if not page.size or line > FARTHEST:
        raise ValueError(f"A line must have a pixel, and at most {FARTHEST} bytes. Received: {page.shape}, x {scale}")
    copies = line // _LONGEST + 2
    # At most: a byte of 9 bits and a copy of 18 for each pixel, more copies for the longest runs, and of 31 for a line.
    room = 64 + height * (4 * (width + copies) + 4 * scale * copies)
    out = np.empty(room, np.uint8)
    if not (page.flags.c_contiguous and page.flags.writeable):
        page = page.copy()  # compiled code is for one type
    length = _pack(page, scale, _codes(line), out)
    return out[:length].tobytes()


def warm_up() -> None:
    """Compiles what `pack_enlarged` calls."""
    pack_enlarged(np.zeros((1, 1), np.uint8), 1)


@lru_cache(256)
def _codes(line: int) -> np.ndarray:
    """Codes for each byte, for copies of 0 to 258 bytes from one byte before, and from a line before: [3, 259]."""
    lengths = _codes_of_lengths()
    codes = np.zeros((3, _LONGEST + 1), np.uint64)
    codes[_BYTE, :256] = _codes_of_bytes()
    for row, distance in ((_RUN, 1), (_REPEAT, line)):
        group, extra, num_extra = _in_groups(distance - 1, 1)
        where = np.uint64(_code(group, 5, extra, num_extra))
        counts = lengths >> np.uint64(_COUNT_AT)
        codes[row] = lengths + ((where & _BITS) << counts) + (where & ~_BITS)  # the one behind the other
    return codes


@lru_cache(1)
def _codes_of_bytes() -> np.ndarray:
    codes = [_code(0x30 + byte, 8) if byte < 144 else _code(0x190 + byte - 144, 9) for byte in range(256)]
    return np.array(codes, np.uint64)


@lru_cache(1)
def _codes_of_lengths() -> np.ndarray:
    """Of copies of 0 to 258 bytes; there are none of less than 3."""
    codes = np.zeros(_LONGEST + 1, np.uint64)
    for length in range(_SHORTEST, _LONGEST + 1):
        group, extra, num_extra = (28, 0, 0) if length == _LONGEST else _in_groups(length - _SHORTEST, 2)
        code, count = (1 + group, 7) if group < 23 else (0xC0 + group - 23, 8)
        codes[length] = _code(code, count, extra, num_extra)
    return codes


def _in_groups(value: int, doubling: int) -> tuple[int, int, int]:
    """Deflate's way to write a length or a distance: (group, place in the group, bits for the place).

    The first groups hold one value each; then every `2 ** doubling` groups are twice as large as those before.
    """
    num_extra = max(0, value.bit_length() - 1 - doubling)
    return (num_extra << doubling) + (value >> num_extra), value & ((1 << num_extra) - 1), num_extra


def _code(code: int, count: int, extra: int = 0, num_extra: int = 0) -> int:
    """A Huffman code begins with its highest bit, the number behind it with its lowest."""
    turned = int(f"{code:0{count}b}"[::-1], 2)
    return turned | extra << count | (count + num_extra) << _COUNT_AT


@jit
def _put(out, at, bits, filled, code):
    """Appends a code to the `filled` bits that wait for the rest of their byte."""
    bits |= (code & _BITS) << filled
    filled += code >> np.uint64(_COUNT_AT)
    while filled >= np.uint64(8):
        out[at] = bits & np.uint64(255)
        at += 1
        bits >>= np.uint64(8)
        filled -= np.uint64(8)
    return at, bits, filled


@jit
def _put_copies(out, at, bits, filled, copies, length):
    """Appends copies of `length` bytes in all, at least 3, so that no rest is too short for a copy."""
    while length > 0:
        step = min(length, _LONGEST)
        if 0 < length - step < _SHORTEST:
            step = length - _SHORTEST
        at, bits, filled = _put(out, at, bits, filled, copies[step])
        length -= step
    return at, bits, filled


@jit
def _put_line(out, at, bits, filled, row, scale, codes):
    """Appends the filter and the enlarged pixels of a row."""
    at, bits, filled = _put(out, at, bits, filled, codes[_BYTE, 0])
    start = 0
    while start < len(row):
        stop = start + 1
        while stop < len(row) and row[stop] == row[start]:
            stop += 1
        byte, again = codes[_BYTE, row[start]], (stop - start) * scale - 1
        at, bits, filled = _put(out, at, bits, filled, byte)
        if again >= _SHORTEST:
            at, bits, filled = _put_copies(out, at, bits, filled, codes[_RUN], again)
        else:
            for _ in range(again):
                at, bits, filled = _put(out, at, bits, filled, byte)
        start = stop
    return at, bits, filled


@jit
def _repeated(low, high, row, scale, num_lines):
    """Adler's two sums after `num_lines` more lines of a row: of the bytes, and of this sum after every byte."""
    line, total, weighted = 1 + len(row) * scale, 0, 0
    for x in range(len(row)):
        pixel, from_here_on = np.int64(row[x]), (len(row) - x) * scale
        total += pixel * scale
        weighted += pixel * (scale * from_here_on - scale * (scale - 1) // 2)
    for _ in range(num_lines):
        high = (high + line * low + weighted) % _ADLER
        low = (low + total) % _ADLER
    return low, high


@jit
def _equal(row, other):
    x = 0
    while x < len(row) and row[x] == other[x]:
        x += 1
    return x == len(row)


@jit
def _pack(page, scale, codes, out):
    """Fills `out` and returns how many bytes that takes."""
    height, width = page.shape
    out[0], out[1] = _ZLIB_HEAD
    at, bits, filled = 2, np.uint64(_LAST_BLOCK_FIXED), np.uint64(3)
    low, high, y = 1, 0, 0
    while y < height:
        below = y + 1
        while below < height and _equal(page[below], page[y]):
            below += 1
        num_lines = (below - y) * scale
        at, bits, filled = _put_line(out, at, bits, filled, page[y], scale, codes)
        again = (num_lines - 1) * (1 + width * scale)
        if again >= _SHORTEST:
            at, bits, filled = _put_copies(out, at, bits, filled, codes[_REPEAT], again)
        elif again > 0:  # a line of one pixel, twice
            at, bits, filled = _put_line(out, at, bits, filled, page[y], scale, codes)
        low, high = _repeated(low, high, page[y], scale, num_lines)
        y = below
    at, bits, filled = _put(out, at, bits, filled, _END_OF_BLOCK)
    if filled > np.uint64(0):
        out[at] = bits & np.uint64(255)
        at += 1
    for part in (high >> 8, high, low >> 8, low):
        out[at] = part & 255
        at += 1
    return at
