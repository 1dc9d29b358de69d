"""The app as a factory: nothing global, so several apps can live in one process, and importing this does nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import deflate, routes, routes_arrays, routes_chains, routes_models, starts
from service.errors import add_error_table
from service.metrics import Metrics
from service.middleware import ApiKeys, Cors, Problems, RequestContext
from service.openapi import describe, package_version
from service.parameter_route import ShortWay
from service.quick import QuickCalls
from service.registry import Registry
from service.scheduler import Scheduler
from service.settings import Settings
from service.streaming import Lifecycle
from service.tracing import add_tracing
from service.uploads import Intake, Room

logger = logging.getLogger("rbm.app")
EXPOSED_HEADERS = (
    "X-Request-ID", "RBM-Model", "RBM-Version", "RBM-Seed", "RBM-Steps", "RBM-Inverted", "Server-Timing", "Retry-After",
    "ETag",
)  # fmt: skip


def create_app(settings: Settings | None = None) -> FastAPI:
    """Builds the app; its lifespan starts the engine and loads the models in the background.

    Args:
      settings: None reads the environment (`RBM_*`).
    """
    settings = settings or Settings()
    app = FastAPI(
        title="RBM service",
        summary="Dreams, samples and features of a Restricted Boltzmann Machine.",
        version=package_version(),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # `tracing` does it, where it is wanted
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    for module in (routes_chains, routes_arrays, routes_models, routes):
        # As `include_router`, whose routers inside the router are all asked before one of them answers.
        app.router.routes.extend(module.router.routes)
    add_error_table(app)
    _add_middleware(app, settings)
    describe(app)
    add_tracing(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Starts the parts; the port opens at once, and `/readyz` says when the model is there."""
    settings, state = app.state.settings, app.state
    state.lifecycle = Lifecycle()
    state.intake = Intake(settings.max_image_bytes, settings.max_array_bytes, state.metrics)
    state.encoders = QuickCalls("answers to be encoded", num_threads=2, most=256)
    # Pictures of streams, which may miss some, keep nobody's answer waiting.
    state.frame_encoder = QuickCalls("pictures of streams", num_threads=1, most=1024)
    state.answers = Room(4 * settings.max_array_bytes)
    # One thread, whoever asks: to read and warm a version takes 40 ms of a core.
    state.old_versions = QuickCalls("requests for older versions", num_threads=1, most=8)
    state.scheduler = Scheduler(
        num_threads=settings.threads, max_job_seconds=settings.budget_seconds, metrics=state.metrics
    )
    state.registry = Registry(
        settings.checkpoints,
        default_model=settings.default_model,
        engine=state.scheduler.engine,
        poll_seconds=settings.reload_seconds,
        metrics=state.metrics,
        warm_up=_warm_up,
        expect=state.scheduler.expect,
    )
    state.scheduler.start()
    state.registry.start()
    try:
        yield
    finally:
        state.lifecycle.stop.happen()
        await asyncio.to_thread(state.registry.stop)
        await state.scheduler.stop()
        state.intake.close()
        for calls in (state.encoders, state.frame_encoder, state.old_versions):
            calls.stop()


def _warm_up() -> None:
    """Compiled code that requests run on the event loop: compiling takes seconds."""
    starts.warm_up()
    deflate.warm_up()


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """Added from the inside out."""
    app.add_middleware(ShortWay, routes=list(app.router.routes))
    digests = settings.key_digests()
    app.state.needs_key = bool(digests)
    if digests:
        app.add_middleware(ApiKeys, digests=digests)
    app.add_middleware(Problems, max_header_bytes=settings.max_header_bytes)
    if settings.cors_origins:
        app.add_middleware(
            Cors,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["Content-Type", "X-API-Key", "Authorization", "X-Request-ID", "X-Request-Timeout"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(RequestContext, metrics=app.state.metrics)
