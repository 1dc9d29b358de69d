"""One model on disk: a version folder or a bare file, and the checks that stand before every use of it.

    <name>/<version>/model.safetensors    weights [visible, hidden], visible_bias, hidden_bias; float32
    <name>/<version>/model.json           the manifest; its `files` holds the bytes and sha256 of every payload file,
                                          its `sha256` that of everything else in it

Whatever bytes are found, reading ends in a `Model` or in a `ModelError`: sizes are looked at before memory is
taken, every file is read once and its hash is taken of the very bytes that are parsed, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors

from model_core.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    WEIGHTS_FILE,
    ModelError,
    parse_manifest,
)
from model_core.rbm import RBMParams, checked_params

MAX_HEADER_BYTES = 2**20  # safetensors itself allows 100 MB of JSON; three tensors need 300 bytes
_ADVICE = "Copy the version folder anew from where it came, or publish the model again."


class Model(NamedTuple):
    """A model as it was published: parameters, manifest, and the shape of its images."""

    params: RBMParams
    manifest: dict[str, Any]
    image_shape: tuple[int, int]  # (rows, columns); their product is the number of visible units
    path: Path | None = None  # the version folder, or the bare file

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def version(self) -> int:
        """The published version; 0 for a bare file."""
        return int(self.manifest["version"])


def read_version(folder: Path, *, name: str | None = None, version: int | None = None) -> Model:
    """Reads and verifies a version folder.

    Args:
      folder: holds `model.json` and the files that it names.
      name, version: what the manifest must say; None accepts what it says.

    Raises:
      ModelError: if anything is missing, of another size, hash, type or shape than the manifest says, or not finite.
    """
    path = folder / MANIFEST_FILE
    manifest = parse_manifest(read_bytes(path, MAX_MANIFEST_BYTES), str(path))
    for field, expected in (("name", name), ("version", version)):
        if expected is not None and manifest[field] != expected:
            raise ModelError(
                f"{path}: `{field}` is {manifest[field]!r}, but the folder is that of {expected!r}. "
                "The folder was renamed or files were swapped; put it back or publish the model again."
            )
    contents = {filename: read_payload(folder, manifest, filename) for filename in manifest["files"]}
    params = parse_params(folder / WEIGHTS_FILE, contents[WEIGHTS_FILE])
    declared = (manifest["num_visible"], manifest["num_hidden"])
    if params.weights.shape != declared:
        raise ModelError(f"{folder}: the weights are {params.weights.shape}, but the manifest says {declared}.")
    rows, columns = manifest["image_shape"]
    return Model(params, manifest, (rows, columns), folder)


def read_bare_file(path: Path) -> Model:
    """Reads a `.safetensors` file that has no manifest; float16 and float64 are converted to float32."""
    params = parse_params(path, read_bytes(path, MAX_FILE_BYTES), any_float=True)
    image_shape = guess_image_shape(params.num_visible)
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": path.stem,
        "version": 0,
        "image_shape": list(image_shape),
        "num_visible": params.num_visible,
        "num_hidden": params.num_hidden,
    }
    return Model(params, manifest, image_shape, path)


def guess_image_shape(num_visible: int) -> tuple[int, int]:
    """Square where that is possible (784 is 28x28), else a single row."""
    side = math.isqrt(num_visible)
    return (side, side) if side * side == num_visible else (1, num_visible)


def read_payload(folder: Path, manifest: Mapping[str, Any], filename: str) -> bytes:
    """The bytes of a file that the manifest names, verified against its size and hash."""
    path, declared = folder / filename, manifest["files"][filename]
    content = read_bytes(path, declared["bytes"])
    if len(content) != declared["bytes"]:
        raise ModelError(f"{path}: {len(content)} bytes, expected {declared['bytes']}. {_ADVICE}")
    if hashlib.sha256(content).hexdigest() != declared["sha256"]:
        raise ModelError(f"{path}: its sha256 is not the manifest's: the file is damaged or swapped. {_ADVICE}")
    return content


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes."""
    try:
        # Without O_NONBLOCK a named pipe in the folder would hold the reader up for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"{path}: expected a regular file.")
            if status.st_size > limit:
                raise ModelError(f"{path}: {status.st_size} bytes, expected at most {limit}.")
            return file.read(status.st_size + 1)  # a file that grows meanwhile fails its checks, not the memory
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file.") from None
    except (OSError, MemoryError) as error:
        raise ModelError(f"{path}: cannot be read ({error or 'not enough memory'}).") from error


def parse_params(path: Path, content: bytes, *, any_float: bool = False) -> RBMParams:
    """The three tensors of a safetensors file; `path` is for messages."""
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) < 8 or header_bytes > min(MAX_HEADER_BYTES, len(content) - 8):
        raise ModelError(f"{path}: expected a .safetensors file; its first 8 bytes are not the length of a header.")
    try:
        tensors = parse_safetensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ModelError(f"{path}: not a readable .safetensors file ({error}).") from error
    arrays = []
    for field in RBMParams._fields:
        if field not in tensors:
            expected = ", ".join(RBMParams._fields)
            raise ModelError(f"{path}: expected the tensors {expected}. Received: {sorted(tensors)[:9]}.")
        array = tensors[field]
        if array.dtype != np.float32 and not (any_float and array.dtype.kind == "f"):
            raise ModelError(f"{path}: `{field}` must be float32. Received: {array.dtype}.")
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is refused below
            arrays.append(np.array(array, np.float32))  # a copy: aligned and writable, as compiled kernels expect
    try:
        return checked_params(*arrays)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
