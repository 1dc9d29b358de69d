"""The trainer: its flags, its chains, and small teachers learned, as enumeration tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model_core import gradients
from model_core.exact import all_states, visible_distribution
from model_core.presets import TrainConfig
from model_core.randomness import chain_seeds, noise
from model_core.rbm import RBMParams, checked_params, sigmoid
from model_core.training import Trainer, TrainingError
from tests.model_core.reference import run_chains

Array = np.ndarray


def teacher() -> RBMParams:
    """Six visible and three hidden units, each on half of the time; 0.57 nats from independent pixels."""
    weights = 2 * np.random.default_rng(3).standard_normal((6, 3))
    return checked_params(weights, -weights.sum(axis=1) / 2, -weights.sum(axis=0) / 2)


def drawn(params: RBMParams, num_images: int, seed: int = 0) -> Array:
    """Exact draws of a small machine, float32 [images, visible]."""
    probs = visible_distribution(params)
    codes = np.random.default_rng(seed).choice(len(probs), num_images, p=probs / probs.sum())
    return all_states(params.num_visible)[codes].astype(np.float32)


def divergence(true: RBMParams, learned: RBMParams) -> float:
    """KL(true, learned) in nats, by enumeration."""
    p, q = visible_distribution(true), visible_distribution(learned)
    return float((p * np.log(p / q)).sum())


SMALL = TrainConfig(
    num_hidden=4, epochs=15, batch_size=100, num_chains=200, chain_steps=2, warmup_updates=0,
    learning_rate_weights=0.5, learning_rate_biases=0.5, seed=1,
)  # fmt: skip
SMALL_RATES = {"learning_rate_weights": 0.05, "learning_rate_biases": 0.05}
IMAGES = drawn(teacher(), 10_000)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampler": "ladder"},
        {"centred": False, "rule_weights": "momentum", "rule_biases": "momentum", **SMALL_RATES},
        {"rule_weights": "adam", "rule_biases": "adam", **SMALL_RATES},
        {"awake_hidden": "states", "asleep_hidden": "states"},
        {"average_share": 0.2, "schedule": "constant"},
    ],
    ids=str,
)
def test_training_learns_a_small_teacher(changes: dict[str, Any]) -> None:
    """In nats, by enumeration; the draw of 10,000 images alone costs about 0.0017, half its parameters over these."""
    trainer = Trainer(SMALL.replace(**changes), IMAGES)
    assert divergence(teacher(), trainer.params) > 0.4
    for _ in trainer.train():
        pass
    assert divergence(teacher(), trainer.best_params) < 0.03


def test_mean_field_chains_do_not_learn_it() -> None:
    """The article's deterministic chain has not the model's distribution: what it learns is far from the teacher."""
    trainer = Trainer(SMALL.replace(chain_mode="mean_field"), IMAGES)
    for _ in trainer.train():
        pass
    assert divergence(teacher(), trainer.params) > 0.035


def test_mean_field_probabilities_are_the_iterated_map() -> None:
    config = SMALL.replace(chain_mode="mean_field", asleep_visible="probs", weight_std=1.0)
    trainer = Trainer(config, IMAGES)
    probs, states = trainer.asleep_phase(IMAGES[:100], 0)
    again, same_states = Trainer(config, IMAGES).asleep_phase(IMAGES[:100], 0)
    expected, (weights, visible_bias, hidden_bias) = trainer.state.chains.numpy().astype(float), trainer.params
    for _ in range(config.chain_steps):
        expected = sigmoid(sigmoid(expected @ weights + hidden_bias) @ weights.T + visible_bias)
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    np.testing.assert_array_equal(probs, again)
    np.testing.assert_array_equal(states, same_states)
    assert set(np.unique(states)) <= {0, 1}


def test_asleep_phase_gives_what_the_flags_ask_for() -> None:
    trainer = Trainer(SMALL, IMAGES)
    statistics, states = trainer.asleep_phase(IMAGES[:100], 0)
    np.testing.assert_array_equal(statistics, states)
    probs, same_states = Trainer(SMALL.replace(asleep_visible="probs"), IMAGES).asleep_phase(IMAGES[:100], 0)
    np.testing.assert_array_equal(states, same_states)
    assert not np.isin(probs, (0, 1)).any()
    batch = trainer.batches.at(0)
    assert Trainer(SMALL.replace(sampler="cd"), IMAGES).asleep_phase(batch, 0)[1].shape == batch.shape


def test_flags_of_the_hidden_statistics_reach_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def spy(probs: Any, kind: Any, seed: Any) -> Any:
        seen.append(kind)
        return gradients.statistic(probs, kind, seed)

    monkeypatch.setattr("model_core.training.statistic", spy)
    Trainer(SMALL.replace(awake_hidden="states"), IMAGES).make_update()
    assert seen == ["states", "probs"]


def test_persistent_chains_go_on_and_cd_starts_at_the_batch() -> None:
    persistent, started = Trainer(SMALL, IMAGES), Trainer(SMALL.replace(sampler="cd"), IMAGES)
    before = persistent.state.chains.numpy()
    expected = run_chains(persistent.params, before, num_steps=2, seeds=persistent.seeds)
    persistent.make_update()
    np.testing.assert_array_equal(persistent.state.chains.numpy(), expected)
    kept = started.state.chains.numpy()
    started.make_update()
    np.testing.assert_array_equal(started.state.chains.numpy(), kept)


def test_the_articles_pattern_comes_back_from_noise() -> None:
    """The article's own test: 50 vectors 1010101010, batches of 5, CD-2, 1,000 updates, then 20 steps from noise."""
    pattern = np.tile([1, 0], 5).astype(np.float32)
    config = TrainConfig(
        num_hidden=10, epochs=100, batch_size=5, num_chains=5, chain_steps=2, rule_weights="adam", rule_biases="adam",
        learning_rate_weights=0.1, learning_rate_biases=0.01, schedule="constant", warmup_updates=0, centred=False,
        weight_std=1e-3, bias_std=1e-5, data_biases=False,
    )  # fmt: skip
    trainer = Trainer(config, np.tile(pattern, (50, 1)))
    for _ in trainer.train():
        pass
    assert trainer.update == 1_000
    seeds = chain_seeds(5, 200)
    dreams = run_chains(trainer.params, noise(seeds, 10), num_steps=20, seeds=seeds)
    assert (dreams == pattern).all(axis=1).mean() > 0.9


