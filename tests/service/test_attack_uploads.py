"""Hostile files against a real server: no answer of 5xx, no death, bounded memory, and nothing left behind."""

from __future__ import annotations

import http.client
import os
import signal
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.service.drawn import to_bytes
from tests.service.http_helpers import ServerProcess, image_bytes, npy_bytes, serving
from tests.service.test_image_corpus import mutants

MAX_MEMORY_MB = 400
TYPES = ("image/png", "application/octet-stream", "application/x-npy", "application/json", "text/plain")


@pytest.fixture
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store) as server:
        yield server


def post_all(server: ServerProcess, bodies: Iterable[bytes], path: str = "/energy") -> Counter[int]:
    """Statuses of all answers, over one connection that is opened anew when the server closes it."""
    statuses: Counter[int] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for number, body in enumerate(bodies):
        headers = {"Content-Type": TYPES[number % 2]}
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read()
        except (http.client.HTTPException, OSError):  # a refusal may close the connection under a long body
            statuses[0] += 1
            connection.close()
            continue
        statuses[answer.status] += 1
    connection.close()
    return statuses


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *further: bytes, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(further) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bombs() -> Iterator[bytes]:
    """Small bodies that ask for much."""
    black = zlib.compress(bytes(4096 * (1 + 4 * 2048)), 9)
    yield png(2048, 4096, data=black)  # 8 million pixels, all of them there
    yield png(2000, 2000, data=zlib.compress(bytes(2000 * 8001), 9))  # the largest that is read
    yield png(64250, 64250, data=black)
    yield png(20000, 20000)
    text = zlib.compress(bytes(60_000_000), 9)
    yield png(28, 28, chunk(b"zTXt", b"a\0\0" + text), data=zlib.compress(bytes(28 * 113)))
    yield png(28, 28, chunk(b"iCCP", b"a\0\0" + text), data=zlib.compress(bytes(28 * 113)))
    yield png(28, 28, data=text)
    screen = b"GIF89a" + struct.pack("<HHBBB", 28, 28, 0x80, 0, 0) + bytes(6)
    yield screen + b"\x2c\0\0\0\0\x1c\0\x1c\0\0\x02\x02\x4c\x01\0" * 40_000 + b";"
    yield b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, -(2**31) + 1, 1, 24, 0, 0, 0, 0, 0, 0)
    yield image_bytes() + b"PK\x03\x04" + bytes(1000) + b"<script>alert(1)</script>"


@pytest.mark.slow
def test_hostile_files_never_fail_the_server(server: ServerProcess) -> None:
    """Mutants of our own; and the files, with mutants, of RBM_IMAGE_CORPUS, a folder of what others collected."""
    statuses = post_all(server, mutants(500, seed=3))
    folder = os.environ.get("RBM_IMAGE_CORPUS")
    if folder:
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        statuses += post_all(server, (path.read_bytes() for path in paths))
        statuses += post_all(server, (flipped(path, seed) for path in paths for seed in range(2)))
    for _ in range(5):
        statuses += post_all(server, bombs(), "/dream?steps=1")
    print(f"statuses {dict(statuses)}, peak {server.memory_mb('VmHWM'):.0f} MB")
    assert set(statuses) <= {0, 200, 400, 413, 415, 422} and statuses[0] < 0.1 * statuses.total()
    assert statuses[200] > 50 and statuses[422] > 50
    assert server.memory_mb("VmHWM") < MAX_MEMORY_MB
    assert server.process.poll() is None and post_all(server, [image_bytes()]) == {200: 1}


@pytest.mark.slow
def test_the_largest_arrays_do_not_swell_the_server(server: ServerProcess) -> None:
    """As JSON and as NPY, 60 MB of digits; the text of what comes back is as large."""
    row = b"[" + b",".join(b"0.%04d" % number for number in range(784)) + b"]"
    text = b'{"images": [' + b",".join([row] * 11_000) + b"]}"
    binary = npy_bytes(np.zeros((19_500, 784), np.float32))
    json_type, npy_type = "application/json", "application/x-npy"
    for path, content_type, body in (
        ("/energy", json_type, text),
        ("/features", json_type, text),
        ("/features?format=npy", npy_type, binary),
    ):
        assert 58e6 < len(body) < 64 * 2**20
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        connection.request("POST", path, body, {"Content-Type": content_type})
        answer = connection.getresponse()
        assert answer.status == 200 and int(answer.headers["Content-Length"]) == len(answer.read())
        connection.close()
    assert server.memory_mb("VmHWM") < MAX_MEMORY_MB


def flipped(path: Path, seed: int) -> bytes:
    body, dice = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in dice.integers(0, max(1, len(body)), 8 if body else 0):
        body[place] ^= 1 << int(dice.integers(8))
    return bytes(body)


def test_wrong_bodies_of_every_type_are_told_apart(server: ServerProcess) -> None:
    nan = npy_bytes(np.full((1, 784), np.nan, np.float32))
    huge_header = (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"{'descr':'<f8','fortran_order':False,'shape':(9999999999,784)}"
    )
    pickled = npy_bytes(np.array([{"a": 1}]), allow_pickle=True)
    bodies = [
        b"",
        b"text named .png",
        nan,
        huge_header,
        pickled,
        b'{"images": [[NaN]]}',
        b'{"images": "x"}',
        b"{" * 5000,
    ]
    bodies += [to_bytes(np.full((1, 1), 255, np.uint8)), image_bytes("JPEG")[:-200], b"\0" * 1000]
    for content_type in TYPES:
        for path in ("/dream", "/features", "/energy", "/inpaint"):
            for body in bodies:
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
                connection.request("POST", path, body, {"Content-Type": content_type})
                answer = connection.getresponse()
                assert answer.status in (400, 413, 415, 422), (content_type, path, body[:40], answer.status)
                assert answer.getheader("content-type") == "application/problem+json" and b"detail" in answer.read()
                connection.close()


def test_kill_9_leaves_nothing_behind(store: Path) -> None:
    before = sorted(store.rglob("*"))
    with serving(store) as server:
        with server.connect() as connection:
            connection.sendall(b"GET /sample?steps=10000&n=64 HTTP/1.1\r\nHost: x\r\n\r\n")
            tasks = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(timeout=10)
        assert tasks == "" and sorted(store.rglob("*")) == before
        with serving(store, RBM_PORT=str(server.port)):  # the port is free at once
            pass
