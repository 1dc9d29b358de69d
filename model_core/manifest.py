"""The manifest of a version, `model.json`: its fields, how it is written, and what a reader checks before using it.

Its `files` holds the hashes of the other files, and its `sha256` that of itself: of everything else it says, so that a
damaged number in the model card is found like a damaged weight. Manifests of format 1 have no hash of their own.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

FORMAT_VERSION = 2
UNSEALED_FORMAT = 1  # still read
WEIGHTS_FILE, MANIFEST_FILE = "model.safetensors", "model.json"
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
VERSION_PATTERN = re.compile(r"[0-9]{6}")
FILENAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_FILE_BYTES = 2**30
MAX_MANIFEST_BYTES = 2**22
MAX_DEPTH = 50  # of values in values: what writes them as JSON has limits of its own
_CALLERS_FIELDS = ("training", "dataset", "metrics", "free_energy_percentiles", "licence")
_PUBLISHERS_FIELDS = (
    "format_version", "name", "version", "created_at", "image_shape", "num_visible", "num_hidden", "files", "software",
    "sha256",
)  # fmt: skip
_PACKAGES = ("numpy", "safetensors", "tensorflow", "numba")
_OPTIONAL_FIELDS = {"created_at": str, "training": dict, "dataset": dict, "metrics": dict, "software": dict}


class ModelError(ValueError):
    """A model that cannot be used or published: which file, what was expected, what to do."""


def checked_name(name: str) -> str:
    """Returns `name` if it may become a folder's name; every name passes here before it meets a path."""
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise ModelError(
            f"A model's name is 1 to 64 small letters, digits and hyphens, the first not a hyphen. Received: {name!r}"
        )
    return name


