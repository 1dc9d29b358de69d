"""How a connection ends: the last answer arrives whole at who sends all before reading, and at who reads slowly."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from uvicorn.server import ServerState

from model_core.model_store import publish
from model_core.rbm import checked_params
from service.connections import make_protocol
from service.door import Door
from service.settings import Settings
from tests.service.http_helpers import ServerProcess, npy_bytes, read_all, serving, wait_until

MEGABYTE = 2**20
CLOCKS = {
    "RBM_LINGER_SECONDS": "1", "RBM_WRITE_SECONDS": "1", "RBM_MIN_BODY_RATE": str(4 * MEGABYTE),
    "RBM_HEADER_SECONDS": "20", "RBM_BODY_SECONDS": "20", "RBM_IDLE_SECONDS": "20", "RBM_DRAIN_DELAY": "0",
}  # fmt: skip
WITH_BODY = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
UPLOAD = b"POST /dream" + WITH_BODY


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 16x512 machine: sixteen bytes up, two kilobytes down."""
    checkpoints = tmp_path_factory.mktemp("wide") / "checkpoints"
    weights = np.random.default_rng(0).standard_normal((16, 512))
    manifest = {"free_energy_percentiles": np.linspace(-400.0, 100.0, 101).tolist()}
    params = checked_params(weights, np.zeros(16), np.zeros(512))
    publish(checkpoints, "wide", params, image_shape=(4, 4), manifest=manifest)
    return checkpoints


@pytest.fixture(scope="module")
def server(wide_store: Path) -> Iterator[ServerProcess]:
    with serving(wide_store, RBM_DEFAULT_MODEL="wide", **CLOCKS) as server:
        yield server


def num_files(server: ServerProcess) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


@pytest.mark.parametrize(
    ("head", "rest", "status"),
    [
        (UPLOAD % (40 * MEGABYTE), 40 * MEGABYTE, 413),
        (UPLOAD % (3 * MEGABYTE), 3 * MEGABYTE, 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", 40 * MEGABYTE, 431),
        (b"NONSENSE\r\n\r\n", 40 * MEGABYTE, 400),
        (b"GET /healthz" + WITH_BODY % (40 * MEGABYTE), 40 * MEGABYTE, 200),
    ],
)
def test_who_sends_all_before_reading_gets_the_answer(
    server: ServerProcess, head: bytes, rest: int, status: int
) -> None:
    before = num_files(server)
    for _ in range(5):  # a reset does not overtake every answer
        with server.connect() as connection:
            connection.sendall(head + b"a" * rest)
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        length = int(re.findall(rb"content-length: (\d+)", answer)[0])
        assert len(answer.partition(b"\r\n\r\n")[2]) == length
    wait_until(lambda: num_files(server) <= before)


def test_who_never_stops_sending_is_closed_all_the_same(server: ServerProcess) -> None:
    """The answer is followed by the end at once; the connection ends a second later."""
    with server.connect() as connection:
        connection.sendall(UPLOAD % (900 * MEGABYTE))
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")
        began = time.monotonic()
        with pytest.raises(OSError, match=r"reset|pipe"):
            while time.monotonic() - began < 15.0:
                connection.sendall(b"a")
                time.sleep(0.01)


def test_who_still_sends_does_not_hold_up_the_exit(wide_store: Path) -> None:
    with serving(wide_store, RBM_DEFAULT_MODEL="wide", **CLOCKS) as server, server.connect() as connection:
        connection.sendall(UPLOAD % (900 * MEGABYTE))
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=15) == 0


def ask_for_much(server: ServerProcess) -> tuple[socket.socket, int]:
    """A connection on which an answer of 20 MB comes, and its bytes without the head; little of it fits a buffer."""
    rows = npy_bytes(np.zeros((10_000, 16), np.uint8))
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.settimeout(20.0)
    connection.connect(("127.0.0.1", server.port))
    head = b"POST /features HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\nAccept: application/x-npy\r\n"
    connection.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(rows) + rows)
    answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200 ")
    body = answer.partition(b"\r\n\r\n")[2]
    length = int(re.findall(rb"content-length: (\d+)", answer)[0])
    assert length > 20_000_000
    return connection, length - len(body)


def test_who_reads_slowly_but_steadily_gets_all(server: ServerProcess) -> None:
    """Twice as fast as the rate that is owed, and for longer than the seconds that are free."""
    connection, left = ask_for_much(server)
    with connection:
        while content := connection.recv(65_536):
            left -= len(content)
            time.sleep(len(content) / (8 * MEGABYTE))
    assert left == 0


def test_who_stops_reading_is_dropped(server: ServerProcess) -> None:
    before = num_files(server)
    connection, left = ask_for_much(server)
    with connection:
        wait_until(lambda: num_files(server) <= before)
        with contextlib.suppress(ConnectionResetError):
            assert len(read_all(connection)) < left


def test_who_never_reads_a_last_answer_is_dropped_however_small_it_is() -> None:
    """Too small for the transport to call for a pause, too large for the system: no writer is there to wait."""

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"40000")]})
        await send({"type": "http.response.body", "body": bytes(40_000)})

    async def drive() -> None:
        protocol = make_protocol(Settings(write_seconds=0.2), Door(1, lambda: None))
        config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None)
        config.load()
        state, (ours, theirs) = ServerState(), socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with theirs:
            make = functools.partial(protocol, config=config, server_state=state, app_state={})
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(make, ours)
            theirs.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while not state.total_requests:
                await asyncio.sleep(0.01)
            assert 0 < transport.get_write_buffer_size() < 40_000
            async with asyncio.timeout(10.0):
                while state.connections:
                    await asyncio.sleep(0.01)

    asyncio.run(drive())
