"""The models on disk, `checkpoints/<name>/<version>/`: what there is, and the newest version that verifies.

What a caller needs is all here; behind it stand `publishing` (writes a version), `model_files` (reads and verifies
one) and `manifest` (its description).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from model_core.manifest import (
    MANIFEST_FILE,
    NAME_PATTERN,
    VERSION_PATTERN,
    WEIGHTS_FILE,
    ModelError,
    checked_name,
)
from model_core.model_files import Model, read_bare_file, read_payload, read_version
from model_core.publishing import publish

__all__ = [
    "Model",
    "ModelError",
    "checked_name",
    "default_checkpoints",
    "list_models",
    "list_versions",
    "load_extra",
    "load_model",
    "newest_model",
    "publish",
    "verify_version",
    "version_folder",
]

_log = logging.getLogger(__name__)
_PACKAGE = Path(__file__).resolve().parent


def load_model(path: Path | str) -> Model:
    """Loads a model from wherever it is.

    Args:
      path: a model folder (its newest version that verifies; bad ones are skipped with a logged reason), a version
        folder, or a bare `.safetensors` file with the tensors `weights`, `visible_bias` and `hidden_bias`. A model
        folder that was copied under another name is accepted.

    Raises:
      ModelError: if nothing usable is there.
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        if (path / MANIFEST_FILE).exists() or (path / WEIGHTS_FILE).exists() or VERSION_PATTERN.fullmatch(path.name):
            return read_version(path, version=_folder_number(path))
        return _newest_version(path, name=None)[0]
    if not path.exists():
        raise ModelError(
            f"{path}: there is no such file or folder. "
            "Expected a model folder, a version folder or a .safetensors file."
        )
    return read_bare_file(path)


def verify_version(path: Path | str) -> Model:
    """Reads `<name>/<version>/` and checks all of it, the two folders' names included.

    Raises:
      ModelError: missing, wrong size, hash, shape or type, not finite, a foreign format, or not where it belongs.
    """
    path = Path(os.path.abspath(path))
    if not VERSION_PATTERN.fullmatch(path.name) or int(path.name) == 0:
        raise ModelError(f"{path}: a version folder's name is its number in six digits, from 000001.")
    return read_version(path, name=path.parent.name, version=int(path.name))


def newest_model(checkpoints: Path | str, name: str) -> tuple[Model, dict[int, str]]:
    """The newest version of a model that verifies, and the reasons why newer ones were skipped.

    Raises:
      ModelError: if no version verifies; the message holds the reasons.
    """
    return _newest_version(Path(checkpoints) / checked_name(name), name=name)


def list_versions(folder: Path | str) -> list[int]:
    """The version numbers in a model folder, rising; none if the folder is not there."""
    try:
        folders = [entry for entry in Path(folder).iterdir() if entry.is_dir()]
    except OSError:
        return []
    return sorted(int(entry.name) for entry in folders if VERSION_PATTERN.fullmatch(entry.name))


def list_models(checkpoints: Path | str) -> list[str]:
    """The names of the models that have a version, good or not, in alphabetical order."""
    try:
        names = [entry.name for entry in Path(checkpoints).iterdir() if NAME_PATTERN.fullmatch(entry.name)]
    except OSError:
        return []
    return sorted(name for name in names if list_versions(Path(checkpoints) / name))


def version_folder(checkpoints: Path | str, name: str, version: int) -> Path:
    """Where a version is, or would be."""
    return Path(checkpoints) / checked_name(name) / f"{version:06d}"


def load_extra(model: Model, filename: str) -> bytes:
    """A further file of a version, such as `ladder.npz`, verified against its hash.

    Raises:
      ModelError: if the manifest does not name the file, or it is damaged.
    """
    files = model.manifest.get("files", {})
    if model.path is None or filename not in files:
        raise ModelError(f"{model.path}: this model has no file {filename!r}. It has: {', '.join(files) or 'none'}.")
    return read_payload(model.path, model.manifest, filename)


def default_checkpoints() -> Path:
    """The folder of models to read when none is named.

    `RBM_CHECKPOINTS`; else `./checkpoints` if it holds a model; else the models that came with the installed package;
    else those of the source tree; else `./checkpoints`, which is yet to be filled.
    """
    named = os.environ.get("RBM_CHECKPOINTS")
    if named:
        return Path(named)
    here = Path("checkpoints")
    candidates = (here, _PACKAGE / "checkpoints", _PACKAGE.parent / "checkpoints")
    return next((folder for folder in candidates if list_models(folder)), here)


def _folder_number(folder: Path) -> int | None:
    return int(folder.name) if VERSION_PATTERN.fullmatch(folder.name) else None


def _newest_version(folder: Path, name: str | None) -> tuple[Model, dict[int, str]]:
    skipped: dict[int, str] = {}
    for version in reversed(list_versions(folder)):
        try:
            return read_version(folder / f"{version:06d}", name=name, version=version), skipped
        except ModelError as error:
            skipped[version] = str(error)
            _log.warning("skipped version %06d: %s", version, error)
    if skipped:
        raise ModelError(f"{folder}: none of its versions can be used. " + " ".join(skipped.values()))
    inside = list_models(folder)
    if inside:
        raise ModelError(f"{folder}: holds the models {', '.join(inside)}. Name one of them: {folder / inside[0]}.")
    raise ModelError(f"{folder}: expected a version folder such as 000001, found none. Train a model: `rbm train`.")
