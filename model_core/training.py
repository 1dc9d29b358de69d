"""Training in TensorFlow 2: an awake phase on images, an asleep phase on chains, and a step along their difference.

`gradients` says what the difference is. The chains start at the images (contrastive divergence, CD-k), go on for ever
(persistent CD), or are kept at equilibrium by exchange with earlier versions of the model (`ladder`).

Everything random is keyed by (seed, update), and everything that the next update depends on is a variable of
`TrainState`, so a training that is stopped anywhere and resumed ends with the same bits as one left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from model_core.chains import Chains, Engine, get_engine, plain_chains
from model_core.data_binary import Batches, pixel_probs
from model_core.engine_numba import NumbaEngine
from model_core.gradients import ascend, centred, first_order_loss, statistic
from model_core.presets import TrainConfig
from model_core.quiet_tensorflow import tf
from model_core.randomness import chain_seeds
from model_core.rbm import RBMParams
from model_core.training_arrays import assign, copied_params, tensor, view
from model_core.training_ladder import LadderSampler
from model_core.training_state import TrainingError, TrainState

__all__ = ["Trainer", "TrainingError", "leave_cores_to_chains"]
_log = logging.getLogger(__name__)


def leave_cores_to_chains(config: TrainConfig) -> None:
    """Keeps TensorFlow to one thread in this process, if `config` is for sums of rows; call it before any `Trainer`.

    What such a training leaves to TensorFlow takes 0.1 ms an update. Shared among threads it takes three times that,
    and they wait for the next one by spinning on the cores that the chains run on.
    """
    if config.plain:
        with suppress(RuntimeError):  # TensorFlow has begun: it keeps its threads
            tf.config.threading.set_intra_op_parallelism_threads(1)


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
        self.updates_an_epoch = config.updates_an_epoch or self.batches.num_batches
        self.num_updates = config.epochs * self.updates_an_epoch
        self.pixel_means = _pixel_means(images)
        self.state = TrainState(config, self.pixel_means)
        self._update = 0  # `state.update` is brought up to date where it is saved
        self.engine = engine or get_engine()
        self.seeds = chain_seeds(config.seed, max(config.num_chains, config.batch_size))
        self._loss_gradient = tf.function(self._gradient_of_loss)
        self._average = tf.function(self._move_averages, jit_compile=True)
        self.ladder: LadderSampler | None = None
        if config.sampler == "ladder":
            folder = None if directory is None else directory / "rungs"
            self.ladder = LadderSampler(config, self.state, self.pixel_means, folder)
        parts = {} if self.ladder is None else {"ladder": self.ladder}
        self._checkpoint = tf.train.Checkpoint(state=self.state, **parts)
        _ = self._checkpoint.save_counter  # made on first use; a checkpoint that has one could not be restored before
        self.manager: tf.train.CheckpointManager | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            _mend_list(directory)
            self.manager = tf.train.CheckpointManager(self._checkpoint, str(directory), config.keep_checkpoints)

    @property
    def update(self) -> int:
        """How many updates have been made."""
        return self._update

    @property
    def epoch(self) -> int:
        """How many epochs are complete."""
        return self.update // self.updates_an_epoch

    @property
    def params(self) -> RBMParams:
        """The parameters as they are now; a copy."""
        return copied_params(self.state.params)

    @property
    def best_params(self) -> RBMParams:
        """What should be published: the average over the last `average_share` of the run, else the parameters."""
        if int(self.state.num_averaged) == 0:
            return self.params
        return copied_params(self.state.averages)

    def train(self, num_updates: int | None = None) -> Iterator[int]:
        """Makes updates up to the end of the run (or `num_updates` of them); yields the count after each."""
        last = self.num_updates if num_updates is None else min(self.num_updates, self.update + num_updates)
        while self.update < last:
            self.make_update()
            yield self.update

    def make_update(self) -> None:
        """One update: awake phase on the next batch, asleep phase on the chains, one step of every rule."""
        update = self.update
        self._change_rates(update)
        if self.ladder is not None:
            self.ladder.exchange(self.state, update)
        gradient, awake_hidden, chains = self._phases(update)
        self._ascend(gradient, awake_hidden, update)
        if self.config.sampler != "cd":
            assign(self.state.chains, chains)
        self._update = update + 1

    def _phases(self, update: int) -> tuple[list[Any], Any, np.ndarray]:
        """The gradient of this update, the awake mean of p(h=1 given v), and where the chains are now."""
        awake = self.batches.at(update)
        # A local: while anybody looks at the parameters, every change would have to copy them.
        prepared = self._prepare()
        if self.config.plain and isinstance(self.engine, NumbaEngine):
            return self._phases_as_sums(self.engine, prepared, awake, update)
        asleep_visible, states = self.asleep_phase(awake, update, prepared)
        seed = tf.constant([self.config.seed % 2**31, update], tf.int64)
        *gradient, awake_hidden = self._loss_gradient(tf.constant(awake), tf.constant(asleep_visible), seed)
        return gradient, awake_hidden, states

    def _phases_as_sums(
        self, engine: NumbaEngine, prepared: Any, awake: np.ndarray, update: int
    ) -> tuple[list[Any], Any, np.ndarray]:
        """What `_gradient_of_loss` gives, by way of the rows that are on: five sixths of the pixels are 0."""
        states, sums = engine.advance_for_moments(prepared, self._chains(awake, update))
        centre: dict[str, np.ndarray] = {}
        if self.config.centred:
            centre = {"visible_offset": self.pixel_means, "hidden_offset": view(self.state.hidden_offset)}
        *gradient, awake_hidden = engine.phase_moments(prepared, awake, states, asleep_sums=sums, **centre)
        return [*map(tensor, gradient)], awake_hidden, states

    def asleep_phase(
        self, awake: np.ndarray, update: int, prepared: Any | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moves the chains by `chain_steps` steps.

        Returns:
          what the statistics use (states, or probabilities if so configured), float32 or uint8 [chains, visible], and
          the states that the chains are in, uint8 [chains, visible].
        """
        prepared, config = self._prepare() if prepared is None else prepared, self.config
        mean_field = config.chain_mode == "mean_field"
        advance = self.engine.advance_mean_field if mean_field else self.engine.advance
        states, probs = advance(prepared, self._chains(awake, update))
        if mean_field:
            # The article: probabilities all the way, and one binary draw of the visible units at the very end.
            states = (_uniforms(config.seed, update, states.shape) < probs).astype(np.uint8)
        return (probs if config.asleep_visible == "probs" else states), states

    def _chains(self, awake: np.ndarray, update: int) -> Chains:
        start = awake if self.config.sampler == "cd" else view(self.state.chains)
        num_steps = self.config.chain_steps
        return plain_chains(start, self.seeds[: len(start)], update * num_steps, num_steps)

    def _gradient_of_loss(self, awake: Any, asleep_visible: Any, seed: Any) -> list[Any]:
        config, state = self.config, self.state
        weights, _, hidden_bias = state.params
        awake, asleep_visible = tf.cast(awake, tf.float32), tf.cast(asleep_visible, tf.float32)
        awake_probs = tf.sigmoid(tf.matmul(awake, weights) + hidden_bias)
        asleep_probs = tf.sigmoid(tf.matmul(asleep_visible, weights) + hidden_bias)
        # The states are held constant: what the tape sees of the parameters is the energy alone.
        awake_hidden = statistic(awake_probs, config.awake_hidden, seed)
        asleep_hidden = statistic(asleep_probs, config.asleep_hidden, seed + tf.constant([1, 0], tf.int64))
        with tf.GradientTape() as tape:
            loss = first_order_loss(state.params, awake, awake_hidden, asleep_visible, asleep_hidden)
        gradient = [-slope for slope in tape.gradient(loss, state.params)]
        if config.centred:
            gradient = centred(gradient, tf.constant(self.pixel_means), state.hidden_offset)
        return [*gradient, tf.reduce_mean(awake_probs, axis=0)]

    def _prepare(self) -> Any:
        """The parameters as the engine wants them; a training that has diverged ends here."""
        try:
            return self.engine.prepare(RBMParams(*map(view, self.state.params)))
        except ValueError as error:
            raise TrainingError(
                f"The training has diverged: after {self.update} updates {error} Train anew with lower learning rates, "
                "or go back to a checkpoint that is still good."
            ) from error

    def _ascend(self, gradient: list[Any], awake_hidden: Any, update: int) -> None:
        state, config = self.state, self.config
        factor, scales = config.rate_factor(update, self.num_updates), view(state.rate_scale)
        rates = (factor * config.learning_rate_weights * scales[0], factor * config.learning_rate_biases * scales[1])
        if config.weight_decay:
            gradient[0] -= config.weight_decay * state.params[0]
        for index, (variable, slots) in enumerate(zip(state.params, state.slots, strict=True)):
            rule, rate = (config.rule_weights, rates[0]) if index == 0 else (config.rule_biases, rates[1])
            ascend(rule, variable, slots, gradient[index], float(rate), update + 1, config.momentum)
        if config.centred:
            offset = view(state.hidden_offset)
            assign(state.hidden_offset, offset + np.float32(config.offset_rate) * (np.asarray(awake_hidden) - offset))
        if config.average_share > 0 and update >= self.num_updates - round(config.average_share * self.num_updates):
            self._average()

    def _move_averages(self) -> None:
        state = self.state
        state.num_averaged.assign_add(1)
        share = 1.0 / tf.cast(state.num_averaged, tf.float32)
        for average, variable in zip(state.averages, state.params, strict=True):
            average.assign_add(share * (variable - average))

    def _change_rates(self, update: int) -> None:
        epoch, updates_into_it = divmod(update, self.updates_an_epoch)
        if updates_into_it == 0:
            for when, factor in self.config.rate_changes:
                if when == epoch:
                    self.scale_learning_rates(factor, factor)

    def scale_learning_rates(self, weights: float = 1.0, biases: float = 1.0) -> None:
        """Multiplies the two learning rates from now on, as the article does between epochs; kept in checkpoints."""
        self.state.rate_scale.assign(self.state.rate_scale * [weights, biases])

    def save(self) -> str:
        """Writes a checkpoint, numbered by the update, and returns its path.

        Raises:
          TrainingError: if there is no folder, or the parameters are not finite: such a state is not worth keeping.
        """
        if self.manager is None:
            raise TrainingError("This training has no folder for checkpoints: give the trainer a `directory`.")
        self._prepare()
        self.state.update.assign(self._update)
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
                self._update = int(self.state.update)
                self._prepare()
            except (tf.errors.OpError, AssertionError, IndexError, ValueError, TrainingError) as error:
                reasons.append(f"{candidate}: {(str(error).splitlines() or [type(error).__name__])[0]}")
            else:
                for reason in reasons:
                    _log.warning("skipped a training checkpoint: %s", reason)
                return
        raise TrainingError("No training checkpoint can be restored into this configuration. " + "; ".join(reasons))


