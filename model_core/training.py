"""Training in TensorFlow 2: the awake and asleep phases, the first-order loss, and the updates.

The gradient of the mean log-likelihood is a difference of two averages (Ackley, Hinton and Sejnowski 1985; the
article calls the phases awake and asleep):

    d/dW = <v h'> under the data - <v h'> under the model           and likewise <v>, <h> for the biases

`first_order_loss` is a number whose derivative is just that, minus it, when the states are held constant: the mean
energy of the awake states less that of the asleep ones. TensorFlow differentiates it. (Its value is no likelihood,
and its second derivatives are wrong by design: it is for first-order rules only.)

Everything random is keyed by (seed, update), and everything that the next update depends on is a variable of
`TrainState`, so a training that is stopped anywhere and resumed ends with the same bits as one left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported: it is talkative

import numpy as np
import tensorflow as tf

from model_core.chains import Chains, Engine, get_engine
from model_core.data_binary import Batches, pixel_probs
from model_core.presets import Rule, TrainConfig
from model_core.randomness import chain_seeds
from model_core.rbm import RBMParams


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
        self.slots = [_slots(rule, variable) for rule, variable in zip(rules, self.params, strict=True)]
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


def first_order_loss(
    params: list[Any], awake_visible: Any, awake_hidden: Any, asleep_visible: Any, asleep_hidden: Any
) -> Any:
    """Mean energy of the awake states less the mean energy of the asleep ones, nats; each mean over its own rows.

    Minus its gradient is the gradient of the mean log-likelihood. States are float32 [rows, visible], [rows, hidden].
    """
    weights, visible_bias, hidden_bias = params
    num_awake = tf.cast(tf.shape(awake_visible)[0], tf.float32)
    num_asleep = tf.cast(tf.shape(asleep_visible)[0], tf.float32)
    visible = tf.concat([awake_visible, asleep_visible], axis=0)
    # One product for both phases: the rows of each carry its sign and share.
    hidden = tf.concat([awake_hidden / num_awake, -asleep_hidden / num_asleep], axis=0)
    visible_change = tf.reduce_mean(awake_visible, axis=0) - tf.reduce_mean(asleep_visible, axis=0)
    hidden_change = tf.reduce_sum(hidden, axis=0)
    interaction = tf.reduce_sum(weights * tf.matmul(visible, hidden, transpose_a=True))
    return -interaction - tf.tensordot(visible_bias, visible_change, 1) - tf.tensordot(hidden_bias, hidden_change, 1)


def centred(gradient: list[Any], visible_offset: Any, hidden_offset: Any) -> list[Any]:
    """The gradient in centred coordinates, (v - offset) and (h - offset), expressed in the plain parameters.

    Melchior, Fischer and Wiskott 2016, "How to Center Deep Boltzmann Machines", equations 11 to 13: the offsets of
    the two phases cancel but for the rank-one terms below.
    """
    of_weights, of_visible, of_hidden = gradient
    of_weights -= tf.tensordot(visible_offset, of_hidden, 0) + tf.tensordot(of_visible, hidden_offset, 0)
    return [
        of_weights,
        of_visible - tf.linalg.matvec(of_weights, hidden_offset),
        of_hidden - tf.linalg.matvec(of_weights, visible_offset, transpose_a=True),
    ]


def _slots(rule: Rule, variable: Any) -> list[Any]:
    count = {"sgd": 0, "momentum": 1, "adam": 2}[rule]
    return [tf.Variable(tf.zeros_like(variable)) for _ in range(count)]


def apply_rule(rule: Rule, variable: Any, slots: list[Any], gradient: Any, rate: Any, step: Any, momentum: float) -> None:
    """One descent step of `variable`, in place: SGD, momentum (Polyak 1964), or Adam (Kingma and Ba 2015)."""
    if rule == "sgd":
        variable.assign_sub(rate * gradient)
    elif rule == "momentum":
        slots[0].assign(momentum * slots[0] - rate * gradient)
        variable.assign_add(slots[0])
    else:
        first, second = slots
        first.assign(0.9 * first + 0.1 * gradient)
        second.assign(0.999 * second + 0.001 * tf.square(gradient))
        correction = tf.sqrt(1.0 - tf.pow(0.999, step)) / (1.0 - tf.pow(0.9, step))
        variable.assign_sub(rate * correction * first / (tf.sqrt(second) + 1e-7))


@dataclass(frozen=True)
class UpdateReport:
    """What one update did, for watching; means over its rows."""

    update: int
    reconstruction_error: float  # mean squared error a pixel of v -> p(h) -> p(v), on the batch
    update_ratio: float  # rms of the change of the weights over rms of the weights


class Trainer:
    """Trains one model, update by update.

    Args:
      config: what to do.
      images: the training images, uint8 0..255 or floats 0..1, [images, visible].
      directory: where checkpoints go, or None for a training without any.
      engine: runs the asleep phase's chains; None for the default.
    """

    def __init__(
        self, config: TrainConfig, images: np.ndarray, directory: Path | None = None, engine: Engine | None = None
    ) -> None:
        self.config = config
        self.batches = Batches(images, config.batch_size, seed=config.seed, binarisation=config.binarisation)
        self.updates_an_epoch = self.batches.num_batches
        self.num_updates = config.epochs * self.updates_an_epoch
        self.pixel_means = _pixel_means(images)
        self.state = TrainState(config, self.pixel_means)
        self.engine = engine or get_engine()
        self.seeds = chain_seeds(config.seed, max(config.num_chains, config.batch_size))
        self._step = tf.function(self._apply, input_signature=self._signature())
        self._checkpoint = tf.train.Checkpoint(state=self.state)
        self.manager: tf.train.CheckpointManager | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self.manager = tf.train.CheckpointManager(self._checkpoint, str(directory), config.keep_checkpoints)

    @property
    def update(self) -> int:
        """How many updates have been made."""
        return int(self.state.update)

    @property
    def epoch(self) -> int:
        """How many epochs are complete."""
        return self.update // self.updates_an_epoch

    @property
    def params(self) -> RBMParams:
        """The parameters as they are now; a copy."""
        return RBMParams(*(variable.numpy().copy() for variable in self.state.params))

    @property
    def best_params(self) -> RBMParams:
        """What should be published: the average over the last `average_share` of the run, else the parameters."""
        if int(self.state.num_averaged) == 0:
            return self.params
        return RBMParams(*(variable.numpy().copy() for variable in self.state.averages))

    def train(self, num_updates: int | None = None) -> Iterator[int]:
        """Makes updates up to the end of the run (or `num_updates` of them); yields the count after each."""
        last = self.num_updates if num_updates is None else min(self.num_updates, self.update + num_updates)
        while self.update < last:
            self.make_update()
            yield self.update

    def make_update(self) -> None:
        """One update: awake phase on the next batch, asleep phase on the chains, one step of every rule."""
        update = self.update
        awake = self.batches.at(update)
        asleep_visible, asleep_states = self.asleep_phase(awake, update)
        factor = self.config.rate_factor(update, self.num_updates)
        first_averaged = self.num_updates - round(self.config.average_share * self.num_updates)
        self._step(
            tf.constant(awake),
            tf.constant(asleep_visible),
            tf.constant(asleep_states),
            tf.constant(factor, tf.float32),
            tf.constant(update >= first_averaged),
        )

    def asleep_phase(self, awake: np.ndarray, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Moves the chains by `chain_steps` steps.

        Returns:
          what the statistics use (states, or probabilities if so configured), float32 or uint8 [chains, visible], and
          the states that the chains are in, uint8 [chains, visible].
        """
        config = self.config
        start = awake if config.sampler == "cd" else self.state.chains.numpy()
        mean_field = config.chain_mode == "mean_field"
        num_chains = len(start)
        chains = Chains(
            visible=start,
            seeds=self.seeds[:num_chains],
            num_steps=np.full(num_chains, config.chain_steps, np.int64),
            first_step=np.full(num_chains, update * config.chain_steps, np.int64),
            temperature=np.ones(num_chains, np.float32),
            clamp=None,
        )
        prepared = self.engine.prepare(RBMParams(*(variable.numpy() for variable in self.state.params)))
        advance = self.engine.advance_mean_field if mean_field else self.engine.advance
        states, probs = advance(prepared, chains)
        if mean_field:
            # The article: probabilities all the way, and one binary draw of the visible units at the very end.
            states = (_uniforms(config.seed, update, states.shape) < probs).astype(np.uint8)
        return (probs if config.asleep_visible == "probs" else states.astype(np.float32)), states

    def _signature(self) -> list[Any]:
        num_visible = len(self.pixel_means)
        return [
            tf.TensorSpec([None, num_visible], tf.uint8),
            tf.TensorSpec([None, num_visible], tf.float32),
            tf.TensorSpec([None, num_visible], tf.uint8),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([], tf.bool),
        ]

    def _apply(self, awake: Any, asleep_visible: Any, asleep_states: Any, factor: Any, averaging: Any) -> None:
        state, config = self.state, self.config
        weights, _, hidden_bias = state.params
        awake = tf.cast(awake, tf.float32)
        seed = tf.stack([tf.constant(config.seed % 2**31, tf.int64), state.update])
        awake_probs = tf.sigmoid(tf.matmul(awake, weights) + hidden_bias)
        asleep_probs = tf.sigmoid(tf.matmul(asleep_visible, weights) + hidden_bias)
        awake_hidden = _statistic(awake_probs, config.awake_hidden, seed)
        asleep_hidden = _statistic(asleep_probs, config.asleep_hidden, seed + [1, 0])
        with tf.GradientTape() as tape:
            loss = first_order_loss(state.params, awake, awake_hidden, asleep_visible, asleep_hidden)
        gradient = tape.gradient(loss, state.params)
        if config.centred:
            gradient = centred(gradient, tf.constant(self.pixel_means), state.hidden_offset)
            state.hidden_offset.assign_add(config.offset_rate * (tf.reduce_mean(awake_probs, 0) - state.hidden_offset))
        gradient[0] += config.weight_decay * weights
        self._descend(gradient, factor)
        if config.average_share > 0 and averaging:
            state.num_averaged.assign_add(1)
            share = 1.0 / tf.cast(state.num_averaged, tf.float32)
            for average, variable in zip(state.averages, state.params, strict=True):
                average.assign_add(share * (variable - average))
        if config.sampler != "cd":
            state.chains.assign(asleep_states)
        state.update.assign_add(1)

    def _descend(self, gradient: list[Any], factor: Any) -> None:
        state, config = self.state, self.config
        step = tf.cast(state.update + 1, tf.float32)
        weight_rate = factor * config.learning_rate_weights * state.rate_scale[0]
        bias_rate = factor * config.learning_rate_biases * state.rate_scale[1]
        for index, (variable, slots) in enumerate(zip(state.params, state.slots, strict=True)):
            rule, rate = (config.rule_weights, weight_rate) if index == 0 else (config.rule_biases, bias_rate)
            apply_rule(rule, variable, slots, gradient[index], rate, step, config.momentum)

    def scale_learning_rates(self, weights: float = 1.0, biases: float = 1.0) -> None:
        """Multiplies the two learning rates from now on, as the article does between epochs; kept in checkpoints."""
        self.state.rate_scale.assign([weights, biases])

    def save(self) -> str:
        """Writes a checkpoint, numbered by the update, and returns its path."""
        if self.manager is None:
            raise TrainingError("This training has no folder for checkpoints: give the trainer a `directory`.")
        return str(self.manager.save(checkpoint_number=self.update))

    def restore(self, checkpoint: str | None = None) -> None:
        """Goes back to a checkpoint: one of `manager.checkpoints`, by default the newest that can be read."""
        if self.manager is None:
            raise TrainingError("This training has no folder for checkpoints: give the trainer a `directory`.")
        folder = Path(self.manager.directory)
        candidates = [checkpoint] if checkpoint else list(reversed(self.manager.checkpoints))
        if not candidates:
            hint = " (its `checkpoint` file is damaged or missing)" if any(folder.glob("ckpt-*.index")) else ""
            raise TrainingError(f"No training checkpoint is listed in {folder}{hint}. Train without --resume to start.")
        reasons = []
        for candidate in candidates:
            try:
                self._checkpoint.read(candidate).assert_consumed()
                return
            except (tf.errors.OpError, AssertionError, ValueError) as error:
                reasons.append(f"{candidate}: {str(error).splitlines()[0]}")
        raise TrainingError(
            "No training checkpoint can be restored into this configuration. " + "; ".join(reasons)
        )


def _statistic(probs: Any, kind: str, seed: Any) -> Any:
    if kind == "probs":
        return probs
    return tf.cast(tf.random.stateless_uniform(tf.shape(probs), seed) < probs, tf.float32)


def _uniforms(seed: int, update: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(9, update)))).random(shape)


def _pixel_means(images: np.ndarray) -> np.ndarray:
    """Means of the pixels, float32; in slices, because float64 copies of a large set are large."""
    total = np.zeros(images.shape[1])
    for first in range(0, len(images), 5000):
        total += pixel_probs(images[first : first + 5000]).sum(axis=0, dtype=np.float64)
    return (total / len(images)).astype(np.float32)
