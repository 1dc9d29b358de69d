"""OpenTelemetry: spans reach a collector, and neither a dead collector nor missing packages are noticed by anybody."""

from __future__ import annotations

import contextlib
import http.server
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from service import tracing
from tests.service.http_helpers import ServerProcess, serving, wait_until

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.instrumentation.fastapi")
NOBODY = "http://127.0.0.1:9"  # the port of a service that nobody runs


class Collector(http.server.ThreadingHTTPServer):
    """Takes in what OTLP sends over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, bytes]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def spans(self) -> bytes:
        return b"".join(body for path, body in self.received if path == "/v1/traces")


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector
        collector.shutdown()


def traced(store: Path, endpoint: str, **environment: str) -> contextlib.AbstractContextManager[ServerProcess]:
    return serving(store, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, RBM_DRAIN_DELAY="0", **environment)


def test_a_request_becomes_a_span(store: Path, collector: Collector) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    with traced(store, endpoint, OTEL_SERVICE_NAME="digits", OTEL_BSP_SCHEDULE_DELAY="100") as server:
        assert b" 200 " in server.get("/sample?steps=3")[:20]
        wait_until(lambda: b"GET /sample" in collector.spans())
        assert b"digits" in collector.spans() and b"/readyz" not in collector.spans()


def test_the_last_spans_are_sent_before_the_exit(store: Path, collector: Collector) -> None:
    with traced(store, f"http://127.0.0.1:{collector.server_port}", OTEL_BSP_SCHEDULE_DELAY="60000") as server:
        assert b" 200 " in server.get("/filters?scale=1")[:20]
        assert b"/filters" not in collector.spans()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
        assert b"GET /filters" in collector.spans()


def test_a_collector_that_is_not_there_harms_nobody(store: Path) -> None:
    with traced(store, NOBODY, OTEL_BSP_SCHEDULE_DELAY="50") as server:
        for seed in range(20):
            assert b" 200 " in server.get(f"/sample?steps=3&seed={seed}")[:20]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0  # it does not go on trying
        assert "Traceback" not in server.log.read_text()


def test_without_its_packages_or_an_endpoint_there_is_no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert not tracing.add_tracing(FastAPI())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", NOBODY)
    for missing in ("no_such_package", "opentelemetry.no_such_part", "no_such_package.part"):
        monkeypatch.setattr(tracing, "_PACKAGES", (*tracing._PACKAGES, missing))
        assert not tracing.add_tracing(FastAPI())
