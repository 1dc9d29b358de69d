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
from pathlib import Path
from typing import Any

from model_core import model_store
from model_core.chains import Chains, Engine, make_chains
from model_core.model_store import Model
from model_core.randomness import chain_seeds, noise
from service.crew import warm_up
from service.jobs import Kind, NotReady, UnknownModel, UnknownVersion, kind_of
from service.metrics import Metrics
from service.scheduler import serving_engine
from service.served_model import ServedModel
from service.versions import BadVersion, BadVersions, Fingerprint, RecentVersions, fingerprint

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 3.0  # before a start says why it takes long
_TIMED_SECONDS, _MOST_TIMED = 0.004, 4096  # of steps whose time says how fast the engine is


class Registry:
    """Finds, verifies, warms and hands out models.

    Args:
      checkpoints: the folder of models; None is `model_store.default_checkpoints()`.
      default_model: the model of requests that name none. If the folder has no such model, an only child is it, and
        stays it when others come.
      engine: whose form models are put into; None is `serving_engine()`.
      poll_seconds: between two looks at the folder.
      warm_up: compiles what else requests need; called aside before each look, so that a failure is not the last word.
      expect: told of a kind of work, how many steps of it were done, and in how many seconds; see `Scheduler.expect`.
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
        expect: Callable[[Kind, int, float], None] = lambda *_: None,
    ) -> None:
        self._root = Path(os.path.abspath(checkpoints or model_store.default_checkpoints()))
        self._default_model, self._poll_seconds = default_model, poll_seconds
        self._engine, self._metrics = engine or serving_engine(), metrics or Metrics()
        self._warm_up, self._expect = warm_up, expect
        # These two are replaced, never changed: a reader sees one whole state without a lock.
        self._served: dict[str, ServedModel] = {}
        self._versions: dict[str, list[int]] = {}  # on disk at the last look, good or bad
        self._default = default_model or ""
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
        name = self._default if name is None else name
        newest = served.get(name)
        if newest is not None and version in (None, newest.version):
            return newest
        is_known = newest is not None or name in self._versions
        if self._looked and served and not is_known:
            raise UnknownModel(name, sorted(served))
        if self._looked and is_known and version is not None:
            return self._pinned(name, version)
        raise NotReady(self._why_not_ready(name), self._poll_seconds)

    def newest(self, name: str | None = None) -> ServedModel | None:
        """The newest version, if there is one. At once."""
        return self._served.get(self._default if name is None else name)

    def models(self) -> list[dict[str, Any]]:
        """What is served, for `/models`: plain values, in alphabetical order."""
        served, default = self._served, self._default
        return [
            {**model.summary(), "versions": self._versions.get(name, [model.version]), "default": name == default}
            for name, model in sorted(served.items())
        ]

    def problems(self) -> list[BadVersion]:
        """The versions on disk that cannot be served, and why."""
        return self._bad.list()

    def ready(self) -> bool:
        """Whether a request that names no model can be answered."""
        return self._default in self._served

    def why_not_ready(self) -> str | None:
        """None when ready, else a sentence for a person."""
        return None if self.ready() else self._why_not_ready(self._default)

    def _choose_default(self) -> str:
        """Once all is loaded: nobody shall be answered by one model because it was loaded before another."""
        wanted, known = self._default_model, sorted(self._served.keys() | self._versions.keys())
        if wanted in self._served:
            return wanted
        if self._default in self._served:
            return self._default
        if known and (wanted is None or len(known) == 1):
            return known[0]
        return wanted or ""

    def _why_not_ready(self, name: str) -> str:
        if not self._looked:
            return self._last_trouble or "The models are being loaded."
        reasons = [f"version {bad.version}: {bad.reason}" for bad in self.problems() if bad.name == name]
        if reasons:
            return f"No version of model {name!r} can be used. " + " ".join(reasons)
        return f"There is no model {name!r} in the checkpoints folder yet; publish one with `rbm train`."

    def _pinned(self, name: str, version: int) -> ServedModel:
        recent = self._kept(name, version)
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

    def _kept(self, name: str, version: int) -> ServedModel | None:
        """A recent version, unless other files have taken the place of those that it was read from."""
        recent = self._recent.get(name, version)
        return recent if recent is not None and self._find(name, version) in ((), recent.found) else None

    def _find(self, name: str, version: int) -> Fingerprint:
        return fingerprint(model_store.version_folder(self._root, name, version))

    # The watcher.

    def _watch(self) -> None:
        _log.info("Loading the models of %s", self._root)
        patience = threading.Timer(
            _PATIENCE_SECONDS, _log.info, ["Still loading: a first start compiles code, for 10 to 20 s."]
        )
        patience.daemon = True
        patience.start()
        while True:
            try:
                self._warm_up()
                self.poll()
            except Exception as error:  # a defect of ours must not end the watching
                self._say_once(f"Looking at the checkpoints failed: {error!r}")
            patience.cancel()
            if self._stop.wait(self._poll_seconds):
                return

    def poll(self) -> None:
        """One look at the store: serves what is new and good, remembers what is bad."""
        versions = {name: model_store.list_versions(self._root / name) for name in model_store.list_models(self._root)}
        for name, numbers in versions.items():
            self._refresh(name, numbers)
        if versions:
            self._last_trouble = ""
        elif self._served:
            self._say_once(f"{self._root} is gone, empty or unreadable. What is loaded stays in service.")
        else:
            self._say_once(f"There is no model in {self._root}. The server is ready as soon as one is published there.")
        self._versions = versions
        self._default = self._choose_default()
        self._looked = True
        with self._loading:
            self._bad.keep(versions)
        self._metrics.bad_versions.set(len(self._bad))

    def _refresh(self, name: str, versions: list[int]) -> None:
        """Serves the newest good one of `versions`."""
        current = self._served.get(name)
        for version in reversed(versions):
            if current is not None and version == current.version:
                if current.found != self._find(name, version) and (changed := self._load(name, version)):
                    self._swap(changed, current)
                return  # one whose files have been damaged since stays in service
            model = self._kept(name, version) or self._load(name, version)
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
            found = self._find(name, version)
            if self._bad.knows(name, version, found):
                return None
            try:
                model = self._warm(model_store.verify_version(folder), found)
            except Exception as error:  # whatever a file holds, it cannot stop the server
                reason = str(error).replace(f"{self._root}{os.sep}", "") or repr(error)
                self._bad.add(name, version, found, reason)
                self._metrics.reloads.labels("failed").inc()
                served = self._served.get(name)
                kept = served is not None and served.version == version
                what = "as it was loaded stays in service; its files" if kept else "cannot be served"
                _log.warning("Model %s, version %s %s: %s", name, version, what, reason)
                return None
            self._bad.remove(name, version)
            self._metrics.reloads.labels("loaded").inc()
            return model

    def _warm(self, model: Model, found: Fingerprint) -> ServedModel:
        """Does the slow first things now: the engine's form of the weights, and steps, for which it may compile."""
        served = ServedModel(model, self._engine.prepare(model.params), found)
        warm_up(self._engine)
        seeds = chain_seeds(0, 1)
        start = noise(seeds, served.num_visible)

        def chains(num_steps: int) -> Chains:
            return make_chains(model.params, start, num_steps=num_steps, seeds=seeds)

        engine, sampler = self._engine, served.sampler
        self._time(kind_of(served, "gibbs"), lambda count: engine.advance(served.prepared, chains(count)))
        self._time(
            kind_of(served, "mean_field"), lambda count: engine.advance_mean_field(served.prepared, chains(count))
        )
        if sampler is not None:
            replicas = sampler.start(seeds)
            self._time(kind_of(served, "equilibrium"), lambda count: sampler.advance(replicas, seeds, count))
        return served

    def _time(self, kind: Kind, work: Callable[[int], object]) -> None:
        """Does a step, for what is done only once, then so many that their time can be told."""
        work(1)
        count, seconds = 1, 0.0
        while seconds < _TIMED_SECONDS and count < _MOST_TIMED:
            count *= 4
            began = time.perf_counter()
            work(count)
            seconds = time.perf_counter() - began
        self._expect(kind, count, seconds)

    def _say_once(self, trouble: str) -> None:
        if trouble != self._last_trouble:
            self._last_trouble = trouble
            _log.warning(trouble)


def _labels(model: ServedModel) -> tuple[str, str, str]:
    return model.name, str(model.version), model.manifest["files"]["model.safetensors"]["sha256"]
