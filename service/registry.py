"""The models that are served: the newest version of each that verifies, swapped in while requests run.

A watcher thread looks at the store every second. A new version is read and verified, put into the engine's form and
run for a step, all aside; then one reference is swapped. Whoever holds the old version finishes on it.
Nothing found on disk can take away what is served: a bad version is remembered and reported, and a folder that is
gone or unreadable changes nothing. Taking the newest version away rolls back to the one before.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from model_core import model_store, rbm
from model_core.chains import Engine, make_chains
from model_core.engine_numba import NumbaEngine
from model_core.equilibrium import LADDER_FILE, EquilibriumSampler, parse_ladder
from model_core.model_store import Model, ModelError
from model_core.randomness import chain_seeds, noise
from service.crew import warm_up
from service.jobs import NotReady, UnknownModel, UnknownVersion
from service.metrics import Metrics
from service.scheduler import serving_engine
from service.starts import in_blocks
from service.versions import BadVersion, BadVersions, RecentVersions, fingerprint

_log = logging.getLogger(__name__)
_CARD_FIELDS = ("created_at", "dataset", "metrics", "licence")


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A verified version, ready for the engine. Immutable: whoever holds it can finish on it."""

    model: Model
    prepared: Any  # the engine's form of `params`

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
        """F(v) in nats, float64 [rows]."""
        return in_blocks(partial(rbm.free_energy, self.params), images)

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


