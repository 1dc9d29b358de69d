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
from numpy.typing import DTypeLike

from model_core.arrays import aligned
from model_core.kernels_draws import jit

TILE = 64  # columns
NARROW_MAX = 4095  # eight weights of at most this add up within 16 bits


class Rows(NamedTuple):
    """What the units of one layer add to the sums of the other."""

    tiles: np.ndarray  # int16 or int32 [padded width / TILE, units + 1, TILE]; the last row is zero
    bias: np.ndarray  # float32 [padded width], of the layer whose sums these are
    width: int  # how many units that layer has


def empty_tiles(width: int, num_rows: int, dtype: DTypeLike) -> np.ndarray:
    """Tiles to be filled, [padded width / TILE, rows + 1, TILE]: zero so far are the padding and the last row."""
    tiles = aligned((-(-width // TILE), num_rows + 1, TILE), dtype)
    tiles[-1], tiles[:, -1] = 0, 0
    return tiles


def padded(vector: np.ndarray, padding: float = 0.0) -> np.ndarray:
    """A float32 vector of one layer, filled up to the width of whole tiles."""
    filled = np.full(TILE * -(-len(vector) // TILE), padding, np.float32)
    filled[: len(vector)] = vector
    return filled


def _row_adder(context, builder, kinds, args):
    """Emits code that adds rows to the TILE sums at args[0]: `add(passes, *lists)`, eight rows a pass.

    A pass takes its share of rows from each of `lists`, pairs of an argument's number and how to combine its rows, adds
    them up narrow, and widens the result once.
    """
    arrays = [
        context.make_array(kind)(context, builder, value=value).data for kind, value in zip(kinds, args, strict=False)
    ]
    narrow = ir.VectorType(ir.IntType(kinds[1].dtype.bitwidth), TILE)
    wide = ir.VectorType(ir.IntType(32), TILE)
    vectors = builder.bitcast(arrays[1], narrow.as_pointer())
    sums_at = builder.bitcast(arrays[0], wide.as_pointer())

    def row(indices, number):
        index = builder.load(builder.gep(indices, [number]))
        return builder.load(builder.gep(vectors, [builder.sext(index, ir.IntType(64))]), align=32)

    def add(passes, *lists):
        total = cgutils.alloca_once_value(builder, builder.load(sums_at, align=4))
        with cgutils.for_range(builder, passes) as loop:
            first = builder.mul(loop.index, loop.index.type(8 // len(lists)))
            change = narrow(None)
            for argument, combine in lists:
                for n in range(8 // len(lists)):
                    change = combine(change, row(arrays[argument], builder.add(first, first.type(n))))
            widened = change if narrow == wide else builder.sext(change, wide)
            builder.store(builder.add(builder.load(total), widened), total)
        builder.store(builder.load(total), sums_at, align=4)
        return context.get_dummy_value()

    return add


@intrinsic
def _add_flipped(typing_context, sums, rows, turned_on, turned_off, passes):
    """sums[:TILE] += rows turned on - rows turned off: four of each a pass."""

    def build(context, builder, signature, args):
        add = _row_adder(context, builder, signature.args[:4], args)
        return add(args[4], (2, builder.add), (3, builder.sub))

    return types.void(sums, rows, turned_on, turned_off, types.int64), build


@intrinsic
def _add_risen(typing_context, sums, rows, turned_on, passes):
    """sums[:TILE] += rows turned on: eight a pass."""

    def build(context, builder, signature, args):
        return _row_adder(context, builder, signature.args[:3], args)(args[3], (2, builder.add))

    return types.void(sums, rows, turned_on, types.int64), build


@jit
def add_rows(sums, tiles, turned_on, turned_off, passes):
    """The sums of every chain of a block, [block, padded width], brought up to date with the units that its lists name.

    `turned_on` and `turned_off` are int32 [block, longest], filled up with the zero row to `passes[chain]` passes.
    """
    for tile in range(len(tiles)):
        for chain in range(len(sums)):
            if passes[chain] > 0:
                columns = sums[chain, tile * TILE : (tile + 1) * TILE]
                _add_flipped(columns, tiles[tile], turned_on[chain], turned_off[chain], passes[chain])


@jit
def add_first_rows(sums, tiles, turned_on, passes):
    """`add_rows` where all units were off before, so that none was turned off."""
    for tile in range(len(tiles)):
        for chain in range(len(sums)):
            if passes[chain] > 0:
                columns = sums[chain, tile * TILE : (tile + 1) * TILE]
                _add_risen(columns, tiles[tile], turned_on[chain], passes[chain])
