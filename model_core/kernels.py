"""Compiled: whole chains, for `engine_numba`. One step of one chain is told in four verbs,

    draw words  <- SplitMix64 stream keyed by (seed, step, layer)           `kernels_draws.draw_words`
    find flips  <- units whose new draw u < sigmoid(logit) differs          `kernels_draws.find_flips`
    turn over   <- the units' states; lists of those now on and now off     `kernels_draws.turn_over`
    add rows    <- of the units now on, less those now off, to the sums     `kernels_rows.add_rows`

first for the hidden units, then for the visible ones. A block of chains goes in step, so that each tile of the
weights is fetched once for all of them; a chain alone is a block of one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from model_core.kernels_draws import draw_words, exp_minus, find_flips, jit, turn_over
from model_core.kernels_rows import add_first_rows, add_rows
from model_core.randomness import HIDDEN_LAYER, VISIBLE_LAYER

BLOCK = 32  # chains in step: their sums fit into the second-level cache beside a tile


class Side(NamedTuple):
    """One layer of a block of chains."""

    state: np.ndarray  # uint8 [block, padded width]
    sums: np.ndarray  # int32 [block, padded width], of the rows of the other layer's units that are on


class Work(NamedTuple):
    """Working memory of one thread, long enough for either layer."""

    words: np.ndarray  # uint64
    flips: np.ndarray  # uint8
    turned_on: np.ndarray  # int32 [block, longest], of each chain
    turned_off: np.ndarray  # int32 [block, longest]
    passes: np.ndarray  # int64 [block], that the lists fill; see `turn_over`


@jit
def make_block(v_width, h_width, size):
    """Working memory, and the two layers of `size` chains, all units off."""
    longest = max(v_width, h_width)
    lists = np.empty((2, size, longest + 8), np.int32)
    work = Work(
        np.empty(longest // 2, np.uint64), np.zeros(longest, np.uint8), lists[0], lists[1], np.zeros(size, np.int64)
    )
    v = Side(np.zeros((size, v_width), np.uint8), np.zeros((size, v_width), np.int32))
    h = Side(np.zeros((size, h_width), np.uint8), np.zeros((size, h_width), np.int32))
    return work, v, h


@jit
def _draw(work, side, chain, rows, scale, offset, slope, seed, step, layer):
    """Draws one layer of one chain given the sums of its inputs: leaves the units to turn over in `work.flips`."""
    words = work.words[: len(rows.bias) // 2]
    draw_words(words, seed, step, layer)
    sums, state = side.sums[chain], side.state[chain]
    find_flips(work.flips, words.view(np.uint32), state, sums, rows.bias, scale, offset, slope)


@jit
def _turn(work, side, chain, num_units, rows_a_pass):
    state = side.state[chain]
    flips = work.flips[: len(state)]
    work.passes[chain] = turn_over(flips, state, work.turned_on[chain], work.turned_off[chain], rows_a_pass, num_units)


@jit
def _copy(target, source):
    """An assignment between arrays would bring code with it that puts an error message together: 3 s to compile."""
    for n in range(len(source)):
        target[n] = source[n]


@jit
def start(work, starts, v, h, tiles):
    """Puts a block of chains at `starts`: from all units off, the rows of those that are on are added."""
    v.state[:] = 0
    h.state[:] = 0
    v.sums[:] = 0
    h.sums[:] = 0
    work.passes[:] = 0
    num_visible = starts.shape[1]
    for chain in range(len(starts)):
        work.flips[num_visible:] = 0
        _copy(work.flips, starts[chain])
        _turn(work, v, chain, num_visible, 8)
    add_first_rows(h.sums, tiles, work.turned_on, work.passes)


@jit
def gibbs(visible, probs, hidden_sums, seeds, num_steps, first_step, temperature, clamp, to_hidden, to_visible, unit):
    """Advances every chain in place. Unless they are empty, `probs` receives p(v=1 given the last hidden states), or
    the start where there was no step, and `hidden_sums` those of the hidden units given the last visible states."""
    size = min(BLOCK, len(visible))
    work, v, h = make_block(len(to_visible.bias), len(to_hidden.bias), size)
    no_offset = np.zeros(len(work.flips), np.float32)
    for first in range(0, len(visible), size):
        block = slice(first, min(first + size, len(visible)))
        starts, steps, cooling = visible[block], num_steps[block], np.float32(1.0) / temperature[block]
        start(work, starts, v, h, to_hidden.tiles)
        for step in range(steps.max()):
            work.passes[:] = 0
            for c in range(len(starts)):
                if step < steps[c]:
                    seed, number, slope = seeds[first + c], first_step[first + c] + step, cooling[c]
                    _draw(work, h, c, to_hidden, unit * slope, no_offset, slope, seed, number, HIDDEN_LAYER)
                    _turn(work, h, c, to_hidden.width, 8 if step == 0 else 4)
            if step == 0:
                add_first_rows(v.sums, to_visible.tiles, work.turned_on, work.passes)
            else:
                add_rows(v.sums, to_visible.tiles, work.turned_on, work.turned_off, work.passes)
            for c in range(len(starts)):
                if step < steps[c]:
                    seed, number, slope = seeds[first + c], first_step[first + c] + step, cooling[c]
                    _draw(work, v, c, to_visible, unit * slope, no_offset, slope, seed, number, VISIBLE_LAYER)
                    if len(clamp) > 0:
                        _keep(work.flips, clamp[first + c])
                    _turn(work, v, c, to_visible.width, 4)
            add_rows(h.sums, to_hidden.tiles, work.turned_on, work.turned_off, work.passes)
        for c in range(len(starts)):
            _copy(visible[first + c], v.state[c, : to_visible.width])
            if len(hidden_sums) > 0:
                _copy(hidden_sums[first + c], h.sums[c])
            if len(probs) > 0 and steps[c] == 0:
                _copy(probs[first + c], starts[c])
            elif len(probs) > 0:
                look(probs[first + c], v.sums[c], to_visible.bias, unit * cooling[c], cooling[c])
                if len(clamp) > 0:
                    _show_kept(probs[first + c], clamp[first + c], visible[first + c])


@jit
def _keep(flips, clamp):
    for j in range(len(clamp)):
        flips[j] &= np.uint8(not clamp[j])


@jit
def _show_kept(probs, clamp, visible):
    for i in range(len(probs)):
        if clamp[i]:
            probs[i] = visible[i]


@jit
def look(probs, sums, bias, scale, slope):
    """probs = sigmoid(logits), given the sums of the layer's inputs."""
    for j in range(len(probs)):
        probs[j] = np.float32(1.0) / (np.float32(1.0) + exp_minus(slope * bias[j] + scale * np.float32(sums[j])))


