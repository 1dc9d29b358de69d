"""Estimates of log Z against enumeration: unbiased at few temperatures, with mutants that must fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model_core.annealing import (
    ReferenceAnnealer,
    base_log_z,
    base_rate_bias,
    intermediate_params,
    log_p_star,
    sample_base,
    spread_betas,
    standard_betas,
    thermodynamic_length,
)
from model_core.exact import all_states, log_partition, visible_distribution
from model_core.likelihood import (
    bennett_log_ratio,
    estimate_log_z_ais,
    estimate_log_z_reverse,
    log_mean_exp,
    mean_log_likelihood,
)
from model_core.randomness import chain_seeds
from model_core.rbm import RBMParams, checked_params, free_energy

NUM_CHAINS = 20_000
FEW_BETAS = np.linspace(0.0, 1.0, 20)
BASE = np.array([0.3, -0.5, 0.0, 1.0], np.float32)
LIMIT = 5.0  # standard errors: false alarm about 6e-7 a test
REFERENCE = ReferenceAnnealer()


def exact_draws(params: RBMParams, num_chains: int, seed: int) -> np.ndarray:
    probs = visible_distribution(params)
    return all_states(params.num_visible)[np.random.default_rng(seed).choice(len(probs), num_chains, p=probs)]


def z_score(log_weights: np.ndarray, truth: float) -> float:
    """How many standard errors the mean weight lies from exp(truth)."""
    weights = np.exp(log_weights - truth)
    return float((weights.mean() - 1) / (weights.std(ddof=1) / np.sqrt(len(weights))))


def moves_before_weighting(
    prepared: RBMParams,
    base: np.ndarray,
    betas: np.ndarray,
    visible: np.ndarray,
    seeds: np.ndarray,
    first_step: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    log_weights = np.zeros(len(visible))
    for step, (beta, next_beta) in enumerate(itertools.pairwise(betas), start=first_step):
        _, visible = REFERENCE.anneal(prepared, base, np.array([next_beta, next_beta]), visible, seeds, step)
        log_weights += log_p_star(prepared, base, next_beta, visible) - log_p_star(prepared, base, beta, visible)
    return log_weights, visible


def starts_at_second_beta(prepared: Any, base: Any, betas: np.ndarray, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
    return REFERENCE.anneal(prepared, base, betas[1:], *rest)


def stops_one_early(prepared: Any, base: Any, betas: np.ndarray, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
    return REFERENCE.anneal(prepared, base, betas[:-1], *rest)


class Mutant(ReferenceAnnealer):
    def __init__(self, anneal: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        self.anneal = anneal  # type: ignore[method-assign]


def ais(params: RBMParams, engine: ReferenceAnnealer | None = REFERENCE, seed: int = 1) -> Any:
    return estimate_log_z_ais(
        params, base_visible_bias=BASE, num_chains=NUM_CHAINS, betas=FEW_BETAS, seed=seed, engine=engine
    )


def test_ais_is_unbiased_for_z(machine: RBMParams) -> None:
    for seed in (1, 2, 3):
        estimate = ais(machine, seed=seed)
        assert abs(z_score(estimate.log_weights, log_partition(machine))) < LIMIT
        assert abs(estimate.log_z - log_partition(machine)) < LIMIT * estimate.error


@pytest.mark.parametrize("mutant", [moves_before_weighting, starts_at_second_beta, stops_one_early])
def test_the_ais_test_has_teeth(machine: RBMParams, mutant: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    assert abs(z_score(ais(machine, Mutant(mutant)).log_weights, log_partition(machine))) > LIMIT


def test_ais_is_exact_without_weights() -> None:
    params = checked_params(np.zeros((4, 3)), BASE, np.array([2.0, -1.0, 0.5]))
    log_weights = ais(params).log_weights
    np.testing.assert_allclose(log_weights, log_partition(params), rtol=0, atol=1e-6)


def test_reverse_is_unbiased_for_the_inverse_of_z(machine: RBMParams) -> None:
    for seed in (1, 2, 3):
        samples = exact_draws(machine, NUM_CHAINS, seed)
        estimate = estimate_log_z_reverse(
            machine, samples, base_visible_bias=BASE, betas=FEW_BETAS, seed=seed, engine=REFERENCE
        )
        assert abs(z_score(estimate.log_weights, -log_partition(machine))) < LIMIT
        assert abs(estimate.log_z - log_partition(machine)) < LIMIT * estimate.error


@pytest.mark.parametrize("mutant", [moves_before_weighting, starts_at_second_beta, stops_one_early])
def test_the_reverse_test_has_teeth(machine: RBMParams, mutant: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    samples = exact_draws(machine, NUM_CHAINS, 1)
    estimate = estimate_log_z_reverse(
        machine, samples, base_visible_bias=BASE, betas=FEW_BETAS, seed=1, engine=Mutant(mutant)
    )
    assert abs(z_score(estimate.log_weights, -log_partition(machine))) > LIMIT


def test_the_two_directions_enclose_log_z_on_average(machine: RBMParams) -> None:
    """With two chains an estimate the biases are large: Jensen pulls one direction down, the other up."""
    log_z = log_partition(machine)
    forward = ais(machine).log_weights.reshape(-1, 2)
    backward = estimate_log_z_reverse(
        machine, exact_draws(machine, NUM_CHAINS, 1), base_visible_bias=BASE, betas=FEW_BETAS, seed=1, engine=REFERENCE
    ).log_weights.reshape(-1, 2)
    assert np.mean([log_mean_exp(pair) for pair in forward]) < log_z
    assert np.mean([-log_mean_exp(pair) for pair in backward]) > log_z


def test_bennett_finds_the_ratio_and_its_error(machine: RBMParams) -> None:
    warm = intermediate_params(machine, BASE, 0.5)
    truth = log_partition(machine) - log_partition(warm)
    scores = []
    for seed in range(40):
        from_warm, from_cold = exact_draws(warm, 300, 2 * seed), exact_draws(machine, 700, 2 * seed + 1)
        log_ratio, error = bennett_log_ratio(
            free_energy(warm, from_warm) - free_energy(machine, from_warm),
            free_energy(machine, from_cold) - free_energy(warm, from_cold),
        )
        scores.append((log_ratio - truth) / error)
    assert np.abs(scores).max() < LIMIT
    assert abs(np.mean(scores)) < LIMIT / np.sqrt(len(scores))
    # The scores are nearly normal, so their spread is 1 within 5 standard errors of a standard deviation.
    assert abs(np.std(scores) - 1) < LIMIT / np.sqrt(2 * len(scores))


def test_bennett_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="each side"):
        bennett_log_ratio(np.array([]), np.array([1.0]))


@pytest.mark.parametrize("num_betas", [1, 19, 14_500])
def test_betas_rise_from_0_to_1(machine: RBMParams, num_betas: int) -> None:
    grid, lengths = thermodynamic_length(machine, BASE, engine=REFERENCE)
    for betas in (standard_betas(num_betas), spread_betas(grid, lengths, num_betas)):
        assert len(betas) == num_betas + 1
        assert (betas[0], betas[-1]) == (0.0, 1.0)
        assert (np.diff(betas) > 0).all()


def test_standard_betas_are_those_of_the_paper() -> None:
    betas = standard_betas(14_500)
    steps = np.diff(betas)[[0, 499, 500, 4_499, 4_500, 14_499]]
    np.testing.assert_allclose(steps, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_spread_betas_make_equal_steps_of_length() -> None:
    grid = np.linspace(0.0, 1.0, 101)
    betas = spread_betas(grid, grid**2, 10, even_share=0.0)  # length beta^2: steps sqrt(k / 10)
    np.testing.assert_allclose(betas, np.sqrt(np.arange(11) / 10), atol=1e-3)


def test_thermodynamic_length_matches_enumeration(machine: RBMParams) -> None:
    """Std of d log p* / d beta along the path, by enumeration; the pilot's 100 chains know it to about a tenth."""
    states, grid = all_states(4), np.linspace(0.0, 1.0, 201)
    speeds = []
    for beta in grid:
        log_probs = log_p_star(machine, BASE, beta, states)
        probs = np.exp(log_probs - np.logaddexp.reduce(log_probs))
        rise = log_p_star(machine, BASE, beta + 1e-2, states) - log_p_star(machine, BASE, beta - 1e-2, states)
        slopes = rise / 2e-2
        speeds.append(np.sqrt(probs @ slopes**2 - (probs @ slopes) ** 2))
    truth = np.mean(speeds)
    _, lengths = thermodynamic_length(machine, BASE, engine=REFERENCE)
    assert abs(lengths[-1] / truth - 1) < 0.2


