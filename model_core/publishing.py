"""Publishing a version: whole or not at all, under a number that is never used twice.

The order of events, each one safe to be killed after:

 1. lock `.versions` (flock: the system drops it when the publisher dies);
 2. remove temporary folders. Every living publisher holds the lock, so whatever is found here has no owner;
 3. append the new number to `.versions` and fsync it. From here on the number is spent, published or not;
 4. write a hidden folder beside the versions, fsync its files and itself, and verify it as a reader would;
 5. rename it to its number, the one moment at which readers see it, and fsync the parent.

`.versions` is only appended to, so no crash can damage an older record, and a record torn by one is a prefix, hence
a smaller number. The next number is one more than the largest of the records and of the folders there are: deleting
versions, even all of them, does not free their numbers, and folders copied in without their `.versions` count as well.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.numpy import save as format_safetensors

from model_core.manifest import (
    FILENAME_PATTERN,
    MANIFEST_FILE,
    VERSION_PATTERN,
    WEIGHTS_FILE,
    ModelError,
    checked_name,
    format_manifest,
    new_manifest,
)
from model_core.model_files import read_version
from model_core.rbm import RBMParams, checked_params

NUMBERS_FILE = ".versions"
TEMPORARY_PREFIX = ".publishing-"
LAST_VERSION = 999_999


def publish(
    checkpoints: Path | str,
    name: str,
    params: RBMParams,
    *,
    image_shape: tuple[int, int],
    manifest: Mapping[str, Any],
    extra_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes a new version of a model; readers see all of it or nothing.

    Args:
      checkpoints: the folder of all models; made if it is missing.
      name: [a-z0-9][a-z0-9-]{0,63}.
      params: finite float32 parameters.
      image_shape: (rows, columns), whose product is the number of visible units.
      manifest: `training`, `dataset`, `metrics`, `free_energy_percentiles`, `licence`, all optional. The
        fields that are filled in here are ignored, so a loaded manifest can be passed on.
      extra_files: further files of the version, by plain file name.

    Returns:
      The version folder.

    Raises:
      ModelError: if the model or manifest is not usable, or the disk refuses; then nothing was published.
    """
    contents = {**_checked_extras(extra_files or {}), WEIGHTS_FILE: _format_params(params)}
    files = {filename: _describe(content) for filename, content in contents.items()}
    fields = new_manifest(name, image_shape, params.weights.shape, files, manifest)
    folder = Path(checkpoints) / checked_name(name)
    try:
        _make_folder(folder)
        with _locked_numbers(folder) as numbers:
            _sweep(folder)
            version = _spend_number(folder, numbers)
            published = _write_version(folder, version, fields, contents)
    except OSError as error:
        raise ModelError(
            f"{folder}: nothing was published, the disk refused: {error}. Free some space or check who may write "
            "there, then publish again; the older versions are untouched."
        ) from error
    _confirm(folder, published)
    return published


def _checked_extras(extra_files: Mapping[str, bytes]) -> dict[str, bytes]:
    for filename in extra_files:
        if not FILENAME_PATTERN.fullmatch(filename) or filename in (MANIFEST_FILE, WEIGHTS_FILE):
            raise ModelError(f"`extra_files` must have plain file names, not the model's own. Received: {filename!r}")
    return {filename: bytes(content) for filename, content in extra_files.items()}


def _describe(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _format_params(params: RBMParams) -> bytes:
    try:
        return format_safetensors(checked_params(*params)._asdict())
    except ValueError as error:
        raise ModelError(f"The model was not published: {error}") from error


@contextmanager
def _locked_numbers(folder: Path) -> Iterator[int]:
    """The file of spent numbers, open and locked; waits for another publisher to end."""
    numbers = os.open(folder / NUMBERS_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(numbers, fcntl.LOCK_EX)
        yield numbers
    finally:
        with suppress(OSError):  # all that matters was synced before; an error here would deny what was published
            os.close(numbers)


def _sweep(folder: Path) -> None:
    """Removes what killed publishers left behind. What cannot be removed is hidden from readers all the same."""
    for entry in folder.iterdir():
        if entry.name.startswith(TEMPORARY_PREFIX):
            shutil.rmtree(entry, ignore_errors=True)


def _spend_number(folder: Path, numbers: int) -> int:
    """Takes the next version number, for ever."""
    records = os.pread(numbers, os.fstat(numbers).st_size, 0)
    spent = [int(record) for record in re.findall(rb"[0-9]{6}", records)]
    spent += [int(entry.name) for entry in folder.iterdir() if VERSION_PATTERN.fullmatch(entry.name)]
    version = max(spent, default=0) + 1
    if version > LAST_VERSION:
        raise ModelError(f"{folder}: all version numbers are spent; publish under another name.")
    record = b"\n%06d" % version  # the line break first: it parts this record from a torn one before it
    if os.write(numbers, record) != len(record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(numbers)
    _sync_folder(folder)
    return version


def _write_version(folder: Path, version: int, fields: Mapping[str, Any], contents: Mapping[str, bytes]) -> Path:
    """Writes, verifies and renames; leaves nothing behind when it fails."""
    temporary = folder / f"{TEMPORARY_PREFIX}{version:06d}"
    published = folder / f"{version:06d}"
    files = {**contents, MANIFEST_FILE: format_manifest({**fields, "version": version})}
    temporary.mkdir()
    try:
        for filename, content in files.items():
            _write_file(temporary / filename, content)
        _sync_folder(temporary)
        read_version(temporary, name=fields["name"], version=version)
        os.rename(temporary, published)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return published


def _write_file(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Makes the model's folder, and makes it and those above it that are new last."""
    new = [path for path in folder.parents if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder, *new):
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the entries of a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _confirm(folder: Path, published: Path) -> None:
    try:
        _sync_folder(folder)
    except OSError as error:
        raise ModelError(
            f"{published}: published and whole, but the disk did not confirm it ({error}); a power cut may undo it. "
            "Check the disk."
        ) from error
