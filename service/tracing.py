"""OpenTelemetry, when its SDK is installed and an endpoint is set; otherwise nothing, at no cost."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http", "opentelemetry.instrumentation.fastapi")
_LAST_SECONDS = 2.0  # for spans that are still to be sent when the server ends


def add_tracing(app: FastAPI) -> bool:
    """Sends a span a request to `OTEL_EXPORTER_OTLP_ENDPOINT`. Returns whether it does."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or not all(map(_is_installed, _PACKAGES)):
        return False
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "rbm")})
    provider, exporter = TracerProvider(resource=resource, shutdown_on_exit=False), OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=provider,
        excluded_urls="healthz,readyz,metrics",
        exclude_spans=["receive", "send"],  # one an event: a stream would have hundreds
    )
    _end_with(app, provider, exporter)
    return True


def _end_with(app: FastAPI, provider: Any, exporter: Any) -> None:
    """Sends the last spans when the app ends, but does not wait for a collector that is gone: it would take 15 s."""
    lifespan: Any = app.router.lifespan_context

    @asynccontextmanager
    async def and_last_spans(app: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(app) as state:
            yield state
        sending = threading.Thread(target=provider.shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, _LAST_SECONDS)
        exporter.shutdown()  # ends what goes on trying

    app.router.lifespan_context = and_last_spans


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
