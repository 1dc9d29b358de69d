"""The formulas of `rbm` against enumeration, and their edges."""

from __future__ import annotations

import numpy as np
import pytest

from model_core.exact import all_states
from model_core.rbm import (
    RBMParams,
    checked_params,
    energy,
    free_energy,
    hidden_probs,
    sigmoid,
    softplus,
    visible_probs,
)
from tests.model_core.reference import make_params


def joint_weights(machine: RBMParams) -> np.ndarray:
    """exp(-E(v, h)) of every pair of states, float64 [2**visible, 2**hidden]."""
    visible, hidden = all_states(machine.num_visible), all_states(machine.num_hidden)
    pairs = np.repeat(visible, len(hidden), axis=0), np.tile(hidden, (len(visible), 1))
    return np.exp(-energy(machine, *pairs)).reshape(len(visible), len(hidden))


@pytest.fixture(scope="module", params=[(4, 4), (5, 3), (1, 1), (2, 6)], ids=str)
def small_machine(request: pytest.FixtureRequest) -> RBMParams:
    rng = np.random.default_rng(3)
    num_visible, num_hidden = request.param
    weights = 2.0 * rng.standard_normal(request.param)
    return checked_params(weights, rng.standard_normal(num_visible), rng.standard_normal(num_hidden))


def test_energy_is_what_a_hand_computes() -> None:
    params = make_params([[2.0, 0.0], [0.5, -1.0]], [1.0, -3.0], [0.25, 4.0])
    # v = (1, 1), h = (1, 0): a.v = -2, b.h = 0.25, v'Wh = 2.5
    assert energy(params, np.array([[1, 1]]), np.array([[1, 0]])) == pytest.approx([-0.75])
    assert energy(params, np.zeros((1, 2)), np.zeros((1, 2))) == pytest.approx([0.0])


def test_free_energy_sums_out_the_hidden_units(small_machine: RBMParams) -> None:
    expected = -np.log(joint_weights(small_machine).sum(axis=1))
    received = free_energy(small_machine, all_states(small_machine.num_visible))
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)
    assert received.dtype == np.float64


def test_hidden_probs_match_the_enumerated_conditional(small_machine: RBMParams) -> None:
    joint = joint_weights(small_machine)
    expected = joint @ all_states(small_machine.num_hidden) / joint.sum(axis=1, keepdims=True)
    received = hidden_probs(small_machine, all_states(small_machine.num_visible))
    np.testing.assert_allclose(received, expected, atol=1e-6)
    assert received.dtype == np.float32


def test_visible_probs_match_the_enumerated_conditional(small_machine: RBMParams) -> None:
    joint = joint_weights(small_machine).T
    expected = joint @ all_states(small_machine.num_visible) / joint.sum(axis=1, keepdims=True)
    received = visible_probs(small_machine, all_states(small_machine.num_hidden))
    np.testing.assert_allclose(received, expected, atol=1e-6)
    assert received.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_and_softplus_do_not_overflow(dtype: type) -> None:
    logits: np.ndarray = np.array([-1000, -100, 0, 100, 1000], dtype)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(sigmoid(logits), [0, 0, 0.5, 1, 1], atol=1e-7)
        np.testing.assert_allclose(softplus(logits), [0, 0, np.log(2), 100, 1000], atol=1e-7)
    assert sigmoid(logits).dtype == dtype


@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_extreme_parameters_stay_finite(size: float) -> None:
    params = make_params([[size, -size]], [0.0], [0.0, 0.0])
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(hidden_probs(params, np.ones((1, 1)))[0], [1.0, 0.0], atol=1e-7)
        np.testing.assert_allclose(visible_probs(params, np.array([[0, 1]]))[0], [0.0], atol=1e-7)
        np.testing.assert_allclose(free_energy(params, np.array([[1], [0]])), [-size, -2 * np.log(2)])


def test_checked_params_makes_contiguous_float32() -> None:
    params = make_params(np.zeros((3, 2)).T, [0, 1], [1, 2, 3])
    assert (params.num_visible, params.num_hidden) == (2, 3)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in params)


@pytest.mark.parametrize(
    ("weights", "visible_bias", "hidden_bias", "message"),
    [
        (np.zeros(4), np.zeros(4), np.zeros(1), r"`weights` must be \[visible, hidden\]. Received shape \(4,\)"),
        (np.zeros((4, 0)), np.zeros(4), np.zeros(0), r"`weights` must be .* Received shape \(4, 0\)"),
        (np.zeros((4, 3)), np.zeros(3), np.zeros(3), r"`visible_bias` must have shape \(4,\) .* Received \(3,\)"),
        (np.zeros((4, 3)), np.zeros(4), np.zeros((1, 3)), r"`hidden_bias` must have shape \(3,\) .* Received \(1, 3\)"),
        (np.full((4, 3), np.nan), np.zeros(4), np.zeros(3), "`weights` holds NaN"),
        (np.zeros((4, 3)), np.zeros(4), np.array([0, np.inf, 0]), "`hidden_bias` holds NaN or infinite"),
    ],
)
def test_checked_params_says_what_is_wrong(
    weights: np.ndarray, visible_bias: np.ndarray, hidden_bias: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        checked_params(weights, visible_bias, hidden_bias)
