"""Compiled: the draw of one layer. SplitMix64 words, a sigmoid by hand, and which units the draw flips."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import config, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

from model_core.randomness import GAMMA, MIX_1, MIX_2, START_STEP, VISIBLE_LAYER

_GAMMA, _MIX_1, _MIX_2 = np.uint64(GAMMA), np.uint64(MIX_1), np.uint64(MIX_2)
_MINUS_LOG2_E = np.float32(-1.4426950408889634)
_LN_2 = np.float32(0.6931471805599453)
_LARGEST_POWER = np.float32(60.0)  # 2^-60 is below every u: nothing is lost, and no denormal slows us down
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves the rounded number in the low bits
_BELOW_ONE = np.float32(1.0 - 2.0**-24)


def _cache_folder() -> str:
    """Where compiled code is kept: a folder for these very sources, in the first place that can be written; or "".

    Numba looks at the file of the function that it loads, but neither at those whose code was compiled into it nor at
    whether the types that its index names still exist: after an upgrade it would run old code, or fail.
    """
    here, digest = Path(__file__).parent, hashlib.sha256()
    for source in (*sorted(here.glob("kernels*.py")), here / "randomness.py"):
        digest.update(source.read_bytes())
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for place in (os.environ.get("NUMBA_CACHE_DIR"), here / "__pycache__", Path(users, "rbm-dream")):
        if place:
            folder = Path(place, f"numba-{digest.hexdigest()[:16]}")
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                if os.access(folder, os.W_OK):
                    return str(folder)
    return ""


_CACHE_FOLDER = _cache_folder()


class _Cache(FunctionCache):
    """Numba's, but a full disk or a damaged file costs no more than the time to compile."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # what is cut off can raise anything
            with suppress(OSError):
                self.flush()  # to an empty index
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)


def jit(function: Callable[..., Any]) -> Any:
    """Compiles a function on its first call; the code is kept for the next process."""
    compiled = nb.njit(nogil=True, error_model="numpy")(function)
    if _CACHE_FOLDER:
        before, config.CACHE_DIR = config.CACHE_DIR, _CACHE_FOLDER  # Numba reads it here
        try:
            compiled._cache = _Cache(function)  # as `cache=True` does it with Numba's own
        finally:
            config.CACHE_DIR = before
    return compiled


_inline = nb.njit(nogil=True, inline="always", error_model="numpy")


@intrinsic
def _float_from_bits(typing_context, bits):
    def build(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), build


@intrinsic
def _bits_from_float(typing_context, number):
    def build(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), build


@intrinsic
def _trailing_zeros(typing_context, word):
    def build(context, builder, signature, args):
        return builder.cttz(args[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), build


@_inline
def _mix(state):
    """`randomness.mix`, one word."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


@_inline
def exp_minus(x):
    """exp(-x) in float32 for |x| <= 41, cut beyond; relative error below 1e-6 for |x| < 10.

    2^n comes from the exponent bits, the rest from the Taylor series: |rest| < 0.35, so the seventh power is < 2e-7.
    """
    power = min(max(x * _MINUS_LOG2_E, -_LARGEST_POWER), _LARGEST_POWER)
    shifted = power + _ROUND
    rest = (power - (shifted - _ROUND)) * _LN_2
    series = np.float32(1 / 120) + rest * np.float32(1 / 720)
    series = np.float32(1 / 24) + rest * series
    series = np.float32(1 / 6) + rest * series
    series = np.float32(0.5) + rest * series
    series = np.float32(1.0) + rest * series
    series = np.float32(1.0) + rest * series
    return series * _float_from_bits(np.int32((_bits_from_float(shifted) + np.int32(127)) << np.int32(23)))


@jit
def draw_words(words, seed, step, layer):
    """The random words of one half-step; see `randomness.random_words`."""
    key = _mix(seed + np.uint64(2 * step + layer + 1) * _GAMMA)
    for n in range(len(words)):
        words[n] = _mix(key + np.uint64(n + 1) * _GAMMA)


@jit
def noise(states, seeds):
    """Fills `states`, uint8 [chains, units], with `randomness.noise`."""
    words = np.empty((states.shape[1] + 1) // 2, np.uint64)
    for chain in range(len(states)):
        draw_words(words, seeds[chain], START_STEP, VISIBLE_LAYER)
        halves = words.view(np.uint32)
        for unit in range(states.shape[1]):
            states[chain, unit] = halves[unit] >> np.uint32(31)


@jit
def find_flips(flips, halves, state, sums, bias, scale, offset, slope):
    """flips[j] = 1 where unit j's new draw differs from its state.

    The logit is offset[j] + slope * bias[j] + scale * sums[j]; u < sigmoid(x) is tested as u + u exp(-x) < 1.
    """
    for j in range(len(sums)):
        logit = offset[j] + (slope * bias[j] + scale * np.float32(sums[j]))
        # The largest words would round to u = 1, which turns off a unit that is sure to be on.
        u = min(np.float32(halves[j]) * np.float32(2.0**-32) + np.float32(2.0**-33), _BELOW_ONE)
        flips[j] = np.uint8(u + u * exp_minus(logit) < np.float32(1.0)) ^ state[j]


@intrinsic
def mask_of(typing_context, flags, block):
    """The 64 bytes of 0 or 1 of a block as the bits of a word: one vector comparison."""

    def build(context, builder, signature, args):
        bytes_at = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        vector = ir.VectorType(ir.IntType(8), 64)
        place = builder.gep(builder.bitcast(bytes_at, vector.as_pointer()), [args[1]])
        nonzero = builder.icmp_unsigned("!=", builder.load(place, align=1), vector(None))
        return builder.bitcast(nonzero, ir.IntType(64))

    return types.uint64(flags, types.int64), build


@intrinsic
def _count_bits(typing_context, word):
    def build(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), build


@_inline
def list_bits(places, count, mask, first):
    """Appends first + n for every bit n of a mask to `places[:count]`; returns the new count.

    Four at a time, whether or not there are four, because the end of so short a loop is costly to guess; up to three
    places after the last hold anything.
    """
    total = count + np.int64(_count_bits(mask))
    while mask != np.uint64(0):
        for n in range(4):
            places[count + n] = first + np.int64(_trailing_zeros(mask))
            mask &= mask - np.uint64(1)
        count += 4
    return total


@jit
def turn_over(flips, state, turned_on, turned_off, rows_a_pass, zero_row):
    """Turns the flipped units over, lists those now on and those now off, and returns the passes that they fill."""
    num_on, num_off = 0, 0
    for block in range(len(state) // 64):
        flipped, was_on = mask_of(flips, block), mask_of(state, block)
        num_on = list_bits(turned_on, num_on, flipped & ~was_on, 64 * block)
        num_off = list_bits(turned_off, num_off, flipped & was_on, 64 * block)
    for j in range(len(state)):
        state[j] ^= flips[j]
    passes = (max(num_on, num_off) + rows_a_pass - 1) // rows_a_pass
    turned_on[num_on : rows_a_pass * passes] = zero_row
    turned_off[num_off : rows_a_pass * passes] = zero_row
    return passes
