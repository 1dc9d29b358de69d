"""Parallel tempering keeps a small machine's distribution and finds its log Z; without the swap rule it does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model_core import tempering
from model_core.annealing import ReferenceAnnealer, numba_annealer
from model_core.exact import all_states, log_partition, state_codes, visible_distribution
from model_core.randomness import chain_seeds
from model_core.rbm import RBMParams, checked_params

BASE = np.array([0.3, -0.5, 0.0, 1.0], np.float32)
NUM_LADDERS = 5_000


def drift_bound(target: np.ndarray, num_chains: int, false_alarm: float) -> float:
    """Total variation that exact draws exceed with a probability below `false_alarm` (mean plus McDiarmid)."""
    mean = 0.5 * np.sqrt(target * (1 - target) / num_chains).sum()
    return mean + math.sqrt(math.log(1 / false_alarm) / (2 * num_chains))


def tempered(params: RBMParams, num_chains: int = NUM_LADDERS, num_rounds: int = 24) -> tempering.Tempered:
    return tempering.equilibrium_samples(
        params,
        num_chains,
        base_visible_bias=BASE,
        seed=3,
        num_rounds=num_rounds,
        num_ladders=NUM_LADDERS,
        engine=ReferenceAnnealer(),
    )


def drift(params: RBMParams, samples: np.ndarray) -> float:
    frequencies = np.bincount(state_codes(samples), minlength=16) / len(samples)
    return float(0.5 * np.abs(frequencies - visible_distribution(params)).sum())


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A poor start, so that the ladder itself has to reach equilibrium."""
    monkeypatch.setattr(tempering, "_START_STEPS", 1)


def test_samples_have_the_models_distribution(machine: RBMParams) -> None:
    result = tempered(machine)
    assert drift(machine, result.samples) < drift_bound(visible_distribution(machine), NUM_LADDERS, 1e-6)


def test_always_swapping_is_noticed(machine: RBMParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempering, "uniforms", lambda seeds, step, layer, units: np.full((len(seeds), units), 1e-300))
    result = tempered(machine)
    assert drift(machine, result.samples) > drift_bound(visible_distribution(machine), NUM_LADDERS, 1e-6)


def test_log_z_along_the_rungs(machine: RBMParams) -> None:
    result = tempered(machine)
    assert abs(result.log_z - log_partition(machine)) < 7 * result.error  # 10 groups: t, not normal: 1e-4 two-sided
    assert result.error < 0.02


def test_neighbours_swap_about_as_often_as_planned(machine: RBMParams) -> None:
    strong = checked_params(*(3 * array for array in machine))
    acceptance = tempered(strong).swap_acceptance
    assert len(acceptance) >= 3
    assert 0.25 < acceptance.min() <= acceptance.max() < 0.8


def test_more_samples_than_ladders(machine: RBMParams) -> None:
    assert tempered(machine, num_chains=2 * NUM_LADDERS + 7).samples.shape == (2 * NUM_LADDERS + 7, 4)


def test_too_few_ladders_are_named(machine: RBMParams) -> None:
    with pytest.raises(ValueError, match="4 ladders"):
        tempered(machine, num_chains=3)


def test_weighing_is_annealing_without_the_move(machine: RBMParams) -> None:
    visible, base, betas = all_states(4), np.array([0.5, -1.0, 0.2, 0.0], np.float32), np.array([0.3, 0.7])
    seeds = chain_seeds(3, len(visible))
    for engine in (ReferenceAnnealer(), numba_annealer()):
        prepared = engine.prepare(machine)
        expected = engine.anneal(prepared, base, betas, visible, seeds)[0]
        np.testing.assert_allclose(engine.weigh(prepared, base, betas, visible), expected, atol=1e-5)