def new_manifest(
    name: str,
    image_shape: tuple[int, int],
    weights_shape: tuple[int, int],
    files: Mapping[str, dict[str, Any]],
    told: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of a version that has no number yet (`version` is 1 in its place).

    Args:
      name: of the model.
      image_shape: (rows, columns).
      weights_shape: (visible, hidden).
      files: `bytes` and `sha256` of each payload file.
      told: the fields that only the caller knows; those that are filled in here are ignored in it.

    Raises:
      ModelError: if a field has the wrong type or range, or is unknown.
    """
    unknown = set(told) - {*_CALLERS_FIELDS, *_PUBLISHERS_FIELDS}
    if unknown:
        raise ModelError(f"`manifest` may hold {', '.join(_CALLERS_FIELDS)}. Received also: {sorted(unknown)}")
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": checked_name(name),
        "version": 1,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "image_shape": list(image_shape),
        "num_visible": weights_shape[0],
        "num_hidden": weights_shape[1],
        "files": dict(files),
        "training": told.get("training", {}),
        "dataset": told.get("dataset", {}),
        "metrics": told.get("metrics", {}),
        "free_energy_percentiles": told.get("free_energy_percentiles"),
        "software": _software(),
        "licence": told.get("licence"),
    }
    return parse_manifest(format_manifest(manifest), "`manifest`")


def format_manifest(manifest: Mapping[str, Any]) -> bytes:
    """JSON for people to read, with its own hash; NumPy numbers and arrays become plain ones."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} has no form in JSON")

    try:
        fields = json.loads(json.dumps(manifest, allow_nan=False, default=plain))
        sealed = {**fields, "sha256": manifest_sha256(fields)}
        return (json.dumps(sealed, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"`manifest` must hold what JSON can: finite numbers, text, lists, objects ({error})."
        ) from error


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """The hash of all fields but `sha256`, as JSON in ASCII with sorted keys and no spaces.

    Equal for two texts exactly when a reader finds the same values in them, however they are laid out.
    """
    fields = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """The manifest, checked against its own hash, and every field that a reader relies on for its type and range.

    Raises:
      ModelError: naming `where` the bytes come from.
    """
    try:
        manifest = json.loads(content.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
        json.dumps(manifest, ensure_ascii=False).encode("utf-8")  # half a surrogate pair could not be sent on
        sha256 = manifest_sha256(manifest) if isinstance(manifest, dict) else ""
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: expected JSON in UTF-8 ({error}).") from error
    if not isinstance(manifest, dict):
        raise ModelError(f"{where}: expected a JSON object. Received: {type(manifest).__name__}.")
    written_as = manifest.get("format_version")
    if type(written_as) is not int or not UNSEALED_FORMAT <= written_as <= FORMAT_VERSION:
        raise ModelError(
            f"{where}: `format_version` must be at most {FORMAT_VERSION}. Received: {written_as!r}. "
            "A newer program wrote it: update this one, or publish with this one."
        )
    if manifest.get("sha256") != sha256 and (written_as > UNSEALED_FORMAT or "sha256" in manifest):
        raise ModelError(
            f"{where}: `sha256` is not that of the manifest: it is damaged, or was edited by hand. "
            "Copy the version folder anew from where it came, or publish the model again."
        )
    problem = _field_problem(manifest)
    if problem:
        raise ModelError(f"{where}: {problem}.")
    return manifest


def _software() -> dict[str, str]:
    """Versions of what made the model; read from the packages' metadata, since importing TensorFlow takes seconds."""
    versions = {"model_core": sys.modules["model_core"].__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_FILE_BYTES


def _field_problem(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with the first bad field, or None."""
    if _is_deeper(manifest, MAX_DEPTH):
        return f"its values are nested more than {MAX_DEPTH} deep"
    if not isinstance(manifest.get("name"), str) or not NAME_PATTERN.fullmatch(manifest["name"]):
        return f"`name` must match {NAME_PATTERN.pattern}"
    for field in ("version", "num_visible", "num_hidden"):
        if not _is_count(manifest.get(field)):
            return f"`{field}` must be a whole number of at least 1"
    shape = manifest.get("image_shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(map(_is_count, shape))):
        return "`image_shape` must be two whole numbers of at least 1"
    if math.prod(shape) != manifest["num_visible"]:
        return f"`image_shape` {shape} does not hold `num_visible` = {manifest['num_visible']} pixels"
    for field, kind in _OPTIONAL_FIELDS.items():
        if not isinstance(manifest.get(field, kind()), kind):
            return f"`{field}` must be a {kind.__name__}"
    return _files_problem(manifest.get("files")) or _percentiles_problem(manifest.get("free_energy_percentiles"))


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return bool(inner) and (levels == 0 or any(_is_deeper(one, levels - 1) for one in inner))


def _files_problem(files: object) -> str | None:
    if not isinstance(files, dict) or WEIGHTS_FILE not in files:
        return f"`files` must be an object that names {WEIGHTS_FILE}"
    for filename, declared in files.items():
        if not FILENAME_PATTERN.fullmatch(filename) or filename == MANIFEST_FILE:
            return f"`files` names {filename!r}, which is not a plain file name"
        if not isinstance(declared, dict) or not isinstance(declared.get("sha256"), str):
            return f"`files` must give the `bytes` and `sha256` of {filename}"
        if type(declared.get("bytes")) is not int or not 0 <= declared["bytes"] <= MAX_FILE_BYTES:
            return f"`files` must give the `bytes` of {filename}, at most {MAX_FILE_BYTES}"
    return None


def _percentiles_problem(percentiles: object) -> str | None:
    if percentiles is None:
        return None
    if not isinstance(percentiles, list) or len(percentiles) != 101 or {*map(type, percentiles)} - {int, float}:
        return "`free_energy_percentiles` must be 101 numbers, or null"
    # An integer of 400 digits is a number too, but not one that fits a float.
    if any(abs(p) > 1e300 for p in percentiles) or percentiles != sorted(percentiles):
        return "`free_energy_percentiles` must be finite and rise from the 0th to the 100th"
    return None
