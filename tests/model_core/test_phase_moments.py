"""The gradient without a matrix product: against the formula in float64, for odd sizes, on any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model_core.chains import plain_chains
from model_core.engine_numba import NumbaEngine, PhaseMoments, prepare, rounded_params
from model_core.gradients import centred
from model_core.randomness import chain_seeds
from model_core.rbm import RBMParams, hidden_probs
from model_core.training_arrays import assign, tensor, view

SIZES = [(1, 1), (7, 3), (64, 64), (65, 130), (130, 63), (784, 500)]


def machine_of(num_visible: int, num_hidden: int, size: float = 0.5) -> RBMParams:
    rng = np.random.default_rng(num_visible)
    shapes = (num_visible, num_hidden), (num_visible,), (num_hidden,)
    return RBMParams(*(size * rng.standard_normal(shape).astype(np.float32) for shape in shapes))


def states_of(num_rows: int, num_visible: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((num_rows, num_visible)) < 0.2).astype(np.uint8)


def by_the_formula(params: RBMParams, awake: np.ndarray, asleep: np.ndarray, *offsets: np.ndarray) -> list[Any]:
    """Differences of averages, all in float64; centred by TensorFlow where offsets are given."""
    found: list[list[Any]] = []
    for visible in (awake, asleep):
        hidden = hidden_probs(params, visible).astype(np.float64)
        found.append([visible.T @ hidden / len(visible), visible.mean(axis=0), hidden.mean(axis=0)])
    gradient: list[Any] = [here - there for here, there in zip(*found, strict=True)]
    if offsets:
        gradient = centred(gradient, *(np.asarray(offset, np.float64) for offset in offsets))
    return [*map(np.asarray, gradient), found[0][2]]


def both(params: RBMParams, *offsets: np.ndarray, num_threads: int = 1) -> tuple[PhaseMoments, list[np.ndarray]]:
    awake, asleep = states_of(33, params.num_visible, 1), states_of(70, params.num_visible, 2)
    prepared = prepare(params)
    moments = NumbaEngine(num_threads, worth_sharing=0).phase_moments(prepared, awake, asleep, *offsets)
    return moments, by_the_formula(rounded_params(prepared), awake, asleep, *offsets)


def offsets_of(params: RBMParams) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [np.asarray(rng.random(size), np.float32) for size in params.weights.shape]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("is_centred", [False, True])
def test_moments_are_those_of_the_formula(sizes: tuple[int, int], is_centred: bool) -> None:
    params = machine_of(*sizes)
    moments, expected = both(params, *(offsets_of(params) if is_centred else []))
    for received, wanted in zip(moments, expected, strict=True):
        np.testing.assert_allclose(received, wanted, atol=2e-5)


def test_the_sums_of_the_chains_save_work_and_change_no_bit() -> None:
    params = machine_of(130, 63)
    engine, prepared = NumbaEngine(2, worth_sharing=0), prepare(params)
    awake, chains = states_of(33, 130, 1), plain_chains(states_of(70, 130, 2), chain_seeds(0, 70), 5, 3)
    asleep, sums = engine.advance_for_moments(prepared, chains)
    np.testing.assert_array_equal(asleep, engine.advance(prepared, chains)[0])
    mu, lambda_ = offsets_of(params)
    found = engine.phase_moments(prepared, awake, asleep, mu, lambda_, sums)
    for received, expected in zip(
        found, engine.phase_moments(prepared, awake, asleep, *offsets_of(params)), strict=True
    ):
        np.testing.assert_array_equal(received, expected)


def test_large_weights_take_the_wide_tiles() -> None:
    params = machine_of(40, 50, size=6.0)
    assert prepare(params).to_hidden.tiles.dtype == np.int32
    moments, expected = both(params)
    for received, wanted in zip(moments, expected, strict=True):
        np.testing.assert_allclose(received, wanted, atol=2e-5)


def test_moments_have_the_same_bits_on_any_number_of_threads() -> None:
    params = machine_of(130, 63)
    alone = both(params, *offsets_of(params))[0]
    for num_threads in (2, 3, 7):
        for received, expected in zip(
            both(params, *offsets_of(params), num_threads=num_threads)[0], alone, strict=True
        ):
            np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("size", [0.5, 6.0])
def test_both_sets_of_tiles_hold_the_rounded_weights(sizes: tuple[int, int], size: float) -> None:
    """And nothing else: the padding and the last row of each tile are zero."""
    weights = machine_of(*sizes, size=size).weights
    prepared = prepare(RBMParams(weights, np.zeros(sizes[0], np.float32), np.zeros(sizes[1], np.float32)))
    whole = np.rint(weights * (np.float32(1) / prepared.unit))
    for tiles, expected in ((prepared.to_hidden.tiles, whole), (prepared.to_visible.tiles, whole.T)):
        laid_out = np.moveaxis(tiles, 0, 1).reshape(len(expected) + 1, -1)
        np.testing.assert_array_equal(laid_out[:-1, : expected.shape[1]], expected)
        assert not laid_out[-1].any() and not laid_out[:, expected.shape[1] :].any()


def test_a_view_of_a_variable_outlives_every_kind_of_change() -> None:
    variable = tf.Variable(tf.ones([64, 64]))
    seen = view(variable)
    variable.assign_add(tf.ones([64, 64]))
    assign(variable, np.full((64, 64), 3, np.float32))
    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=-1.0, delta=tf.ones([64, 64]))
    assert (seen == 1).all() and (view(variable) == 4).all() and not seen.flags.writeable


def test_arrays_anywhere_in_memory_become_tensors() -> None:
    """TensorFlow would abort the process for a tensor that does not start on a multiple of 64 bytes."""
    memory = np.arange(100, dtype=np.float32)
    for array in (memory[1:90], memory[::2], memory.reshape(10, 10).T, np.broadcast_to(memory[:1], (7,))):
        doubled = tf.function(lambda x: 2 * x)(tensor(array))
        np.testing.assert_array_equal(doubled, 2 * array)