@jit
def sum_in_lanes(values):
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


@jit
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


@jit
def _log_ratio(sums, hidden, unit, beta, next_beta, terms, factors):
    """sum_j softplus(beta' x_j) - softplus(beta x_j), with softplus(x) = max(x, 0) + log(1 + exp(-|x|)).

    `terms` and `factors` are working memory, padded with 0 and 1.
    """
    for j in range(hidden.width):
        x = hidden.bias[j] + unit * np.float32(sums[j])
        top = np.float32(1.0) + exp_minus(np.float32(next_beta) * abs(x))
        bottom = np.float32(1.0) + exp_minus(np.float32(beta) * abs(x))
        terms[j] = max(x, np.float32(0.0))
        factors[j] = np.float64(top) / np.float64(bottom)
    return (next_beta - beta) * sum_in_lanes(terms) + _log_product(factors)


@jit
def _bias_sum(state, bias, base, terms):
    """(bias - base) . v, float64; `terms` is working memory, padded with 0."""
    for j in range(len(terms)):
        terms[j] = np.float64(state[j]) * (np.float64(bias[j]) - np.float64(base[j]))
    return sum_in_lanes(terms)


@jit
def anneal(visible, log_weights, seeds, first_step, betas, moving, base, to_hidden, to_visible, unit):
    """Weighs and, if `moving`, moves every chain along `betas`; see `NumbaEngine.anneal`."""
    size = min(BLOCK, len(visible))
    work, v, h = make_block(len(to_visible.bias), len(to_hidden.bias), size)
    terms, factors = np.zeros(len(to_hidden.bias)), np.ones(len(to_hidden.bias))
    bias_terms, no_offset = np.zeros(len(to_visible.bias)), np.zeros(len(to_hidden.bias), np.float32)
    for first in range(0, len(visible), size):
        num_chains = min(size, len(visible) - first)
        start(work, visible[first : first + num_chains], v, h, to_hidden.tiles)
        for k in range(len(betas) - 1):
            beta, next_beta = betas[k], betas[k + 1]
            for c in range(num_chains):
                bias_change = (next_beta - beta) * _bias_sum(v.state[c], to_visible.bias, base, bias_terms)
                log_weights[first + c] += bias_change
                log_weights[first + c] += _log_ratio(h.sums[c], to_hidden, unit, beta, next_beta, terms, factors)
            if not moving:
                continue
            slope, step, work.passes[:] = np.float32(next_beta), first_step + k, 0
            offset = np.float32(1.0 - next_beta) * base
            for c in range(num_chains):
                _draw(work, h, c, to_hidden, unit * slope, no_offset, slope, seeds[first + c], step, HIDDEN_LAYER)
                # At beta 0 the bias of a padding unit is gone, so padding is kept off by hand.
                work.flips[to_hidden.width :] = 0
                _turn(work, h, c, to_hidden.width, 4)
            add_rows(v.sums, to_visible.tiles, work.turned_on, work.turned_off, work.passes)
            for c in range(num_chains):
                _draw(work, v, c, to_visible, unit * slope, offset, slope, seeds[first + c], step, VISIBLE_LAYER)
                _turn(work, v, c, to_visible.width, 4)
            add_rows(h.sums, to_hidden.tiles, work.turned_on, work.turned_off, work.passes)
        visible[first : first + num_chains] = v.state[:num_chains, : to_visible.width]


