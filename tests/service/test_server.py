"""What the server does on every tick of uvicorn's clock."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from service.door import Door
from service.server import DrainingServer
from service.settings import Settings


class Knot:
    """Only the collector finds out that nobody else holds it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def usual_collector() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


def make_server(*, ready: bool) -> DrainingServer:
    app: Any = SimpleNamespace(state=SimpleNamespace(registry=SimpleNamespace(ready=lambda: ready)))
    config = uvicorn.Config(app, log_config=None)
    config.load()
    return DrainingServer(config, app, Settings(), Door(64, lambda: None))


def tick(server: DrainingServer, *counters: int) -> None:
    for counter in counters:
        asyncio.run(server.on_tick(counter))


def num_collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_garbage_is_looked_for_once_a_second_whatever_the_load() -> None:
    server = make_server(ready=True)
    tick(server, 0)
    before = num_collections()
    knots = [Knot() for _ in range(20_000)]  # many times what wakes the collector by itself
    last = weakref.ref(knots[-1])
    knots.clear()
    tick(server, *range(1, 10))
    assert num_collections() == before
    tick(server, 10)
    assert num_collections() == before + 1
    assert last() is None


def test_what_was_loaded_is_not_looked_through_again() -> None:
    before = gc.get_freeze_count()
    tick(make_server(ready=True), 1)
    assert gc.get_freeze_count() > before
    assert len(gc.get_objects()) < 5_000


def test_before_a_model_is_there_the_collector_goes_its_own_way() -> None:
    tick(make_server(ready=False), 0, 1)
    assert gc.isenabled()


def test_what_has_survived_is_looked_at_every_ten_seconds() -> None:
    server = make_server(ready=True)
    tick(server, 0)
    old = Knot()
    found = weakref.ref(old)
    tick(server, 10, 20)  # it grows old
    del old
    tick(server, 30, 90)
    assert found() is not None
    tick(server, 100)
    assert found() is None
