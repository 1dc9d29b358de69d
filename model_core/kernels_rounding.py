"""Compiled: the weights as multiples of a unit, in tiles, both ways round: what a training pays for at every update.

A square of 32 x 32 weights is rounded row by row and turned in registers, so that no store is of one number alone.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from model_core.kernels_draws import jit
from model_core.kernels_rows import TILE

_SQUARE = 32


def _turned(builder, rows):
    """The columns of a square of vectors: log2(size) times, each row of the first half is woven with its partner."""
    size = len(rows)
    halves = [[n // 2 + size * (n % 2) + half for n in range(size)] for half in (0, size // 2)]
    masks = [ir.Constant(ir.VectorType(ir.IntType(32), size), mask) for mask in halves]
    for _ in range(size.bit_length() - 1):
        pairs = zip(rows[: size // 2], rows[size // 2 :], strict=True)
        rows = [builder.shuffle_vector(first, second, mask) for first, second in pairs for mask in masks]
    return rows


@intrinsic
def _round_square(typing_context, weights, inverse, to_hidden, to_visible, i, j):
    """Rounds weights[i : i + 32, j : j + 32] into both sets of tiles; `i` and `j` are multiples of 32."""

    def build(context, builder, signature, args):
        floats, of_hidden, of_visible = (
            context.make_array(signature.args[n])(context, builder, value=args[n]) for n in (0, 2, 3)
        )
        integer = ir.VectorType(ir.IntType(signature.args[2].dtype.bitwidth), _SQUARE)
        float_row = ir.VectorType(ir.FloatType(), _SQUARE)
        i, j = args[4:]
        index = i.type
        width = builder.extract_value(floats.shape, 1)
        kind = ir.FunctionType(float_row, [float_row])
        rint = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{_SQUARE}f32")
        inverses = builder.shuffle_vector(
            builder.insert_element(float_row(ir.Undefined), args[1], ir.IntType(32)(0)),
            float_row(ir.Undefined),
            ir.Constant(ir.VectorType(ir.IntType(32), _SQUARE), [0] * _SQUARE),
        )

        def rows_at(array, kind, first, stride):
            pointers = [builder.add(first, builder.mul(stride, index(n))) for n in range(_SQUARE)]
            return [builder.bitcast(builder.gep(array.data, [place]), kind.as_pointer()) for place in pointers]

        def in_tiles(array, row, column):
            """Where a square begins whose first weight is at [row, column] of the matrix that the tiles make up."""
            rows_a_tile = builder.extract_value(array.shape, 1)
            tile = builder.add(builder.mul(builder.sdiv(column, index(TILE)), rows_a_tile), row)
            return builder.add(builder.mul(tile, index(TILE)), builder.srem(column, index(TILE)))

        rows = []
        for place in rows_at(floats, float_row, builder.add(builder.mul(i, width), j), width):
            scaled = builder.fmul(builder.load(place, align=4), inverses)
            rows.append(builder.fptosi(builder.call(rint, [scaled]), integer))
        for array, vectors, row, column in (of_hidden, rows, i, j), (of_visible, _turned(builder, rows), j, i):
            places = rows_at(array, integer, in_tiles(array, row, column), index(TILE))
            for place, vector in zip(places, vectors, strict=True):
                builder.store(vector, place, align=2)
        return context.get_dummy_value()

    return types.void(weights, inverse, to_hidden, to_visible, types.int64, types.int64), build


@jit
def round_weights(weights, unit, to_hidden, to_visible):
    """Writes round(weights / unit), and its transpose, as tiles; `weights` are contiguous."""
    num_visible, num_hidden = weights.shape
    inverse = np.float32(1.0) / unit
    whole_i, whole_j = num_visible - num_visible % _SQUARE, num_hidden - num_hidden % _SQUARE
    for i in range(0, whole_i, _SQUARE):
        for j in range(0, whole_j, _SQUARE):
            _round_square(weights, inverse, to_hidden, to_visible, i, j)
    for i in range(num_visible):
        for j in range(whole_j if i < whole_i else 0, num_hidden):
            number = np.rint(weights[i, j] * inverse)
            to_hidden[j // TILE, i, j % TILE] = number
            to_visible[i // TILE, j, i % TILE] = number
