"""Compiled: the moments <v h'>, <v> and <h> of the two phases, as sums of the rows of h whose pixel is on.

`v'h` of a batch is a matrix product of which five sixths are products with 0. Here each pixel has the list of the rows
in which it is on, and its line of the result is the sum of their hidden probabilities, kept in registers, in the
order of the rows: the same bits on any number of threads.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from model_core.kernels import make_block, start
from model_core.kernels_draws import exp_minus, jit
from model_core.kernels_rows import TILE

_BLOCK = 32


@intrinsic
def _sum_of_rows(typing_context, result, rows, indices, count):
    """result[:TILE] = the sum of rows[indices[:count]], float32, one after the other."""

    def build(context, builder, signature, args):
        result_at, rows_at, indices_at = (
            context.make_array(kind)(context, builder, value=value).data
            for kind, value in zip(signature.args[:3], args[:3], strict=True)
        )
        vector = ir.VectorType(ir.FloatType(), TILE)
        rows_at = builder.bitcast(rows_at, vector.as_pointer())
        total = cgutils.alloca_once_value(builder, vector(None))
        with cgutils.for_range(builder, args[3]) as loop:
            index = builder.sext(builder.load(builder.gep(indices_at, [loop.index])), ir.IntType(64))
            row = builder.load(builder.gep(rows_at, [index]), align=4)
            builder.store(builder.fadd(builder.load(total), row), total)
        builder.store(builder.load(total), builder.bitcast(result_at, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(result, rows, indices, types.int64), build


@jit
def hidden_rows(visible, first_row, last_row, shares, probs, tiles, to_hidden, unit):
    """probs[row] = p(h=1 given visible[row]); the same times the row's share goes into `tiles`, [tiles, rows, TILE]."""
    size = min(_BLOCK, last_row - first_row)
    width = TILE * ((visible.shape[1] + TILE - 1) // TILE)
    work, v, h = make_block(width, len(to_hidden.bias), size)
    for first in range(first_row, last_row, size):
        num_rows = min(size, last_row - first)
        start(work, visible[first : first + num_rows], v, h, to_hidden.tiles)
        for row in range(num_rows):
            sums, share = h.sums[row], shares[first + row]
            for tile in range(len(tiles)):
                for j in range(TILE):
                    n = tile * TILE + j
                    x = to_hidden.bias[n] + unit * np.float32(sums[n])
                    p = np.float32(1.0) / (np.float32(1.0) + exp_minus(x))
                    tiles[tile, first + row, j] = p * share
                    if n < to_hidden.width:
                        probs[first + row, n] = p


@jit
def list_rows_by_pixel(visible):
    """For each pixel the rows in which it is on: `rows[first[pixel] : first[pixel + 1]]`, int32."""
    num_rows, num_pixels = visible.shape
    first = np.zeros(num_pixels + 1, np.int64)
    for row in range(num_rows):
        for pixel in range(num_pixels):
            first[pixel + 1] += visible[row, pixel]
    for pixel in range(num_pixels):
        first[pixel + 1] += first[pixel]
    rows, place = np.empty(first[num_pixels], np.int32), first[:num_pixels].copy()
    for row in range(num_rows):
        for pixel in range(num_pixels):
            if visible[row, pixel]:
                rows[place[pixel]] = row
                place[pixel] += 1
    return first, rows


@jit
def pair_moments(result, first_pixel, first, rows, tiles):
    """result[i] = sum over the rows where pixel `first_pixel + i` is on of what `tiles` holds for them."""
    line = np.empty(TILE, np.float32)
    num_hidden = result.shape[1]
    for tile in range(len(tiles)):
        width = min(TILE, num_hidden - tile * TILE)
        for i in range(len(result)):
            begin, end = first[first_pixel + i], first[first_pixel + i + 1]
            _sum_of_rows(line, tiles[tile], rows[begin:end], end - begin)
            result[i, tile * TILE : tile * TILE + width] = line[:width]
