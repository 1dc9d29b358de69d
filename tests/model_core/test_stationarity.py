"""Chains that start at the model's distribution must stay there, and move as the enumerated transition matrix says.

Distances are total variation; the bound is exceeded by a correct sampler with probability below `FALSE_ALARM` a test
(McDiarmid). Mutants, each a mistake that published RBM code has made, must exceed it: they show that the 4x4 machine
is a good one. Both engines run the same tests as the plain NumPy step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from model_core.chains import Engine
from model_core.exact import all_states, state_codes, visible_distribution
from model_core.randomness import HIDDEN_LAYER, VISIBLE_LAYER, chain_seeds, uniforms
from model_core.rbm import RBMParams
from tests.model_core.reference import gibbs_step, probs, run_chains

Array = np.ndarray
Kernel = Callable[[RBMParams, Array, Array, int], Array]  # (machine, visible, seeds, step) -> visible

NUM_CHAINS = 20_000
SWEEPS = (1, 3, 12)
FALSE_ALARM = 1e-6
STATES = all_states(4)
TEMPERATURES = (0.5, 2.0)
CLAMP = np.array([True, False, False, True])


def drift_bound(target: Array, num_tests: int, num_chains: int = NUM_CHAINS) -> float:
    """Total variation that any of `num_tests` batches of exact draws exceeds with probability < FALSE_ALARM.

    The mean of the distance is at most half the sum of the standard deviations; one draw moves it by at most
    1 / num_chains, which gives McDiarmid's deviation.
    """
    mean = 0.5 * np.sqrt(target * (1 - target) / num_chains).sum()
    return float(mean + math.sqrt(math.log(num_tests / FALSE_ALARM) / (2 * num_chains)))


def distance(visible: Array, target: Array) -> float:
    frequencies = np.bincount(state_codes(visible), minlength=len(target)) / len(visible)
    return float(0.5 * np.abs(frequencies - target).sum())


def worst_drift(kernel: Kernel, machine: RBMParams, target: Array) -> float:
    """The largest distance after 1, 3 and 12 sweeps from an exact start, over the bound: above 1 is a failure."""
    visible = STATES[np.random.default_rng(0).choice(len(target), NUM_CHAINS, p=target)]
    seeds, distances = chain_seeds(1, NUM_CHAINS), []
    for step in range(max(SWEEPS)):
        visible = kernel(machine, visible, seeds, step)
        if step + 1 in SWEEPS:
            distances.append(distance(visible, target))
    return max(distances) / drift_bound(target, len(SWEEPS))


def worst_transition(kernel: Kernel, machine: RBMParams, matrix: Array) -> float:
    """The largest distance of the states one step after each fixed state from a row of `matrix`, over the bound."""
    ratios = []
    for code, target in enumerate(matrix):
        start = np.repeat(STATES[code : code + 1], NUM_CHAINS, axis=0)
        visible = kernel(machine, start, chain_seeds(code, NUM_CHAINS), 3)
        ratios.append(distance(visible, target) / drift_bound(target, len(matrix)))
    return max(ratios)


def pair_drift(kernel: Kernel, machine: RBMParams) -> float:
    """The distance of (state before, state after) the 12th sweep from exact pairs, over the bound.

    Noise that repeats from step to step leaves the states nearly right (0.9 of the bound of `worst_drift`), but they
    freeze.
    """
    target, matrix = visible_distribution(machine), transition_matrix(machine)
    visible = STATES[np.random.default_rng(0).choice(len(target), NUM_CHAINS, p=target)]
    for step in range(max(SWEEPS)):
        before, visible = visible, kernel(machine, visible, chain_seeds(1, NUM_CHAINS), step)
    pairs = (target[:, None] * matrix).T.reshape(-1)  # the state before is the low half of the code
    return distance(np.concatenate([before, visible], axis=1), pairs) / drift_bound(pairs, 1)


def tempered(machine: RBMParams, temperature: float) -> RBMParams:
    """The machine whose joint is p(v, h)^(1/T), normalised: its energy is E / T."""
    return RBMParams(*(array / np.float32(temperature) for array in machine))


def transition_matrix(machine: RBMParams) -> Array:
    """p(v' given v) = sum over h of p(h given v) p(v' given h), by enumeration; float64 [16, 16]."""
    weights = machine.weights.astype(np.float64)
    hidden = _row_probs(probs(STATES @ weights + machine.hidden_bias), all_states(machine.num_hidden))
    visible = _row_probs(probs(all_states(machine.num_hidden) @ weights.T + machine.visible_bias), STATES)
    return hidden @ visible


def _row_probs(unit_probs: Array, states: Array) -> Array:
    """Probability of each whole state of independent units, [rows, states]."""
    return np.where(states[None], unit_probs[:, None], 1 - unit_probs[:, None]).prod(axis=-1)


def clamped_matrix(machine: RBMParams) -> Array:
    """The transition matrix with clamped pixels: the other pixels' marginal, moved to states that keep these."""
    matrix = np.zeros((16, 16))
    for code, row in enumerate(transition_matrix(machine)):
        kept = np.where(CLAMP, STATES[code], STATES)
        np.add.at(matrix[code], state_codes(kept), row)
    return matrix


