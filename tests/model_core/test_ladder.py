"""The trajectory ladder: exchanges keep both distributions, log Z comes along, updates that go too far are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model_core import ladder, training_ladder
from model_core.engine_numba import NumbaEngine, rounded_params
from model_core.exact import all_states, log_partition, state_codes, visible_distribution
from model_core.ladder import FREEZE_BELOW, REFUSE_BELOW, Exchange, TrajectoryLadder, exchange
from model_core.presets import TrainConfig
from model_core.rbm import RBMParams, checked_params, free_energy
from model_core.training import Trainer, TrainingError
from model_core.training_ladder import check_log_z

Array = np.ndarray
ENGINE = NumbaEngine(1)
STATES = all_states(4)
NUM_PAIRS = 50_000
FALSE_ALARM = 1e-6


def scaled(params: RBMParams, factor: float) -> RBMParams:
    return checked_params(*(np.float32(factor) * array for array in params))


def exact_draws(params: RBMParams, num_rows: int, seed: int) -> Array:
    probs = visible_distribution(rounded_params(ENGINE.prepare(params)))
    return STATES[np.random.default_rng(seed).choice(len(probs), num_rows, p=probs / probs.sum())]


def drift(params: RBMParams, visible: Array) -> float:
    """Total variation from the enumerated model over a bound that exact draws pass with probability 1 - FALSE_ALARM.

    The mean distance is at most half the sum of the standard deviations, and McDiarmid bounds the rest.
    """
    target = visible_distribution(rounded_params(ENGINE.prepare(params)))
    frequencies = np.bincount(state_codes(visible), minlength=len(target)) / len(visible)
    bound = 0.5 * np.sqrt(target * (1 - target) / len(visible)).sum()
    bound += math.sqrt(math.log(1 / FALSE_ALARM) / (2 * len(visible)))
    return float(0.5 * np.abs(frequencies - target).sum() / bound)


Swap = Callable[[Any, Any, Array, Array, Array], Exchange]


def correct(lower: Any, upper: Any, x: Array, y: Array, draws: Array) -> Exchange:
    return exchange(ENGINE, lower, upper, x, y, draws)


def wrong_sign(lower: Any, upper: Any, x: Array, y: Array, draws: Array) -> Exchange:
    return exchange(ENGINE, upper, lower, x, y, draws)


def always(lower: Any, upper: Any, x: Array, y: Array, draws: Array) -> Exchange:
    return Exchange(y, x, 1.0)


def worst_drift(swap: Swap, machine: RBMParams) -> float:
    """Of both sides, after one round from exact starts."""
    low = scaled(machine, 0.5)
    x, y = exact_draws(low, NUM_PAIRS, 0), exact_draws(machine, NUM_PAIRS, 1)
    draws = np.random.default_rng(2).random(NUM_PAIRS)
    done = swap(ENGINE.prepare(low), ENGINE.prepare(machine), x, y, draws)
    return max(drift(low, done.lower), drift(machine, done.upper))


def test_exchange_keeps_both_distributions(machine: RBMParams) -> None:
    assert worst_drift(correct, machine) < 1


@pytest.mark.parametrize("mutant", [wrong_sign, always])
def test_the_exchange_test_has_teeth(mutant: Swap, machine: RBMParams) -> None:
    assert worst_drift(mutant, machine) > 1


def test_exchange_really_exchanges(machine: RBMParams) -> None:
    x, y = np.zeros((50, 4), np.uint8), np.ones((50, 4), np.uint8)
    same = ENGINE.prepare(machine)
    done = exchange(ENGINE, same, same, x, y, np.full(50, 0.99))
    assert done.acceptance == 1.0 and done.lower.all() and not done.upper.any()


def foot_ladder(machine: RBMParams, num_chains: int = 500, seed: int = 3) -> tuple[TrajectoryLadder, Array]:
    bottom = TrajectoryLadder(machine.visible_bias, machine.num_hidden, num_chains, seed)
    return bottom, bottom.reservoir[:num_chains].copy()


def test_the_foot_is_exact(machine: RBMParams) -> None:
    bottom, _ = foot_ladder(machine, 5_000)
    foot = bottom.rungs[0].params
    assert bottom.rungs[0].log_z == pytest.approx(log_partition(foot), abs=1e-6)
    assert drift(foot, bottom.reservoir) < 1


def test_a_proposal_changes_nothing_until_it_is_accepted(machine: RBMParams) -> None:
    bottom, chains = foot_ladder(machine)
    before = bottom.reservoir.copy()
    proposal = bottom.propose(ENGINE.prepare(machine), chains, 5)
    np.testing.assert_array_equal(bottom.reservoir, before)
    moved = bottom.accept(proposal)
    assert len(np.unique(proposal.members)) == len(chains)
    assert moved.sum() + bottom.reservoir.sum() == chains.sum() + before.sum()  # nothing is lost


def test_climbing_gives_log_z_and_equilibrium(machine: RBMParams) -> None:
    """Within 5 errors of the enumerated log Z, and near enough to the model for 5,000 chains' bound."""
    machine = scaled(machine, 1.5)
    bottom, chains = foot_ladder(machine, 5_000)
    chains = bottom.climb([scaled(machine, factor) for factor in np.linspace(0.1, 1.0, 10)], chains)
    log_z, error = bottom.log_z_now(machine, chains)
    assert len(bottom.rungs) > 1 and 0 < error < 0.05
    exact = log_partition(rounded_params(ENGINE.prepare(machine)))
    assert abs(log_z - exact) < 5 * error
    for rung in bottom.rungs:
        assert abs(rung.log_z - log_partition(rung.params)) < 5 * rung.log_z_error + 1e-3
    assert drift(machine, chains) < 1 and drift(bottom.rungs[-1].params, bottom.reservoir[:5_000]) < 1