def test_log_likelihood_of_independent_pixels() -> None:
    means = np.array([0.25, 0.5, 0.9])
    base = base_rate_bias(means)
    params = checked_params(np.zeros((3, 2)), base, np.zeros(2))
    visible = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    expected = np.log([0.25 * 0.5 * 0.9, 0.75 * 0.5 * 0.9]).mean()
    assert mean_log_likelihood(params, visible, base_log_z(base, 2)) == pytest.approx(expected, abs=1e-6)


def test_base_samples_have_the_pixel_means() -> None:
    means = np.array([0.0, 0.25, 0.9])
    drawn = sample_base(base_rate_bias(means), chain_seeds(7, NUM_CHAINS)).mean(axis=0)
    expected = np.clip(means, 0.001, 0.999)
    assert (np.abs(drawn - expected) < LIMIT * np.sqrt(expected * (1 - expected) / NUM_CHAINS)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": np.linspace(0.1, 1, 5)}, "rise from exactly 0"),
        ({"betas": np.array([0.0, 0.6, 0.4, 1.0])}, "rise from exactly 0"),
        ({"num_chains": 1}, "At least 2 chains"),
        ({"base_visible_bias": np.zeros(5)}, "shape"),
    ],
)
def test_bad_arguments_are_named(machine: RBMParams, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"base_visible_bias": BASE, "num_chains": 2, "betas": FEW_BETAS, "seed": 0}
    with pytest.raises(ValueError, match=message):
        estimate_log_z_ais(machine, **{**arguments, **change}, engine=REFERENCE)


def test_bad_pixel_means_are_named() -> None:
    with pytest.raises(ValueError, match="1/255"):
        base_rate_bias(np.array([0.0, 128.0]))
