"""The keyed generator: known values, an independent statement, and statistics of the streams as chains use them.

Every statistic is compared with a limit of 6 standard errors (false alarm 2e-9 each, two-sided, and fewer than 200 of
them); seeds are fixed, so a test that passes once always passes. `tests/benchmarks/randomness_battery.py` asks more.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from model_core import randomness
from model_core.randomness import HIDDEN_LAYER, VISIBLE_LAYER, chain_seeds, mix, noise, random_words, uniforms

LIMIT = 6.0
# Outputs of SplitMix64 seeded with 1234567, as the reference C program prints them.
KNOWN_SEED = 1234567
KNOWN_WORDS = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


class SplitMix64:
    """The generator as its paper states it, with a state that moves on, in Python's own integers."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        word = self.state
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        return word ^ word >> 31


def plain_words(seed: int, step: int, layer: int, num_units: int) -> list[int]:
    """`random_words` of one chain, drawn one after the other."""
    keys = SplitMix64(seed)
    for _ in range(2 * step + layer):
        keys.next()
    words = SplitMix64(keys.next())
    halves = [half for _ in range(num_units) for half in divmod(words.next(), 2**32)[::-1]]
    return halves[:num_units]


def test_the_plain_generator_gives_the_known_words() -> None:
    generator = SplitMix64(KNOWN_SEED)
    assert [generator.next() for _ in KNOWN_WORDS] == KNOWN_WORDS


def test_mix_gives_the_known_words() -> None:
    counters = np.array([(KNOWN_SEED + n * randomness.GAMMA) % 2**64 for n in range(1, 6)], np.uint64)
    assert mix(counters).tolist() == KNOWN_WORDS


@pytest.mark.parametrize("num_units", [1, 2, 3, 33, 784])
@pytest.mark.parametrize(("step", "layer"), [(0, HIDDEN_LAYER), (0, VISIBLE_LAYER), (7, HIDDEN_LAYER), (500, 1)])
def test_random_words_equal_the_plain_generator(num_units: int, step: int, layer: int) -> None:
    seeds = np.array([0, 1, KNOWN_SEED, 2**63, 2**64 - 1], np.uint64)
    words = random_words(seeds, step, layer, num_units)
    assert words.shape == (5, num_units) and words.dtype == np.uint32
    assert words.tolist() == [plain_words(int(seed), step, layer, num_units) for seed in seeds]


def test_chain_seeds_depend_on_the_chain_not_on_the_company() -> None:
    together = chain_seeds(42, 1000)
    assert together.dtype == np.uint64
    np.testing.assert_array_equal(chain_seeds(42, 3), together[:3])
    np.testing.assert_array_equal(chain_seeds(42, 10, first_chain=990), together[990:])
    assert chain_seeds(42, 0).shape == (0,)


def test_seeds_and_keys_do_not_collide() -> None:
    """300 million pairs collide by chance with probability 2e-11."""
    seeds = np.concatenate([chain_seeds(seed, 64) for seed in (*range(200), 2**31, 2**63 - 1)])
    assert len(np.unique(seeds)) == len(seeds)
    keys = [randomness.layer_keys(chain_seeds(0, 64), step, layer) for step in range(100) for layer in (0, 1)]
    assert len(np.unique(np.concatenate([seeds, *keys]))) == len(seeds) + 64 * 200


def test_uniforms_stay_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = chain_seeds(0, 2)
    expected = (random_words(seeds, 3, 1, 9).astype(float) + 0.5) / 2.0**32
    np.testing.assert_array_equal(uniforms(seeds, 3, 1, 9), expected)
    extremes = np.array([[0, 2**32 - 1]], np.uint32)
    monkeypatch.setattr(randomness, "random_words", lambda *_: extremes)
    assert uniforms(seeds, 0, 0, 2).tolist() == [[2.0**-33, 1 - 2.0**-33]]


