"""`/dream`, `/sample` and `/inpaint`: chains from an image, from noise, and around pixels that are kept."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.answers import Drawing, check_picture, encode_answer, encode_frame
from service.errors import bad_parameter
from service.inputs import read_mask, read_pixels
from service.jobs import ChainJob, Frame
from service.negotiation import ANIMATED
from service.openapi import image_body, inpaint_body, picture_answers
from service.parameter_route import ParameterRoute
from service.png import SMALL_PICTURE_PIXELS
from service.schemas import (
    MAX_CHAINS,
    PICTURE_FORMATS,
    ChainParams,
    DreamParams,
    InpaintParams,
    SampleParams,
    TimeoutHeader,
)
from service.serving import (
    NOT_STORED,
    Cache,
    answer,
    chosen_format,
    chosen_model,
    deadline_of,
    encode,
    model_headers,
    server_timing,
)
from service.starts import binarize, chain_seeds, draw_seed, noise
from service.streaming import EventStream, events, while_connected

if TYPE_CHECKING:
    from service.served_model import ServedModel

router = APIRouter(tags=["chains"], route_class=ParameterRoute)
_ANIMATION_FRAMES, _STRIP_FRAMES = 30, 10


@router.post("/dream", responses=picture_answers(), openapi_extra=image_body())
async def dream(
    request: Request, params: Annotated[DreamParams, Query()], x_request_timeout: TimeoutHeader = None
) -> Response:
    """Dreams on from an image: chains that start at its pixels, grey ones drawn as 0 or 1."""
    format_name = chosen_format(request, params.format, PICTURE_FORMATS)
    deadline = deadline_of(request, params, x_request_timeout)
    model = await chosen_model(request, params)
    began = time.perf_counter()
    pixels = await read_pixels(request, model, params.invert, deadline, many=False)
    decode_seconds = time.perf_counter() - began
    _check_chains(len(pixels.rows), params.n)
    rows = np.repeat(pixels.rows, params.n, axis=0)
    seed = draw_seed() if params.seed is None else params.seed
    seeds = chain_seeds(seed, len(rows))
    start = rows if params.mode == "mean_field" else binarize(rows, seeds)
    job = chain_job(model, params, params.steps, format_name, start, seeds, deadline, mode=params.mode)
    drawing = Drawing(params, model, seed, rows, steps=job.num_steps, every=job.every, inverted=pixels.inverted)
    return await _run(request, job, drawing, format_name, NOT_STORED | pixels.header(), decode_seconds)


@router.get("/sample", responses=picture_answers(cached=True))
async def sample(
    request: Request, params: Annotated[SampleParams, Query()], x_request_timeout: TimeoutHeader = None
) -> Response:
    """Samples: chains that start at noise, or draws of the model itself (`method=equilibrium`).

    With a `seed` the answer never changes and may be cached.
    """
    format_name = chosen_format(request, params.format, PICTURE_FORMATS)
    deadline = deadline_of(request, params, x_request_timeout)
    model = await chosen_model(request, params)
    seed = draw_seed() if params.seed is None else params.seed
    job = sample_job(model, params, format_name, chain_seeds(seed, params.n), deadline)
    drawing = Drawing(params, model, seed, job.visible, steps=job.num_steps, every=job.every)
    if params.seed is None or format_name == "sse":
        return await _run(request, job, drawing, format_name, NOT_STORED)
    cache = Cache(request, model, params, format_name)
    return await _run(request, job, drawing, format_name, cache.headers, cache=cache)


@router.post("/inpaint", responses=picture_answers(), openapi_extra=inpaint_body())
async def inpaint(
    request: Request, params: Annotated[InpaintParams, Query()], x_request_timeout: TimeoutHeader = None
) -> Response:
    """Keeps the pixels under the mask (white, or 1) and dreams the others, which start at noise.

    An image file lies under its mask as it is: it is shrunk to the model's size as a whole, and not cropped or centred
    as elsewhere. Ink and paper are found as elsewhere.
    """
    format_name = chosen_format(request, params.format, PICTURE_FORMATS)
    deadline = deadline_of(request, params, x_request_timeout)
    model = await chosen_model(request, params)
    began = time.perf_counter()
    pixels, kept = await read_mask(request, model, params.invert, deadline)
    decode_seconds = time.perf_counter() - began
    if params.keep == "black":
        kept = ~kept
    _check_chains(len(kept), params.n)
    rows, kept = (np.repeat(each, params.n, axis=0) for each in (pixels.rows, kept))
    seed = draw_seed() if params.seed is None else params.seed
    seeds = chain_seeds(seed, len(rows))
    start = np.where(kept, binarize(rows, seeds), noise(seeds, model.num_visible))
    job = chain_job(model, params, params.steps, format_name, start, seeds, deadline, clamp=kept)
    shown = np.where(kept, rows, 0.0).astype(np.float32)
    drawing = Drawing(
        params, model, seed, shown, steps=job.num_steps, every=job.every, inverted=pixels.inverted, kept=kept
    )
    return await _run(request, job, drawing, format_name, NOT_STORED | pixels.header(), decode_seconds)


def sample_job(
    model: ServedModel, params: SampleParams, format_name: str, seeds: np.ndarray, deadline: float
) -> ChainJob:
    """What `/sample` runs. An equilibrium sample takes the rounds that its ladder says, and frames are rounds.

    Raises:
      Problem: 422, if there can be no equilibrium samples.
    """
    if params.method == "gibbs":
        return chain_job(model, params, params.steps, format_name, noise(seeds, model.num_visible), seeds, deadline)
    if "steps" in params.model_fields_set:
        raise bad_parameter("steps", "method=equilibrium takes as many as it needs; leave `steps` out.")
    if params.temperature != 1.0:
        raise bad_parameter("temperature", "method=equilibrium samples the model itself, at 1. Or use method=gibbs.")
    if model.sampler is None:
        raise bad_parameter("method", f"model {model.name!r} was published without a ladder; use method=gibbs.")
    start, num_rounds = model.sampler.draw_foot(seeds), model.sampler.num_rounds
    return chain_job(model, params, num_rounds, format_name, start, seeds, deadline, mode="equilibrium")


def _check_chains(num_images: int, n: int) -> None:
    if num_images * n > MAX_CHAINS:
        raise bad_parameter("n", f"{num_images} images x {n} chains are more than {MAX_CHAINS} chains. Send fewer.")


def _default_every(params: ChainParams, steps: int, format_name: str) -> int:
    """Frames enough for what was asked for: an animation, a stream, or a strip."""
    frames = _ANIMATION_FRAMES if format_name in (*ANIMATED, "sse") else 0
    if params.view == "strip" and format_name != "sse":
        frames = _STRIP_FRAMES
    return max(1, math.ceil(steps / frames)) if frames else 0


def chain_job(
    model: ServedModel,
    params: ChainParams,
    steps: int,
    format_name: str,
    start: np.ndarray,
    seeds: np.ndarray,
    deadline: float,
    **options: Any,
) -> ChainJob:
    every = _default_every(params, steps, format_name) if params.every is None else params.every
    return ChainJob(
        model=model,
        visible=start,
        seeds=seeds,
        num_steps=steps,
        temperature=params.temperature,
        every=every,
        deadline=deadline,
        **options,
    )


async def _run(
    request: Request,
    job: ChainJob,
    drawing: Drawing,
    format_name: str,
    further_headers: dict[str, str],
    decode_seconds: float = 0.0,
    cache: Cache | None = None,
) -> Response:
    """Runs the job and answers in `format_name`."""
    if job.mode != "equilibrium" and job.num_steps > (most := request.app.state.settings.max_steps):
        raise bad_parameter("steps", f"at most {most:,} on this server.")
    num_painted = check_picture(drawing, job, format_name)
    if cache is not None and (unchanged := cache.not_modified()):
        return unchanged
    headers = {**model_headers(drawing.model, seed=drawing.seed, steps=job.num_steps), **further_headers}
    scheduler, settings = request.app.state.scheduler, request.app.state.settings
    if format_name == "sse":
        ticket = scheduler.submit(job, stream=True)

        async def show(frame: Frame) -> dict[str, Any]:
            return await request.app.state.frame_encoder.run(encode_frame, drawing, frame)

        stream = events(request, ticket, show, drawing.summary(), settings.heartbeat_seconds)
        headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Accept"}
        return EventStream(stream, ticket, headers)
    ticket = scheduler.submit(job)
    try:
        frames = await while_connected(request, ticket.result())
    finally:
        ticket.cancel()  # for a request that is cancelled before it begins to wait
    began = time.perf_counter()
    if format_name == "png" and job.num_chains == job.num_frames == 1 and num_painted <= SMALL_PICTURE_PIXELS:
        content = encode_answer(drawing, frames, format_name)  # sooner done than handed over
    else:
        content = await encode(request, encode_answer, drawing, frames, format_name, deadline=job.deadline)
    timing = server_timing(
        queue=ticket.queue_seconds,
        decode=decode_seconds,
        gibbs=ticket.compute_seconds,
        encode=time.perf_counter() - began,
    )
    return answer(content, format_name, {**headers, **timing}, holds=ticket)
