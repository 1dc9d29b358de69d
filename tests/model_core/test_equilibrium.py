"""Equilibrium samples have the enumerated distribution, where plain chains have not; mutants of the exchange fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import load, save

from model_core.chains import run_chains
from model_core.engine_numba import NumbaEngine
from model_core.equilibrium import EquilibriumSampler, Ladder, fill_reservoir, format_ladder, parse_ladder
from model_core.exact import all_states, state_codes, visible_distribution
from model_core.randomness import chain_seeds, noise
from model_core.rbm import RBMParams, checked_params

NUM_SAMPLES = NUM_MEMBERS = 20_000
FALSE_ALARM = 1e-6
ROUNDS = 40


@pytest.fixture(scope="module")
def two_modes() -> RBMParams:
    """All pixels on or all off, about 1 to 4; a chain never crosses, and one from noise falls to either side."""
    return checked_params(np.full((4, 4), 6.0), np.full(4, -12.0 - 0.35), np.full(4, -12.0))


def weaker(params: RBMParams, factor: float) -> RBMParams:
    return checked_params(*(factor * array for array in params))


def exact_draws(params: RBMParams, num_draws: int) -> np.ndarray:
    codes = np.random.default_rng(7).choice(16, num_draws, p=visible_distribution(params))
    states = all_states(4).astype(np.uint8)
    return states[np.argsort(state_codes(states))][codes]


def ladder_of(params: RBMParams) -> Ladder:
    rungs = tuple(weaker(params, factor) for factor in (0.0, 0.2, 0.4, 0.6, 0.8))
    return Ladder(rungs, exact_draws(rungs[0], NUM_MEMBERS), ROUNDS)


def sampler_of(params: RBMParams) -> EquilibriumSampler:
    return EquilibriumSampler(params, ladder_of(params), NumbaEngine(num_threads=1))


def drift(params: RBMParams, samples: np.ndarray) -> float:
    frequencies = np.bincount(state_codes(samples), minlength=16) / len(samples)
    return float(0.5 * np.abs(frequencies - visible_distribution(params)).sum())


def bound(params: RBMParams, foot: RBMParams) -> float:
    """Total variation that is exceeded with a probability below the false alarm: that of the samples and that of the
    members, each with half of it (mean plus McDiarmid)."""
    total = 0.0
    for target, num in ((visible_distribution(params), NUM_SAMPLES), (visible_distribution(foot), NUM_MEMBERS)):
        total += 0.5 * np.sqrt(target * (1 - target) / num).sum() + math.sqrt(math.log(2 / FALSE_ALARM) / (2 * num))
    return total


@pytest.mark.parametrize("kind", ["machine", "two_modes"])
def test_samples_have_the_models_distribution(kind: str, request: pytest.FixtureRequest) -> None:
    params = request.getfixturevalue(kind)
    samples, probs = sampler_of(params).sample(chain_seeds(1, NUM_SAMPLES))
    assert drift(params, samples) < bound(params, weaker(params, 0.0))
    assert probs.shape == samples.shape and 0 <= probs.min() <= probs.max() <= 1


def test_plain_chains_from_noise_do_not(two_modes: RBMParams) -> None:
    seeds = chain_seeds(1, NUM_SAMPLES)
    samples = run_chains(two_modes, noise(seeds, 4), num_steps=500, seeds=seeds, engine=NumbaEngine(num_threads=1))
    assert drift(two_modes, samples) > bound(two_modes, weaker(two_modes, 0.0))


def test_a_wrong_sign_is_noticed(two_modes: RBMParams, monkeypatch: pytest.MonkeyPatch) -> None:
    right = EquilibriumSampler._log_weights
    monkeypatch.setattr(EquilibriumSampler, "_log_weights", lambda *arguments: -right(*arguments))
    samples, _ = sampler_of(two_modes).sample(chain_seeds(1, NUM_SAMPLES))
    assert drift(two_modes, samples) > bound(two_modes, weaker(two_modes, 0.0))


def test_a_foot_that_is_never_refreshed_is_noticed(two_modes: RBMParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sample hangs on the one member that it began with, a state of one mode, and leaves it too seldom."""
    ladder = ladder_of(two_modes)
    ladder = ladder._replace(members=np.zeros((1, 4), np.uint8), rungs=ladder.rungs[-1:])
    samples, _ = EquilibriumSampler(two_modes, ladder, NumbaEngine(num_threads=1)).sample(chain_seeds(1, NUM_SAMPLES))
    assert drift(two_modes, samples) > bound(two_modes, weaker(two_modes, 0.0))


