"""Random numbers keyed by (chain's seed, step, layer, unit): no state, so chains can be cut and moved at will.

The generator is SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators",
figure 14; the mixing function is Stafford's variant 13). Its n-th output is mix(seed + n * GAMMA), a pure
function of a counter. We use it twice:

    key  = mix(seed + (2 * step + layer + 1) * GAMMA)       layer: 0 hidden, 1 visible
    word = mix(key + (n + 1) * GAMMA)                       n = 0, 1, ...

and each 64-bit word serves two units: unit 2n takes the low 32 bits, unit 2n+1 the high ones.
This module is the plain NumPy statement of it; the engines repeat it in their own language and are tested
against it bit for bit.
"""

from __future__ import annotations

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
HIDDEN_LAYER, VISIBLE_LAYER = 0, 1
_FEW = 16  # numbers, for which Python is faster than NumPy
START_STEP = 2**63 - 1  # a step that no chain reaches: its key draws the noise that a sample starts from


def mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: uint64 in, uint64 out, element by element, one to one."""
    state = np.asarray(state, np.uint64)
    with np.errstate(over="ignore"):
        state = (state ^ (state >> np.uint64(30))) * np.uint64(MIX_1)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(MIX_2)
    return state ^ (state >> np.uint64(31))


def _mix_one(state: int) -> int:
    """`mix` of one number."""
    state = (state ^ (state >> 30)) * MIX_1 % 2**64
    state = (state ^ (state >> 27)) * MIX_2 % 2**64
    return state ^ (state >> 31)


def chain_seeds(seed: int, num_chains: int, first_chain: int = 0) -> np.ndarray:
    """The seeds of the chains of one request: hash(seed, i), uint64 [num_chains].

    A chain's seed depends on `seed` and on its own index alone, not on how many chains there are.
    """
    # Mixed twice, so that neighbouring seeds and neighbouring chains share no arithmetic progression.
    mixed = _mix_one(seed % 2**64)
    if num_chains <= _FEW:
        return np.array(
            [_mix_one((mixed + (first_chain + n) * GAMMA) % 2**64) for n in range(1, num_chains + 1)], np.uint64
        )
    index = np.arange(first_chain, first_chain + num_chains, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return mix(np.uint64(mixed) + (index + np.uint64(1)) * np.uint64(GAMMA))


def layer_keys(seeds: np.ndarray, step: int, layer: int) -> np.ndarray:
    """The key of each chain's half-step, uint64 [chains]."""
    counter = np.uint64((2 * step + layer + 1) * GAMMA % 2**64)
    with np.errstate(over="ignore"):
        return mix(np.asarray(seeds, np.uint64) + counter)


def random_words(seeds: np.ndarray, step: int, layer: int, num_units: int) -> np.ndarray:
    """One 32-bit random word for each unit of one half-step, uint32 [chains, num_units]."""
    words = _double_words(seeds, step, layer, num_units)
    return words.astype("<u8", copy=False).view("<u4")[:, :num_units].astype(np.uint32, copy=False)


def _double_words(seeds: np.ndarray, step: int, layer: int, num_units: int) -> np.ndarray:
    """A 64-bit word for every two units, the lower half for the first; uint64 [chains, words]."""
    counters = np.arange(1, (num_units + 1) // 2 + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return mix(layer_keys(seeds, step, layer)[:, None] + counters * np.uint64(GAMMA))


def uniforms(seeds: np.ndarray, step: int, layer: int, num_units: int) -> np.ndarray:
    """Uniform numbers in (0, 1): (word + 1/2) / 2^32, float64 [chains, num_units]."""
    return (random_words(seeds, step, layer, num_units) + 0.5) / 2.0**32


def noise(seeds: np.ndarray, num_units: int) -> np.ndarray:
    """Fair coin flips, the start of a sample: the highest bit of each unit's word, uint8 0 or 1 [chains, num_units]."""
    words = _double_words(seeds, START_STEP, VISIBLE_LAYER, num_units)
    flips = np.empty((*words.shape, 2), np.uint8)
    flips[:, :, 0] = (words >> np.uint64(31)) & np.uint64(1)
    flips[:, :, 1] = words >> np.uint64(63)
    return flips.reshape(len(words), -1)[:, :num_units]
