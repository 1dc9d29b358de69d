"""Versions that are asked for by number: read from the disk, one at a time, and never in the way of others."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.http_helpers import is_problem, publish_tiny, running_app, settings_for


def test_whoever_walks_through_old_versions_holds_nobody_else_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        publish_tiny(tmp_path, seed=seed)
    with running_app(settings_for(tmp_path)) as client:
        walk(client, monkeypatch)


def walk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    registry: Any = client.app.state.registry  # type: ignore[attr-defined]
    read = registry.get

    def read_slowly(name: str | None, version: int | None = None) -> Any:
        if version is not None:
            released.wait(20.0)
        return read(name, version)

    monkeypatch.setattr(registry, "get", read_slowly)
    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(client.get, "/sample?steps=1&version=1") for _ in range(9)]
        (refused,) = wait(asked, 20.0, FIRST_COMPLETED).done
        assert is_problem(refused.result(), 429, "older versions")
        for query in ("n=2", "version=2"):
            assert client.get(f"/sample?steps=1&{query}").status_code == 200
        released.set()
    assert sorted(answer.result().status_code for answer in asked) == [200] * 8 + [429]
