"""What `sampler="ladder"` adds to a training: exchanges, freezing, and the refusal of updates that go too far.

Before each update the chains exchange states with the last rung (see `ladder`). How often an exchange is accepted
says how far the parameters have moved since it was frozen. Few: they are frozen as the next rung. Hardly any, all at
once, or chains that could not be weighted for the new parameters: the last update has broken equilibrium. It is
refused: the parameters before it come back, the rules forget their slots, and both learning rates are halved for good.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as format_safetensors

from model_core.ladder import FREEZE_BELOW, REFUSE_BELOW, Proposal, TrajectoryLadder
from model_core.presets import TrainConfig
from model_core.quiet_tensorflow import tf
from model_core.rbm import RBMParams, checked_params, free_energy
from model_core.training_arrays import copied_params
from model_core.training_state import TrainingError, TrainState, log_odds

GIVE_UP_AFTER = 30  # refusals in a row
SMALLEST_SHARE = 0.1  # of the chains: the effective sample size when they are weighted for the new parameters
_ERRORS_ALLOWED = 5.0  # standard errors of log Z


class LadderSampler(tf.Module):
    """The ladder of one training, as a part of its checkpoints.

    Args:
      config: of the training.
      state: its state at the start.
      pixel_means: of its images, float32 [visible]; the foot of the ladder has these.
      folder: where rungs are saved, once each; None for a training without checkpoints.
    """

    def __init__(self, config: TrainConfig, state: TrainState, pixel_means: np.ndarray, folder: Path | None) -> None:
        super().__init__()
        self.ladder = TrajectoryLadder(log_odds(pixel_means), config.num_hidden, config.num_chains, config.seed)
        self.previous = [tf.Variable(variable) for variable in state.params]  # the last that were not refused
        self.num_refused = tf.Variable(0, dtype=tf.int64)
        self.refused_in_row = tf.Variable(0, dtype=tf.int64)
        self.frozen_at = tf.Variable(-2, dtype=tf.int64)  # the update before which the last rung was frozen
        self.saved = _SavedLadder(self.ladder, folder)
        self.acceptance = 1.0  # of the last round, for watching

    def exchange(self, state: TrainState, update: int) -> None:
        """One round with the last rung; changes the chains, and freezes or refuses the parameters where it must.

        Raises:
          TrainingError: after too many refusals in a row.
        """
        chains = state.chains.numpy()
        if update == 0:
            chains = self.ladder.climb([copied_params(state.params)], chains)
        lowest = FREEZE_BELOW if int(self.frozen_at) == update - 1 else REFUSE_BELOW
        proposal = self._propose(state.params, chains, 2 * update)
        if proposal is not None and proposal.exchange.acceptance >= lowest and self._is_near(state.params, chains):
            self.refused_in_row.assign(0)
        else:
            self._refuse(state)
            proposal = self._propose(state.params, chains, 2 * update + 1)
            if proposal is None:
                raise TrainingError("The training's parameters are not finite; resume from an earlier checkpoint.")
        chains = self.ladder.accept(proposal)
        self.acceptance = proposal.exchange.acceptance
        if self.acceptance < FREEZE_BELOW:
            chains = self.ladder.freeze(copied_params(state.params), chains)
            self.frozen_at.assign(update)
        state.chains.assign(chains)
        for previous, variable in zip(self.previous, state.params, strict=True):
            previous.assign(variable)

    def _propose(self, variables: list[Any], chains: np.ndarray, number: int) -> Proposal | None:
        try:
            params = checked_params(*copied_params(variables))
        except ValueError:  # not finite
            return None
        return self.ladder.propose(self.ladder.engine.prepare(params), chains, number)

    def _is_near(self, variables: list[Any], chains: np.ndarray) -> bool:
        """Whether the chains, samples of the parameters before, can stand for samples of the new ones.

        Acceptance does not tell at once: chains that have not moved yet are exchanged like the samples they were.
        """
        engine = self.ladder.engine
        energies = [
            engine.free_energy(engine.prepare(copied_params(side)), chains) for side in (self.previous, variables)
        ]
        log_weights = energies[0] - energies[1]
        weights = np.exp(log_weights - log_weights.max())
        return float(weights.sum() ** 2 / np.square(weights).sum()) >= SMALLEST_SHARE * len(chains)

    def _refuse(self, state: TrainState) -> None:
        self.num_refused.assign_add(1)
        self.refused_in_row.assign_add(1)
        if int(self.refused_in_row) >= GIVE_UP_AFTER:
            raise TrainingError(
                f"{GIVE_UP_AFTER} updates in a row broke the equilibrium of the chains, the last at learning rates "
                f"scaled by {state.rate_scale.numpy().tolist()}. Train anew with lower learning rates or more chains."
            )
        for variable, previous in zip(state.params, self.previous, strict=True):
            variable.assign(previous)
        for slot in (slot for slots in state.slots for slot in slots):
            slot.assign(tf.zeros_like(slot))
        state.rate_scale.assign(0.5 * state.rate_scale)

    def figures(self, state: TrainState, visible: np.ndarray) -> dict[str, float]:
        """log Z along the ladder and the log-likelihood of `visible`, 0 or 1 [images, visible], in nats.

        Raises:
          TrainingError: if log Z gives the images more probability than there is.
        """
        params = copied_params(state.params)
        log_z, error = self.ladder.log_z_now(params, state.chains.numpy())
        check_log_z(params, visible, log_z, error)
        return {
            "log Z": log_z,
            "log Z error": error,
            "train log likelihood": float(-free_energy(params, visible).mean() - log_z),
            "exchange acceptance": self.acceptance,
            "rungs": float(len(self.ladder.rungs)),
            "refused updates": float(self.num_refused),
        }


def check_log_z(params: RBMParams, visible: np.ndarray, log_z: float, error: float) -> None:
    """The probabilities of different images add up to at most 1, or `log_z` is too low.

    Raises:
      TrainingError: if they add up to more than the error of `log_z`, in nats, allows.
    """
    log_probs = -free_energy(params, np.unique(visible, axis=0)) - log_z
    log_total = float(np.logaddexp.reduce(log_probs))
    if log_total > _ERRORS_ALLOWED * error + 0.01:
        raise TrainingError(
            f"log Z along the ladder is too low by at least {log_total:.2f} nats (it claims +-{error:.2f}): the "
            "chains have left equilibrium. Resume from an earlier checkpoint, with lower learning rates."
        )


class _SavedLadder(tf.train.experimental.PythonState):
    """Puts a ladder into TensorFlow's checkpoints; its rungs, which never change, into files beside them."""

    def __init__(self, ladder: TrajectoryLadder, folder: Path | None) -> None:
        super().__init__()
        self._ladder, self._folder = ladder, folder
        self._files: list[str] = []  # of all rungs but the foot

    def serialize(self) -> bytes:
        assert self._folder is not None, "a training with checkpoints has a folder"
        for rung in self._ladder.rungs[1 + len(self._files) :]:
            self._files.append(_save_rung(self._folder, len(self._files) + 1, rung.params))
        files = np.frombuffer("\n".join(self._files).encode(), np.uint8)
        return bytes(format_safetensors({**self._ladder.state(), "files": files}))

    def deserialize(self, string_value: bytes) -> None:
        assert self._folder is not None, "a training with checkpoints has a folder"
        try:
            state = parse_safetensors(string_value)
        except SafetensorError as error:
            raise ValueError(f"the ladder cannot be read: {error}") from error
        files = bytes(state.pop("files")).decode().split()
        foot = self._ladder.rungs[0].params
        self._ladder.load_state(state, [foot, *(_load_rung(self._folder / name) for name in files)])
        self._files = files


def _save_rung(folder: Path, number: int, params: RBMParams) -> str:
    """Writes a rung as a whole or not at all; its name tells its content, so it never has to be written again."""
    content = format_safetensors(params._asdict())
    name = f"{number:04d}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{name}"
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / name)
    return name


def _load_rung(path: Path) -> RBMParams:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the rung {path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest()[:16] != path.stem.partition("-")[2]:
        raise ValueError(f"the rung {path} is damaged: its content does not fit its name")
    return checked_params(**parse_safetensors(content))
