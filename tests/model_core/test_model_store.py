"""What is published comes back bit for bit, under a number of its own; what is not there or not whole is said."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_core import model_store
from model_core.model_store import (
    ModelError,
    default_checkpoints,
    list_models,
    list_versions,
    load_extra,
    load_model,
    newest_model,
    publish,
    verify_version,
)
from tests.model_core.small_models import FIELDS, make_params, publish_small, same


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return publish_small(tmp_path)


def test_a_published_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    params = make_params(784, 50)
    params.weights[0, :3] = (-0.0, 1e-45, np.finfo(np.float32).max)
    folder = publish(tmp_path, "m", params, image_shape=(28, 28), manifest={"training": {"seed": 3}})
    for path in (folder, folder.parent, str(folder.parent), folder / "model.safetensors"):
        model = load_model(path)
        assert same(model.params, params) and model.image_shape == (28, 28)
        assert all(array.dtype == np.float32 and array.flags.writeable for array in model.params)
    assert (folder, model.version) == (tmp_path / "m" / "000001", 0)


def test_the_manifest_has_the_fields_of_the_design(version: Path) -> None:
    manifest = json.loads((version / "model.json").read_text())
    assert list(manifest) == FIELDS
    assert (manifest["name"], manifest["version"], manifest["image_shape"]) == ("m", 1, [2, 3])
    for filename, declared in manifest["files"].items():
        content = (version / filename).read_bytes()
        assert declared == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", manifest["created_at"])
    assert {"model_core", "python", "numpy", "safetensors"} <= set(manifest["software"])
    assert len(manifest["free_energy_percentiles"]) == 101 and manifest["metrics"] == {"gap": 0.5}


def test_a_loaded_model_can_be_published_again(version: Path, tmp_path: Path) -> None:
    model = verify_version(version)
    again = verify_version(publish(tmp_path, "other", model.params, image_shape=(2, 3), manifest=model.manifest))
    assert (again.name, again.version, again.manifest["licence"]) == ("other", 1, "MIT")
    assert list(again.manifest["files"]) == ["model.safetensors"] and same(again.params, model.params)


def test_bad_versions_are_skipped_with_their_reasons(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(1, 8):
        publish(tmp_path, "m", make_params(seed=seed), image_shape=(2, 3), manifest={})
    folder = tmp_path / "m"
    (folder / "000002/model.safetensors").write_bytes(b"")
    (folder / "000003/model.json").unlink()
    os.truncate(folder / "000004/model.safetensors", 200)
    shutil.rmtree(folder / "000005")
    (folder / "000005").mkdir()
    for name in ("000006", "000007"):  # swapped: each is whole, but not in its own folder
        (folder / name).rename(folder / f"{name}-aside")
    (folder / "000006-aside").rename(folder / "000007")
    (folder / "000007-aside").rename(folder / "000006")
    (folder / "000009").touch()
    assert (list_models(tmp_path), list_versions(folder)) == (["m"], [1, 2, 3, 4, 5, 6, 7])
    with caplog.at_level(logging.WARNING):
        model, skipped = newest_model(tmp_path, "m")
    assert model.version == 1 and same(model.params, make_params(seed=1))
    assert list(skipped) == [7, 6, 5, 4, 3, 2] and len(caplog.records) == 6
    assert same(load_model(folder).params, make_params(seed=1))
    (folder / "000001/model.json").unlink()
    with pytest.raises(ModelError, match=r"none of its versions can be used.*000004"):
        newest_model(tmp_path, "m")


def test_a_copy_under_another_name_loads_but_is_not_that_models_version(version: Path, tmp_path: Path) -> None:
    shutil.copytree(version.parent, tmp_path / "copy")
    shutil.copytree(version, tmp_path / "plain folder")
    assert load_model(tmp_path / "copy").name == load_model(tmp_path / "plain folder").name == "m"
    for path in (tmp_path / "copy" / "000001", tmp_path / "plain folder", tmp_path / "000000"):
        with pytest.raises(ModelError):
            verify_version(path)
    with pytest.raises(ModelError):
        newest_model(tmp_path, "copy")


@pytest.mark.parametrize(("num_visible", "image_shape"), [(784, (28, 28)), (64, (8, 8)), (6, (1, 6))])
def test_a_bare_file_gets_the_shape_that_fits(num_visible: int, image_shape: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "Any name.safetensors"
    save_file(make_params(num_visible)._asdict(), path)
    model = load_model(path)
    assert (model.name, model.version, model.image_shape, model.path) == ("Any name", 0, image_shape, path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelError, match="rbm train"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="rbm train"):
        newest_model(tmp_path, "nothing")
    publish_small(tmp_path / "all")
    with pytest.raises(ModelError, match=r"holds the models m\. Name one of them"):
        load_model(tmp_path / "all")
    assert list_models(tmp_path / "nothing") == [] == list_versions(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["", "..", "../m", "a/b", "A", "-a", "a" * 65, "m\n", "a\0b", "m.", "\u00e9", None, 7])
def test_no_odd_name_becomes_a_path(name: Any, tmp_path: Path) -> None:
    for use in (
        lambda: newest_model(tmp_path, name),
        lambda: publish(tmp_path / "c", name, make_params(), image_shape=(2, 3), manifest={}),
    ):
        with pytest.raises(ModelError, match="name"):
            use()
    assert not list(tmp_path.iterdir())


def test_extra_files_are_verified(version: Path) -> None:
    model = verify_version(version)
    assert load_extra(model, "ladder.npz") == b"rungs"
    with pytest.raises(ModelError, match=r"ladder\.npz"):
        load_extra(model, "../model.json")
    (version / "ladder.npz").write_bytes(b"wrong")
    with pytest.raises(ModelError, match="sha256"):
        load_extra(model, "ladder.npz")
    with pytest.raises(ModelError, match="sha256"):
        verify_version(version)


@pytest.mark.parametrize(
    "change",
    [
        {"params": make_params()._replace(hidden_bias=np.full(4, np.nan))},
        {"params": make_params()._replace(hidden_bias=np.zeros(3))},
        {"image_shape": (28, 28)},
        {"image_shape": (2.0, 3.0)},
        {"manifest": {"metrics": {"gap": float("nan")}}},
        {"manifest": {"metrics": {"gap": object()}}},
        {"manifest": {"metric": {}}},
        {"manifest": {"training": "long"}},
        {"manifest": {"free_energy_percentiles": [1.0]}},
    ],
)
def test_what_no_reader_would_accept_is_not_published(change: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"params": make_params(), "image_shape": (2, 3), "manifest": {}} | change
    with pytest.raises(ModelError):
        publish(tmp_path, "m", options.pop("params"), **options)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="nothing was published"):
        publish(tmp_path / "file", "m", make_params(), image_shape=(2, 3), manifest={})


def test_numbers_outlive_their_versions_and_a_torn_record(tmp_path: Path) -> None:
    def publish_one() -> int:
        return int(publish(tmp_path, "m", make_params(), image_shape=(2, 3), manifest={}).name)

    assert [publish_one(), publish_one()] == [1, 2]
    for entry in (tmp_path / "m").glob("0*"):
        shutil.rmtree(entry)
    assert publish_one() == 3
    with (tmp_path / "m" / ".versions").open("ab") as file:
        file.write(b"\n00000")  # a publisher that died, or whose disk was full, while it took number 4
    assert [publish_one(), publish_one()] == [4, 5]
    (tmp_path / "m" / ".versions").unlink()  # as after a copy of the visible files alone
    assert publish_one() == 6
    (tmp_path / "m" / "999999").mkdir()
    with pytest.raises(ModelError, match="spent"):
        publish_one()


def test_default_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, here = tmp_path / "site" / "model_core", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(model_store, "_PACKAGE", package)
    monkeypatch.delenv("RBM_CHECKPOINTS", raising=False)
    assert default_checkpoints() == Path("checkpoints")
    for folder in (package.parent / "checkpoints", package / "checkpoints", Path("checkpoints")):  # from last to first
        publish(folder, "m", make_params(), image_shape=(2, 3), manifest={})
        assert default_checkpoints() == folder
    monkeypatch.setenv("RBM_CHECKPOINTS", str(tmp_path / "named"))
    assert default_checkpoints() == tmp_path / "named"
