"""Deadlines over HTTP: what the client is told, and that the work ends with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.http_helpers import ServerProcess, serving, wait_until
from tests.service.test_server_process import parts

# Admission refuses what it knows to be late, so a deadline passes under way only where the engine has become slow.
SLOW_ENGINE = """
import threading, time
from model_core.engine_numba import NumbaEngine
advance = NumbaEngine.advance
def slow(self, *args):
    if threading.current_thread().name.startswith("rbm-engine"):  # when it was timed at the start it was quick
        time.sleep(0.3)
    return advance(self, *args)
NumbaEngine.advance = slow
NumbaEngine.can_queue = lambda self, prepared: False  # compiled threads would not call it
"""


@pytest.fixture
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store, SLOW_ENGINE) as server:
        yield server


def metric(server: ServerProcess, line: str) -> float:
    found = re.search(rf"\n{re.escape(line)} (\S+)", server.get("/metrics").decode())
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("way", ["parameter", "header", "stream"])
def test_work_ends_with_its_deadline(server: ServerProcess, way: str) -> None:
    path = "/sample?steps=10000&n=4"
    if way == "header":
        answer = server.request(f"GET {path} HTTP/1.1\nX-Request-Timeout: 1\n")
    else:
        answer = server.get(f"{path}&timeout=1" + ("&format=sse" if way == "stream" else ""))
    status, headers, body = parts(answer)
    if way == "stream":
        events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", body.decode())
        assert status == 200 and events[-1][0] == "error" and "done" not in dict(events)
        problem = json.loads(events[-1][1])
    else:
        assert status == 504 and headers["content-type"] == "application/problem+json"
        problem = json.loads(body)
    assert problem["status"] == 504 and "`timeout`" in problem["detail"]
    wait_until(lambda: metric(server, "rbm_running_chains") == 0)
    steps = metric(server, "rbm_steps_total")
    assert metric(server, 'rbm_cancelled_total{stage="running"}') == 1
    assert 0 < steps < 40_000 and metric(server, "rbm_steps_total") == steps  # nothing goes on in the dark
