"""Finding, checking and downloading MNIST: tiny files in its place, no network, the real ones only where they are."""

from __future__ import annotations

import gzip
import hashlib
import io
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_core import data_mnist
from model_core.data_files import DataError
from model_core.data_mnist import load_mnist, parse_idx

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes((0, 0, 8, array.ndim)) + lengths + array.tobytes()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, np.ndarray]:
    """A MNIST of 3 and 2 images takes the place of the real one; no data folder is set, the cache is empty."""
    rng = np.random.default_rng(0)
    shapes = {"x_train": (3, 28, 28), "y_train": (3,), "x_test": (2, 28, 28), "y_test": (2,)}
    arrays = {key: rng.integers(0, 256, shape, np.uint8) for key, shape in shapes.items()}
    parts = {
        key: (name, array.shape, hashlib.sha256(array.tobytes()).hexdigest())
        for name, (key, array) in zip(NAMES, arrays.items(), strict=True)
    }
    monkeypatch.setattr(data_mnist, "_PARTS", parts)
    monkeypatch.delenv("RBM_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return arrays


def no_network(url: str, timeout: float) -> Any:
    raise urllib.error.URLError("no network here")


def write_all(folder: Path, arrays: dict[str, np.ndarray], suffix: str = "", dot: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, arrays.values(), strict=True):
        content = gzip.compress(idx(array)) if suffix else idx(array)
        spelling = name.replace("-idx", ".idx") if dot else name
        (folder / (spelling + suffix)).write_bytes(content)


def assert_same(found: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    assert list(found) == list(arrays)
    assert all(np.array_equal(found[key], arrays[key]) and found[key].dtype == np.uint8 for key in arrays)


def test_an_idx_file_is_read_as_its_format_says() -> None:
    content = bytes.fromhex("00000803 00000002 00000001 00000003 010203 0405ff")
    assert parse_idx(content, "f").tolist() == [[[1, 2, 3]], [[4, 5, 255]]]
    assert parse_idx(bytes.fromhex("00000801 00000002 0709"), "f").tolist() == [7, 9]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n", "89 50 4e 47"),
        (bytes.fromhex("00000d03 00000001"), "00 00 0d 03"),
        (bytes.fromhex("00000801"), "expected 8"),
        (bytes.fromhex("00000801 00000002 07"), "9 bytes .* expected 10"),
        (bytes.fromhex("00000801 00000002 070901"), "11 bytes .* expected 10"),
        (bytes.fromhex("00000803 ffffffff ffffffff ffffffff 01"), "17 bytes"),
    ],
)
def test_what_is_no_idx_file_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"folder/file: .*{reason}"):
        parse_idx(content, "folder/file")


