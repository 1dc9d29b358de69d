"""Enumeration against brute force over both layers, closed forms and finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from model_core.exact import (
    MAX_ENUMERATED_UNITS,
    all_states,
    data_moments,
    log_likelihood,
    log_likelihood_gradient,
    log_partition,
    model_moments,
    state_codes,
    visible_distribution,
)
from model_core.rbm import RBMParams, softplus
from tests.model_core.reference import make_params


def random_machine(num_visible: int, num_hidden: int, scale: float = 1.0) -> RBMParams:
    rng = np.random.default_rng(11)
    weights = scale * rng.standard_normal((num_visible, num_hidden))
    return make_params(weights, rng.standard_normal(num_visible), rng.standard_normal(num_hidden))


def joint(params: RBMParams) -> np.ndarray:
    """exp(-E(v, h)) straight from the definition of the energy, float64 [2**visible, 2**hidden]."""
    weights, visible_bias, hidden_bias = (array.astype(np.float64) for array in params)
    visible, hidden = (all_states(num).astype(np.float64) for num in weights.shape)
    return np.exp((visible @ visible_bias)[:, None] + hidden @ hidden_bias + visible @ weights @ hidden.T)


def test_states_and_codes_are_inverse() -> None:
    states = all_states(5)
    assert states.shape == (32, 5) and states.dtype == np.uint8
    assert len(np.unique(states, axis=0)) == 32
    np.testing.assert_array_equal(state_codes(states), np.arange(32))
    np.testing.assert_array_equal(states[6], [0, 1, 1, 0, 0])  # unit 0 is the lowest bit


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6), (1, 1), (13, 2)], ids=str)
def test_log_partition_equals_brute_force_over_both_layers(shape: tuple[int, int]) -> None:
    params = random_machine(*shape, scale=2.0)
    assert log_partition(params) == pytest.approx(np.log(joint(params).sum()), abs=1e-10)


@pytest.mark.parametrize("shape", [(784, 3), (3, 784), (12, 12), (1500, 2)], ids=str)
def test_log_partition_adds_up_without_weights(shape: tuple[int, int]) -> None:
    params = random_machine(*shape, scale=0.0)
    expected = softplus(params.visible_bias).sum() + softplus(params.hidden_bias).sum()
    assert log_partition(params) == pytest.approx(expected, rel=1e-12)


def test_log_partition_enumerates_either_layer() -> None:
    params = random_machine(15, 5)
    flipped = RBMParams(params.weights.T, params.hidden_bias, params.visible_bias)
    assert log_partition(params) == pytest.approx(log_partition(flipped), abs=1e-10)


def test_log_partition_of_extreme_weights_is_finite() -> None:
    params = make_params([[1000.0]], [0.0], [0.0])
    assert log_partition(params) == 1000.0  # the other three states weigh exp(-1000) of this one


def test_the_limit_is_named() -> None:
    above = MAX_ENUMERATED_UNITS + 1
    with pytest.raises(ValueError, match=rf"limited to {MAX_ENUMERATED_UNITS} units .* 30 visible and {above} hidden"):
        log_partition(random_machine(30, above))
    with pytest.raises(ValueError, match=rf"limited to {MAX_ENUMERATED_UNITS} visible units.* Received {above}"):
        visible_distribution(random_machine(above, 2))


@pytest.mark.parametrize("shape", [(4, 4), (13, 3)], ids=str)  # 2^13 states are more than one chunk
def test_visible_distribution_is_the_marginal_of_the_joint(shape: tuple[int, int]) -> None:
    params = random_machine(*shape, scale=2.0)
    expected = joint(params).sum(axis=1) / joint(params).sum()
    np.testing.assert_allclose(visible_distribution(params), expected, rtol=1e-9, atol=1e-15)


def test_log_likelihood_is_the_log_of_the_distribution(machine: RBMParams) -> None:
    received = log_likelihood(machine, all_states(4))
    np.testing.assert_allclose(received, np.log(visible_distribution(machine)), atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 4), (13, 3)], ids=str)
def test_model_moments_equal_brute_force(shape: tuple[int, int]) -> None:
    params = random_machine(*shape, scale=2.0)
    probs = joint(params) / joint(params).sum()
    visible, hidden = all_states(shape[0]).astype(float), all_states(shape[1]).astype(float)
    moments = model_moments(params)
    np.testing.assert_allclose(moments.weights, visible.T @ probs @ hidden, atol=1e-10)
    np.testing.assert_allclose(moments.visible_bias, probs.sum(axis=1) @ visible, atol=1e-10)
    np.testing.assert_allclose(moments.hidden_bias, probs.sum(axis=0) @ hidden, atol=1e-10)


def test_gradient_matches_finite_differences(machine: RBMParams) -> None:
    visible, nudge = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]]), 1e-5
    params = RBMParams(*(array.astype(np.float64) for array in machine))
    gradient = log_likelihood_gradient(params, visible)
    for field, array in params._asdict().items():
        for index in np.ndindex(array.shape):
            step = np.zeros_like(array)
            step[index] = nudge
            above, below = (
                log_likelihood(params._replace(**{field: array + sign * step}), visible).mean() for sign in (1, -1)
            )
            assert getattr(gradient, field)[index] == pytest.approx((above - below) / (2 * nudge), abs=1e-8)


def test_moments_of_the_whole_distribution_as_data_are_the_models(machine: RBMParams) -> None:
    """Where the data are the model's own distribution, awake and asleep moments agree and the gradient is zero."""
    counts = np.round(visible_distribution(machine) * 1e6).astype(int)
    data = np.repeat(all_states(4), counts, axis=0)
    for awake, asleep in zip(data_moments(machine, data), model_moments(machine), strict=True):
        np.testing.assert_allclose(awake, asleep, atol=2e-5)  # the rounding of 16 counts
