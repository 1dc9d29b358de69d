"""What follows a request on its connection: answered in order, and never before it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.connections import make_protocol
from service.door import Door
from service.settings import Settings
from tests.service.http_helpers import ServerProcess, image_bytes, read_all, serving, wait_until

SAMPLE = b"GET /sample?steps=2000&n=8&seed=1 HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store, RBM_HEADER_SECONDS="2", RBM_IDLE_SECONDS="2", RBM_BODY_SECONDS="2") as server:
        yield server


def statuses(answers: bytes) -> list[bytes]:
    """Status of each answer in a stream of them; PNGs do not hold these words."""
    return re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)


def talk(server: ServerProcess, *pieces: bytes, pause: float = 0.0) -> bytes:
    with server.connect() as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        return read_all(connection)


@pytest.mark.parametrize("sent", [(SAMPLE + SAMPLE + LAST,), (SAMPLE, SAMPLE, LAST), (SAMPLE + LAST[:9], LAST[9:])])
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_requests_in_a_row_are_answered_in_order(server: ServerProcess, sent: tuple[bytes, ...], pause: float) -> None:
    answers = talk(server, *sent, pause=pause)
    assert statuses(answers) == [b"200"] * b"".join(sent).count(b"GET")
    assert answers.endswith(b'{"status":"alive"}')


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_nonsense_after_a_request_does_not_spoil_its_answer(server: ServerProcess, pause: float) -> None:
    answers = talk(server, SAMPLE, b"NONSENSE\r\n\r\n", pause=pause)
    assert statuses(answers)[0] == b"200" and b"image/png" in answers
    assert statuses(answers)[1:] in ([], [b"400"])
    assert statuses(talk(server, SAMPLE + b"NONSENSE\r\n\r\n"))[0] == b"200"


def test_an_offer_to_upgrade_is_declined_and_the_connection_ends(server: ServerProcess) -> None:
    offer = SAMPLE.replace(b"Host: x", b"Host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c")
    assert statuses(talk(server, offer)) == [b"200"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"POST /dream HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Bad: a\0b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
    ],
)
def test_heads_that_two_servers_could_read_differently_are_refused(server: ServerProcess, head: bytes) -> None:
    assert statuses(talk(server, head)) == [b"400"]


def head_of(answer: bytes) -> dict[str, str]:
    lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /sample?x=" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /healthz HTTP/1.1\r\nX-Slow: ", 408),
        (b"POST /features HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nabc", 408),
    ],
)
def test_a_refusal_from_below_the_app_is_in_the_log_and_in_the_metrics(
    server: ServerProcess, sent: bytes, status: int
) -> None:
    """Its id too: a client is told to report it."""
    answer = talk(server, sent)
    assert statuses(answer) == [str(status).encode()]
    headers = head_of(answer)
    assert headers["date"].endswith("GMT") and headers["connection"] == "close"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["request_id"] == headers["x-request-id"]
    wait_until(lambda: re.search(rf" {headers['x-request-id']} .* {status} ", server.log.read_text()), 5.0)
    counted = re.findall(
        rb'rbm_requests_total{code="(\d+)",endpoint="(?:unmatched|/features)"} ', server.get("/metrics")
    )
    assert str(status).encode() in counted


def test_an_old_client_needs_no_host(server: ServerProcess) -> None:
    assert statuses(talk(server, b"GET /healthz HTTP/1.0\r\n\r\n")) == [b"200"]


def test_a_head_that_begins_while_another_request_runs_is_limited_too(server: ServerProcess) -> None:
    answers = talk(server, SAMPLE, b"GET /healthz HTTP/1.1\r\nX-Long: " + b"a" * 4_000_000, pause=0.02)
    assert statuses(answers) == [b"200", b"431"]


def test_a_body_that_drips_does_not_wake_the_app_for_each_drop() -> None:
    pieces: list[bytes] = []

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        while (message := await receive())["more_body"]:
            pieces.append(message["body"])
        pieces.append(message["body"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def drive(body: bytes, drop: int) -> None:
        pieces.clear()
        protocol = make_protocol(Settings(), Door(1, lambda: None))
        config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None)
        config.load()
        state, (ours, theirs) = ServerState(), socket.socketpair()
        with theirs:
            make = functools.partial(protocol, config=config, server_state=state, app_state={})
            transport, connection = await asyncio.get_running_loop().connect_accepted_socket(make, ours)
            connection.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
            for begin in range(0, len(body), drop):
                await asyncio.sleep(0)
                connection.data_received(body[begin : begin + drop])
            async with asyncio.timeout(10.0):
                while not state.total_requests:
                    await asyncio.sleep(0.001)
            transport.close()
        assert b"".join(pieces) == body

    asyncio.run(drive(bytes(range(200)), 1))
    assert len(pieces) <= 2
    asyncio.run(drive(bytes(range(256)) * 1000, 1000))
    assert 10 <= len(pieces) <= 20  # nor does a long one wait for its end


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


PNG = image_bytes()
HEAD = b" HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
MEASURED, CHUNKED = b"Content-Length: %d\r\n\r\n" % len(PNG), b"Transfer-Encoding: chunked\r\n\r\n"
KINDS = [
    (200, b"GET /healthz" + HEAD + b"\r\n"),
    (200, b"GET /sample?steps=0&seed=1" + HEAD + b"\r\n"),
    (200, b"GET /sample?steps=400&n=3&seed=1" + HEAD + b"\r\n"),
    (200, b"GET /sample?steps=50&every=5&format=sse" + HEAD + b"\r\n"),
    (200, b"POST /dream?steps=1" + HEAD + MEASURED + PNG),
    (200, b"POST /dream?steps=1" + HEAD + CHUNKED + chunked(PNG, 77)),
    (422, b"POST /dream?stepz=1" + HEAD + MEASURED + PNG),
    (404, b"POST /nowhere" + HEAD + MEASURED + PNG),
    (404, b"POST /nowhere" + HEAD + CHUNKED + chunked(PNG * 2, 500)),
]


@pytest.mark.parametrize("seed", range(12))
def test_requests_in_a_row_arrive_whole_however_they_are_cut(server: ServerProcess, seed: int) -> None:
    """Bodies too: what came while the one before was worked on stays before what came later."""
    rng = random.Random(seed)
    asked = [rng.choice(KINDS) for _ in range(10)]
    sent = b"".join(request for _, request in asked) + LAST
    pieces, begin = [], 0
    while begin < len(sent):
        length = rng.choice([1, 3, 50, 200, 1000, 5000])
        pieces.append(sent[begin : begin + length])
        begin += length
    answers = talk(server, *pieces, pause=rng.choice([0.0, 0.0005, 0.002]))
    assert statuses(answers) == [str(status).encode() for status, _ in asked] + [b"200"]


def test_in_an_overload_the_silent_are_closed_and_not_those_who_ask(store: Path) -> None:
    ask = b"GET /sample?steps=1 HTTP/1.1\r\nHost: x\r\n\r\n"
    with (
        serving(store, RBM_MAX_REQUESTS="1", RBM_MAX_IDLE_CONNECTIONS="4") as server,
        server.connect() as long,
        server.connect() as asking,
        contextlib.ExitStack() as silent,
    ):
        long.sendall(b"GET /sample?steps=10000&n=64&timeout=600 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: b"rbm_running_chains 64" in server.get("/metrics"))
        for _ in range(8):
            silent.enter_context(server.connect())
            asking.sendall(ask)
            assert asking.recv(65_536).startswith(b"HTTP/1.1 429 ")