def test_a_reservoir_of_the_model_itself(two_modes: RBMParams) -> None:
    ladder = Ladder((), exact_draws(two_modes, NUM_MEMBERS), 20)
    samples, _ = EquilibriumSampler(two_modes, ladder, NumbaEngine(num_threads=1)).sample(chain_seeds(1, NUM_SAMPLES))
    assert drift(two_modes, samples) < bound(two_modes, two_modes)


def test_a_filled_reservoir_has_the_models_distribution(machine: RBMParams) -> None:
    start = noise(chain_seeds(5, 4_000), 4)
    members = fill_reservoir(machine, start, num_members=NUM_MEMBERS, burn_in=500, steps_apart=50)
    assert members.shape == (NUM_MEMBERS, 4)
    assert drift(machine, members) < bound(machine, machine)


@pytest.mark.parametrize("num_rungs", [0, 2, 5])
def test_a_sample_depends_on_its_own_seed_only(machine: RBMParams, num_rungs: int) -> None:
    ladder = ladder_of(machine)
    ladder = ladder._replace(rungs=ladder.rungs[:num_rungs])
    sampler = EquilibriumSampler(machine, ladder, NumbaEngine(num_threads=2, worth_sharing=0))
    seeds = chain_seeds(9, 50)
    states, probs = sampler.sample(seeds)
    alone_states, alone_probs = sampler.sample(seeds[31:32])
    assert (alone_states == states[31:32]).all() and (alone_probs == probs[31:32]).all()
    assert len(np.unique(sampler.sample(chain_seeds(10, 50))[0] == states)) == 2, "other seeds, other samples"


@pytest.mark.parametrize("num_rungs", [0, 3])
def test_any_cut_of_the_rounds_gives_the_same_bits(machine: RBMParams, num_rungs: int) -> None:
    ladder = ladder_of(machine)
    sampler = EquilibriumSampler(machine, ladder._replace(rungs=ladder.rungs[:num_rungs]))
    seeds = chain_seeds(2, 30)
    replicas = start = sampler.start(seeds)
    kept = start.states.copy()
    for num_rounds in (1, 7, 0, 12, ROUNDS - 20):
        replicas = sampler.advance(replicas, seeds, num_rounds)
    states, probs = sampler.sample(seeds)
    assert (replicas.states[-1] == states).all() and (replicas.visible_probs == probs).all()
    assert (start.states == kept).all(), "what comes in is left as it is"
    assert (list(sampler.rounds(seeds))[-1] == states).all()


def test_ladder_file_round_trip(machine: RBMParams) -> None:
    ladder = ladder_of(weaker(machine, 0.5))
    found = parse_ladder(format_ladder(ladder), 4, 4)
    assert (found.members == ladder.members).all() and found.num_rounds == ROUNDS and len(found.rungs) == 5
    for rung, stored in zip(ladder.rungs, found.rungs, strict=True):
        assert np.allclose(rung.weights, stored.weights, atol=2e-3)
        assert (rung.visible_bias == stored.visible_bias).all() and (rung.hidden_bias == stored.hidden_bias).all()
    assert parse_ladder(format_ladder(ladder._replace(rungs=())), 4, 4).rungs == ()


def changed(content: bytes, **tensors: np.ndarray) -> bytes:
    return bytes(save({**load(content), **tensors}))


def test_damaged_ladder_files_are_refused(machine: RBMParams) -> None:
    good = format_ladder(ladder_of(machine))
    rung = load(good)["weights.1"]
    bad = {
        "empty": b"",
        "cut": good[:-10],
        "noise": bytes(range(256)) * 10,
        "no members": changed(good, members=np.empty((0, 1), np.uint8)),
        "members of another width": changed(good, members=np.zeros((5, 2), np.uint8)),
        "members that are not packed": changed(good, members=np.zeros((5, 1), np.float32)),
        "no rounds": changed(good, num_rounds=np.array([0])),
        "rounds for ever": changed(good, num_rounds=np.array([10**9])),
        "an empty number": changed(good, num_rounds=np.empty(0, np.int64)),
        "another size": changed(good, num_visible=np.array([5])),
        "a rung of another shape": changed(good, **{"weights.1": rung[:3]}),
        "a rung that is not finite": changed(good, **{"weights.1": np.full_like(rung, np.nan)}),
        "a rung without its neighbour": bytes(save({k: v for k, v in load(good).items() if k != "weights.0"})),
    }
    for what, content in bad.items():
        with pytest.raises(ValueError):
            parse_ladder(content, 4, 4)
            pytest.fail(f"accepted: {what}")
    with pytest.raises(ValueError, match="another model"):
        parse_ladder(good, 4, 5)