class Registry:
    """Finds, verifies, warms and hands out models.

    Args:
      checkpoints: the folder of models; None is `model_store.default_checkpoints()`.
      default_model: the model of requests that name none. If the folder has no such model, an only child is it.
      engine: whose form models are put into; None is `serving_engine()`.
      poll_seconds: between two looks at the folder.
      warm_up: what else has to be compiled before a request is answered; called aside, before the first look.
    """

    def __init__(
        self,
        checkpoints: Path | None,
        *,
        default_model: str | None = None,
        engine: Engine | None = None,
        poll_seconds: float = 1.0,
        metrics: Metrics | None = None,
        warm_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = Path(os.path.abspath(checkpoints or model_store.default_checkpoints()))
        self._default_model, self._poll_seconds = default_model, poll_seconds
        self._engine, self._metrics = engine or serving_engine(), metrics or Metrics()
        self._warm_up = warm_up
        # These two are replaced, never changed: a reader sees one whole state without a lock.
        self._served: dict[str, ServedModel] = {}
        self._versions: dict[str, list[int]] = {}  # on disk at the last look, good or bad
        self._recent, self._bad = RecentVersions(), BadVersions()
        self._loading = threading.Lock()  # one version is loaded at a time, and once
        self._looked = False
        self._last_trouble = ""
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="rbm-registry", daemon=True)

    def start(self) -> None:
        """Starts watching and returns; `ready` tells when there is a model."""
        self._watcher.start()

    def stop(self) -> None:
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join(timeout=10.0)

    # For requests, from any thread.

    def get(self, name: str | None = None, version: int | None = None) -> ServedModel:
        """The model to answer with. At once for the newest version; an older one may have to be read from disk first.

        Raises:
          UnknownModel, UnknownVersion: naming what there is. NotReady: if it is not there yet.
        """
        served = self._served
        name = self._default_name() if name is None else name
        newest = served.get(name)
        if newest is not None and version in (None, newest.version):
            return newest
        if newest is None and name not in self._versions and served:
            raise UnknownModel(name, sorted(served))
        if version is None or not self._looked or (newest is None and name not in self._versions):
            raise NotReady(self._why_not_ready(name), self._poll_seconds)
        return self._pinned(name, version)

    def models(self) -> list[dict[str, Any]]:
        """What is served, for `/models`: plain values, in alphabetical order."""
        served, default = self._served, self._default_name()
        return [
            {**model.summary(), "versions": self._versions.get(name, [model.version]), "default": name == default}
            for name, model in sorted(served.items())
        ]

    def problems(self) -> list[BadVersion]:
        """The versions on disk that cannot be served, and why."""
        return self._bad.list()

    def ready(self) -> bool:
        """Whether a request that names no model can be answered."""
        return self._default_name() in self._served

    def why_not_ready(self) -> str | None:
        """None when ready, else a sentence for a person."""
        return None if self.ready() else self._why_not_ready(self._default_name())

    def _default_name(self) -> str:
        known = sorted(self._served.keys() | self._versions.keys())
        if self._default_model in known or (self._default_model and len(known) != 1):
            return self._default_model
        return known[0] if known else ""

    def _why_not_ready(self, name: str) -> str:
        if not self._looked:
            return "The models are being loaded."
        reasons = [f"version {bad.version}: {bad.reason}" for bad in self.problems() if bad.name == name]
        if reasons:
            return f"No version of model {name!r} can be used. " + " ".join(reasons)
        return f"There is no model {name!r} in the checkpoints folder yet; publish one with `rbm train`."

    def _pinned(self, name: str, version: int) -> ServedModel:
        recent = self._recent.get(name, version)
        if recent is not None:
            return recent
        # Only names and numbers that a listing of the folder gave ever meet a path.
        versions = model_store.list_versions(self._root / name) if name in self._versions else []
        if version not in versions:
            raise UnknownVersion(name, version, versions)
        model = self._load(name, version)
        if model is None:
            raise UnknownVersion(name, version, versions, self._bad.reason(name, version))
        self._recent.put(model)
        return model

    # The watcher.

    def _watch(self) -> None:
        self._warm_up()
        while True:
            try:
                self.poll()
            except Exception as error:  # a defect of ours must not end the watching
                self._say_once(f"Looking at the checkpoints failed: {error!r}")
            if self._stop.wait(self._poll_seconds):
                return

    def poll(self) -> None:
        """One look at the store: serves what is new and good, remembers what is bad."""
        versions = {name: model_store.list_versions(self._root / name) for name in model_store.list_models(self._root)}
        for name, numbers in versions.items():
            self._refresh(name, numbers)
        if self._served and not versions:
            self._say_once(f"{self._root} is gone, empty or unreadable. What is loaded stays in service.")
        elif versions:
            self._last_trouble = ""
        self._versions = versions
        self._looked = True
        with self._loading:
            self._bad.keep(versions)
        self._metrics.bad_versions.set(len(self._bad))

    def _refresh(self, name: str, versions: list[int]) -> None:
        """Serves the newest good one of `versions`."""
        current = self._served.get(name)
        for version in reversed(versions):
            if current is not None and version == current.version:
                return
            model = self._recent.get(name, version) or self._load(name, version)
            if model is not None:
                self._swap(model, current)
                return

    def _swap(self, model: ServedModel, old: ServedModel | None) -> None:
        self._served = {**self._served, model.name: model}
        _log.info("Serving model %s, version %s", model.name, model.version)
        if old is not None:
            self._recent.put(old)
            self._metrics.model_info.remove(*_labels(old))
        self._metrics.model_info.labels(*_labels(model)).set(1)
        self._metrics.model_loaded_seconds.labels(model.name).set(time.time())

    def _load(self, name: str, version: int) -> ServedModel | None:
        """Reads, verifies and warms a version; None if it is bad, which is logged once for these very files."""
        folder = model_store.version_folder(self._root, name, version)
        with self._loading:
            found = fingerprint(folder)
            if self._bad.knows(name, version, found):
                return None
            try:
                model = self._warm(model_store.verify_version(folder))
            except Exception as error:  # whatever a file holds, it cannot stop the server
                reason = str(error).replace(f"{self._root}{os.sep}", "") or repr(error)
                self._bad.add(name, version, found, reason)
                self._metrics.reloads.labels("failed").inc()
                _log.warning("Model %s, version %s cannot be served: %s", name, version, reason)
                return None
            self._bad.remove(name, version)
            self._metrics.reloads.labels("loaded").inc()
            return model

    def _warm(self, model: Model) -> ServedModel:
        """Does the slow first things now: the engine's form of the weights, and a step, for which it may compile."""
        served = ServedModel(model, self._engine.prepare(model.params))
        seeds = chain_seeds(0, 1)
        chains = make_chains(model.params, noise(seeds, served.num_visible), num_steps=1, seeds=seeds)
        self._engine.advance(served.prepared, chains)
        warm_up(self._engine)
        if served.sampler is not None:
            served.sampler.sample(seeds, 1)
        return served

    def _say_once(self, trouble: str) -> None:
        if trouble != self._last_trouble:
            self._last_trouble = trouble
            _log.warning(trouble)


def _labels(model: ServedModel) -> tuple[str, str, str]:
    return model.name, str(model.version), model.manifest["files"]["model.safetensors"]["sha256"]
