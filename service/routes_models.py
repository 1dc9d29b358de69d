"""`/models`, the model card, and `/filters`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParam
from starlette.responses import Response

from service.answers import base64_text, check_filters, json_bytes, npy_bytes
from service.openapi import card_answers, filter_answers, models_answers
from service.pictures import filters_picture
from service.schemas import FILTER_FORMATS, MODEL_NAME, FiltersParams, NoParams
from service.serving import Cache, answer, chosen_format, chosen_model, deadline_of, encode, model_headers

if TYPE_CHECKING:
    from service.served_model import ServedModel

router = APIRouter(tags=["models"])
_NO_CACHE = {"Cache-Control": "no-cache"}


@router.get("/models", responses=models_answers())
async def models(request: Request, params: Annotated[NoParams, Query()]) -> Response:
    """The models served here: their versions, sizes, and what is wrong with versions that are not used."""
    registry = request.app.state.registry
    document = {
        "models": registry.models(),
        "problems": [bad._asdict() for bad in registry.problems()],
    }
    return Response(json_bytes(document), headers=_NO_CACHE, media_type="application/json")


@router.get("/models/{name}", responses=card_answers())
async def model_card(
    request: Request,
    name: Annotated[str, PathParam(pattern=MODEL_NAME, description="The model's name.")],
    params: Annotated[NoParams, Query()],
) -> Response:
    """The model card: where the model comes from, how it was trained and measured, what it is good for."""
    model = request.app.state.registry.get(name, None)
    document = model.summary() | {"manifest": model.manifest, "limits": _LIMITS}
    return Response(json_bytes(document), headers=model_headers(model) | _NO_CACHE, media_type="application/json")


_LIMITS = (
    "A chain that starts at noise or at an image is not yet a fair draw from the model; more steps bring it closer. "
    "Free energies compare images within one version only. The model knows the kind of images it was trained on."
)


@router.get("/filters", responses=filter_answers())
async def filters(request: Request, params: Annotated[FiltersParams, Query()]) -> Response:
    """The learned weights as pictures, one a hidden unit, the strongest first."""
    format_name = chosen_format(request, params.format, FILTER_FORMATS)
    model = await chosen_model(request, params)
    cache = Cache(request, model, params, format_name)
    if unchanged := cache.not_modified():
        return unchanged
    check_filters(model.image_shape, min(params.n, model.num_hidden), params.scale, format_name)
    deadline = deadline_of(request, params, None)
    content = await encode(request, _encode_filters, model, params, format_name, deadline=deadline)
    return answer(content, format_name, model_headers(model) | cache.headers)


def _encode_filters(model: ServedModel, params: FiltersParams, format_name: str) -> bytes:
    weights = model.params.weights  # [visible, hidden]
    units = np.argsort(-np.linalg.norm(weights, axis=0), kind="stable")[: params.n]
    if format_name == "npy":
        return npy_bytes(weights.T[units].reshape(len(units), *model.image_shape))
    if format_name == "json":
        document = {"model": model.name, "version": model.version, "units": units}
        pictures = [filters_picture(weights[:, [unit]], model.image_shape, params.scale) for unit in units]
        return json_bytes(document | {"images": [base64_text(picture) for picture in pictures]})
    kind: Literal["png", "webp"] = "webp" if format_name == "webp" else "png"
    return filters_picture(weights[:, units], model.image_shape, params.scale, kind)