def test_learning_rates_change_between_epochs() -> None:
    config = SMALL.replace(rate_changes=((1, 0.0),), updates_an_epoch=3, epochs=2)
    trainer = Trainer(config, IMAGES)
    for _ in trainer.train(3):
        pass
    before = trainer.params
    trainer.make_update()
    assert trainer.num_updates == 6 and trainer.epoch == 1
    np.testing.assert_array_equal(trainer.params.weights, before.weights)
    other = Trainer(SMALL, IMAGES)
    other.scale_learning_rates(weights=0.5)
    other.scale_learning_rates(weights=0.5, biases=0.1)
    np.testing.assert_allclose(other.state.rate_scale.numpy(), [0.25, 0.1])


def test_weight_decay_shrinks_weights_only() -> None:
    changes = {"learning_rate_weights": 0.5, "learning_rate_biases": 0.5, "centred": False}
    plain, decayed = (Trainer(SMALL.replace(weight_decay=decay, **changes), IMAGES) for decay in (0.0, 0.1))
    start = plain.params.weights
    plain.make_update()
    decayed.make_update()
    np.testing.assert_allclose(plain.params.weights - decayed.params.weights, 0.5 * 0.1 * start, atol=1e-7)
    np.testing.assert_array_equal(plain.params.hidden_bias, decayed.params.hidden_bias)


def test_iterate_averaging_is_the_mean_of_the_last_updates() -> None:
    trainer = Trainer(SMALL.replace(average_share=0.5, updates_an_epoch=4, epochs=2), IMAGES)
    weights = [trainer.params.weights for _ in trainer.train()]
    np.testing.assert_allclose(trainer.best_params.weights, np.mean(weights[4:], axis=0), atol=1e-6)


def test_divergence_is_told_and_never_saved(tmp_path: Any) -> None:
    trainer = Trainer(SMALL, IMAGES, tmp_path)
    trainer.state.params[0].assign(tf.fill([6, 4], float("nan")))
    with pytest.raises(TrainingError, match="lower learning rates"):
        trainer.make_update()
    with pytest.raises(TrainingError, match="diverged"):
        trainer.save()
    assert not list(tmp_path.glob("ckpt-*"))