def correct(machine: RBMParams, visible: Array, seeds: Array, step: int) -> Array:
    return gibbs_step(machine, visible, seeds, step).visible


def engine_kernel(engine: Engine, **options: object) -> Kernel:
    def kernel(machine: RBMParams, visible: Array, seeds: Array, step: int) -> Array:
        return run_chains(machine, visible, num_steps=1, seeds=seeds, first_step=step, engine=engine, **options)

    return kernel


# The mutants


def mean_field_hidden(machine: RBMParams, visible: Array, seeds: Array, step: int) -> Array:
    """Passes hidden probabilities on in place of states, as the article's code does."""
    hidden = probs(visible @ machine.weights + machine.hidden_bias)
    return _draw(hidden @ machine.weights.T + machine.visible_bias, seeds, step, VISIBLE_LAYER)


def no_hidden_bias(machine: RBMParams, visible: Array, seeds: Array, step: int) -> Array:
    return correct(machine._replace(hidden_bias=np.zeros(4, np.float32)), visible, seeds, step)


def shared_noise(machine: RBMParams, visible: Array, seeds: Array, step: int) -> Array:
    """All chains get the noise of the first."""
    return correct(machine, visible, np.full_like(seeds, seeds[0]), step)


def reused_seed(machine: RBMParams, visible: Array, seeds: Array, step: int) -> Array:
    """Both layers get the same noise."""
    hidden = _draw(visible @ machine.weights + machine.hidden_bias, seeds, step, HIDDEN_LAYER)
    return _draw(hidden @ machine.weights.T + machine.visible_bias, seeds, step, HIDDEN_LAYER)


def frozen_seed(machine: RBMParams, visible: Array, seeds: Array, step: int) -> Array:
    """Every step gets the noise of step 0."""
    return correct(machine, visible, seeds, 0)


def stays_put(machine: RBMParams, visible: Array, seeds: Array, step: int) -> Array:
    """Keeps any distribution, so no drift can show it; the transition matrix does."""
    return visible


def _draw(logits: Array, seeds: Array, step: int, layer: int) -> Array:
    return (uniforms(seeds, step, layer, logits.shape[1]) < probs(logits)).astype(np.uint8)


DRIFTING = [mean_field_hidden, no_hidden_bias, shared_noise, reused_seed]
MOVING_WRONG = [*DRIFTING, stays_put]
PAIRED_WRONG = [*MOVING_WRONG, frozen_seed]


# The tests


def test_the_enumerated_matrix_keeps_the_enumerated_distribution(machine: RBMParams) -> None:
    target = visible_distribution(machine)
    np.testing.assert_allclose(target @ transition_matrix(machine), target, atol=1e-7)


def test_a_correct_step_keeps_the_model_distribution(machine: RBMParams) -> None:
    assert worst_drift(correct, machine, visible_distribution(machine)) < 1
    assert worst_transition(correct, machine, transition_matrix(machine)) < 1
    assert pair_drift(correct, machine) < 1


