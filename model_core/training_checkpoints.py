"""Reads the parameters out of training checkpoints, without the trainer that wrote them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_core.quiet_tensorflow import tf
from model_core.rbm import RBMParams, checked_params

_VARIABLE = "state/params/{}/.ATTRIBUTES/VARIABLE_VALUE"  # where `tf.train.Checkpoint(state=TrainState)` keeps them


def saved_updates(folder: Path | str) -> dict[int, str]:
    """The checkpoints that a training kept: number of updates -> path, rising; empty if there is none."""
    state = tf.train.get_checkpoint_state(str(folder))
    paths: Sequence[str] = state.all_model_checkpoint_paths if state is not None else ()
    numbered = {int(match[1]): path for path in paths if (match := re.search(r"-(\d+)$", path))}
    return dict(sorted(numbered.items()))


def saved_params(checkpoint: str) -> RBMParams:
    """The parameters in one of `saved_updates`.

    Raises:
      ValueError: if the file is missing, damaged or of another kind.
    """
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        arrays = [np.asarray(reader.get_tensor(_VARIABLE.format(index))) for index in range(3)]
    except (tf.errors.OpError, ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint}: not a training checkpoint that can be read: {error}") from error
    return checked_params(*arrays)
