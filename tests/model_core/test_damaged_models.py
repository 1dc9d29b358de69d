"""Damaged and hostile model files: refused with the reason, whatever the bytes, and never the end of the reader."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from model_core import manifest as manifest_module
from model_core.model_store import (
    Model,
    ModelError,
    load_model,
    publish,
    verify_version,
)
from tests.model_core.small_models import FIELDS, change_manifest, make_params, publish_small, same

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return publish_small(tmp_path)


def flip_each_bit(path: Path) -> Iterator[int]:
    """Flips one bit of a file at a time, giving its number, and puts it back."""
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        yield bit
    path.write_bytes(content)


def num_unnoticed(path: Path) -> tuple[int, int]:
    """Of all flips of one bit: how many were accepted, and how many of these changed what a reader finds."""
    original, accepted, changed = verify_version(path.parent), 0, 0
    for _ in flip_each_bit(path):
        try:
            model = verify_version(path.parent)
        except ModelError as error:
            assert str(path.parent) in str(error)
        else:
            accepted += 1
            # `repr` tells 1 from 1.0 and from True, and 0.0 from -0.0.
            changed += repr(model.manifest) != repr(original.manifest) or not same(model.params, original.params)
    return accepted, changed


def test_every_flipped_bit_is_found_or_changes_nothing(version: Path) -> None:
    assert num_unnoticed(version / "model.safetensors") == (0, 0)
    assert num_unnoticed(version / "ladder.npz") == (0, 0)
    assert num_unnoticed(version / "model.json")[1] == 0  # 1e-05 may become 1E-05, which is the same number


def test_without_its_hash_the_manifest_would_let_changes_through(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant of the test above: a reader that does not look at the manifest's hash."""
    monkeypatch.setattr(manifest_module, "manifest_sha256", lambda manifest: manifest.get("sha256"))
    assert num_unnoticed(version / "model.json")[1] > 50


def test_a_manifest_of_format_1_needs_no_hash_but_one_that_is_there_must_fit(version: Path) -> None:
    path = version / "model.json"
    manifest = json.loads(path.read_text())
    unsealed = {field: value for field, value in manifest.items() if field != "sha256"}
    path.write_text(json.dumps(unsealed))
    with pytest.raises(ModelError, match="damaged"):
        verify_version(version)
    path.write_text(json.dumps({**unsealed, "format_version": 1}))
    assert verify_version(version).manifest["licence"] == "MIT"
    path.write_text(json.dumps({**manifest, "format_version": 1}))  # as if a bit of the format had gone
    with pytest.raises(ModelError, match="damaged"):
        verify_version(version)


def test_layout_does_not_matter_to_the_hash(version: Path) -> None:
    path = version / "model.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(manifest.items())), separators=(",", ":")))
    assert verify_version(version).manifest == manifest


def test_flipped_bits_of_a_bare_file_never_kill_the_reader(tmp_path: Path) -> None:
    content, rng = save(make_params()._asdict()), np.random.default_rng(6)
    path = tmp_path / "bare.safetensors"
    for _ in range(1000):
        flipped = bytearray(content)
        flipped[rng.integers(300)] ^= 1 << int(rng.integers(8))  # the header; nothing but its hash guards a number
        path.write_bytes(flipped)
        try:
            assert isinstance(load_model(path), Model)
        except ModelError as error:
            assert str(path) in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@same_folder
@given(field=st.sampled_from(FIELDS), value=json_values)
def test_any_json_in_any_field_is_accepted_or_refused(version: Path, field: str, value: object) -> None:
    original = (version / "model.json").read_bytes()
    change_manifest(version, **{field: value})
    try:
        assert same(verify_version(version).params, make_params())
    except ModelError:
        pass
    finally:
        (version / "model.json").write_bytes(original)