@pytest.mark.parametrize("mutant", DRIFTING)
def test_the_drift_test_has_teeth(mutant: Kernel, machine: RBMParams) -> None:
    assert worst_drift(mutant, machine, visible_distribution(machine)) > 1


@pytest.mark.parametrize("mutant", MOVING_WRONG)
def test_the_transition_test_has_teeth(mutant: Kernel, machine: RBMParams) -> None:
    assert worst_transition(mutant, machine, transition_matrix(machine)) > 1


@pytest.mark.parametrize("mutant", PAIRED_WRONG)
def test_the_pair_test_has_teeth(mutant: Kernel, machine: RBMParams) -> None:
    assert pair_drift(mutant, machine) > 1


def test_engines_keep_the_model_distribution(engine: Engine, machine: RBMParams) -> None:
    assert worst_drift(engine_kernel(engine), machine, visible_distribution(machine)) < 1
    assert pair_drift(engine_kernel(engine), machine) < 1


def test_engines_move_as_the_enumerated_matrix_says(engine: Engine, machine: RBMParams) -> None:
    assert worst_transition(engine_kernel(engine), machine, transition_matrix(machine)) < 1


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_temperature_samples_the_tempered_joint(engine: Engine, machine: RBMParams, temperature: float) -> None:
    kernel, cooled = engine_kernel(engine, temperature=temperature), tempered(machine, temperature)
    assert worst_drift(kernel, machine, visible_distribution(cooled)) < 1
    assert worst_transition(kernel, machine, transition_matrix(cooled)) < 1


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_temperature_test_has_teeth(machine: RBMParams, temperature: float) -> None:
    """A temperature of one layer alone (or of the visible marginal p(v)^(1/T)) is not the tempered joint."""
    cooled = tempered(machine, temperature)

    def visible_layer_only(params: RBMParams, visible: Array, seeds: Array, step: int) -> Array:
        hidden = _draw(visible @ params.weights + params.hidden_bias, seeds, step, HIDDEN_LAYER)
        return _draw(hidden @ cooled.weights.T + cooled.visible_bias, seeds, step, VISIBLE_LAYER)

    assert worst_drift(visible_layer_only, machine, visible_distribution(cooled)) > 1
    assert worst_drift(correct, machine, visible_distribution(cooled)) > 1
    of_marginal = visible_distribution(machine) ** (1 / temperature)
    assert worst_drift(engine_kernel_numpy(temperature), machine, of_marginal / of_marginal.sum()) > 1


def engine_kernel_numpy(temperature: float) -> Kernel:
    return lambda machine, visible, seeds, step: gibbs_step(machine, visible, seeds, step, temperature).visible


@pytest.mark.parametrize("kept", [0b0000, 0b0001, 0b1000, 0b1001])
def test_clamped_chains_keep_the_conditional_distribution(engine: Engine, machine: RBMParams, kept: int) -> None:
    agrees = (STATES[:, CLAMP] == STATES[kept][CLAMP]).all(axis=1)
    conditional = np.where(agrees, visible_distribution(machine), 0.0)
    assert worst_drift(engine_kernel(engine, clamp=CLAMP), machine, conditional / conditional.sum()) < 1


def test_clamped_chains_move_as_the_enumerated_matrix_says(engine: Engine, machine: RBMParams) -> None:
    matrix = clamped_matrix(machine)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
    assert worst_transition(engine_kernel(engine, clamp=CLAMP), machine, matrix) < 1
    assert worst_transition(correct, machine, matrix) > 1  # a step that forgets the clamp


def test_chains_reach_the_model_distribution_from_afar(engine: Engine, machine: RBMParams) -> None:
    """All chains start at one unlikely state; what 50 steps leave of it follows from the matrix's powers."""
    target = visible_distribution(machine)
    start = int(target.argmin())
    expected = np.linalg.matrix_power(transition_matrix(machine), 50)[start]
    visible = np.repeat(STATES[start : start + 1], NUM_CHAINS, axis=0)
    visible = run_chains(machine, visible, num_steps=50, seeds=chain_seeds(2, NUM_CHAINS), engine=engine)
    assert distance(visible, expected) < drift_bound(expected, 1)