def _mend_list(directory: Path) -> None:
    """Lists the checkpoints anew where the file that lists them is lost; `CheckpointManager` would forget them all."""
    with suppress(ValueError, tf.errors.OpError):
        if tf.train.get_checkpoint_state(str(directory)) is not None:
            return
    found = sorted(directory.glob("ckpt-*.index"), key=lambda path: int(path.stem.partition("-")[2]))
    if not found:
        return
    _log.warning("%s/checkpoint is missing or damaged: made anew from %d checkpoint files", directory, len(found))
    lines = [f'model_checkpoint_path: "{found[-1].stem}"', "last_preserved_timestamp: 0"]
    lines += [f'all_model_checkpoint_paths: "{path.stem}"' for path in found]
    lines += [f"all_model_checkpoint_timestamps: {path.stat().st_mtime}" for path in found]
    temporary = directory / ".checkpoint"
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(directory / "checkpoint")


def _uniforms(seed: int, update: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(9, update)))).random(shape)


def _pixel_means(images: np.ndarray) -> np.ndarray:
    """Means of the pixels, float32; in slices, because float64 copies of a large set are large."""
    total = np.zeros(images.shape[1])
    for first in range(0, len(images), 5000):
        total += pixel_probs(images[first : first + 5000]).sum(axis=0, dtype=np.float64)
    return (total / len(images)).astype(np.float32)
