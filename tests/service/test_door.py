"""The door: a full house refuses plain requests by their bytes, and leaves all others to the parser."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from service.door import Door

HEAD = b"GET /sample?steps=500 HTTP/1.1\r\nHost: x\r\n"
PLAIN = HEAD + b"\r\n"


@pytest.fixture
def full() -> Door:
    door = Door(room=2, observe=lambda: None)
    door.num_inside = 2
    return door


def test_nobody_is_refused_while_there_is_room(full: Door) -> None:
    full.num_inside = 1
    assert full.refusal(PLAIN) is None


def test_a_refusal_is_a_whole_problem_document(full: Door) -> None:
    answer = full.refusal(HEAD + b"X-Request-ID: mine-1\r\nConnection: keep-alive\r\n\r\n")
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert lines[0].startswith("HTTP/1.1 429")
    assert headers["retry-after"] == "1" and headers["x-request-id"] == "mine-1"
    assert headers["x-content-type-options"] == "nosniff"
    assert int(headers["content-length"]) == len(body)
    problem = json.loads(body)
    assert problem["status"] == 429 and problem["request_id"] == "mine-1" and problem["instance"] == "/sample"


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:-1],  # not whole
        PLAIN + PLAIN,  # two of them
        PLAIN.replace(b"/sample", b"/healthz"),
        PLAIN.replace(b"/sample", b"/samples"),
        PLAIN.replace(b"GET", b"HEAD"),
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
        HEAD + b"Content-Length: 3\r\n\r\n",
        HEAD + b"TRANSFER-ENCODING: chunked\r\n\r\n",
        HEAD + b"Connection: Close\r\n\r\n",
        HEAD + b"Upgrade: websocket\r\n\r\n",
    ],
)
def test_what_is_not_plain_goes_to_the_parser(full: Door, data: bytes) -> None:
    assert full.refusal(data) is None


def test_each_refusal_is_counted(full: Door) -> None:
    seen = []
    door = Door(room=0, observe=lambda: seen.append(1))
    for _ in range(3):
        door.refusal(PLAIN)
    assert len(seen) == 3


def test_refusals_are_told_together_and_none_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    door = Door(room=0, observe=lambda: None)
    for count in (3, 0, 2):
        for _ in range(count):
            door.refusal(PLAIN)
        door.tell()
    assert [record.getMessage()[:9] for record in caplog.records] == ["3 request", "2 request"]


def test_a_refusal_has_the_date_that_all_answers_have(full: Door) -> None:
    answer = full.refusal(PLAIN, [(b"date", b"today")])
    assert answer is not None and b"\r\ndate: today\r\n" in answer.partition(b"\r\n\r\n")[0]


@contextlib.asynccontextmanager
async def _server(room: int, release: asyncio.Event) -> AsyncIterator[tuple[int, Door]]:
    """uvicorn with our protocol before an app that answers when it is released."""
    import uvicorn

    from service.connections import make_protocol
    from service.server import bind
    from service.settings import Settings

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    door = Door(room, lambda: None)
    config = uvicorn.Config(app, http=make_protocol(Settings(), door), ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    listener = bind("127.0.0.1", 0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(server.capture_signals())
        running = asyncio.ensure_future(server._serve([listener]))
        try:
            yield listener.getsockname()[1], door
        finally:
            release.set()
            server.should_exit = True
            await running


def test_a_connection_that_was_refused_is_good_for_the_next_request() -> None:
    async def drive() -> None:
        release = asyncio.Event()
        async with _server(1, release) as (port, door):
            first = await asyncio.open_connection("127.0.0.1", port)
            first[1].write(PLAIN)
            while door.num_inside < 1:
                await asyncio.sleep(0.005)
            second = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                second[1].write(PLAIN)
                head = await second[0].readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await second[0].readexactly(int(length.partition(b":")[2]))
                assert head.startswith(b"HTTP/1.1 429")
            release.set()
            assert (await first[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            while door.num_inside:
                await asyncio.sleep(0.005)
            second[1].write(PLAIN)
            assert (await second[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            for _, writer in (first, second):
                writer.close()
        assert door.num_inside == 0

    asyncio.run(drive())
