"""What `/openapi.json` says besides the parameters: bodies, answers in each format, errors, keys."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.errors import CONTENT_TYPE, PROBLEMS
from service.negotiation import MEDIA_TYPES
from service.schemas import FILTER_FORMATS, PICTURE_FORMATS, TABLE_FORMATS, ProblemBody
from service.uploads import ARRAY_TYPES, FORM_TYPE, IMAGE_TYPES

Responses = dict[int | str, dict[str, Any]]
_BINARY = {"type": "string", "format": "binary"}
_IMAGE_FIELD = {**_BINARY, "description": "An image file of at most 1 MB."}
_ROW = {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}, "minItems": 784, "maxItems": 784}
_IMAGES = {
    "type": "array",
    "items": _ROW,
    "minItems": 1,
    "description": "Rows of pixels, 0 to 1. As many as the model has: 784, or 28 rows of 28.",
}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_INTEGERS = {"type": "array", "items": {"type": "integer"}}
_PNGS = {"type": "array", "items": {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}}
_INVERTED = {
    "type": "array",
    "items": {"type": "boolean"},
    "description": "Of each uploaded image: were ink and paper swapped?",
}
_MODEL_FIELDS = {"model": {"type": "string"}, "version": {"type": "integer"}}
_COMPUTED_HEADERS = {
    "RBM-Model": "Name of the model that answered.",
    "RBM-Version": "Its version.",
    "RBM-Seed": "The seed: send it again for the same bytes.",
    "RBM-Steps": "Steps that each chain made.",
    "Server-Timing": "Milliseconds by stage.",
}
_EVERYWHERE = (404, 405, 414, 431, 500)
_COMPUTING = (400, 401, 404, 406, 408, 422, 429, 500, 503, 504)
_UPLOADING = (*_COMPUTING, 413, 415)


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields)}


def _closed(fields: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """These fields, some of them not always, and no others."""
    return {**_object(**fields), "properties": fields | optional, "additionalProperties": False}


def _problems(*statuses: int) -> Responses:
    problems: Responses = {}
    for status in sorted({*statuses, *_EVERYWHERE}):
        title, meaning = PROBLEMS[status]
        schema = {"$ref": "#/components/schemas/Problem"}
        problems[status] = {"description": f"{title}. {meaning}", "content": {CONTENT_TYPE: {"schema": schema}}}
        if status in (429, 503):
            problems[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return problems


def _content(formats: tuple[str, ...], document: dict[str, Any]) -> dict[str, Any]:
    schemas = {"json": document, "csv": {"type": "string"}, "sse": {}}
    return {MEDIA_TYPES[name]: {"schema": schemas.get(name, _BINARY)} for name in formats}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"description": _COMPUTED_HEADERS[name], "schema": {"type": "string"}} for name in names}


def picture_answers(cached: bool = False) -> Responses:
    """Of the routes that run chains."""
    fields = _MODEL_FIELDS | {
        "seed": {"type": "integer"},
        "steps": {"type": "integer"},
        "temperature": {"type": "number"},
        "output": {"enum": ["probabilities", "samples"]},
        "images": {**_PNGS, "description": "One a chain."},
        "inputs": {**_PNGS, "description": "What each chain began with: for uploads, what the model saw."},
        "free_energy": {**_NUMBERS, "description": "Nats, one a chain."},
    }
    pixels = {"type": "array", "items": _NUMBERS, "description": "With `pixels=true`: a row a chain."}
    frame = _closed({"step": {"type": "integer"}, "images": _PNGS})
    frames = {"type": "array", "items": frame, "description": "With `every`."}
    # Only what runs from an upload has one.
    optional = {} if cached else {"inverted": _INVERTED}
    document = _closed(fields | optional, pixels=pixels, frames=frames)
    answer = {
        "description": "A picture, or what else was asked for. Events of a stream: `queued`, `frame`, `done`, `error`.",
        "content": _content(PICTURE_FORMATS, document),
        "headers": _headers(*_COMPUTED_HEADERS),
    }
    unchanged: Responses = {304: {"description": "You have these bytes already (If-None-Match)."}} if cached else {}
    return {200: answer, **unchanged, **_problems(*(_COMPUTING if cached else _UPLOADING))}


def table_answers(what: str) -> Responses:
    """Of `/features` and `/energy`."""
    fields: dict[str, Any] = _MODEL_FIELDS | {"inverted": _INVERTED}
    seed = {"type": "integer", "description": "What samples were drawn with."}
    if what == "Features":
        kind = {"enum": ["probabilities", "logits", "samples"]}
        features = {"type": "array", "items": _NUMBERS}
        document = _closed(fields | {"kind": kind, "shape": _INTEGERS, "features": features}, seed=seed)
    else:
        surprise = {"type": ["array", "null"], "items": {"type": "number", "minimum": 0, "maximum": 100}}
        document = _closed(fields | {"seed": seed, "free_energy": _NUMBERS, "surprise": surprise})
    headers = _headers("RBM-Model", "RBM-Version", "Server-Timing")
    content = _content(TABLE_FORMATS, document)
    answer = {"description": f"{what}, a row an image.", "content": content, "headers": headers}
    return {200: answer, **_problems(*_UPLOADING)}


def filter_answers() -> Responses:
    document = _closed(_MODEL_FIELDS | {"units": _INTEGERS, "images": _PNGS})
    answer = {"description": "The filters.", "content": _content(FILTER_FORMATS, document)}
    unchanged: Responses = {304: {"description": "You have these bytes already (If-None-Match)."}}
    return {200: answer, **unchanged, **_problems(*_COMPUTING)}


def models_answers() -> Responses:
    document = _object(models={"type": "array"}, problems={"type": "array"})
    return {200: _json("The models.", document), **_problems(401, 422)}


def card_answers() -> Responses:
    document = _object(name={"type": "string"}, version={"type": "integer"}, manifest={"type": "object"})
    return {200: _json("The model card.", document), **_problems(401, 404, 422, 503)}


def probe_answers(status: str) -> Responses:
    return {200: _json(f"It is {status}.", _object(status={"const": status})), **_problems(503)}


def text_answers() -> Responses:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {200: {"description": "Metrics.", "content": content}, **_problems(401)}


def page_answers() -> Responses:
    return {200: {"description": "A page.", "content": {"text/html": {"schema": {"type": "string"}}}}, **_problems()}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def image_body(many: bool = False) -> dict[str, Any]:
    """An image as it is, in a form, or arrays."""
    file = {"type": "array", "items": _IMAGE_FIELD, "minItems": 1} if many else _IMAGE_FIELD
    content: dict[str, Any] = {media_type: {"schema": _IMAGE_FIELD} for media_type in IMAGE_TYPES}
    content[FORM_TYPE] = {"schema": _closed({"file": file})}
    content[ARRAY_TYPES[0]] = {"schema": _closed({"images": _IMAGES})}
    content[ARRAY_TYPES[1]] = {"schema": {**_BINARY, "description": "[n, 784] or [n, 28, 28], uint8 or float in 0..1."}}
    return {"requestBody": {"required": True, "content": content}}


def inpaint_body() -> dict[str, Any]:
    """An image with a mask of its size; white, or 1, is kept."""
    mask = {**_ROW, "description": "1 keeps a pixel, 0 dreams it (see `keep`). One mask, or one an image."}
    content = {
        FORM_TYPE: {"schema": _closed({"file": _IMAGE_FIELD, "mask": {**_BINARY, "description": "White is kept."}})},
        ARRAY_TYPES[0]: {"schema": _closed({"images": _IMAGES, "mask": mask})},
    }
    return {"requestBody": {"required": True, "content": content}}


def package_version() -> str:
    try:
        return importlib.metadata.version("rbm-dream")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def describe(app: FastAPI) -> None:
    """Replaces the app's OpenAPI by one that also knows problem documents and keys."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            components = document.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = ProblemBody.model_json_schema()
            if app.state.needs_key:
                components["securitySchemes"] = {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
                document["security"] = [{"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
