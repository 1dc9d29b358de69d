"""A version of a model as requests see it: what it computes, and what its card says."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from model_core import model_store, rbm
from model_core.engine_numba import NumbaEngine
from model_core.equilibrium import LADDER_FILE, EquilibriumSampler, parse_ladder
from model_core.model_store import Model, ModelError
from model_core.rbm import RBMParams
from service.starts import in_blocks
from service.versions import Fingerprint

_log = logging.getLogger(__name__)
_CARD_FIELDS = ("created_at", "dataset", "metrics", "licence")


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A verified version, ready for the engine. Immutable: whoever holds it can finish on it."""

    model: Model
    prepared: Any  # the engine's form of `params`
    found: Fingerprint = ()  # the state of its files when they were read

    name = property(lambda self: self.model.name)
    version = property(lambda self: self.model.version)
    manifest = property(lambda self: self.model.manifest)
    image_shape = property(lambda self: self.model.image_shape)
    params = property(lambda self: self.model.params)
    num_visible = property(lambda self: self.model.params.num_visible)
    num_hidden = property(lambda self: self.model.params.num_hidden)

    @property
    def free_energy_percentiles(self) -> list[float] | None:
        """101 free energies of held-out data, nats; None if the model was published without."""
        return self.manifest.get("free_energy_percentiles")

    def hidden_probs(self, images: np.ndarray) -> np.ndarray:
        """p(h=1 given v), float32 [rows, hidden]."""
        return in_blocks(partial(rbm.hidden_probs, self.params), images)

    def hidden_logits(self, images: np.ndarray) -> np.ndarray:
        """The inputs of the hidden units, float32 [rows, hidden]."""
        return in_blocks(partial(rbm.hidden_logits, self.params), images)

    def free_energy(self, images: np.ndarray) -> np.ndarray:
        """F(v) in nats, float64 [rows], to six decimals.

        Computed in double precision: the order in which a product adds depends on the computer, its threads and the
        other rows, and six decimals of single precision would show it.
        """
        return in_blocks(partial(rbm.free_energy, self._precise), images).round(6)

    @cached_property
    def _precise(self) -> RBMParams:
        return RBMParams(*(array.astype(np.float64) for array in self.params))

    def surprise(self, free_energies: np.ndarray) -> np.ndarray | None:
        """Percentile of each free energy among held-out data, 0..100, float64; None if those are not known."""
        if self.free_energy_percentiles is None:
            return None
        return np.interp(free_energies, self.free_energy_percentiles, np.arange(101.0))

    def extra(self, filename: str) -> bytes | None:
        """A further file of the version, such as `ladder.npz`, verified; None if there is none (any more)."""
        try:
            return model_store.load_extra(self.model, filename)
        except ModelError:
            return None

    @cached_property
    def sampler(self) -> EquilibriumSampler | None:
        """Draws equilibrium samples; None if the version was published without a usable ladder, which is logged."""
        content = self.extra(LADDER_FILE)
        if content is None:
            return None
        try:
            ladder = parse_ladder(content, self.num_visible, self.num_hidden)
        except ValueError as error:
            _log.warning("Model %s, version %s has no equilibrium samples. %s", self.name, self.version, error)
            return None
        return EquilibriumSampler(self.params, ladder, NumbaEngine(num_threads=1))  # a thread a core: the scheduler's

    def summary(self) -> dict[str, Any]:
        """Plain values for `/models`."""
        card = {field: self.manifest.get(field) for field in _CARD_FIELDS}
        sizes = {"num_visible": self.num_visible, "num_hidden": self.num_hidden}
        return {"name": self.name, "version": self.version, "image_shape": list(self.image_shape), **sizes, **card}
