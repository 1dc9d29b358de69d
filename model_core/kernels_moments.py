"""Compiled: the moments <v h'>, <v> and <h> of the two phases, as sums of the rows of h whose pixel is on.

`v'h` of a batch is a matrix product of which five sixths are products with 0. Here each pixel has the list of the rows
in which it is on, and its line of the result is the sum of their hidden probabilities, kept in registers, in one
fixed order: the same bits on any number of threads.

The rows of both phases stand one below the other, and below them the zero row with which the lists are filled up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from model_core.kernels import BLOCK, look, make_block, start, sum_in_lanes
from model_core.kernels_draws import jit, list_bits, mask_of
from model_core.kernels_rows import TILE


class PhaseRows(NamedTuple):
    """The rows of both phases; of the zero row all is 0."""

    shares: np.ndarray  # float64 [rows + 1], in the averages: 1/rows of an awake row, -1/rows of an asleep one
    tiles: np.ndarray  # float32 [tiles, rows + 1, TILE], share * p(h=1 given v)
    leans: np.ndarray  # float64 [2, rows + 1], mu.(v - mu) and lambda.(p - lambda)


class Offsets(NamedTuple):
    """Where the moments are centred: mu and lambda."""

    visible: np.ndarray  # float32 [visible]
    hidden: np.ndarray  # float32 [padded hidden]


@intrinsic
def _sum_of_rows(typing_context, result, rows, indices, passes):
    """result[:TILE] = the sum of rows[indices[: 4 * passes]], float32, in one fixed order."""

    def build(context, builder, signature, args):
        result_at, rows_at, indices_at = (
            context.make_array(kind)(context, builder, value=value).data
            for kind, value in zip(signature.args[:3], args[:3], strict=True)
        )
        vector = ir.VectorType(ir.FloatType(), TILE)
        rows_at = builder.bitcast(rows_at, vector.as_pointer())
        total = cgutils.alloca_once_value(builder, vector(None))
        with cgutils.for_range(builder, args[3]) as loop:
            first = builder.mul(loop.index, loop.index.type(4))

            def row(n):
                number = builder.load(builder.gep(indices_at, [builder.add(first, first.type(n))]))
                return builder.load(builder.gep(rows_at, [builder.sext(number, ir.IntType(64))]), align=32)

            # In pairs, so that not every addition waits for the one before.
            four = builder.fadd(builder.fadd(row(0), row(1)), builder.fadd(row(2), row(3)))
            builder.store(builder.fadd(builder.load(total), four), total)
        builder.store(builder.load(total), builder.bitcast(result_at, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(result, rows, indices, types.int64), build


@jit
def hidden_rows(visible, first_row, last_row, asleep_sums, phase, offsets, to_hidden, unit):
    """Fills in tiles and lambda.(p - lambda) of some rows; `asleep_sums` are the hidden sums of the last, if known."""
    size = min(BLOCK, last_row - first_row)
    width = TILE * ((visible.shape[1] + TILE - 1) // TILE)
    work, v, h = make_block(width, len(to_hidden.bias), size)
    probs, terms = np.empty(len(to_hidden.bias), np.float32), np.empty(len(to_hidden.bias))
    first_known = len(visible) - len(asleep_sums)
    for first in range(first_row, last_row, size):
        end = min(first + size, last_row)
        if first < first_known:
            start(work, visible[first : min(end, first_known)], v, h, to_hidden.tiles)
        for row in range(first, end):
            sums = h.sums[row - first] if row < first_known else asleep_sums[row - first_known]
            look(probs, sums, to_hidden.bias, unit, np.float32(1.0))
            share = np.float32(phase.shares[row])
            for tile in range(len(phase.tiles)):
                for j in range(TILE):
                    phase.tiles[tile, row, j] = share * probs[tile * TILE + j]
            for j in range(len(terms)):
                terms[j] = (probs[j] - offsets.hidden[j]) * offsets.hidden[j]
            phase.leans[1, row] = sum_in_lanes(terms)


@jit
def sum_rows(tiles, first_row, last_row, factors):
    """The sum of factors[row] * tiles[:, row] over some rows, float64 [padded hidden]."""
    result = np.zeros((len(tiles), TILE))
    for tile in range(len(tiles)):
        for row in range(first_row, last_row):
            for j in range(TILE):
                result[tile, j] += factors[row] * tiles[tile, row, j]
    return result.ravel()


@jit
def list_rows_by_pixel(visible, phase, offsets):
    """For each pixel the rows in which it is on, int32: `rows[first[pixel] : first[pixel + 1]]`, whole fours.

    The lists are filled up with the zero row. Passing by, it fills in mu.(v - mu) of all rows.
    """
    num_rows, num_pixels = visible.shape
    counts, mu_squared = np.zeros(num_pixels, np.int32), 0.0
    for row in range(num_rows):
        for pixel in range(num_pixels):
            counts[pixel] += visible[row, pixel]
    first = np.zeros(num_pixels + 1, np.int64)
    for pixel in range(num_pixels):
        first[pixel + 1] = first[pixel] + 4 * ((counts[pixel] + 3) // 4)
        mu_squared += offsets.visible[pixel] ** 2
    rows, place = np.full(first[num_pixels] + 1, num_rows, np.int32), first[:num_pixels].copy()
    on, num_blocks = np.empty(num_pixels + 4, np.int32), num_pixels // 64
    for row in range(num_rows):
        num_on, lean = 0, -mu_squared
        for block in range(num_blocks):
            num_on = list_bits(on, num_on, mask_of(visible[row], block), 64 * block)
        for pixel in range(64 * num_blocks, num_pixels):
            on[num_on] = pixel
            num_on += visible[row, pixel]
        for pixel in on[:num_on]:
            rows[place[pixel]] = row
            place[pixel] += 1
            lean += offsets.visible[pixel]
        phase.leans[0, row] = lean
    return first, rows


@jit
def pair_moments(pairs, moments, first_pixel, lists, phase, offsets, of_hidden):
    """The lines of pixels `first_pixel + i`: <v h'> - mu <h>' - <v> lambda', with <h> given, float32, padded.

    `moments[:, i]` receives <v> and <v lambda.(h - lambda)> of the pixel, float64.
    """
    first, rows = lists
    for i in range(len(pairs)):
        mean, lean = 0.0, 0.0
        for n in range(first[first_pixel + i], first[first_pixel + i + 1]):
            mean += phase.shares[rows[n]]
            lean += phase.shares[rows[n]] * phase.leans[1, rows[n]]
        moments[0, i], moments[1, i] = mean, lean
    line = np.empty(TILE, np.float32)
    for tile in range(len(phase.tiles)):
        columns = slice(tile * TILE, min(pairs.shape[1], (tile + 1) * TILE))
        of_h, offset = of_hidden[columns], offsets.hidden[columns]
        for i in range(len(pairs)):
            begin, end = first[first_pixel + i], first[first_pixel + i + 1]
            _sum_of_rows(line, phase.tiles[tile], rows[begin:], (end - begin) // 4)
            mu, mean, result = offsets.visible[first_pixel + i], np.float32(moments[0, i]), pairs[i, columns]
            for j in range(len(result)):
                result[j] = line[j] - mu * of_h[j] - mean * offset[j]
