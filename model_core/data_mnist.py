"""MNIST (LeCun and Cortes): found on this computer or downloaded, and always checked by the sha256 of its arrays."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import math
import os
import tempfile
import urllib.request
import zlib
from pathlib import Path

import numpy as np

from model_core.data_files import DataError, load_arrays

# Array, its IDX file, its shape, the sha256 of its bytes.
_PARTS = {
    "x_train": (
        "train-images-idx3-ubyte",
        (60_000, 28, 28),
        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    ),
    "y_train": (
        "train-labels-idx1-ubyte",
        (60_000,),
        "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    ),
    "x_test": (
        "t10k-images-idx3-ubyte",
        (10_000, 28, 28),
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    ),
    "y_test": (
        "t10k-labels-idx1-ubyte",
        (10_000,),
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
}
_MIRRORS = ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/")
_TIMEOUT_SECONDS = 30
_MAX_DOWNLOAD_BYTES = 20_000_000
_log = logging.getLogger(__name__)


def load_mnist(data_dir: Path | str | None = None) -> tuple[dict[str, np.ndarray], str]:
    """The four arrays, uint8, and where they came from.

    Looked for in `data_dir`, then `RBM_DATA_DIR`, then the cache; in each as four IDX files (plain or .gz) or as
    `mnist.npz`, in the folder itself or its sub-folder `mnist`. Else downloaded into the cache.

    Returns:
      `x_train` [60000, 28, 28], `y_train` [60000], `x_test` [10000, 28, 28], `y_test` [10000]; and a description.

    Raises:
      DataError: if files are there but not whole or not MNIST's, or if nothing is there and no download succeeds.
    """
    for place in (data_dir, os.environ.get("RBM_DATA_DIR"), cache_folder()):
        if not place:
            continue
        if place != cache_folder() and not Path(place).exists():
            raise DataError(f"{place}: there is no such folder. Expected MNIST's four IDX files or mnist.npz in it.")
        arrays = _load_from(Path(place))
        if arrays:
            return arrays, f"files in {Path(place).name}"
        _log.info("no MNIST in %s", place)
    return _download(cache_folder()), "download"


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/rbm-dream/mnist`, or the same under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rbm-dream" / "mnist"


def parse_idx(content: bytes, where: str) -> np.ndarray:
    """An IDX file of unsigned bytes: two zeros, 8, the number of axes, their lengths (big-endian uint32), the bytes."""
    if content[:3] != b"\0\0\x08" or len(content) < 4 or not 1 <= content[3] <= 3:
        raise DataError(
            f"{where}: expected an IDX file of bytes, which begins 00 00 08 01 or 00 00 08 03. "
            f"Received: {content[:4].hex(' ') or 'an empty file'}. Download it again."
        )
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{where}: {len(content):,} bytes (uncompressed), expected {expected:,} for shape {shape}. "
            "The file was cut off or is of something else; download it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _load_from(place: Path) -> dict[str, np.ndarray] | None:
    """MNIST in a folder or in the very file; None if there is no sign of it."""
    for folder in (place, place / "mnist"):
        npz = folder if folder.is_file() else folder / "mnist.npz"
        found = {key: _idx_file(folder, name) for key, (name, _, _) in _PARTS.items()}
        if not any(found.values()):
            if npz.is_file():
                return _load_npz(npz)
            continue
        arrays = {}
        for key, path in found.items():
            if path is None:
                raise DataError(
                    f"{folder / _PARTS[key][0]}: missing (plain or with .gz), though others of the four are there."
                )
            arrays[key] = _checked(key, parse_idx(_read(path, key), str(path)), str(path))
        return arrays
    return None


def _idx_file(folder: Path, name: str) -> Path | None:
    spellings = (name, name.replace("-idx", ".idx"))
    paths = (folder / f"{spelling}{suffix}" for spelling in spellings for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = load_arrays(path)
    missing = sorted(set(_PARTS) - set(arrays))
    if missing:
        raise DataError(f"{path}: expected the arrays {', '.join(_PARTS)}. Missing: {', '.join(missing)}.")
    return {key: _checked(key, arrays[key], f"{path}, `{key}`") for key in _PARTS}


def _read(path: Path, key: str) -> bytes:
    """A file's bytes, unpacked; no more than one byte over what is expected, whatever it would unpack to."""
    limit = 16 + math.prod(_PARTS[key][1]) + 1
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return file.read(limit)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). It may be cut off; download it again.") from error


def _checked(key: str, array: np.ndarray, where: str) -> np.ndarray:
    _, shape, sha256 = _PARTS[key]
    if array.shape != shape or array.dtype != np.uint8:
        raise DataError(f"{where}: expected uint8 {shape}. Received {array.dtype} {array.shape}.")
    if hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() != sha256:
        raise DataError(f"{where}: not MNIST's (sha256 of the array differs). Download it again; for data of your own, "
                        "name its path in place of `mnist`.")  # fmt: skip
    return array


def _download(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for key, (name, _, _) in _PARTS.items():
        arrays[key] = _download_part(key, f"{name}.gz", folder)
    return arrays


def _download_part(key: str, name: str, folder: Path) -> np.ndarray:
    failures = []
    for mirror in _MIRRORS:
        try:
            _log.info("downloading %s%s", mirror, name)
            packed = _fetch(mirror + name)
            array = _checked(key, parse_idx(gzip.decompress(packed), mirror + name), mirror + name)
        except (OSError, EOFError, zlib.error, http.client.HTTPException, DataError) as error:
            failures.append(f"{mirror}: {error}")
            continue
        _keep(folder, name, packed)
        return array
    raise DataError(
        f"MNIST is not on this computer and {name} could not be downloaded ({'; '.join(failures)}). Put "
        f"{', '.join(f'{part[0]}.gz' for part in _PARTS.values())} (or mnist.npz) into {folder}, or into a folder "
        "that you name with --data-dir or RBM_DATA_DIR. Without a network, `--data digits` works too."
    )


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
        if not response.url.startswith("https://"):
            raise OSError(f"was sent on to {response.url}, which is not https")
        packed: bytes = response.read(_MAX_DOWNLOAD_BYTES + 1)
    if len(packed) > _MAX_DOWNLOAD_BYTES:
        raise OSError(f"more than {_MAX_DOWNLOAD_BYTES:,} bytes")
    return packed


def _keep(folder: Path, name: str, packed: bytes) -> None:
    """Puts a verified download into the cache, whole or not at all; a cache that cannot be written costs only time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".downloading-", dir=folder)
        with open(handle, "wb") as file:
            file.write(packed)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / name)
    except OSError as error:
        _log.warning("%s could not be kept in %s: %s", name, folder, error)
