"""`/features` and `/energy`: numbers of images, computed at once and never behind long chains."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.answers import check_table, csv_bytes, csv_table, json_bytes, json_table, npy_bytes, npy_pieces
from service.inputs import read_pixels
from service.openapi import image_body, table_answers
from service.parameter_route import ParameterRoute
from service.schemas import TABLE_FORMATS, EnergyParams, FeaturesParams, TimeoutHeader
from service.serving import (
    NOT_STORED,
    answer,
    chosen_format,
    chosen_model,
    deadline_of,
    encode,
    hold_room,
    model_headers,
    server_timing,
)
from service.starts import binarize, chain_seeds, draw_seed
from service.streaming import while_connected

if TYPE_CHECKING:
    from service.served_model import ServedModel

NUMBER_BYTES = {"json": 12, "csv": 10, "npy": 4}  # of a feature in an answer, about
router = APIRouter(tags=["arrays"], route_class=ParameterRoute)


@router.post("/features", responses=table_answers("Features"), openapi_extra=image_body(many=True))
async def features(
    request: Request, params: Annotated[FeaturesParams, Query()], x_request_timeout: TimeoutHeader = None
) -> Response:
    """Hidden activations of images: p(h=1 given v), their logits, or samples drawn from them."""
    format_name = chosen_format(request, params.format, TABLE_FORMATS)
    deadline = deadline_of(request, params, x_request_timeout)
    model = await chosen_model(request, params)
    began = time.perf_counter()
    pixels = await read_pixels(request, model, params.invert, deadline, many=True)
    decoded = time.perf_counter()
    seed = None
    check_table(len(pixels.rows), model.num_hidden, format_name)
    room = hold_room(request, len(pixels.rows) * model.num_hidden * NUMBER_BYTES[format_name])
    compute = model.hidden_logits if params.kind == "logits" else model.hidden_probs
    quick = request.app.state.scheduler.run_quick(compute, pixels.rows, deadline=deadline)
    hidden = await while_connected(request, quick)
    if params.kind == "samples":
        seed = draw_seed() if params.seed is None else params.seed
        hidden = await encode(request, binarize, hidden, chain_seeds(seed, len(hidden)), deadline=deadline)
    computed = time.perf_counter()
    content = await encode(
        request, encode_features, model, params.kind, seed, hidden, format_name, pixels.inverted, deadline=deadline
    )
    headers = model_headers(model, **({} if seed is None else {"seed": seed})) | NOT_STORED | pixels.header()
    headers |= server_timing(decode=decoded - began, compute=computed - decoded, encode=time.perf_counter() - computed)
    return answer(content, format_name, headers, holds=room)


@router.post("/energy", responses=table_answers("Energies"), openapi_extra=image_body(many=True))
async def energy(
    request: Request, params: Annotated[EnergyParams, Query()], x_request_timeout: TimeoutHeader = None
) -> Response:
    """Free energy in nats, and surprise: its percentile among held-out digits (100: none was as strange).

    Free energies are not normalised: they can be compared within one version of one model only. The model knows
    black and white pixels, so grey ones are drawn as 0 or 1, with `seed`.
    """
    format_name = chosen_format(request, params.format, TABLE_FORMATS)
    deadline = deadline_of(request, params, x_request_timeout)
    model = await chosen_model(request, params)
    began = time.perf_counter()
    pixels = await read_pixels(request, model, params.invert, deadline, many=True)
    decoded = time.perf_counter()
    seeds = chain_seeds(params.seed, len(pixels.rows))
    visible = await encode(request, binarize, pixels.rows, seeds, deadline=deadline)
    quick = request.app.state.scheduler.run_quick(model.free_energy, visible, deadline=deadline)
    free_energy = await while_connected(request, quick)
    surprise = model.surprise(free_energy)
    facts = {"model": model.name, "version": model.version, "seed": params.seed, "inverted": pixels.inverted}
    content = await encode(request, _encode_energy, facts, free_energy, surprise, format_name, deadline=deadline)
    headers = model_headers(model, seed=params.seed) | NOT_STORED | pixels.header()
    headers |= server_timing(decode=decoded - began, compute=time.perf_counter() - decoded)
    return answer(content, format_name, headers)


def encode_features(
    model: ServedModel, kind: str, seed: int | None, hidden: np.ndarray, format_name: str, inverted: list[bool]
) -> list[bytes | memoryview]:
    """The answer of `/features` about `hidden`, [images, hidden], in pieces."""
    if format_name == "npy":
        return npy_pieces(hidden)
    if format_name == "csv":
        return csv_table(hidden, "hidden", "%d" if hidden.dtype == np.uint8 else "%.6g")
    document = {"model": model.name, "version": model.version, "kind": kind, "shape": list(hidden.shape)}
    document |= {"inverted": inverted} if seed is None else {"inverted": inverted, "seed": seed}
    return json_table(document, "features", hidden)


def _encode_energy(facts: dict[str, Any], free_energy: np.ndarray, surprise: Any, format_name: str) -> bytes:
    missing = surprise is None  # the version carries no percentiles
    if format_name == "npy":
        column = np.full(len(free_energy), np.nan) if missing else surprise
        return npy_bytes(np.column_stack([free_energy, column]))
    if format_name == "csv":
        shown = [""] * len(free_energy) if missing else [f"{value:.2f}" for value in surprise]
        energies = [f"{value:.6f}" for value in free_energy]
        return csv_bytes("image,free_energy,surprise", range(len(energies)), energies, shown)
    return json_bytes({**facts, "free_energy": free_energy, "surprise": surprise})
