"""What `rbm train` measures after each epoch, and where it shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model_core import monitoring
from model_core.annealing import base_rate_bias, numba_annealer, spread_betas, thermodynamic_length
from model_core.data import Binarisation, Dataset, binarize, epoch_order
from model_core.data_binary import TEST_DRAW, TRAIN_DRAW
from model_core.likelihood import estimate_log_z_ais, estimate_log_z_reverse, mean_log_likelihood
from model_core.rbm import RBMParams

if TYPE_CHECKING:
    from model_core.training import Trainer

_NUM_IMAGES = 5_000  # of each set, the same ones at every epoch
_NUM_PSEUDO = 500  # of these, for the pseudo-likelihood
_NUM_CHAINS = 64  # on a TensorBoard picture
_SUBSET_EPOCH = 2**40  # an epoch that no training reaches
_NUM_WEIGHINGS, _LEAST_UPDATES = 12, 20_000  # of a run; shorter ones would spend more than a twentieth of their time
_AIS_CHAINS, _AIS_BETAS = 40, 1_000  # modest: two seconds at 784x500


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
        if is_weighed(trainer):
            figures.update(self.weigh(trainer))
        return figures

    def weigh(self, trainer: Trainer) -> dict[str, float]:
        """Held-out log-likelihood in nats from both directions: AIS, and the training's own chains annealed backwards.

        While learning is fast the chains lag behind the parameters, and the two may even change places: a figure of the
        training as much as of the model. CD has no chains that would do.
        """
        params, base = trainer.params, base_rate_bias(trainer.pixel_means)
        engine = numba_annealer()
        betas = spread_betas(*thermodynamic_length(params, base, seed=self._seed, engine=engine), _AIS_BETAS)
        options: dict[str, Any] = {"base_visible_bias": base, "betas": betas, "seed": self._seed, "engine": engine}
        log_z = {"AIS": estimate_log_z_ais(params, num_chains=_AIS_CHAINS, **options).log_z}
        if trainer.config.sampler != "cd":
            chains = trainer.state.chains.numpy()[:_AIS_CHAINS]
            log_z["reverse AIS"] = estimate_log_z_reverse(params, chains, **options).log_z
        return {
            f"{self.against} log-likelihood by {way}": mean_log_likelihood(params, self.held_out, value)
            for way, value in log_z.items()
        }


def is_weighed(trainer: Trainer) -> bool:
    """Whether the log-likelihood is estimated at the end of this epoch: twelve times in a run of many updates."""
    every = -(-trainer.config.epochs // _NUM_WEIGHINGS)
    return trainer.num_updates >= _LEAST_UPDATES and trainer.epoch % every == 0


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
