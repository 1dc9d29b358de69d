"""What the tests of the chains share: each of them runs on both engines."""

from __future__ import annotations

import pytest

from model_core.chains import Engine, get_engine


@pytest.fixture(scope="session", params=["numba", "tensorflow"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn, with its default settings."""
    return get_engine(request.param)
