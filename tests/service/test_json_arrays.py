"""Large JSON arrays: the same numbers as `json.loads` gives, and nothing else is let through."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from service import arrays, json_arrays
from service.json_arrays import BadJson, read_arrays

NUMBERS = st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1)),
    st.sampled_from([None, 1]),
)  # fmt: skip
def test_reads_what_json_reads(rows: list[list[float]], indent: int | None) -> None:
    content = json.dumps({"images": rows, "mask": rows[0]}, indent=indent).encode()
    found = read_arrays(content)
    assert set(found) == {"images", "mask"}
    with np.errstate(over="ignore"):  # what does not fit float32 is infinite
        expected = np.array(rows).astype(np.float32)
    np.testing.assert_array_equal(found["images"], expected)
    np.testing.assert_array_equal(found["mask"], expected[0])


def test_reads_images_of_rows() -> None:
    images = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(read_arrays(json.dumps({"images": images.tolist()}).encode())["images"], images)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"{}", b"[]", b'{"a"', b'{"a":1}', b'{"a":[1', b'{"a":[[1]]', b'{"a":[[1],]}', b'{"a":[[1]]} x',
        b'{"a":[[1],[1,2]]}', b'{"a":[["x"]]}', b'{"a":[[true]]}', b'{"a":[[null]]}', b'{"a":[[{}]]}',
        b'{"a":[[[[1]]]]}', b'{"a":[[1] [2]]}', b'{"a":[[1],2]}', b'{"a":[[9' + b"9" * 5000 + b"]]}",
        b'{"a":[1' + b" " * 2_000_000 + b"]}",
        b'{"a":' + b"[" * 100_000, b"\xff\xfe{",
    ],
)  # fmt: skip
def test_refuses_everything_else(content: bytes) -> None:
    with pytest.raises(BadJson):
        read_arrays(content)


@given(st.binary(max_size=60) | st.text('{}[],:"a0123456789.-e ', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        found = read_arrays(content)
    except BadJson:
        return
    assert set(found) == set(json.loads(content))


def test_rows_without_end_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_arrays, "MAX_ROWS", 100)
    read_arrays(b'{"a":[' + b"[],".join([b""] * 100) + b"[]]}")
    with pytest.raises(BadJson):
        read_arrays(b'{"a":[' + b"[]," * 100 + b"[]]}")


def test_large_and_small_bodies_give_the_same_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps({"images": [[0, 0.25], [1, 1e-3]]}).encode()
    small = arrays.arrays_from_json(content, {"images"})["images"]
    monkeypatch.setattr(arrays, "PLAIN_JSON_BYTES", 0)
    np.testing.assert_array_equal(arrays.arrays_from_json(content, {"images"})["images"], small)


def test_a_large_body_goes_through_the_service(client: TestClient) -> None:
    images = np.random.default_rng(0).random((500, 784)).round(4)
    answer = client.post("/features", json={"images": images.tolist()})
    assert answer.status_code == 200 and answer.json()["shape"] == [500, 12]
    few = client.post("/features", json={"images": images[:3].tolist()})
    # Not to the bit: a matrix product may round otherwise in a larger batch.
    np.testing.assert_allclose(answer.json()["features"][:3], few.json()["features"], rtol=1e-4, atol=1e-6)
    assert client.post("/features", content=b'{"images": [' + b"[1]," * 100_000, headers=JSON).status_code == 422


JSON = {"Content-Type": "application/json"}
