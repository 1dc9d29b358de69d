"""Server-sent events, and clients that leave."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.app import create_app
from service.settings import Settings
from tests.service.http_helpers import image_bytes, is_problem, publish_tiny, running_app, settings_for


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    checkpoints = tmp_path_factory.mktemp("store") / "checkpoints"
    publish_tiny(checkpoints)
    return settings_for(checkpoints, heartbeat_seconds=0.05)


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    with running_app(settings) as client:
        yield client


def read_events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of each event of a stream; comments are left out."""
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            events.append((fields["event"], json.loads(fields["data"])))
    return events


def test_a_stream_tells_queued_frames_done(client: TestClient) -> None:
    answer = client.get("/sample?steps=10&every=4&seed=3", headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store" and answer.headers["rbm-seed"] == "3"
    events = read_events(answer.text)
    assert [name for name, _ in events] == ["queued", "frame", "frame", "frame", "frame", "done"]
    assert events[0][1]["position"] >= 0
    assert [data["step"] for name, data in events if name == "frame"] == [0, 4, 8, 10]
    done = events[-1][1]
    assert (done["step"], done["seed"], done["model"], done["version"]) == (10, 3, "mnist", 1)


def test_the_last_frame_is_the_picture_that_png_gives(client: TestClient) -> None:
    query = "steps=6&every=3&seed=8&n=2&scale=1"
    last = read_events(client.get(f"/sample?{query}&format=sse").text)[-2][1]
    streamed, plain = (
        np.asarray(Image.open(io.BytesIO(content)))
        for content in (base64.b64decode(last["image"]), client.get(f"/sample?{query}").content)
    )
    assert np.array_equal(streamed, plain)


@pytest.mark.parametrize("path", ["/dream?steps=3&every=1", "/inpaint?steps=3&every=1"])
def test_uploads_stream_too(client: TestClient, path: str) -> None:
    files = {"file": image_bytes()} | ({"mask": image_bytes()} if "inpaint" in path else {})
    events = read_events(client.post(path, files=files, headers={"Accept": "text/event-stream"}).text)
    assert [name for name, _ in events][-1] == "done" and sum(name == "frame" for name, _ in events) == 4


def test_what_is_refused_is_a_problem_before_the_stream_begins(client: TestClient) -> None:
    assert is_problem(client.get("/sample?step=3", headers={"Accept": "text/event-stream"}), 422)


@contextlib.asynccontextmanager
async def ready_app(settings: Settings) -> AsyncIterator[Any]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        while app.state.registry.why_not_ready():
            await asyncio.sleep(0.01)
        yield app


async def asgi_call(
    app: Any, path: str, query: str, leave_after: int | None, stop_after: bytes = b""
) -> list[dict[str, Any]]:
    """One GET straight through ASGI; the client leaves after so many body messages, or at once (0), or never.

    When a message holds `stop_after`, the server is told to stop.
    """
    sent: list[dict[str, Any]] = []
    left = asyncio.Event()
    if leave_after == 0:
        asyncio.get_running_loop().call_later(0.1, left.set)
    began = False

    async def receive() -> dict[str, Any]:
        nonlocal began
        if not began:
            began = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if stop_after and stop_after in message.get("body", b""):
            app.state.lifecycle.stop.happen()
        if leave_after and sum(item["type"] == "http.response.body" for item in sent) >= leave_after:
            left.set()

    await asyncio.wait_for(app(get_scope(path, query), receive, send), 30.0)
    return sent


def get_scope(path: str, query: str, spec_version: str = "2.3") -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": spec_version}, "http_version": "1.1",
        "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": [],
        "root_path": "", "scheme": "http", "server": ("test", 80), "client": ("test", 1),
    }  # fmt: skip


def running_chains(app: Any) -> float:
    line = next(line for line in app.state.metrics.render().split(b"\n") if line.startswith(b"rbm_running_chains "))
    return float(line.split()[1])


@pytest.mark.parametrize(("query", "leave_after"), [("", 0), ("&format=sse&every=2000", 2)])
def test_a_client_that_leaves_stops_its_work(settings: Settings, query: str, leave_after: int) -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with ready_app(settings) as app:
            sent = await asgi_call(app, "/sample", "steps=10000&n=64&timeout=100" + query, leave_after)
            assert running_chains(app) == 0
            return sent

    sent = asyncio.run(scenario())
    bodies = b"".join(message.get("body", b"") for message in sent)
    assert b"event: done" not in bodies and (leave_after or not sent)


def test_a_stream_ends_with_a_word_when_the_server_stops(settings: Settings) -> None:
    async def scenario() -> bytes:
        async with ready_app(settings) as app:
            query = "steps=10000&n=64&every=10000&timeout=100&scale=1&format=sse"
            sent = await asgi_call(app, "/sample", query, None, b": still here")  # the heartbeat of a silent stream
        return b"".join(message.get("body", b"") for message in sent)

    text = asyncio.run(scenario()).decode()
    name, data = read_events(text)[-1]
    assert name == "error" and data["status"] == 503 and "shutting down" in data["detail"]


def test_a_stream_that_always_has_a_frame_ready_ends_when_the_server_stops(settings: Settings) -> None:
    async def scenario() -> bytes:
        async with ready_app(settings) as app:
            sent = await asgi_call(app, "/sample", "steps=10000&every=1&scale=1&format=sse", None, b"event: frame")
        return b"".join(message.get("body", b"") for message in sent)

    told = read_events(asyncio.run(scenario()).decode())
    assert told[-1][0] == "error" and told[-1][1]["status"] == 503
    assert len(told) < 6  # it takes a turn or two of the event loop


def test_work_that_waits_is_told_when_the_server_stops(settings: Settings) -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with ready_app(settings) as app:
            asyncio.get_running_loop().call_later(0.2, app.state.lifecycle.stop.happen)
            return await asgi_call(app, "/sample", "steps=10000&n=64&timeout=100", None)

    sent = asyncio.run(scenario())
    assert sent[0]["status"] == 503 and (b"retry-after", b"1") in sent[0]["headers"]


def test_a_client_that_leaves_before_the_first_event_stops_its_work(settings: Settings) -> None:
    """A server of ASGI 2.4 says so by an error in `send`: the stream never begins, and so cannot end."""

    async def send(message: Any) -> None:
        raise OSError("the client left")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def scenario() -> None:
        async with ready_app(settings) as app:
            scope = get_scope("/sample", "steps=10000&n=64&timeout=100&format=sse", spec_version="2.4")
            with contextlib.suppress(OSError):
                await asyncio.wait_for(app(scope, receive, send), 30.0)
            assert running_chains(app) == 0

    asyncio.run(scenario())
