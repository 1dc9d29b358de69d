"""A store with one tiny model, and the app around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.service.http_helpers import publish_tiny, running_app, settings_for


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoints = tmp_path_factory.mktemp("store") / "checkpoints"
    publish_tiny(checkpoints)
    return checkpoints


@pytest.fixture(scope="module")
def client(store: Path) -> Iterator[TestClient]:
    with running_app(settings_for(store)) as client:
        yield client
