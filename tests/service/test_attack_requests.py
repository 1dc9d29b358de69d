"""Small requests that once held everybody up, or took the memory of all: each costs no more than it weighs."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model_core.model_store import publish
from service.answers import check_filters
from service.errors import Problem
from service.images import ImageError, decode_image
from service.json_arrays import numbers_of
from tests.service.http_helpers import (
    ServerProcess,
    digit,
    image_bytes,
    is_problem,
    npy_bytes,
    publish_tiny,
    running_app,
    serving,
    settings_for,
    tiny_params,
    wait_until,
)

SECONDS = 1.0  # of the processor; each took more than ten, for some a minute


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    checkpoints = tmp_path_factory.mktemp("store") / "checkpoints"
    publish_tiny(checkpoints)
    publish(checkpoints, "flat", tiny_params(), image_shape=(1, 784), manifest={})
    with running_app(settings_for(checkpoints)) as client:
        yield client


def form(content_type: str, text: bytes) -> dict[str, Any]:
    body = b'--bound\r\nContent-Disposition: form-data; name="text"\r\n\r\n' + text + b"\r\n--bound--\r\n"
    return {"content": body, "headers": {"Content-Type": content_type}}


def test_what_is_nearly_a_number_is_told_at_once(client: TestClient) -> None:
    began = time.process_time()
    assert is_problem(client.get("/sample", headers={"X-Request-Timeout": "1" * 30_000 + "x"}), 422, "plain number")
    assert is_problem(client.get("/sample?steps=" + "1" * 8000 + "x"), 422, "plain number")
    assert time.process_time() - began < SECONDS
    for number in ("5", "05", "+5", "5.0", "5e0", ".5e1", "50e-1"):
        answer = client.get("/sample", params={"steps": 1, "format": "json", "temperature": number})
        assert answer.json()["temperature"] == 5, number


@pytest.mark.parametrize("codec", ["punycode", "undefined", "no-such-codec", "utf-16"])
def test_a_client_does_not_choose_the_codec_of_its_texts(client: TestClient, codec: str) -> None:
    began = time.process_time()
    answer = client.post("/dream", **form(f"multipart/form-data; boundary=bound; charset={codec}", b"a" * 100_000))
    assert is_problem(answer, 400) and time.process_time() - began < SECONDS
    assert is_problem(client.post("/dream", **form(f"multipart/form-data; boundary=bound; charset={codec}", b"a")), 422)


def test_a_form_without_a_boundary_says_so(client: TestClient) -> None:
    assert is_problem(client.post("/dream", **form("multipart/form-data", b"a")), 400, "boundary")


@pytest.mark.parametrize("row", [["a" * 50_000] + [""] * 50_000, [True, 0.5], [None], [{}], [[1], 2], [[[[1]]]]])
def test_only_lists_of_numbers_come_near_numpy(row: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.json_arrays.np.array", lambda *_: pytest.fail("it was made an array"))
    with pytest.raises(ValueError, match="numbers"):
        numbers_of(row)


@pytest.mark.parametrize("shape", ["(1,) * 70 + (784,)", "(True, 784)", "(0, 2**70)", "(-1, 784)", "(1, 1, 28, 28)"])
def test_odd_shapes_of_arrays_are_refused(client: TestClient, shape: str) -> None:
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": eval(shape)}
    np.lib.format.write_array_header_2_0(stream, header)
    body = stream.getvalue() + bytes(784 if "2**70" not in shape else 0)
    assert is_problem(client.post("/features", content=body, headers={"Content-Type": "application/x-npy"}), 422)


@pytest.mark.parametrize(
    "path",
    [
        "/sample?steps=1&n=5&format=webp",
        "/sample?steps=1&n=64&view=pair&scale=1&format=webp",
        "/sample?steps=1&n=64&view=pair&scale=2&format=gif",
        "/filters?n=64&scale=8&format=webp",
    ],
)
def test_a_picture_too_wide_for_its_format_is_refused(client: TestClient, path: str) -> None:
    assert is_problem(client.get(f"{path}&model=flat"), 422, "side")


def test_pictures_of_a_stream_have_a_size_too(client: TestClient) -> None:
    assert is_problem(client.get("/sample?steps=9&format=sse&n=64&scale=32&view=pair"), 422, "pixels in all")
    assert client.get("/sample?steps=2&format=sse&n=64").status_code == 200


@pytest.mark.parametrize(("num_units", "format_name"), [(4096, "png"), (4096, "json"), (200, "webp")])
def test_filters_have_a_size_too(num_units: int, format_name: str) -> None:
    with pytest.raises(Problem, match="pixels in all"):
        check_filters((28, 28), num_units, 8, format_name)
    check_filters((28, 28), 4096, 8, "npy")


def test_what_is_no_number_is_null_in_json(tmp_path: Path) -> None:
    params = tiny_params()
    huge = type(params)(np.full_like(params.weights, 3e38), params.visible_bias, params.hidden_bias)
    publish(tmp_path, "mnist", huge, image_shape=(28, 28), manifest={})
    with running_app(settings_for(tmp_path)) as client:
        for path in ("/sample?steps=1&format=json", "/sample?steps=1&format=sse"):
            answer = client.get(path)
            assert answer.status_code == 200 and "Infinity" not in answer.text and "NaN" not in answer.text


def test_a_jpeg_whose_colours_come_one_after_the_other_is_held_whole_and_so_limited() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4100, 4100)).save(stream, "JPEG", quality=1)
    whole = stream.getvalue()
    assert decode_image(whole).size  # 16.8 million pixels, but the colours come together
    place = whole.index(b"\xff\xda")
    # A first scan of one component; what follows does not matter, for the size is judged before.
    single = whole[:place] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + whole[place + 14 :]
    with pytest.raises(ImageError, match="several scans"):
        decode_image(single)


def test_large_tables_wait_for_room(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: Any = client.app.state.answers  # type: ignore[attr-defined]
    body = npy_bytes(np.zeros((8000, 784), np.uint8))

    def ask() -> Any:
        return client.post("/features", content=body, headers={"Content-Type": "application/x-npy"})

    assert len(ask().json()["features"]) == 8000
    wait_until(lambda: rooms.num_bytes == 0, 5.0)
    monkeypatch.setattr(rooms, "limit", 1000)
    assert is_problem(ask(), 429, "have not read")


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store) as server:
        yield server


def test_many_large_images_in_one_form_let_others_in(server: ServerProcess) -> None:
    """And are not looked at any more when their client has left."""
    stream = io.BytesIO()
    digit().convert("RGBA").resize((2000, 2000)).save(stream, "PNG")
    part = b'--bound\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n%b\r\n' % stream.getvalue()
    body = part * 200 + b"--bound--\r\n"
    head = f"POST /features HTTP/1.1\nContent-Type: multipart/form-data; boundary=bound\nContent-Length: {len(body)}\n"
    png = image_bytes()
    small = f"POST /dream?steps=1 HTTP/1.1\nContent-Type: image/png\nContent-Length: {len(png)}\n"
    with server.connect() as large:
        large.sendall(head.replace("\n", "\r\n").encode() + b"Host: x\r\n\r\n" + body)
        time.sleep(0.5)
        assert b" 200 " in server.request(small, png, timeout=10.0)[:20]
    wait_until(lambda: b'endpoint="/features"' in server.get("/metrics"), 10.0)


def test_answers_that_nobody_reads_fill_no_more_than_their_room(server: ServerProcess) -> None:
    before = server.memory_mb()
    path = "/sample?steps=5000&every=1&format=npy&timeout=600"
    unread = []
    for _ in range(60):  # 16 MB each, and frames of 20 MB
        connection = server.connect()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        unread.append(connection)
        time.sleep(0.05)
    wait_until(lambda: b"\nrbm_running_chains 0.0" in server.get("/metrics"), 120.0)
    assert server.memory_mb("VmHWM") - before < 600
    assert b"429" in b"".join(connection.recv(100) for connection in unread)
    for connection in unread:
        connection.close()
    wait_until(lambda: b" 200 " in server.get("/sample?steps=5000&every=1&format=npy")[:20], 30.0)
