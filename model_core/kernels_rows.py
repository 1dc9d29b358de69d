"""Compiled: sums of rows of the weights, in tiles of 64 columns that stay in the first-level cache.

A tile holds 64 columns of all rows: 64 KB of 16-bit numbers for 500 rows, of which those that flip often are hot.
The sums of a tile stay in registers while the rows are added. That loop is written with LLVM's own vectors: compiled
from scalar Python it would read and write the sums at every pass.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from model_core.kernels_draws import jit

TILE = 64  # columns
NARROW_MAX = 4095  # eight weights of at most this add up within 16 bits


class Rows(NamedTuple):
    """What the units of one layer add to the sums of the other."""

    tiles: np.ndarray  # int16 or int32 [padded width / TILE, units + 1, TILE]; the last row is zero
    bias: np.ndarray  # float32 [padded width], of the layer whose sums these are
    width: int  # how many units that layer has


@intrinsic
def _add_to_tile(typing_context, sums, rows, turned_on, turned_off, passes):
    """sums[:TILE] += rows turned on - rows turned off: in each pass four of each, added up narrow, widened once."""

    def build(context, builder, signature, args):
        kinds = signature.args[:4]
        sums_at, rows_at, on_at, off_at = (
            context.make_array(kind)(context, builder, value=value).data
            for kind, value in zip(kinds, args[:4], strict=True)
        )
        narrow = ir.VectorType(ir.IntType(kinds[1].dtype.bitwidth), TILE)
        wide = ir.VectorType(ir.IntType(32), TILE)
        vectors = builder.bitcast(rows_at, narrow.as_pointer())
        sums_at = builder.bitcast(sums_at, wide.as_pointer())

        def row(indices, number):
            index = builder.load(builder.gep(indices, [number]))
            return builder.load(builder.gep(vectors, [builder.sext(index, ir.IntType(64))]), align=32)

        total = cgutils.alloca_once_value(builder, builder.load(sums_at, align=4))
        with cgutils.for_range(builder, args[4]) as loop:
            first = builder.mul(loop.index, loop.index.type(4))
            numbers = [builder.add(first, loop.index.type(n)) for n in range(4)]
            change = row(on_at, numbers[0])
            for number in numbers[1:]:
                change = builder.add(change, row(on_at, number))
            for number in numbers:
                change = builder.sub(change, row(off_at, number))
            widened = change if narrow == wide else builder.sext(change, wide)
            builder.store(builder.add(builder.load(total), widened), total)
        builder.store(builder.load(total), sums_at, align=4)
        return context.get_dummy_value()

    return types.void(sums, rows, turned_on, turned_off, types.int64), build


@jit
def add_rows(sums, tiles, turned_on, turned_off, passes):
    """The sums of every chain of a block, [block, padded width], brought up to date with the units that its lists name.

    `turned_on` and `turned_off` are int32 [block, longest], filled up with the zero row to `passes[chain]` passes.
    """
    for tile in range(len(tiles)):
        for chain in range(len(sums)):
            if passes[chain] > 0:
                columns = sums[chain, tile * TILE : (tile + 1) * TILE]
                _add_to_tile(columns, tiles[tile], turned_on[chain], turned_off[chain], passes[chain])


@jit
def round_weights(weights, unit, to_hidden, to_visible):
    """Writes round(weights / unit), and its transpose, as tiles; in squares, so that both sides stay in the cache."""
    num_visible, num_hidden = weights.shape
    inverse = np.float32(1.0) / unit
    for first_i in range(0, num_visible, TILE):
        for first_j in range(0, num_hidden, TILE):
            tile_h, tile_v = to_hidden[first_j // TILE], to_visible[first_i // TILE]
            rows, columns = min(TILE, num_visible - first_i), min(TILE, num_hidden - first_j)
            for i in range(rows):
                for j in range(columns):
                    tile_h[first_i + i, j] = np.rint(weights[first_i + i, first_j + j] * inverse)
            for j in range(columns):
                for i in range(rows):
                    tile_v[first_j + j, i] = tile_h[first_i + i, j]
