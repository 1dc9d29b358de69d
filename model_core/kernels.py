"""The compiled kernels of `engine_numba`: one step of one chain, told in four verbs.

    draw words  <- SplitMix64 stream keyed by (seed, step, layer)           `_draw_words`
    find flips  <- units whose new draw u < sigmoid(logit) differs          `_find_flips`
    turn over   <- the units' states; lists of those now on and now off     `_turn_over`
    add rows    <- of the units now on, less those now off, to the sums     `_add_rows`

first for the hidden units, then for the visible ones. Flags are bytes, read eight at a time where it pays.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from model_core.randomness import GAMMA, HIDDEN_LAYER, MIX_1, MIX_2, VISIBLE_LAYER

NARROW_MAX = 4095  # eight weights of at most this add up within 16 bits

_GAMMA, _MIX_1, _MIX_2 = np.uint64(GAMMA), np.uint64(MIX_1), np.uint64(MIX_2)
_MINUS_LOG2_E = np.float32(-1.4426950408889634)
_LN_2 = np.float32(0.6931471805599453)
_LARGEST_POWER = np.float32(60.0)  # 2^-60 is below every u: nothing is lost, and no denormal slows us down
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves the rounded number in the low bits
_GATHER = np.uint64(0x0102040810204080)  # times eight bytes of 0 or 1: their bits, in order, in the top byte


def _can_cache() -> bool:
    """Whether Numba finds a place for compiled code: beside this file, or in the user's cache folder."""
    places = [os.environ.get("NUMBA_CACHE_DIR"), Path(__file__).parent, Path.home()]
    return any(place is not None and os.access(place, os.W_OK) for place in places)


_jit = nb.njit(nogil=True, cache=_can_cache(), error_model="numpy")
_inline = nb.njit(nogil=True, inline="always", error_model="numpy")


class Rows(NamedTuple):
    """What the units of one layer add to the sums of the other."""

    rows: np.ndarray  # int16 or int32 [units + 1, padded width]; the last row is zero
    bias: np.ndarray  # float32 [padded width], of the layer whose sums these are
    width: int  # how many units that layer has


class Scratch(NamedTuple):
    """Working memory of one thread, long enough for either layer."""

    words: np.ndarray  # uint64
    flips: np.ndarray  # uint8
    turned_on: np.ndarray  # int32
    turned_off: np.ndarray  # int32
    change: np.ndarray  # int16 or int32


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
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), build


