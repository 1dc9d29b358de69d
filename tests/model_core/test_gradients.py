"""The gradient of a training against the exact one by enumeration, and its rules against textbooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model_core.exact import all_states, log_likelihood, visible_distribution
from model_core.gradients import ascend, centred, first_order_loss, make_slots, statistic
from model_core.rbm import RBMParams, hidden_probs

Array = np.ndarray
STATES = all_states(4)
DATA = STATES[[0, 3, 3, 5, 12, 15]]


def loss_gradient(params: RBMParams, awake: Array, asleep: Array) -> RBMParams:
    """What TensorFlow makes of the loss, with hidden probabilities in both phases."""
    variables = [tf.Variable(array) for array in params]
    states = [awake, hidden_probs(params, awake), asleep, hidden_probs(params, asleep)]
    with tf.GradientTape() as tape:
        loss = first_order_loss(variables, *(tf.constant(array, tf.float32) for array in states))
    return RBMParams(*(gradient.numpy() for gradient in tape.gradient(loss, variables)))


def exact_loss_gradient(params: RBMParams, awake: Array) -> RBMParams:
    """The same with the enumerated model as the asleep phase: the gradient is linear in its distribution; float64."""
    parts = [loss_gradient(params, awake, state[None]) for state in all_states(params.num_visible)]
    probs = visible_distribution(params)
    return RBMParams(*(np.tensordot(probs, np.stack(arrays), 1) for arrays in zip(*parts, strict=True)))


def finite_differences(params: RBMParams, visible: Array, width: float = 1e-5) -> RBMParams:
    """The gradient of the exact mean log-likelihood, one parameter at a time; float64."""
    exact = [np.asarray(array, np.float64) for array in params]
    result = []
    for array in exact:
        slopes = np.empty(array.shape)
        for place in np.ndindex(array.shape):
            values = []
            for step in (width, -width):
                array[place] += step
                values.append(log_likelihood(RBMParams(*exact), visible).mean())
                array[place] -= step
            slopes[place] = (values[0] - values[1]) / (2 * width)
        result.append(slopes)
    return RBMParams(*result)


def test_gradient_matches_finite_differences_of_the_exact_log_likelihood(machine: RBMParams) -> None:
    gradient = exact_loss_gradient(machine, DATA)
    for received, expected in zip(gradient, finite_differences(machine, DATA), strict=True):
        np.testing.assert_allclose(-received, expected, atol=2e-6)


def test_the_gradient_test_has_teeth(machine: RBMParams) -> None:
    """States in place of exact ones, or no asleep phase, are far outside the tolerance."""
    expected = finite_differences(machine, DATA).weights
    for asleep in (STATES, np.zeros((1, 4))):
        assert np.abs(-loss_gradient(machine, DATA, asleep).weights - expected).max() > 0.02


def test_phases_are_averaged_over_their_own_rows(machine: RBMParams) -> None:
    asleep = STATES[[1, 2, 7]]
    once = loss_gradient(machine, DATA, asleep)
    for twice in (
        loss_gradient(machine, DATA, np.tile(asleep, (5, 1))),
        loss_gradient(machine, np.tile(DATA, (3, 1)), asleep),
    ):
        for received, expected in zip(twice, once, strict=True):
            np.testing.assert_allclose(received, expected, atol=1e-6)


def test_centred_gradient_vanishes_where_the_plain_one_does(machine: RBMParams) -> None:
    gradient = centred([*loss_gradient(machine, DATA, DATA)], tf.fill([4], 0.3), tf.fill([4], 0.7))
    assert max(float(np.abs(part).max()) for part in gradient) < 1e-6


def flip(params: RBMParams, flipped: Array) -> RBMParams:
    """The same model of images with some pixels inverted; changes of parameters flip alike."""
    sign = np.where(flipped, -1, 1).astype(np.float32)
    moved = params.hidden_bias + params.weights[flipped].sum(axis=0)
    return RBMParams(sign[:, None] * params.weights, sign * params.visible_bias, moved)


@pytest.mark.parametrize(("offset", "is_invariant"), [(0.3, True), (0.0, False)])
def test_centred_gradient_does_not_mind_inverted_pixels(machine: RBMParams, offset: float, is_invariant: bool) -> None:
    """Melchior et al. 2016, section 2; without offsets (the plain gradient) the test must fail."""
    flipped, asleep = np.array([True, False, True, True]), STATES[[1, 2, 7]]
    offsets = np.full(4, offset, np.float32)
    flipped_offsets = np.where(flipped, 1 - offsets, offsets).astype(np.float32) if offset else offsets
    here = RBMParams(*map(np.asarray, centred([*loss_gradient(machine, DATA, asleep)], offsets, offsets)))
    other = loss_gradient(
        flip(machine, flipped), np.where(flipped, 1 - DATA, DATA), np.where(flipped, 1 - asleep, asleep)
    )
    there = centred([*other], flipped_offsets, offsets)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(flip(here, flipped), there, strict=True))
    assert (difference < 1e-5) == is_invariant


def sgd(value: Array, slopes: Array, rate: float) -> Array:
    for slope in slopes:
        value = value - rate * slope
    return value


def momentum(value: Array, slopes: Array, rate: float) -> Array:
    velocity = np.zeros_like(value)
    for slope in slopes:
        velocity = 0.8 * velocity + slope
        value = value - rate * velocity
    return value


def adam(value: Array, slopes: Array, rate: float) -> Array:
    """Kingma and Ba 2015, algorithm 1, with the corrected moments written out."""
    first, second = np.zeros_like(value), np.zeros_like(value)
    for step, slope in enumerate(slopes, start=1):
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        value = value - rate * (first / (1 - 0.9**step)) / np.sqrt(second / (1 - 0.999**step))
    return value


@pytest.mark.parametrize("textbook", [sgd, momentum, adam])
def test_rules_are_those_of_the_textbooks(textbook: Callable[..., Array]) -> None:
    rng = np.random.default_rng(0)
    start, slopes = rng.standard_normal((3, 2)), rng.standard_normal((6, 3, 2))
    rule: Any = textbook.__name__
    variable = tf.Variable(start.astype(np.float32))
    slots = make_slots(rule, variable)
    for step, slope in enumerate(slopes, start=1):
        ascend(rule, variable, slots, tf.constant(-slope, tf.float32), 0.1, step, 0.8)
    np.testing.assert_allclose(variable.numpy(), textbook(start, slopes, 0.1), atol=1e-5)


def test_statistics_are_probabilities_or_states() -> None:
    probs = tf.fill([200, 500], 0.3)
    states = statistic(probs, "states", tf.constant([1, 2])).numpy()
    assert statistic(probs, "probs", None) is probs
    assert set(np.unique(states)) == {0.0, 1.0}
    assert abs(states.mean() - 0.3) < 5 * np.sqrt(0.21 / states.size)  # false alarm 6e-7
