"""The chains' random numbers as a raw stream, for a statistical battery: is the noise as good as the chains need?

    python -m tests.benchmarks.randomness_battery STREAM [--seed N] | dieharder -g 200 -a

writes the 32-bit words of `model_core.randomness` to stdout without end, in the order in which a chain meets them or
in one of the orders in which a weakness of keyed generators would show:

    units    one chain of a 784x500 machine: every hidden word, then every visible word, step by step
    chains   the same unit of 1,024 neighbouring chains (one request), then the next unit
    steps    the same unit of one chain in 1,024 neighbouring steps, then the next unit
    layers   hidden and visible word of the same unit in turn: h0 v0 h1 v1 ...
    seeds    the first word of chain 0 for seed = 0, 1, 2, ... (what users type), then the second word

Dieharder (Brown, Eddelbuettel and Bauer, "Dieharder: A Random Number Test Suite") is a Debian package; TestU01's and
PractRand's stdin programs read the same stream. Its verdicts are PASSED, WEAK (p below 0.005 or above 0.995: one in
a hundred by chance) and FAILED (p below 1e-6 or above 1 - 1e-6).

Figures (dieharder 3.31.1, 2026-11-23; its Diehard, STS, DAB and some RGB tests, each with a seed of its own): 311
p-values, none FAILED, 9 WEAK, half of them from `sts_serial`, whose 30 p-values a stream are not independent.

    stream    p-values   WEAK   furthest from 1/2
    units           69      3   0.00012 dab_bytedistrib (repeated with 16 other seeds: 16 PASSED, least p 0.10)
    chains          69      2   0.9971  sts_serial
    steps           69      3   0.9999  marsaglia_tsang_gcd (not repeated)
    layers          54      0   0.9882  sts_serial
    seeds           50      1   0.0033  sts_serial

Two-sided, the furthest of 311 independent p-values is that far out in 7 of 100 batteries.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator

import numpy as np

from model_core.randomness import GAMMA, HIDDEN_LAYER, VISIBLE_LAYER, chain_seeds, random_words

NUM_VISIBLE, NUM_HIDDEN = 784, 500
NUM_SIDE_BY_SIDE = 1024  # chains or steps of one block


def step_seeds(seed: int, first_step: int, num_steps: int) -> np.ndarray:
    """Seeds whose step 0 is step `first_step` + i of chain 0: many steps in one call, uint64 [num_steps].

    A key is mix(seed + (2 * step + layer + 1) * GAMMA), so moving the seed by 2 * GAMMA a step is moving the step.
    """
    steps = np.arange(first_step, first_step + num_steps, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return chain_seeds(seed, 1) + steps * np.uint64(2) * np.uint64(GAMMA)


def units(seed: int, block: int) -> np.ndarray:
    seeds = step_seeds(seed, block * NUM_SIDE_BY_SIDE, NUM_SIDE_BY_SIDE)
    layers = [(HIDDEN_LAYER, NUM_HIDDEN), (VISIBLE_LAYER, NUM_VISIBLE)]
    return np.concatenate([random_words(seeds, 0, layer, num_units) for layer, num_units in layers], axis=1)


def chains(seed: int, block: int) -> np.ndarray:
    step, layer = divmod(block, 2)
    return random_words(chain_seeds(seed, NUM_SIDE_BY_SIDE), step, layer, (NUM_HIDDEN, NUM_VISIBLE)[layer]).T


def steps(seed: int, block: int) -> np.ndarray:
    first_block, layer = divmod(block, 2)
    seeds = step_seeds(seed, first_block * NUM_SIDE_BY_SIDE, NUM_SIDE_BY_SIDE)
    return random_words(seeds, 0, layer, (NUM_HIDDEN, NUM_VISIBLE)[layer]).T


def layers(seed: int, block: int) -> np.ndarray:
    seeds = step_seeds(seed, block * NUM_SIDE_BY_SIDE, NUM_SIDE_BY_SIDE)
    hidden, visible = (random_words(seeds, 0, layer, NUM_HIDDEN) for layer in (HIDDEN_LAYER, VISIBLE_LAYER))
    return np.stack([hidden, visible], axis=-1)


def seeds(seed: int, block: int) -> np.ndarray:
    first = seed + block * NUM_SIDE_BY_SIDE
    typed = np.concatenate([chain_seeds(first + i, 1) for i in range(NUM_SIDE_BY_SIDE)])
    return random_words(typed, 0, HIDDEN_LAYER, NUM_HIDDEN).T


STREAMS: dict[str, Callable[[int, int], np.ndarray]] = {
    "units": units,
    "chains": chains,
    "steps": steps,
    "layers": layers,
    "seeds": seeds,
}


def stream(name: str, seed: int) -> Iterator[bytes]:
    """The raw little-endian words of one stream, block by block, without end."""
    for block in itertools.count():
        yield np.ascontiguousarray(STREAMS[name](seed, block), "<u4").tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", choices=STREAMS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        for words in stream(arguments.stream, arguments.seed):
            sys.stdout.buffer.write(words)
    except BrokenPipeError:
        # The battery has had enough: close stdout here, or the interpreter complains about it on its way out.
        sys.stderr.close()


if __name__ == "__main__":
    main()