def test_climbing_puts_rungs_between_versions_that_are_far_apart(machine: RBMParams) -> None:
    bottom, chains = foot_ladder(machine)
    strong = scaled(machine, 2.5)
    bottom.climb([strong], chains)
    assert len(bottom.rungs) >= 2
    assert all(not np.array_equal(rung.params.weights, strong.weights) for rung in bottom.rungs)


def test_state_goes_there_and_back(machine: RBMParams) -> None:
    bottom, chains = foot_ladder(machine)
    chains = bottom.climb([machine], bottom.freeze(scaled(machine, 0.5), chains))
    other, _ = foot_ladder(machine)
    other.load_state(bottom.state(), [rung.params for rung in bottom.rungs])
    for one in (bottom, other):
        one.freeze(machine, chains)
    assert [rung.log_z for rung in bottom.rungs] == [rung.log_z for rung in other.rungs]
    np.testing.assert_array_equal(bottom.reservoir, other.reservoir)


# In a training

CONFIG = TrainConfig(
    num_hidden=4, epochs=4, updates_an_epoch=50, batch_size=50, num_chains=200, sampler="ladder", warmup_updates=0,
    learning_rate_weights=0.5, learning_rate_biases=0.5, seed=2,
)  # fmt: skip
IMAGES = np.repeat(np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0, 1]], np.float32), 50, axis=0)


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(CONFIG, IMAGES)


def sampler_of(trainer: Trainer) -> training_ladder.LadderSampler:
    assert trainer.ladder is not None
    return trainer.ladder


def test_log_z_comes_along_with_a_training(trainer: Trainer) -> None:
    for _ in trainer.train():
        pass
    sampler = sampler_of(trainer)
    figures = sampler.figures(trainer.state, IMAGES.astype(np.uint8))
    exact = log_partition(trainer.params)
    assert figures["rungs"] >= 2, "the training moved far enough for a freeze"
    assert abs(figures["log Z"] - exact) < 5 * figures["log Z error"] + 1e-3
    expected = -free_energy(trainer.params, IMAGES).mean() - figures["log Z"]
    assert figures["train log likelihood"] == pytest.approx(expected)


def jump(trainer: Trainer, factor: float = 30.0) -> RBMParams:
    """Replaces the parameters by such as no update should make; returns those before."""
    before = trainer.params
    rng = np.random.default_rng(0)
    for variable in trainer.state.params:
        variable.assign_add(factor * rng.standard_normal(variable.shape).astype(np.float32))
    return before


