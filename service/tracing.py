"""OpenTelemetry, when its SDK is installed and an endpoint is set; otherwise nothing, at no cost."""

from __future__ import annotations

import importlib.util
import os

from fastapi import FastAPI

_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http", "opentelemetry.instrumentation.fastapi")


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
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, excluded_urls="healthz,readyz,metrics")
    return True


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
