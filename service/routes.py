"""Probes, metrics, documentation and the front page."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.answers import json_bytes
from service.errors import PROBLEMS, Problem
from service.openapi import page_answers, probe_answers, text_answers

router = APIRouter()
_WEB = Path(__file__).resolve().parent / "web"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
_NOT_STORED = {"Cache-Control": "no-store"}
# Pages load only what this server has; no inline script. Swagger UI sets style attributes, hence `style-src-attr`.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json_bytes(document), status, _NOT_STORED | (headers or {}), media_type="application/json")


@router.get("/healthz", tags=["probes"], responses=probe_answers("alive"))
async def healthz(request: Request) -> Response:
    """Alive: fails when the engine has stopped while work waits, so that whoever watches restarts the process."""
    problem = request.app.state.scheduler.health()
    if problem:
        raise Problem(503, problem, headers={"Retry-After": "1"})
    return _json({"status": "alive"})


@router.get("/readyz", tags=["probes"], responses=probe_answers("ready"))
async def readyz(request: Request) -> Response:
    """Ready for requests; 503 with the reasons while loading or draining. Versions that cannot be used are listed."""
    state = request.app.state
    reasons = ["the server is draining"] if state.lifecycle.draining else []
    why_not = state.registry.why_not_ready()
    reasons += [why_not] if why_not else []
    if reasons:
        errors = [{"detail": reason} for reason in reasons]
        raise Problem(503, f"Not ready: {'; '.join(reasons)}", errors=errors, headers={"Retry-After": "1"})
    return _json({"status": "ready", "problems": [bad._asdict() for bad in state.registry.problems()]})


@router.get("/metrics", tags=["probes"], responses=text_answers())
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    from service.metrics import CONTENT_TYPE

    return Response(request.app.state.metrics.render(), headers=_NOT_STORED, media_type=CONTENT_TYPE)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return _json(request.app.openapi())


@router.get("/", tags=["pages"], responses=page_answers())
async def page(request: Request) -> Response:
    """The page. Where a key is needed it is `/docs`: a browser sends none with the pictures of a page, that one can."""
    return _page(request, "docs.html" if request.app.state.needs_key else "index.html")


@router.get("/docs", tags=["pages"], responses=page_answers())
async def docs(request: Request) -> Response:
    """The API pages."""
    return _page(request, "docs.html")


@router.get("/web/{name}", include_in_schema=False)
async def web_file(request: Request, name: str) -> Response:
    """A file of the pages. `name` is looked up in a listing and never becomes part of a path."""
    return _page(request, name)


@router.get("/problems/{status}", include_in_schema=False)
async def problem_type(status: str) -> Response:
    """What the `type` of a problem document means."""
    known = {str(number): number for number in PROBLEMS}
    if status not in known:
        raise Problem(404, f"There is no such problem. Known: {', '.join(known)}.")
    title, meaning = PROBLEMS[known[status]]
    return _json({"type": f"/problems/{status}", "title": title, "status": known[status], "meaning": meaning})


def _page(request: Request, name: str) -> Response:
    path = {entry.name: entry for entry in _WEB.iterdir() if entry.suffix in _TYPES}.get(name)
    if path is None:
        raise Problem(404, "There is no such page.")
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache", "Content-Security-Policy": _PAGE_POLICY}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[path.suffix])