@same_folder
@given(
    content=st.binary(max_size=300) | st.binary(max_size=300).map(lambda data: len(data).to_bytes(8, "little") + data)
)
def test_any_bytes_in_place_of_a_file_are_refused(version: Path, content: bytes) -> None:
    for name in ("model.json", "model.safetensors"):
        original = (version / name).read_bytes()
        (version / name).write_bytes(content)
        with pytest.raises(ModelError):
            verify_version(version)
        with pytest.raises(ModelError):
            load_model(version / name)
        (version / name).write_bytes(original)


def header(text: str, payload: bytes = b"\0" * 136) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + payload


def tensor(shape: object, start: int, end: int, dtype: str = "F32") -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})


HOSTILE_WEIGHTS = {
    "empty": b"",
    "a header of 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
    "a header of 100 MB that is not there": (10**8).to_bytes(8, "little") + b"{}",
    "no tensor": header("{}", b""),
    "deep": header('{"weights":' * 5000 + "1" + "}" * 5000),
    "not text": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    "more elements than 2^64": header('{"weights":' + tensor([2**40, 2**40], 0, 136) + "}"),
    "a negative length": header('{"weights":' + tensor([-6, -4], 0, 96) + "}"),
    "offsets beyond the end": header('{"weights":' + tensor([6, 4], 0, 10**12) + "}"),
    "offsets that overlap": header(
        '{"weights":' + tensor([6, 4], 0, 96) + ',"visible_bias":' + tensor([6], 0, 24) + "}"
    ),
    "an unknown type": header('{"weights":' + tensor([34], 0, 136, "X9") + "}"),
    "a type that NumPy lacks": header('{"weights":' + tensor([6, 4, 2, 2], 0, 96, "F8_E5M2") + "}", b"\0" * 96),
    "a scalar": save({**make_params()._asdict(), "weights": np.ones((), np.float32)}),
    "no hidden unit": save(
        {"weights": np.zeros((6, 0), "f"), "visible_bias": np.zeros(6, "f"), "hidden_bias": np.zeros(0, "f")}
    ),
    "whole numbers": save({key: array.astype(np.int32) for key, array in make_params()._asdict().items()}),
    "other names": save({"W": np.zeros((6, 4), np.float32)}),
    "transposed": save({**make_params()._asdict(), "weights": np.zeros((4, 6), np.float32)}),
    "not finite": save({**make_params()._asdict(), "hidden_bias": np.full(4, np.nan, np.float32)}),
    "infinite": save({**make_params()._asdict(), "visible_bias": np.full(6, np.inf, np.float32)}),
    "too large for float32": save({**make_params()._asdict(), "hidden_bias": np.full(4, 1e200)}),
}


@pytest.mark.parametrize("content", HOSTILE_WEIGHTS.values(), ids=HOSTILE_WEIGHTS.keys())
def test_hostile_weights_are_refused_even_with_the_right_hash(content: bytes, version: Path) -> None:
    (version / "model.safetensors").write_bytes(content)
    change_manifest(version)
    with pytest.raises(ModelError, match=re.escape(str(version))):
        verify_version(version)
    with pytest.raises(ModelError, match=re.escape(str(version))):
        load_model(version / "model.safetensors")


def test_another_shape_than_the_manifest_says_is_refused(version: Path) -> None:
    save_file(make_params(6, 5)._asdict(), version / "model.safetensors")
    change_manifest(version)
    with pytest.raises(ModelError, match=r"\(6, 5\).*\(6, 4\)"):
        verify_version(version)


def test_half_precision_is_refused_in_a_version_and_converted_from_a_bare_file(version: Path) -> None:
    halves = {key: array.astype(np.float16) for key, array in make_params()._asdict().items()}
    save_file(halves, version / "model.safetensors")
    change_manifest(version)
    with pytest.raises(ModelError, match="float32"):
        verify_version(version)
    assert load_model(version / "model.safetensors").params.weights.dtype == np.float32


