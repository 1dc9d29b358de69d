"""The registry: what it does first, what it says of it, and files that change under the number of a version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.jobs import NotReady, UnknownModel
from tests.service.test_registry import add_version, break_version, make_registry, wait_for


def test_what_is_compiled_first_fails_tells_why_and_is_tried_again(tmp_path: Path) -> None:
    add_version(tmp_path)
    ready_before: list[bool] = []

    def warm_up() -> None:
        ready_before.append(registry.ready())
        if len(ready_before) == 1:
            raise OSError("planted")

    registry = make_registry(tmp_path, warm_up=warm_up, poll_seconds=0.2)
    registry.start()
    wait_for(lambda: "planted" in (registry.why_not_ready() or ""))
    wait_for(registry.ready)
    registry.stop()
    assert ready_before[:2] == [False, False]


def test_other_files_under_the_same_number_are_another_model(tmp_path: Path) -> None:
    """Somebody removes a model and publishes one anew, which begins at version 1 again."""
    add_version(tmp_path, 1)
    registry = make_registry(tmp_path)
    registry.poll()
    first = registry.get()
    shutil.rmtree(tmp_path / "mnist")
    registry.poll()
    assert registry.get() is first
    add_version(tmp_path, 2)
    registry.poll()
    assert registry.get().version == first.version == 1 and registry.get().params.weights[0, 0] == 2
    add_version(tmp_path, 3)
    registry.poll()
    assert registry.get(version=1).params.weights[0, 0] == 2  # out of memory: its files are still there
    shutil.rmtree(tmp_path / "mnist")
    add_version(tmp_path, 4)
    registry.poll()
    assert registry.get().version == 1 and registry.get().params.weights[0, 0] == 4


def test_damage_to_what_is_served_is_reported_and_it_stays_in_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(tmp_path, 1)
    folder = add_version(tmp_path, 2)
    registry = make_registry(tmp_path)
    registry.poll()
    served, whole = registry.get(), (folder / "model.safetensors").read_bytes()
    break_version(folder)
    for _ in range(3):
        registry.poll()
    assert registry.get() is served and [bad.version for bad in registry.problems()] == [2]
    assert "stays in service" in caplog.text and "cannot be served" not in caplog.text
    (folder / "model.safetensors").write_bytes(whole)
    registry.poll()
    assert registry.get().version == 2 and registry.problems() == []


def test_while_others_are_loaded_a_model_is_not_unknown_yet(tmp_path: Path) -> None:
    add_version(tmp_path, 1, "first")
    add_version(tmp_path, 2, "second")
    registry, told = make_registry(tmp_path, default_model="first"), []

    def load_and_ask(name: str, version: int) -> object:
        with pytest.raises(NotReady, match="being loaded"):
            registry.get("second")
        told.append(name)
        return load(name, version)

    load, registry._load = registry._load, load_and_ask  # type: ignore[method-assign,assignment]
    registry.poll()
    assert told == ["first", "second"] and registry.get("second").version == 1
    with pytest.raises(UnknownModel):
        registry.get("third")


def test_an_empty_folder_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = make_registry(tmp_path / "nowhere")
    for _ in range(3):
        registry.poll()
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "nowhere" in record.getMessage() and not registry.ready()


def test_how_fast_the_engine_is_is_told_before_the_first_request(tmp_path: Path) -> None:
    add_version(tmp_path)
    told: dict[str, tuple[int, float]] = {}
    registry = make_registry(tmp_path, expect=lambda kind, steps, seconds: told.update({kind.mode: (steps, seconds)}))
    registry.poll()
    assert set(told) == {"gibbs", "mean_field"} and all(steps > 0 and took > 0 for steps, took in told.values())


def test_while_others_are_loaded_no_other_model_is_the_default(tmp_path: Path) -> None:
    """A picture of another model, which a cache may keep, would be the answer."""
    add_version(tmp_path, 1, "digits")
    add_version(tmp_path, 2, "mnist")
    registry = make_registry(tmp_path, default_model="mnist")
    told: list[str] = []

    def load_and_ask(name: str, version: int) -> object:
        loaded = load(name, version)
        assert not registry.ready()
        with pytest.raises(NotReady):
            registry.get()
        told.append(name)
        return loaded

    load, registry._load = registry._load, load_and_ask  # type: ignore[method-assign,assignment]
    registry.poll()
    assert told == ["digits", "mnist"] and registry.get().name == "mnist"


def test_an_only_child_stays_the_default_when_others_come(tmp_path: Path) -> None:
    add_version(tmp_path, 1, "faces")
    registry = make_registry(tmp_path, default_model="mnist")
    registry.poll()
    add_version(tmp_path, 2, "cats")
    break_version(add_version(tmp_path, 3, "mnist"))
    registry.poll()
    assert registry.get().name == "faces" and registry.ready()
    add_version(tmp_path, 4, "mnist")
    registry.poll()
    assert registry.get().name == "mnist"  # the one that the settings name