@jit
def free_energies(visible, energies, to_hidden, visible_bias, unit):
    """energies[row] = F(row) of the rounded model, nats: a sum of rows and one log of a product, no matrix."""
    size = min(BLOCK, len(visible))
    work, v, h = make_block(len(visible_bias), len(to_hidden.bias), size)
    terms, factors = np.zeros(len(to_hidden.bias)), np.ones(len(to_hidden.bias))
    bias_terms, no_base = np.zeros(len(visible_bias)), np.zeros(len(visible_bias), np.float32)
    for first in range(0, len(visible), size):
        num_rows = min(size, len(visible) - first)
        start(work, visible[first : first + num_rows], v, h, to_hidden.tiles)
        for row in range(num_rows):
            for j in range(to_hidden.width):
                x = to_hidden.bias[j] + unit * np.float32(h.sums[row, j])
                terms[j] = max(x, np.float32(0.0))
                factors[j] = np.float64(1.0) + np.float64(exp_minus(abs(x)))
            bias_sum = _bias_sum(v.state[row], visible_bias, no_base, bias_terms)
            energies[first + row] = -bias_sum - sum_in_lanes(terms) - _log_product(factors)


@jit
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


@jit
def _mean_field_half(state, rows, bias, cooling, probs):
    _copy(probs, bias)
    for i in range(len(state)):
        if state[i] != np.float32(0.0):
            for j in range(len(probs)):
                probs[j] += state[i] * rows[i, j]
    for j in range(len(probs)):
        probs[j] = np.float32(1.0) / (np.float32(1.0) + exp_minus(probs[j] * cooling))