BAD_MANIFESTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "not UTF-8": (lambda text: text.replace(b"MIT", b"\xff\xfe\xfd"), "UTF-8"),
    "deep": (lambda text: b"[" * 100_000, "JSON"),
    "cut off": (lambda text: text[:-5], "JSON"),
    "a list": (lambda text: b"[1]", "object"),
    "NaN": (lambda text: text.replace(b"0.5", b"NaN"), "finite"),
    "an infinite number": (lambda text: text.replace(b"0.5", b"1e999"), "finite"),
    "a number of 10,000 digits": (lambda text: text.replace(b"0.5", b"9" * 10_000), "JSON"),
    "half a surrogate pair": (lambda text: text.replace(b"MIT", rb"\ud800"), "JSON"),
    "10 MB": (lambda text: text + b" " * 10_000_000, "at most"),
}


@pytest.mark.parametrize(("damage", "reason"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_a_manifest_that_is_not_json_is_refused(damage: Callable[[bytes], bytes], reason: str, version: Path) -> None:
    path = version / "model.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=reason):
        verify_version(version)


def nested(levels: int) -> Any:
    return {"x": nested(levels - 1)} if levels else 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format_version": 3}, "`format_version`.*3"),
        ({"format_version": 0}, "`format_version`.*0"),
        ({"format_version": True}, "`format_version`"),
        ({"name": "other"}, "`name` is 'other'.*'m'"),
        ({"name": "../m"}, "`name` must match"),
        ({"version": 2}, "`version`"),
        ({"version": "1"}, "`version`"),
        ({"image_shape": [28, 28]}, "`image_shape`.*num_visible"),
        ({"image_shape": [-2, -3]}, "`image_shape`"),
        ({"image_shape": 6}, "`image_shape`"),
        ({"num_visible": 6.0}, "`num_visible`"),
        ({"num_hidden": 5}, "manifest says"),
        ({"files": {}}, "`files`"),
        ({"files": {"model.safetensors": {"bytes": True, "sha256": ""}}}, "`bytes`"),
        ({"files": {"model.safetensors": {"bytes": 1e3, "sha256": ""}}}, "`bytes`"),
        ({"files": {"model.safetensors": None}}, "`sha256`"),
        ({"metrics": []}, "`metrics`"),
        ({"metrics": nested(60)}, "nested"),
        ({"free_energy_percentiles": [0.0] * 100}, "`free_energy_percentiles`"),
        ({"free_energy_percentiles": [True] * 101}, "`free_energy_percentiles`"),
        ({"free_energy_percentiles": [*range(101)][::-1]}, "`free_energy_percentiles`"),
        ({"free_energy_percentiles": [*[0] * 100, 10**400]}, "`free_energy_percentiles`"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], reason: str, version: Path) -> None:
    change_manifest(version, **fields)
    with pytest.raises(ModelError, match=reason):
        verify_version(version)


@pytest.mark.parametrize("filename", ["../../../etc/passwd", "/etc/passwd", "..", ".hidden", "a/b", "", "model.json"])
def test_no_path_is_followed_out_of_the_folder(filename: str, version: Path) -> None:
    files = json.loads((version / "model.json").read_text())["files"]
    change_manifest(version, files={**files, filename: {"bytes": 1, "sha256": ""}})
    with pytest.raises(ModelError, match="plain file name"):
        verify_version(version)
    with pytest.raises(ModelError, match="plain file names"):
        publish(version.parent, "n", make_params(), image_shape=(2, 3), manifest={}, extra_files={filename: b""})


def test_what_is_not_a_file_is_refused_without_waiting(version: Path) -> None:
    path = version / "model.safetensors"
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink(path, path), lambda path: os.symlink("/dev/zero", path)):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        make(path)
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            verify_version(version)


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    paths = [publish(tmp_path, "m", make_params(seed=s), image_shape=(2, 3), manifest={}) for s in (1, 2)]
    weights = [path.joinpath("model.safetensors").read_bytes() for path in paths]
    for path, content in zip(paths, reversed(weights), strict=True):
        path.joinpath("model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match="sha256"):
            verify_version(path)
