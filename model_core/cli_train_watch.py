"""What `rbm train` measures after each epoch, and where it shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model_core import monitoring
from model_core.data import Binarisation, Dataset, binarize, epoch_order
from model_core.data_binary import TEST_DRAW, TRAIN_DRAW
from model_core.rbm import RBMParams

if TYPE_CHECKING:
    from model_core.training import Trainer

_NUM_IMAGES = 5_000  # of each set, the same ones at every epoch
_NUM_PSEUDO = 500  # of these, for the pseudo-likelihood
_NUM_CHAINS = 64  # on a TensorBoard picture
_SUBSET_EPOCH = 2**40  # an epoch that no training reaches


class Watcher:
    """Measures a model on a fixed training subset and on held-out images, both binarised once.

    Args:
      dataset: the images.
      binarisation: as the training does it; "stochastic" and "fixed" are one draw here.
      seed: chooses the subset and the draw.
    """

    def __init__(self, dataset: Dataset, binarisation: Binarisation, seed: int) -> None:
        self.against = "validation" if len(dataset.validation) else "test"
        held_out = dataset.validation if len(dataset.validation) else dataset.test
        subset = epoch_order(len(dataset.train), _SUBSET_EPOCH, seed)[:_NUM_IMAGES]
        if binarisation == "threshold":
            self.training = binarize(dataset.train[subset], "threshold")
            self.held_out = binarize(held_out[:_NUM_IMAGES], "threshold")
        else:
            self.training = binarize(dataset.train[subset], seed=seed, draw=TRAIN_DRAW)
            self.held_out = binarize(held_out[:_NUM_IMAGES], seed=seed, draw=TEST_DRAW)
        self._seed = seed

    def measure(self, params: RBMParams) -> dict[str, float]:
        """Cheap figures of a model; the free-energy gap is held-out less training, in nats."""
        health = monitoring.hidden_health(params, self.training)
        few = self.held_out[:_NUM_PSEUDO]
        return {
            "reconstruction error": monitoring.reconstruction_error(params, self.held_out),
            "free energy gap": monitoring.free_energy_gap(params, self.training, self.held_out),
            "pseudo likelihood": monitoring.estimate_pseudo_likelihood(params, few, seed=self._seed, num_pixels=8),
            "mean activity": health.mean_activity,
            "dead units": health.num_dead,
            "saturated units": health.num_saturated,
        }

    def watch(self, trainer: Trainer, before_last: RBMParams) -> dict[str, float]:
        """`measure` of a training at the end of an epoch, and what only a training can tell."""
        params = trainer.params
        figures = self.measure(params)
        figures["update ratio"] = monitoring.update_ratio(before_last, params).weights
        if trainer.ladder is not None:
            figures.update(trainer.ladder.figures(trainer.state, self.training))
        return figures


class Board:
    """TensorBoard's curves, histograms and pictures of a training; does nothing without a folder."""

    def __init__(self, folder: Path | None, image_shape: tuple[int, int]) -> None:
        self._events: Any = None
        self._image_shape = image_shape
        self._previous: RBMParams | None = None
        if folder is not None:
            from model_core.monitoring_events import EventWriter

            self._events = EventWriter(folder)

    def show(self, trainer: Trainer, figures: dict[str, float]) -> None:
        if self._events is None:
            return
        params, step = trainer.params, trainer.update
        self._events.scalars({name: value for name, value in figures.items() if np.isfinite(value)}, step)
        self._events.parameters(params, self._previous, step)
        self._events.filters(params, self._image_shape, step)
        chains = trainer.state.chains.numpy()[:_NUM_CHAINS].astype(np.float32)
        self._events.images("chains", chains.reshape(-1, *self._image_shape), step)
        self._previous = params

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
