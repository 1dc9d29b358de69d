"""The registry: whatever happens to the folder, a whole version is served, and the newest good one soon."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_core.chains import Chains
from model_core.model_store import publish
from model_core.rbm import RBMParams, checked_params, free_energy, hidden_probs
from service.jobs import NotReady, UnknownModel, UnknownVersion
from service.registry import Registry
from service.versions import NUM_RECENT


class CountingEngine:
    """Takes a model as it is; counts, because a model is to be prepared once."""

    name = "counting"

    def __init__(self) -> None:
        self.num_prepared = 0
        self.failing = False

    def prepare(self, params: RBMParams) -> RBMParams:
        self.num_prepared += 1
        if self.failing:
            raise MemoryError("planted")
        return params

    def advance(self, prepared: RBMParams, chains: Chains) -> tuple[np.ndarray, np.ndarray]:
        return chains.visible, chains.visible.astype(np.float32)

    advance_mean_field = advance


def make_params(number: int) -> RBMParams:
    return checked_params(np.full((4, 3), number), np.zeros(4), np.zeros(3))


def add_version(root: Path, number: int = 1, name: str = "mnist", **manifest: object) -> Path:
    return publish(root, name, make_params(number), image_shape=(2, 2), manifest=manifest)


def make_registry(root: Path, **options: object) -> Registry:
    return Registry(root, engine=CountingEngine(), **options)  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 5 s")


def break_version(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def test_starts_without_a_version_says_why_and_recovers(tmp_path: Path) -> None:
    registry = make_registry(tmp_path / "later", default_model="mnist", poll_seconds=0.01)
    with pytest.raises(NotReady, match="being loaded"):
        registry.get()
    registry.start()
    wait_for(lambda: "no model 'mnist'" in str(registry.why_not_ready()))
    with pytest.raises(NotReady, match="rbm train"):
        registry.get()
    break_version(add_version(tmp_path / "aside"))
    (tmp_path / "aside").rename(tmp_path / "later")  # in one move, or the watcher could see it while it is still good
    wait_for(lambda: "sha256" in str(registry.why_not_ready()))
    assert not registry.ready()
    add_version(tmp_path / "later", 2)
    wait_for(registry.ready)
    assert (registry.get().name, registry.get().version) == ("mnist", 2)
    assert registry.why_not_ready() is None
    registry.stop()


def test_a_bad_version_leaves_the_old_one_serving_and_is_read_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = make_registry(tmp_path)
    add_version(tmp_path, 1)
    registry.poll()
    folder = add_version(tmp_path, 2)
    break_version(folder)
    for _ in range(3):
        registry.poll()
    assert registry.get().version == 1
    [problem] = registry.problems()
    assert (problem.name, problem.version) == ("mnist", 2)
    assert "mnist/000002/model.safetensors" in problem.reason and str(tmp_path) not in problem.reason
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    metrics = registry._metrics.render().decode()
    assert 'rbm_model_reloads_total{result="failed"} 1.0' in metrics
    assert "rbm_model_bad_versions 1.0" in metrics
    with pytest.raises(UnknownVersion, match="sha256"):
        registry.get(version=2)

    break_version(folder)  # the bit is turned back: repaired
    registry.poll()
    assert (registry.get().version, registry.problems()) == (2, [])


def test_a_model_that_cannot_be_warmed_is_a_bad_version(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    add_version(tmp_path, 1)
    registry.poll()
    registry._engine.failing = True  # type: ignore[attr-defined]
    add_version(tmp_path, 2)
    registry.poll()
    assert registry.get().version == 1
    assert registry.problems()[0].reason == "planted"


def test_hot_swap_under_concurrent_gets(tmp_path: Path) -> None:
    """30 reloads while four threads ask: each answer is one whole version, and versions never go back."""
    add_version(tmp_path, 1)
    registry = make_registry(tmp_path, poll_seconds=0.001)
    registry.start()
    wait_for(registry.ready)
    stop, wrong = threading.Event(), []

    def ask() -> None:
        last = 0
        while not stop.is_set():
            model = registry.get()
            if model.version < last or not (model.params.weights == model.version).all():
                wrong.append(model.version)
            last = model.version
            time.sleep(0.0005)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 31):
        add_version(tmp_path, number)
        time.sleep(0.003)
    wait_for(lambda: registry.get().version == 30)
    stop.set()
    for thread in threads:
        thread.join()
    registry.stop()
    assert wrong == []


def test_pinned_versions_are_read_once_and_a_few_are_kept(tmp_path: Path) -> None:
    for number in range(1, 7):
        add_version(tmp_path, number)
    registry = make_registry(tmp_path)
    registry.poll()
    assert registry._engine.num_prepared == 1  # type: ignore[attr-defined]
    for version in (1, 2, 1, 2, 1, 6, 6):
        assert (registry.get("mnist", version).params.weights == version).all()
    assert registry._engine.num_prepared == 3  # type: ignore[attr-defined]
    for version in (3, 4):
        registry.get(version=version)  # 1, asked for before 2 was last, goes first
    assert len(registry._recent._models) == NUM_RECENT
    registry.get(version=2)
    before = registry._engine.num_prepared  # type: ignore[attr-defined]
    registry.get(version=4)
    assert registry._engine.num_prepared == before  # type: ignore[attr-defined]


def test_unknown_names_and_versions_say_what_there_is(tmp_path: Path) -> None:
    add_version(tmp_path, 1)
    add_version(tmp_path, 1, name="digits")
    registry = make_registry(tmp_path, default_model="mnist")
    registry.poll()
    with pytest.raises(UnknownModel, match="digits, mnist"):
        registry.get("faces")
    with pytest.raises(UnknownModel):
        registry.get("../mnist", 1)
    for version in (2, 0, -1, 10**9):
        with pytest.raises(UnknownVersion, match="Versions on disk: 1"):
            registry.get("mnist", version)
    assert registry.get().name == "mnist"
    assert [(model["name"], model["versions"], model["default"]) for model in registry.models()] == [
        ("digits", [1], False),
        ("mnist", [1], True),
    ]


def test_an_only_child_is_the_default(tmp_path: Path) -> None:
    add_version(tmp_path, 1, name="digits")
    registry = make_registry(tmp_path, default_model="mnist")
    registry.poll()
    assert registry.get().name == "digits"


def test_taking_the_newest_version_away_rolls_back(tmp_path: Path) -> None:
    add_version(tmp_path, 1)
    registry = make_registry(tmp_path)
    registry.poll()
    newest = add_version(tmp_path, 2)
    registry.poll()
    assert registry.get().version == 2
    shutil.rmtree(newest)
    registry.poll()
    assert registry.get().version == 1
    assert registry._engine.num_prepared == 2  # type: ignore[attr-defined]  # 1 was still in memory


def test_a_folder_that_is_gone_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "checkpoints"
    add_version(root, 1)
    registry = make_registry(root)
    registry.poll()
    held = registry.get()
    root.rename(tmp_path / "elsewhere")
    for _ in range(3):
        registry.poll()
    assert registry.get() is held
    assert len([record for record in caplog.records if "stays in service" in record.message]) == 1
    (tmp_path / "elsewhere").rename(root)
    add_version(root, 2)
    registry.poll()
    assert registry.get().version == 2


def test_many_reloads_keep_few_versions_in_memory(tmp_path: Path) -> None:
    registry = make_registry(tmp_path)
    alive = []
    for number in range(1, 51):
        folder = add_version(tmp_path, number)
        registry.poll()
        alive.append(weakref.ref(registry.get()))
        if number > 1:
            shutil.rmtree(folder.parent / f"{number - 1:06d}")
    gc.collect()
    assert sum(reference() is not None for reference in alive) <= 1 + NUM_RECENT
    text = registry._metrics.render().decode()
    assert text.count("rbm_model_info{") == 1
    assert 'rbm_model_reloads_total{result="loaded"} 50.0' in text


def test_what_a_served_model_computes(tmp_path: Path) -> None:
    percentiles = [float(number) for number in range(-50, 51)]
    add_version(tmp_path, 1, free_energy_percentiles=percentiles)
    registry = make_registry(tmp_path)
    registry.poll()
    model = registry.get()
    images = np.eye(4, dtype=np.uint8)
    np.testing.assert_array_equal(model.hidden_probs(images), hidden_probs(make_params(1), images))
    np.testing.assert_array_equal(model.free_energy(images), free_energy(make_params(1), images).round(6))
    surprise = model.surprise(np.array([-99, -50, 0.5, 50, 99]))
    assert surprise is not None and surprise.tolist() == [0, 0, 50.5, 100, 100]
    assert model.extra("ladder.npz") is None
    assert (model.image_shape, model.num_visible, model.num_hidden) == ((2, 2), 4, 3)