def test_noise_is_fair_and_differs_from_every_steps_noise() -> None:
    flips = noise(chain_seeds(5, 500), 784)
    assert flips.dtype == np.uint8 and set(np.unique(flips)) == {0, 1}
    assert abs(flips.mean() - 0.5) < LIMIT * 0.5 / np.sqrt(flips.size)
    first = uniforms(chain_seeds(5, 500), 0, VISIBLE_LAYER, 784) < 0.5
    assert abs((flips == first).mean() - 0.5) < LIMIT * 0.5 / np.sqrt(flips.size)


def stream(name: str) -> np.ndarray:
    """100,000 or more words in one of the orders that chains use them in, one dimension."""
    streams = {
        "units": lambda: random_words(chain_seeds(0, 1), 0, VISIBLE_LAYER, 200_000),
        "chains": lambda: random_words(chain_seeds(0, 50_000), 0, HIDDEN_LAYER, 4).T,
        "steps": lambda: np.concatenate([random_words(chain_seeds(0, 4), step, 0, 8) for step in range(5_000)]).T,
        "seeds": lambda: np.concatenate([random_words(chain_seeds(seed, 1), 0, 0, 8) for seed in range(20_000)]).T,
    }
    return np.ascontiguousarray(streams[name]()).reshape(-1)


@pytest.fixture(scope="module", params=["units", "chains", "steps", "seeds"])
def words(request: pytest.FixtureRequest) -> np.ndarray:
    return stream(request.param)


def test_every_bit_is_fair(words: np.ndarray) -> None:
    ones = (words[:, None] >> np.arange(32, dtype=np.uint32) & 1).mean(axis=0)
    assert np.abs(ones - 0.5).max() < LIMIT * 0.5 / np.sqrt(len(words))


def test_bytes_are_uniform(words: np.ndarray) -> None:
    for shift in (0, 8, 16, 24):
        counts = np.bincount(words >> np.uint32(shift) & np.uint32(255), minlength=256)
        expected = len(words) / 256
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - 255) < LIMIT * np.sqrt(2 * 255)


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 784])
def test_neighbours_in_a_stream_are_independent(words: np.ndarray, lag: int) -> None:
    """Neither as numbers (correlation) nor as bits (half of them differ)."""
    assert independence(words[:-lag], words[lag:]) < LIMIT


PLACES = {
    "layers": ((0, 0), (0, 1)),
    "steps": ((0, 0), (1, 0)),
    "step and layer": ((0, 1), (1, 0)),
    "visible steps": ((3, 1), (4, 1)),
    "far steps": ((0, 0), (2**40, 0)),
}


@pytest.mark.parametrize("name", PLACES)
def test_half_steps_are_independent(name: str) -> None:
    left, right = (random_words(chain_seeds(1, 400), step, layer, 500) for step, layer in PLACES[name])
    assert independence(left, right) < LIMIT


def test_requests_with_neighbouring_seeds_are_independent() -> None:
    requests = [random_words(chain_seeds(seed, 200), 0, 0, 500) for seed in (0, 1, 2, 3, 2**32)]
    for left, right in itertools.combinations(requests, 2):
        assert independence(left, right) < LIMIT
        assert independence(left[1:], right[:-1]) < LIMIT  # chain i + 1 of one, chain i of the other


@pytest.mark.parametrize("shift", [0, 1, 16])
def test_the_independence_test_has_teeth(shift: int) -> None:
    """Words of which one in 50 repeats another stream's word, or some of its bits, are caught."""
    left, fresh = (random_words(chain_seeds(9, 200), step, 0, 500) for step in (0, 1))
    copied = np.arange(fresh.size).reshape(fresh.shape) % 50 == 0
    assert independence(left, np.where(copied, left >> np.uint32(shift) << np.uint32(shift), fresh)) > LIMIT


def independence(left: np.ndarray, right: np.ndarray) -> float:
    """The worse of two statistics in standard errors: correlation of the numbers, and how many bits differ."""
    left, right = left.reshape(-1), right.reshape(-1)
    correlation = np.corrcoef(left.astype(float), right.astype(float))[0, 1] * np.sqrt(len(left))
    different_bits = np.bitwise_count(left ^ right).mean()  # mean 16, variance 8
    return max(abs(correlation), abs(different_bits - 16) / np.sqrt(8 / len(left)))
