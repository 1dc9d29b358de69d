"""Configurations: what they allow, their schedule of learning rates, and what the presets promise."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from model_core.presets import PRESETS, TrainConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "gibbs"}, "`sampler` must be one of cd, pcd, ladder"),
        ({"rule_weights": "lion"}, "`rule_weights`"),
        ({"num_hidden": 0}, "`num_hidden` must be at least 1"),
        ({"updates_an_epoch": 0}, "`updates_an_epoch`"),
        ({"learning_rate_weights": -0.1}, "`learning_rate_weights` must be at least 0"),
        ({"learning_rate_biases": float("nan")}, "`learning_rate_biases`"),
        ({"momentum": 1.5}, "`momentum` must be between 0 and 1"),
        ({"rate_changes": ((-1, 0.5),)}, "`rate_changes`"),
        ({"rate_changes": ((1, float("inf")),)}, "`rate_changes`"),
        ({"sampler": "ladder", "chain_mode": "mean_field"}, "gibbs"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig().replace(**changes)


@pytest.mark.parametrize("name", PRESETS)
def test_json_there_and_back(name: str) -> None:
    config = PRESETS[name].replace(rate_changes=((3, 0.5),))
    assert TrainConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_fields_of_another_version_are_named() -> None:
    with pytest.raises(ValueError, match="sparsity"):
        TrainConfig.from_json({"sparsity": 0.1})


def test_rates_warm_up_stay_and_fall_to_zero() -> None:
    config = TrainConfig(warmup_updates=10, constant_share=0.5)
    assert config.rate_factor(0, 100) == pytest.approx(0.1)
    assert config.rate_factor(9, 100) == config.rate_factor(50, 100) == 1.0
    assert config.rate_factor(75, 100) == pytest.approx(0.5)
    assert 0 < config.rate_factor(99, 100) < 0.021
    assert TrainConfig(schedule="constant", warmup_updates=0).rate_factor(99, 100) == 1.0


def test_the_articles_preset_is_the_articles() -> None:
    """O. K. Ernst 2020: 784 hidden units, 20 x 500 updates of 5 images, 5 persistent chains, Adam at 1e-3 and 1e-5."""
    article = PRESETS["article"]
    assert (article.num_hidden, article.epochs, article.updates_an_epoch, article.batch_size) == (784, 20, 500, 5)
    assert (article.num_chains, article.chain_steps, article.sampler) == (5, 5, "pcd")
    assert (article.rule_weights, article.learning_rate_weights, article.learning_rate_biases) == ("adam", 1e-3, 1e-5)


def test_the_recommended_preset_is_what_the_shipped_model_was_trained_with() -> None:
    """Changing it would make the published manifest's configuration unlike the preset of its name."""
    changed = {"epochs": 360, "constant_share": 0.2, "average_share": 0.05, "keep_checkpoints": 400}
    assert PRESETS["recommended"] == TrainConfig(**changed)  # type: ignore[arg-type]
    assert (TrainConfig().batch_size, TrainConfig().num_chains, TrainConfig().chain_steps) == (200, 500, 5)
