"""A real server process: limits on silent and slow clients, draining, exit statuses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.http_helpers import ServerProcess, image_bytes, read_all, serving, wait_until

SHORT = {
    "RBM_HEADER_SECONDS": "1", "RBM_BODY_SECONDS": "1", "RBM_IDLE_SECONDS": "1", "RBM_WRITE_SECONDS": "2",
    "RBM_MAX_IDLE_CONNECTIONS": "50", "RBM_DRAIN_DELAY": "1", "RBM_DRAIN_SECONDS": "20",
}  # fmt: skip


def serving_shortly(store: Path, **environment: str) -> contextlib.AbstractContextManager[ServerProcess]:
    """With limits that a test can wait for."""
    return serving(store, **(SHORT | environment))


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[ServerProcess]:
    """For tests that leave it running."""
    with serving_shortly(store) as server:
        yield server


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /sample HT",
        b"GET /sample HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /dream HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc",
        b"POST /dream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",  # then silent, kept alive
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HT",
    ],
)
def test_a_client_that_stops_is_closed(server: ServerProcess, sent: bytes) -> None:
    with server.connect(timeout=15.0) as connection:
        connection.sendall(sent)
        answer = read_all(connection)  # returns when the server closes; the socket's timeout fails the test
    if sent and not sent.startswith(b"GET /healthz"):
        status, headers, body = parts(answer)
        assert status == 408 and headers["content-type"] == "application/problem+json" and json.loads(body)["error"]


def test_a_client_that_drips_is_closed_too(server: ServerProcess) -> None:
    """Each byte comes in time, the whole never does."""
    with server.connect(timeout=15.0) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        ended = False
        for _ in range(60):
            try:
                connection.sendall(b"X-Drip: 1\r\n")
            except OSError:
                ended = True
                break
            time.sleep(0.1)
        assert ended or read_all(connection).startswith(b"HTTP/1.1 408")


def test_silent_sockets_do_not_stand_in_the_way(server: ServerProcess) -> None:
    silent = []
    try:
        for _ in range(200):
            silent.append(server.connect())
        assert parts(server.get("/sample?steps=1"))[0] == 200
        silent[0].settimeout(5.0)
        assert silent[0].recv(1) == b""  # the oldest was closed to make room
    finally:
        for connection in silent:
            connection.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST /dream HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /dream HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /dream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 8_000_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(100_000)) + b"\r\n", 431),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    ],
)
def test_hostile_heads_are_refused_with_a_problem(server: ServerProcess, request_bytes: bytes, status: int) -> None:
    with server.connect() as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        found, headers, body = parts(read_all(connection))
    assert found == status and headers["content-type"] == "application/problem+json"
    assert headers["x-content-type-options"] == "nosniff" and json.loads(body)["request_id"]
    assert parts(server.get("/healthz"))[0] == 200


def test_a_body_over_the_limit_is_refused_while_it_streams(server: ServerProcess) -> None:
    head = "POST /dream HTTP/1.1\nContent-Type: image/png\nContent-Length: 900000000\n"
    status, _, body = parts(server.request(head, b"x" * 1000))
    assert status == 413 and json.loads(body)["status"] == 413


def test_server_does_not_name_its_software(server: ServerProcess) -> None:
    assert "server" not in parts(server.get("/healthz"))[1]


def test_a_client_that_leaves_frees_the_engine(server: ServerProcess) -> None:
    for _ in range(5):
        with server.connect() as connection:
            connection.sendall(b"GET /sample?steps=10000&n=64&timeout=60 HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.05)
    wait_until(lambda: b"\nrbm_running_chains 0.0" in server.get("/metrics"), 20.0)


class Client(threading.Thread):
    """One request in a thread; `answer` is all that came back."""

    def __init__(self, server: ServerProcess, path: str) -> None:
        super().__init__()
        self.server, self.path, self.answer = server, path, b""
        self.start()

    def run(self) -> None:
        with contextlib.suppress(ConnectionResetError):  # the server may be killed meanwhile
            self.answer = self.server.request(f"GET {self.path} HTTP/1.1\n", timeout=60.0)


def test_sigterm_finishes_what_was_accepted_and_exits_0(store: Path) -> None:
    with serving_shortly(store) as server:
        requests = [Client(server, f"/sample?steps=10000&n=2&seed={number}") for number in range(25)]
        streams = [Client(server, "/sample?steps=10000&n=2&every=500&format=sse") for _ in range(25)]
        # All are under way when the engine has said so.
        wait_until(lambda: b"\nrbm_running_chains 0.0" not in server.get("/metrics"))
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        status, _, body = parts(server.get("/readyz"))
        assert status == 503 and b"draining" in body
        late = parts(server.get("/sample?steps=1"))[0]
        assert late == 200  # still accepted during the delay
        for client in (*requests, *streams):
            client.join()
        assert server.process.wait(timeout=30) == 0
    assert [parts(client.answer)[0] for client in requests] == [200] * 25
    for client in streams:
        assert b"event: done" in client.answer, client.answer[-300:]
    assert server.log.read_text().count("GET '/sample' 200") == 25 + 25 + 1  # also of what ended while it drained
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 1.0)


def test_while_it_drains_each_answer_is_the_last_of_its_connection(store: Path) -> None:
    """Else the next request on it would meet a closing server."""
    with serving_shortly(store, RBM_DRAIN_DELAY="5") as server, server.connect() as connection:
        ask = b"GET /sample?steps=1 HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(ask)
        assert b"connection: close" not in connection.recv(65536)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: parts(server.get("/readyz"))[0] == 503)
        connection.sendall(ask)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer
        server.process.send_signal(signal.SIGTERM)


def test_streams_that_outlast_the_limit_get_a_last_event(store: Path) -> None:
    with serving_shortly(store, RBM_DRAIN_SECONDS="2", RBM_DRAIN_DELAY="0") as server:
        # A queue that cannot be worked off within the limit.
        clients = [Client(server, "/sample?steps=10000&n=64&every=10000&format=sse&timeout=60") for _ in range(12)]
        clients += [Client(server, "/sample?steps=10000&n=64&timeout=60") for _ in range(12)]
        time.sleep(1.0)
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join()
        assert server.process.wait(timeout=30) == 0
    for client in clients:
        status, headers, body = parts(client.answer)
        if headers["content-type"].startswith("text/event-stream"):
            assert b"event: done" in body or b"event: error" in body
        else:
            assert status in (200, 429, 503) and (status == 200 or headers["retry-after"])


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_a_second_signal_exits_at_once(store: Path, first: signal.Signals, second: signal.Signals) -> None:
    """With work and streams under way, which the first signal alone would wait for."""
    with serving_shortly(store, RBM_DRAIN_DELAY="30") as server:
        path = "/sample?steps=10000&n=64&timeout=60"
        clients = [Client(server, path), Client(server, f"{path}&every=100&format=sse")]
        wait_until(lambda: b"\nrbm_running_chains 128.0" in server.get("/metrics"))
        server.process.send_signal(first)
        wait_until(lambda: parts(server.get("/readyz"))[0] == 503)  # it drains
        assert server.process.poll() is None
        ids = [f"asked-{number}" for number in range(20)]
        for name in ids:
            server.request(f"GET /sample?steps=1 HTTP/1.1\nX-Request-ID: {name}\n")
        server.process.send_signal(second)  # within the tenth of a second for which the last lines wait
        assert server.process.wait(timeout=5) == 128 + second
        assert all(f" {name} GET " in server.log.read_text() for name in ids)
        for client in clients:
            client.join()


def start(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from service.server import serve; sys.exit(serve())"]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        command, cwd=root, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_taken_port_is_said_clearly(server: ServerProcess) -> None:
    ended = start(RBM_PORT=str(server.port))
    assert ended.returncode == 1 and "Choose another port" in ended.stderr and "Traceback" not in ended.stderr


def test_a_public_address_needs_a_key() -> None:
    ended = start(RBM_HOST="0.0.0.0", RBM_PORT="0")
    assert ended.returncode == 1 and "RBM_API_KEYS" in ended.stderr and "Traceback" not in ended.stderr


def test_files_and_forms_go_through_a_real_socket(server: ServerProcess) -> None:
    content = image_bytes()
    head = f"POST /features HTTP/1.1\nContent-Type: image/png\nContent-Length: {len(content)}\n"
    assert parts(server.request(head, content))[0] == 200