@_inline
def _mix(state):
    """`randomness.mix`, one word."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


@_inline
def _exp_minus(x):
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


@_jit
def _make_scratch(to_hidden, visible_width):
    longest = 64 * ((max(len(to_hidden.bias), visible_width) + 63) // 64)
    indices = np.empty((2, longest + 4), np.int32)
    change = np.empty(longest, to_hidden.rows.dtype)
    return Scratch(np.empty(longest // 2, np.uint64), np.zeros(longest, np.uint8), indices[0], indices[1], change)


@_jit
def _draw_words(words, seed, step, layer):
    """The random words of one half-step; see `randomness.random_words`."""
    key = _mix(seed + np.uint64(2 * step + layer + 1) * _GAMMA)
    for n in range(len(words)):
        words[n] = _mix(key + np.uint64(n + 1) * _GAMMA)


@_jit
def _find_flips(flips, halves, state, sums, bias, scale, offset, slope):
    """flips[j] = 1 where unit j's new draw differs from its state.

    The logit is offset[j] + slope * bias[j] + scale * sums[j]; u < sigmoid(x) is tested as u + u exp(-x) < 1.
    """
    for j in range(len(sums)):
        logit = offset[j] + (slope * bias[j] + scale * np.float32(sums[j]))
        u = np.float32(halves[j]) * np.float32(2.0**-32) + np.float32(2.0**-33)
        flips[j] = np.uint8(u + u * _exp_minus(logit) < np.float32(1.0)) ^ state[j]


@_jit
def _turn_over(flips, state, turned_on, turned_off):
    """Turns the flipped units over; returns how many are now on and now off, their indices in the two lists."""
    num_on, num_off = 0, 0
    flips_8, state_8 = flips.view(np.uint64), state.view(np.uint64)
    for block in range(len(state_8) // 8):
        on_mask, off_mask = np.uint64(0), np.uint64(0)
        for n in range(8):
            flipped, was_on = flips_8[8 * block + n], state_8[8 * block + n]
            state_8[8 * block + n] = was_on ^ flipped
            on_mask |= (((flipped & ~was_on) * _GATHER) >> np.uint64(56)) << np.uint64(8 * n)
            off_mask |= (((flipped & was_on) * _GATHER) >> np.uint64(56)) << np.uint64(8 * n)
        while on_mask != np.uint64(0):
            turned_on[num_on] = 64 * block + np.int64(_trailing_zeros(on_mask))
            on_mask &= on_mask - np.uint64(1)
            num_on += 1
        while off_mask != np.uint64(0):
            turned_off[num_off] = 64 * block + np.int64(_trailing_zeros(off_mask))
            off_mask &= off_mask - np.uint64(1)
            num_off += 1
    return num_on, num_off


@_jit
def _add_rows(sums, change, rows, turned_on, num_on, turned_off, num_off):
    """sums += rows turned on - rows turned off, four of each a pass; the zero row fills up the shorter list."""
    narrow = rows.dtype.type
    zero_row = len(rows) - 1
    num_rows = 4 * ((max(num_on, num_off) + 3) // 4)
    turned_on[num_on:num_rows] = zero_row
    turned_off[num_off:num_rows] = zero_row
    for n in range(0, num_rows, 4):
        a, b, c, d = rows[turned_on[n]], rows[turned_on[n + 1]], rows[turned_on[n + 2]], rows[turned_on[n + 3]]
        e, f, g, h = rows[turned_off[n]], rows[turned_off[n + 1]], rows[turned_off[n + 2]], rows[turned_off[n + 3]]
        # Eight weights add up within the narrow type (NARROW_MAX), and are widened once. Two loops, because
        # the compiler gives a loop the vector length of its widest type.
        for j in range(len(sums)):
            change[j] = narrow(a[j] + b[j] + c[j] + d[j] - e[j] - f[j] - g[j] - h[j])
        for j in range(len(sums)):
            sums[j] += np.int32(change[j])


@_jit
def _apply_flips(scratch, state, rows, sums):
    num_on, num_off = _turn_over(scratch.flips[: len(state)], state, scratch.turned_on, scratch.turned_off)
    _add_rows(sums, scratch.change, rows, scratch.turned_on, num_on, scratch.turned_off, num_off)


@_jit
def _half_step(scratch, state, sums, bias, scale, offset, slope, seed, step, layer):
    """Draws one layer given the sums of its inputs: leaves the units to turn over in `scratch.flips`."""
    words = scratch.words[: len(bias) // 2]
    _draw_words(words, seed, step, layer)
    _find_flips(scratch.flips, words.view(np.uint32), state, sums, bias, scale, offset, slope)
    scratch.flips[len(bias) :] = 0


@_jit
def _new_layer(width):
    """State (padded to 64 units) and input sums of a layer that is all off."""
    return np.zeros(64 * ((width + 63) // 64), np.uint8), np.zeros(width, np.int32)


@_jit
def _start(scratch, start, v, v_sums, h, h_sums, hidden_rows):
    """Puts a chain at `start`: from all units off, the rows of those that are on are added."""
    for zeroed in (v, h):
        zeroed[:] = 0
    v_sums[:] = 0
    h_sums[:] = 0
    scratch.flips[: len(start)] = start
    scratch.flips[len(start) :] = 0
    _apply_flips(scratch, v, hidden_rows, h_sums)


@_jit
def gibbs(visible, probs, seeds, num_steps, first_step, temperature, clamp, to_hidden, to_visible, unit):
    """Advances every chain in place; `probs` receives p(v=1 given the last hidden states), or the start itself."""
    scratch = _make_scratch(to_hidden, len(to_visible.bias))
    v, v_sums = _new_layer(len(to_visible.bias))
    h, h_sums = _new_layer(len(to_hidden.bias))
    no_offset = np.zeros(max(len(v_sums), len(h_sums)), np.float32)
    for chain in range(len(visible)):
        seed, cooling = seeds[chain], np.float32(1.0) / temperature[chain]
        scale = unit * cooling
        _start(scratch, visible[chain], v, v_sums, h, h_sums, to_hidden.rows)
        for step in range(first_step[chain], first_step[chain] + num_steps[chain]):
            _half_step(scratch, h, h_sums, to_hidden.bias, scale, no_offset, cooling, seed, step, HIDDEN_LAYER)
            _apply_flips(scratch, h, to_visible.rows, v_sums)
            _half_step(scratch, v, v_sums, to_visible.bias, scale, no_offset, cooling, seed, step, VISIBLE_LAYER)
            if len(clamp) > 0:
                for j in range(to_visible.width):
                    scratch.flips[j] &= np.uint8(not clamp[chain, j])
            _apply_flips(scratch, v, to_hidden.rows, h_sums)
        visible[chain] = v[: to_visible.width]
        for j in range(to_visible.width):
            logit = cooling * to_visible.bias[j] + scale * np.float32(v_sums[j])
            probs[chain, j] = np.float32(1.0) / (np.float32(1.0) + _exp_minus(logit))
            if num_steps[chain] == 0 or (len(clamp) > 0 and clamp[chain, j]):
                probs[chain, j] = np.float32(v[j])


@_jit
def _sum(values):
    """A sum in eight lanes, so that it runs at the speed of the vector unit, in one fixed order."""
    a = b = c = d = e = f = g = h = 0.0
    for n in range(0, len(values), 8):
        a += values[n]
        b += values[n + 1]
        c += values[n + 2]
        d += values[n + 3]
        e += values[n + 4]
        f += values[n + 5]
        g += values[n + 6]
        h += values[n + 7]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@_jit
def _log_product(factors):
    """The log of a product of numbers between 1/2 and 2; a lane holds 512 of them, well within a float64."""
    total = 0.0
    for first in range(0, len(factors), 4096):
        a = b = c = d = e = f = g = h = 1.0
        for n in range(first, min(first + 4096, len(factors)), 8):
            a *= factors[n]
            b *= factors[n + 1]
            c *= factors[n + 2]
            d *= factors[n + 3]
            e *= factors[n + 4]
            f *= factors[n + 5]
            g *= factors[n + 6]
            h *= factors[n + 7]
        total += (np.log(a) + np.log(b)) + (np.log(c) + np.log(d)) + (np.log(e) + np.log(f)) + (np.log(g) + np.log(h))
    return total


@_jit
def _log_ratio(h_sums, hidden, unit, beta, next_beta, terms, factors):
    """sum_j softplus(beta' x_j) - softplus(beta x_j), with softplus(x) = max(x, 0) + log(1 + exp(-|x|)).

    `terms` and `factors` are working memory, padded with 0 and 1.
    """
    for j in range(hidden.width):
        x = hidden.bias[j] + unit * np.float32(h_sums[j])
        top = np.float32(1.0) + _exp_minus(np.float32(next_beta) * abs(x))
        bottom = np.float32(1.0) + _exp_minus(np.float32(beta) * abs(x))
        terms[j] = max(x, np.float32(0.0))
        factors[j] = np.float64(top) / np.float64(bottom)
    return (next_beta - beta) * _sum(terms) + _log_product(factors)


@_jit
def anneal(visible, log_weights, seeds, first_step, betas, moving, base, to_hidden, to_visible, unit):
    """Weighs and moves every chain along `betas`; see `NumbaEngine.anneal`."""
    scratch = _make_scratch(to_hidden, len(to_visible.bias))
    v, v_sums = _new_layer(len(to_visible.bias))
    h, h_sums = _new_layer(len(to_hidden.bias))
    terms, factors, bias_terms = np.zeros(len(h_sums)), np.ones(len(h_sums)), np.zeros(len(v_sums))
    no_offset = np.zeros(len(h_sums), np.float32)
    offset = np.zeros(len(v_sums), np.float32)
    for chain in range(len(visible)):
        _start(scratch, visible[chain], v, v_sums, h, h_sums, to_hidden.rows)
        for k in range(len(betas) - 1):
            beta, next_beta = betas[k], betas[k + 1]
            for j in range(to_visible.width):
                bias_terms[j] = np.float64(v[j]) * (np.float64(to_visible.bias[j]) - np.float64(base[j]))
            log_weights[chain] += (next_beta - beta) * _sum(bias_terms)
            log_weights[chain] += _log_ratio(h_sums, to_hidden, unit, beta, next_beta, terms, factors)
            if not moving:
                continue
            slope, step = np.float32(next_beta), first_step + k
            scale = unit * slope
            for j in range(len(offset)):
                offset[j] = np.float32(1.0 - next_beta) * base[j]
            _half_step(scratch, h, h_sums, to_hidden.bias, scale, no_offset, slope, seeds[chain], step, HIDDEN_LAYER)
            # At beta 0 the bias of a padding unit is gone, so padding is kept off by hand.
            scratch.flips[to_hidden.width :] = 0
            _apply_flips(scratch, h, to_visible.rows, v_sums)
            _half_step(scratch, v, v_sums, to_visible.bias, scale, offset, slope, seeds[chain], step, VISIBLE_LAYER)
            _apply_flips(scratch, v, to_hidden.rows, h_sums)
        visible[chain] = v[: to_visible.width]


@_jit
def free_energies(visible, energies, to_hidden, visible_bias, unit):
    """energies[row] = F(row) of the rounded model, nats: a sum of rows and one log of a product, no matrix."""
    scratch = _make_scratch(to_hidden, len(visible_bias))
    v, v_sums = _new_layer(len(visible_bias))
    h, h_sums = _new_layer(len(to_hidden.bias))
    terms, factors, bias_terms = np.zeros(len(h_sums)), np.ones(len(h_sums)), np.zeros(len(v_sums))
    for row in range(len(visible)):
        _start(scratch, visible[row], v, v_sums, h, h_sums, to_hidden.rows)
        for j in range(visible.shape[1]):
            bias_terms[j] = np.float64(v[j]) * np.float64(visible_bias[j])
        for j in range(to_hidden.width):
            x = to_hidden.bias[j] + unit * np.float32(h_sums[j])
            terms[j] = max(x, np.float32(0.0))
            factors[j] = np.float64(1.0) + np.float64(_exp_minus(abs(x)))
        energies[row] = -_sum(bias_terms) - _sum(terms) - _log_product(factors)


@_jit
def mean_field(visible, num_steps, temperature, clamp, weights, transposed, visible_bias, hidden_bias):
    """Probabilities in place of states, in place; rows are added in order, so the bits do not depend on company."""
    hidden, proposal = np.empty(len(hidden_bias), np.float32), np.empty(len(visible_bias), np.float32)
    for chain in range(len(visible)):
        cooling = np.float32(1.0) / temperature[chain]
        for _ in range(num_steps[chain]):
            _mean_field_half(visible[chain], weights, hidden_bias, cooling, hidden)
            _mean_field_half(hidden, transposed, visible_bias, cooling, proposal)
            for j in range(len(proposal)):
                if len(clamp) == 0 or not clamp[chain, j]:
                    visible[chain, j] = proposal[j]


@_jit
def _mean_field_half(state, rows, bias, cooling, probs):
    probs[:] = bias
    for i in range(len(state)):
        if state[i] != np.float32(0.0):
            for j in range(len(probs)):
                probs[j] += state[i] * rows[i, j]
    for j in range(len(probs)):
        probs[j] = np.float32(1.0) / (np.float32(1.0) + _exp_minus(probs[j] * cooling))


@_jit
def round_weights(weights, unit, to_hidden, to_visible):
    """Writes round(weights / unit), and its transpose, in tiles so that both sides stay in the cache."""
    num_visible, num_hidden = weights.shape
    inverse = np.float32(1.0) / unit
    for first_i in range(0, num_visible, 32):
        for first_j in range(0, num_hidden, 32):
            for i in range(first_i, min(first_i + 32, num_visible)):
                for j in range(first_j, min(first_j + 32, num_hidden)):
                    to_hidden[i, j] = np.rint(weights[i, j] * inverse)
            for j in range(first_j, min(first_j + 32, num_hidden)):
                for i in range(first_i, min(first_i + 32, num_visible)):
                    to_visible[j, i] = to_hidden[i, j]