def test_the_real_files_are_mnist(mnist_folder: Path) -> None:
    arrays, source = load_mnist(mnist_folder)
    assert (arrays["x_train"].shape, arrays["x_test"].shape) == ((60000, 28, 28), (10000, 28, 28))
    assert arrays["y_train"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert abs(arrays["x_train"].mean() - 33.3184) < 1e-3  # the mean that everybody's tutorials quote: 0.1307 * 255
    assert str(mnist_folder) not in source


@pytest.mark.parametrize(("suffix", "dot"), [("", False), (".gz", False), ("", True), (".gz", True)])
def test_found_as_four_files_in_any_spelling(
    suffix: str, dot: bool, tiny: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path / "data", tiny, suffix, dot)
    assert_same(load_mnist(tmp_path / "data")[0], tiny)
    monkeypatch.setenv("RBM_DATA_DIR", str(tmp_path / "data"))
    assert_same(load_mnist()[0], tiny)


def test_found_as_npz_in_a_sub_folder_and_in_the_cache(tiny: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", allow_pickle=False, **tiny)
    assert_same(load_mnist(tmp_path)[0], tiny)
    assert_same(load_mnist(tmp_path / "mnist.npz")[0], tiny)
    write_all(tmp_path / "data" / "mnist", tiny)
    assert_same(load_mnist(tmp_path / "data")[0], tiny)
    write_all(data_mnist.cache_folder(), tiny)
    (tmp_path / "empty").mkdir()
    assert_same(load_mnist(tmp_path / "empty")[0], tiny)
    assert_same(load_mnist()[0], tiny)


def test_each_damaged_or_missing_file_is_named(tiny: dict[str, np.ndarray], tmp_path: Path) -> None:
    for name in NAMES:
        for suffix in ("", ".gz"):
            folder = tmp_path / (name + suffix)
            write_all(folder, tiny, suffix)
            path = folder / (name + suffix)
            whole = path.read_bytes()
            wrong = bytearray(gzip.decompress(whole) if suffix else whole)
            wrong[-1] ^= 1
            for content in (whole[:-1], whole[:9], b"", gzip.compress(wrong) if suffix else bytes(wrong)):
                path.write_bytes(content)
                with pytest.raises(DataError, match=f"{name}{suffix}: "):
                    load_mnist(folder)
            path.unlink()
            with pytest.raises(DataError, match=f"{name}: missing"):
                load_mnist(folder)


def test_other_data_of_the_same_shape_is_not_mnist(tiny: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", allow_pickle=False, **{**tiny, "x_test": tiny["x_test"][::-1]})
    with pytest.raises(DataError, match=r"`x_test`: not MNIST's"):
        load_mnist(tmp_path)
    np.savez(tmp_path / "mnist.npz", x_train=tiny["x_train"])
    with pytest.raises(DataError, match="Missing: x_test, y_test, y_train"):
        load_mnist(tmp_path)


def test_a_gzip_bomb_is_cut_short(tiny: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_all(tmp_path, tiny, ".gz")
    (tmp_path / f"{NAMES[0]}.gz").write_bytes(gzip.compress(idx(tiny["x_train"]) + bytes(50_000_000)))
    with pytest.raises(DataError, match=r"2,369 bytes .* expected 2,368"):
        load_mnist(tmp_path)


def test_without_files_and_network_it_says_what_to_put_where(tiny: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_mnist()
    for part in (
        *NAMES,
        "mnist.npz",
        str(data_mnist.cache_folder()),
        "--data-dir",
        "RBM_DATA_DIR",
        "digits",
        "no network",
    ):
        assert part in str(error.value)
    with pytest.raises(DataError, match="no such folder"):
        load_mnist(tmp_path / "nowhere")


class Mirror:
    """Stands in for `urlopen`; files are (content, the address that finally answered)."""

    def __init__(self, arrays: dict[str, np.ndarray], **broken: bytes) -> None:
        self.files = {f"{name}.gz": gzip.compress(idx(a)) for name, a in zip(NAMES, arrays.values(), strict=True)}
        self.asked: list[str] = []
        self.broken, self.scheme = broken, "https"

    def __call__(self, url: str, timeout: float) -> Any:
        self.asked.append(url)
        assert url.startswith("https://") and 0 < timeout <= 60
        host, name = url.split("/")[2], url.rsplit("/", 1)[1]
        response = io.BytesIO(self.broken.get("first", b"") if self.broken and host == self.first else self.files[name])
        response.url = url.replace("https", self.scheme)  # type: ignore[attr-defined]
        return response

    first = data_mnist._MIRRORS[0].split("/")[2]


def test_a_download_is_verified_and_kept(tiny: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(tiny)
    monkeypatch.setattr(urllib.request, "urlopen", mirror)
    arrays, source = load_mnist()
    assert_same(arrays, tiny)
    assert source == "download" and len(mirror.asked) == 4
    assert sorted(entry.name for entry in data_mnist.cache_folder().iterdir()) == sorted(f"{name}.gz" for name in NAMES)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    assert_same(load_mnist()[0], tiny)


@pytest.mark.parametrize("answer", [b"", b"<html>sign in</html>", gzip.compress(idx(np.zeros((3, 28, 28), np.uint8)))])
def test_a_mirror_that_sends_something_else_is_passed_over(
    answer: bytes, tiny: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(tiny, first=answer)
    monkeypatch.setattr(urllib.request, "urlopen", mirror)
    assert_same(load_mnist()[0], tiny)
    assert len(mirror.asked) == 8


def test_plain_http_is_refused_and_nothing_is_kept(
    tiny: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(tiny)
    mirror.scheme = "http"
    monkeypatch.setattr(urllib.request, "urlopen", mirror)
    with pytest.raises(DataError, match="not https"):
        load_mnist()
    assert not data_mnist.cache_folder().exists()


def test_a_cache_that_cannot_be_written_costs_only_time(
    tiny: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setattr(urllib.request, "urlopen", Mirror(tiny))
    assert_same(load_mnist()[0], tiny)
