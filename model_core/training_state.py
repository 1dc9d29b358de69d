"""Everything that the next update of a training depends on, as one `tf.Module` for `tf.train.Checkpoint`."""

from __future__ import annotations

import numpy as np

from model_core.gradients import make_slots
from model_core.presets import TrainConfig
from model_core.quiet_tensorflow import tf
from model_core.randomness import chain_seeds


class TrainingError(RuntimeError):
    """A training that cannot be started, resumed or go on; says what to do."""


class TrainState(tf.Module):
    """Everything that the next update depends on, apart from the images and the configuration."""

    def __init__(self, config: TrainConfig, pixel_means: np.ndarray) -> None:
        super().__init__()
        num_visible, num_hidden = len(pixel_means), config.num_hidden
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(config.seed, spawn_key=(7,))))
        draw = lambda scale, *shape: (scale * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731
        visible_bias = draw(config.bias_std, num_visible)
        if config.data_biases:
            visible_bias = log_odds(pixel_means)
        self.params = [
            tf.Variable(draw(config.weight_std, num_visible, num_hidden), name="weights"),
            tf.Variable(visible_bias, name="visible_bias"),
            tf.Variable(draw(config.bias_std, num_hidden), name="hidden_bias"),
        ]
        rules = (config.rule_weights, config.rule_biases, config.rule_biases)
        self.slots = [make_slots(rule, variable) for rule, variable in zip(rules, self.params, strict=True)]
        self.averages = [tf.Variable(tf.zeros_like(variable)) for variable in self.params]
        self.num_averaged = tf.Variable(0, dtype=tf.int64)
        self.hidden_offset = tf.Variable(tf.fill([num_hidden], 0.5))
        self.update = tf.Variable(0, dtype=tf.int64)
        seeds = chain_seeds(config.seed, config.num_chains)
        start = np.random.Generator(np.random.Philox(np.random.SeedSequence(config.seed, spawn_key=(8,))))
        chains = start.random((len(seeds), num_visible)) < pixel_means
        self.chains = tf.Variable(chains.astype(np.uint8))  # [chains, visible], the fantasy particles
        self.rate_scale = tf.Variable([1.0, 1.0])  # changes of the two learning rates between epochs


def log_odds(pixel_means: np.ndarray) -> np.ndarray:
    """Visible biases that give the pixel means without any hidden unit; float32."""
    # A pixel that is never on would ask for -inf.
    means = np.clip(pixel_means, 0.005, 0.995)
    return np.log(means / (1 - means)).astype(np.float32)