def test_an_update_that_goes_too_far_is_refused(trainer: Trainer) -> None:
    for _ in trainer.train(5):
        pass
    sampler = sampler_of(trainer)
    reservoir, before = sampler.ladder.reservoir.copy(), trainer.params
    trainer.make_update()
    accepted = sampler.previous[0].numpy()
    np.testing.assert_array_equal(accepted, before.weights)
    jump(trainer)
    sampler.exchange(trainer.state, trainer.update)
    np.testing.assert_array_equal(trainer.params.weights, accepted)
    assert trainer.state.rate_scale.numpy().tolist() == [0.5, 0.5]
    assert int(sampler.num_refused) == 1 and sampler.acceptance > REFUSE_BELOW
    assert sampler.ladder.reservoir.shape == reservoir.shape
    trainer.make_update()
    assert int(sampler.refused_in_row) == 0 and int(sampler.num_refused) == 1


def test_parameters_that_are_not_finite_are_refused(trainer: Trainer) -> None:
    trainer.make_update()
    trainer.state.params[1].assign(tf.fill([9], float("nan")))
    trainer.make_update()
    assert all(np.isfinite(array).all() for array in trainer.params)


def test_slots_are_forgotten_with_a_refused_update() -> None:
    trainer = Trainer(CONFIG.replace(rule_weights="adam", rule_biases="adam", learning_rate_weights=0.01), IMAGES)
    trainer.make_update()
    assert all(slot.numpy().any() for slot in trainer.state.slots[0])
    jump(trainer)
    sampler_of(trainer).exchange(trainer.state, trainer.update)
    assert not any(slot.numpy().any() for slots in trainer.state.slots for slot in slots)


def with_acceptance(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, *values: float) -> None:
    """Makes the next rounds of exchanges report these acceptances."""
    bottom, left = sampler_of(trainer).ladder, list(values)
    real = bottom.propose

    def propose(*arguments: Any) -> ladder.Proposal:
        proposal = real(*arguments)
        swapped = proposal.exchange
        return proposal._replace(exchange=swapped._replace(acceptance=left.pop(0))) if left else proposal

    monkeypatch.setattr(bottom, "propose", propose)


@pytest.mark.parametrize(("acceptance", "rungs", "refused"), [(0.31, 1, 0), (0.29, 2, 0), (0.11, 2, 0), (0.09, 1, 1)])
def test_thresholds(
    monkeypatch: pytest.MonkeyPatch, trainer: Trainer, acceptance: float, rungs: int, refused: int
) -> None:
    assert (FREEZE_BELOW, REFUSE_BELOW) == (0.3, 0.1)
    trainer.make_update()
    with_acceptance(monkeypatch, trainer, acceptance)
    trainer.make_update()
    sampler = sampler_of(trainer)
    assert (len(sampler.ladder.rungs), int(sampler.num_refused)) == (rungs, refused)


def test_right_after_a_freeze_the_threshold_is_higher(monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> None:
    trainer.make_update()
    sampler = sampler_of(trainer)
    sampler.frozen_at.assign(trainer.update - 1)
    with_acceptance(monkeypatch, trainer, 0.29)
    trainer.make_update()
    assert (len(sampler.ladder.rungs), int(sampler.num_refused)) == (1, 1)


def test_a_training_that_cannot_go_on_says_so(trainer: Trainer) -> None:
    trainer.make_update()
    with pytest.raises(TrainingError, match="30 updates in a row"):
        for _ in range(40):
            jump(trainer)
            sampler_of(trainer).exchange(trainer.state, trainer.update)


def test_rungs_are_saved_once_and_checked(tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, IMAGES, tmp_path)
    for _ in trainer.train():
        pass
    trainer.save()
    rungs = sorted((tmp_path / "rungs").iterdir())
    ages = [path.stat().st_mtime_ns for path in rungs]
    trainer.save()
    assert len(rungs) == len(sampler_of(trainer).ladder.rungs) - 1
    assert [path.stat().st_mtime_ns for path in rungs] == ages
    content = rungs[0].read_bytes()
    rungs[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TrainingError, match="damaged"):
        Trainer(CONFIG, IMAGES, tmp_path).restore()
    rungs[0].unlink()
    with pytest.raises(TrainingError, match="cannot be read"):
        Trainer(CONFIG, IMAGES, tmp_path).restore()


def test_more_probability_than_there_is_gives_log_z_away(machine: RBMParams) -> None:
    log_z = log_partition(machine)
    twice = np.concatenate([STATES, STATES])  # the same images twice count once
    check_log_z(machine, twice, log_z, 0.01)
    check_log_z(machine, twice, log_z - 0.04, 0.01)
    with pytest.raises(TrainingError, match="too low"):
        check_log_z(machine, twice, log_z - 0.2, 0.01)
